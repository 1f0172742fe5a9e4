"""Stage 4: train the cross-domain autoencoder. Store -> CAE (arXiv 2408.07467, section 3.2)."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from dorl_jax.channel_statistics import channel_statistics
from dorl_jax.config import setting
from dorl_jax.contrast import contrastive_loss, standardise_in_domains
from dorl_jax.data.augment import Augmentation
from dorl_jax.data.groups import draw_groups
from dorl_jax.data.loader import Share, array_batches, balance_groups
from dorl_jax.data.manifest import Cell, Manifest
from dorl_jax.data.views import TwoViews
from dorl_jax.errors import InputError
from dorl_jax.losses import cae_loss
from dorl_jax.models import Cae, CaeConfig
from dorl_jax.models.cae import VectorPart, random_kept
from dorl_jax.parallel import is_main, make_mesh
from dorl_jax.stages.observing import observe_reconstruction
from dorl_jax.store import Places, Store, fingerprint
from dorl_jax.training.checkpoints import save_model
from dorl_jax.training.settings import TrainingSettings, train_as_set
from dorl_jax.training.step import LossFunction


@dataclass(frozen=True)
class CaeSettings(TrainingSettings):
    """Training of the autoencoder."""

    variant: Literal["tiny", "vit_b", "vit_l", "vit_h"] = setting("tiny", "shape; that of the SAM")
    mask_ratio: float = setting(0.75, "share of the tokens hidden from the encoder", least=0, most=1)
    standardise: bool = setting(True, "standardise the channels of the features (the original takes them as they are)")
    pixel_weight: float = setting(
        1.0, "weight of the absolute difference of images beside SSIM (0 in the original)", least=0
    )
    vector: tuple[VectorPart, ...] = setting(
        ("cls",),
        "what a cell's vector is made of: 'cls', the encoder's cls token (the original); 'tokens', mean and sd of its "
        "tokens over the cell; 'features', the same of the features it reads; 'pixels', the pixel encoder's vector; "
        "'regions', colour, texture and shape of the cell, its nucleus and its cytoplasm; 'relations', what of these "
        "stain and light leave alone; 'size', areas of the cell, its nucleus and its cytoplasm",
    )
    reconstruct: int = setting(0, "cells of every batch that are reconstructed; 0 for all", least=0)
    pixel_channels: tuple[int, ...] = setting(
        (), "channels of the pixel encoder's convolutions, multiples of 8: [48, 96, 192]; none in the original", least=1
    )
    pixel_size: int = setting(48, "side in pixels of the crops that the pixel encoder sees", least=1)
    pixel_units: Literal["grey", "cell"] = setting(
        "grey",
        "'cell': each channel of a crop less the cell's mean, by the cell's sd, before the pixel encoder sees it",
    )
    contrast_weight: float = setting(
        0.0, "weight of the contrast between two changed views of a cell, of which the pixel encoder learns", least=0
    )
    temperature: float = setting(
        0.2, "of the contrast: the lower, the more the most similar other cells count", least=1e-3
    )
    magnification: float = setting(1.25, "views: zoom by 1/m..m; 1 for none", least=1)
    stain: float = setting(1.5, "views: strength of the change of the dyes, as finetune_sam.stain", least=0)
    white_balance: float = setting(1.5, "views: strength of the change of the light", least=0)
    blur: float = setting(1.0, "views: strength of blur and noise", least=0)
    batch_size: int = setting(32, "cells a step, over all devices and processes", least=1)
    warmup_steps: int = setting(500, "steps of linear warm-up (at most half of all), before the cosine to 0", least=0)
    balance: Literal["none", "laboratory", "class", "laboratory_and_class"] = setting(
        "laboratory", "the same number of cells of each in every batch; with 'class' the training sees labels"
    )
    whole_batches: bool = setting(
        False,
        "what `balance` names takes turns batch by batch: the contrast has more cells of one laboratory to tell apart",
    )


def train_cae(
    manifest: Manifest,
    store_folder: Path,
    out: Path,
    settings: CaeSettings,
    *,
    unseen: Sequence[str] = (),
    progress: bool = True,
) -> Cae:
    """Train on the store; laboratories are the domains, in the manifest's order.

    No label is used, but to weigh classes where `balance` asks for it.

    Writes into `out`: `model`, `metrics.csv`, `validation.csv` (of cells that do not train, with `validation`, else of
    some that do), `tensorboard`, `pictures`, `trained.txt` (what trains), `samples.npz` (targets and reconstructions),
    `checkpoints`. A killed run goes on where it was.

    Args:
      manifest: the cells of the store.
      store_folder: see `extract`.
      out: folder.
      settings: see there.
      unseen: laboratories whose cells do not train.
      progress: show a bar.

    Raises:
      InputError: the store is of other cells, its features do not fit the variant, or a loss breaks.
      Interrupted: SIGTERM; the state was saved.
    """
    store = Store(store_folder)
    store.require_ids([cell.id for cell in manifest.cells])
    grid, _, width = store["feature"][0].shape
    if settings.contrast_weight and not settings.pixel_channels:
        raise InputError("train_cae.contrast_weight is of what the pixel encoder learns: set train_cae.pixel_channels")
    if settings.whole_batches and settings.balance == "none":
        raise InputError("train_cae.whole_batches are of what train_cae.balance names: set that to 'laboratory'")
    if not 0 <= settings.reconstruct <= settings.batch_size:
        raise InputError(f"train_cae.reconstruct = {settings.reconstruct} of a batch of {settings.batch_size} cells")
    if settings.reconstruct % settings.accumulate:
        raise InputError(
            f"train_cae.reconstruct = {settings.reconstruct} cells are not shared evenly by the train_cae.accumulate = "
            f"{settings.accumulate} parts of a batch: take a multiple"
        )
    config = replace(
        CaeConfig.preset(settings.variant),
        grid=grid,
        mask_ratio=settings.mask_ratio,
        vector=settings.vector,
        pixel_channels=settings.pixel_channels,
        pixel_size=settings.pixel_size,
        pixel_units=settings.pixel_units,
    )
    if width != config.width:
        raise InputError(
            f"train_cae.variant = {settings.variant!r} reads features of {config.width}, the store has {width}"
        )
    seen = [place for place, cell in enumerate(manifest.cells) if cell.laboratory not in unseen]
    laboratories = manifest.without(unseen).laboratories
    if settings.standardise:
        config = _with_statistics(config, store, seen)
    training, selecting = _split(manifest.cells, seen, settings.validation, settings.seed)
    if settings.select and not selecting:
        raise InputError("train_cae.select needs cells that do not train: set train_cae.validation above 0")
    if not training:
        raise InputError(f"train_cae.validation = {settings.validation} leaves no cell to train on")
    cells = [manifest.cells[place] for place in training]
    number = {laboratory: index for index, laboratory in enumerate(laboratories)}
    model = Cae(config, rngs=nnx.Rngs(settings.seed))
    batches = array_batches(
        {
            "feature": Places(store["feature"], training),
            "crop": Places(store["crop"], training),
            "domain": np.array([number[cell.laboratory] for cell in cells], np.int32),
            "place": np.arange(len(cells), dtype=np.int32),
        },
        settings.batch_size,
        settings.seed,
        balance_groups(cells, settings.balance),
        whole_batches=settings.whole_batches,
        change=_views(settings),
        share=Share(jax.process_index(), jax.process_count()),
    )
    looked_at = selecting or training
    observe = observe_reconstruction(
        Places(store["feature"], looked_at),
        Places(store["crop"], looked_at),
        [manifest.cells[place].laboratory for place in looked_at],
        list(number),
        settings.batch_size,
        settings.pixel_weight,
        make_mesh(settings.model_axis),
    )
    with closing(batches):
        train_as_set(
            model,
            nnx.Param,
            # The parts of a batch have its first cells in equal shares.
            cae_objective(
                config,
                len(number),
                settings.pixel_weight,
                settings.reconstruct // settings.accumulate,
                _contrast(settings),
            ),
            batches,
            settings,
            out,
            name="training CAE",
            ids=[cell.id for cell in cells],
            data=fingerprint(store.signature, [cell.id for cell in cells]),
            mode="max" if settings.select.startswith("ssim") else "min",
            observe=observe,
            progress=progress,
        )
    if is_main():
        save_model(out / "model", model)
        _save_samples(manifest, store, model, out)
    return model


@dataclass(frozen=True)
class Contrast:
    """How much the contrast between "view_a" and "view_b" weighs, and its temperature."""

    weight: float
    temperature: float


def cae_objective(
    config: CaeConfig,
    num_domains: int,
    pixel_weight: float = 0.0,
    reconstruct: int = 0,
    contrast: Contrast | None = None,
) -> LossFunction:
    """The training's loss for a model of that shape; which tokens are hidden is drawn.

    Args:
      config: of the model.
      num_domains, pixel_weight: see `losses.cae_loss`.
      reconstruct: the first so many cells of the batch, or of the part that is computed at a time, are reconstructed; 0
        for all.
      contrast: between two views, or None.
    """

    def reconstruction(model: Cae, batch: Mapping[str, Array], key: Array) -> dict[str, Array]:
        features = batch["feature"].astype(jnp.float32)
        out = model(features, random_kept(key, features.shape[0], config))
        images = batch["crop"].astype(jnp.float32) / 255
        return cae_loss(out, model.standardise(features), images, batch["domain"], num_domains, pixel_weight)

    def objective(model: Cae, batch: Mapping[str, Array], key: Array) -> dict[str, Array]:
        first = {name: batch[name][: reconstruct or None] for name in ("feature", "crop", "domain")}
        losses = reconstruction(model, first, key)
        if contrast is None:
            return losses
        compared = _compare_views(model, batch, num_domains, contrast.temperature)
        total = losses["loss"] + contrast.weight * compared["loss"]
        return {**losses, "loss": total, "contrast": compared["loss"], "found": compared["found"]}

    return objective


def _compare_views(model: Cae, batch: Mapping[str, Array], num_domains: int, temperature: float) -> dict[str, Array]:
    domains = batch["domain"]
    both = jnp.concatenate([domains, domains])
    views = jnp.concatenate([batch["view_a"], batch["view_b"]]).astype(jnp.float32) / 255
    compared = model.compare(views, lambda x: standardise_in_domains(x, both, num_domains))
    a, b = jnp.split(compared, 2)
    return contrastive_loss(a, b, domains, temperature)


def _contrast(settings: CaeSettings) -> Contrast | None:
    return Contrast(settings.contrast_weight, settings.temperature) if settings.contrast_weight else None


def _views(settings: CaeSettings) -> TwoViews | None:
    if not settings.contrast_weight:
        return None
    how = Augmentation("laboratory", settings.magnification, settings.stain, settings.white_balance, settings.blur)
    return TwoViews(settings.pixel_size, how)


def _split(cells: Sequence[Cell], places: Sequence[int], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Of these places those of the cells that train, and of those that do not: `share` of each laboratory.

    Groups are not parted (see `finetune_sam.split_masked`).
    """
    rng = np.random.default_rng(seed)
    kept: set[int] = set()
    for laboratory in dict.fromkeys(cells[place].laboratory for place in places):
        own = [place for place in places if cells[place].laboratory == laboratory]
        alone = [place for place in own if not cells[place].group]
        kept.update(rng.permutation(alone)[: round(share * len(alone))].tolist())
        grouped = [place for place in own if cells[place].group]
        drawn = draw_groups([cells[place] for place in grouped], round(share * len(grouped)), rng)
        kept.update(place for place in grouped if cells[place].whole_group in drawn)
    return [place for place in places if place not in kept], sorted(kept)


def _with_statistics(config: CaeConfig, store: Store, places: Sequence[int]) -> CaeConfig:
    mean, std = channel_statistics(store["feature"], places)
    return replace(config, feature_mean=tuple(mean.tolist()), feature_std=tuple(std.tolist()))


def _save_samples(manifest: Manifest, store: Store, model: Cae, out: Path) -> None:
    """One cell of each class of each laboratory, and its reconstruction from all tokens."""
    first: dict[tuple[str, str], int] = {}
    for place, cell in enumerate(manifest.cells):
        first.setdefault((cell.laboratory, cell.label), place)
    places = [first[key] for key in sorted(first)]
    features = np.stack([store["feature"][place] for place in places]).astype(np.float32)
    image = np.asarray(nnx.jit(lambda model, x: model(x)["image"])(model, features))
    np.savez_compressed(
        out / "samples.npz",
        target=np.stack([store["crop"][place] for place in places]),
        reconstruction=(np.clip(image, 0, 1) * 255).round().astype(np.uint8),
        laboratory=np.array([manifest.cells[place].laboratory for place in places]),
        label=np.array([manifest.cells[place].label for place in places]),
    )
