"""Stage 4: train the cross-domain autoencoder. Store -> CAE (arXiv 2408.07467, section 3.2)."""

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from dorl_jax.config import setting
from dorl_jax.data.loader import array_batches, balance_groups
from dorl_jax.data.manifest import Manifest
from dorl_jax.errors import InputError
from dorl_jax.losses import cae_loss
from dorl_jax.models import Cae, CaeConfig
from dorl_jax.models.cae import random_kept
from dorl_jax.store import Store
from dorl_jax.training.checkpoints import save_model
from dorl_jax.training.loop import LoopSettings, train
from dorl_jax.training.optim import adamw, warmup_cosine


@dataclass(frozen=True)
class CaeSettings:
    """Training of the autoencoder."""

    variant: Literal["tiny", "vit_b", "vit_l", "vit_h"] = setting("tiny", "shape; that of the SAM")
    mask_ratio: float = setting(0.75, "share of the tokens hidden from the encoder")
    standardise: bool = setting(True, "standardise the channels of the features (the original takes them as they are)")
    pixel_weight: float = setting(1.0, "weight of the absolute difference of images beside SSIM (0 in the original)")
    steps: int = setting(300, "optimiser steps")
    batch_size: int = setting(32, "cells a step")
    learning_rate: float = setting(1e-4, "peak learning rate")
    weight_decay: float = setting(0.05, "AdamW's weight decay")
    warmup_steps: int = setting(500, "steps of linear warm-up (at most half of all), before the cosine to 0")
    balance: Literal["none", "laboratory", "class", "laboratory_and_class"] = setting(
        "laboratory", "the same number of cells of each in every batch; with 'class' the training sees labels"
    )
    log_every: int = setting(20, "steps between rows of metrics.csv")
    checkpoint_every: int = setting(200, "steps between checkpoints")
    seed: int = setting(0, "seed of weights, order and masks")


def train_cae(
    manifest: Manifest, store_folder: Path, out: Path, settings: CaeSettings, *, progress: bool = True
) -> Cae:
    """Train on the store; laboratories are the domains, in the manifest's order. No label is used.

    Writes into `out`: `model`, `metrics.csv`, `samples.npz` (targets and reconstructions), `checkpoints`. A killed run
    goes on where it was.

    Raises:
      InputError: the store is of other cells, or its features do not fit the variant.
    """
    store = Store(store_folder)
    store.require_ids([cell.id for cell in manifest.cells])
    grid, _, width = store["feature"][0].shape
    config = replace(CaeConfig.preset(settings.variant), grid=grid, mask_ratio=settings.mask_ratio)
    if width != config.width:
        raise InputError(
            f"train_cae.variant = {settings.variant!r} reads features of {config.width}, the store has {width}"
        )
    if settings.standardise:
        config = _with_statistics(config, store)
    number = {laboratory: index for index, laboratory in enumerate(manifest.laboratories)}
    domains = np.array([number[cell.laboratory] for cell in manifest.cells], np.int32)
    model = Cae(config, rngs=nnx.Rngs(settings.seed))

    def loss(model: Cae, batch: Mapping[str, Array], key: Array) -> dict[str, Array]:
        features = batch["feature"].astype(jnp.float32)
        out = model(features, random_kept(key, features.shape[0], config))
        images = batch["crop"].astype(jnp.float32) / 255
        target = model.standardise(features)
        return cae_loss(out, target, images, batch["domain"], len(number), settings.pixel_weight)

    schedule = warmup_cosine(settings.learning_rate, settings.warmup_steps, settings.steps)
    batches = array_batches(
        {"feature": store["feature"], "crop": store["crop"], "domain": domains},
        settings.batch_size,
        settings.seed,
        balance_groups(manifest.cells, settings.balance),
    )
    with closing(batches):
        train(
            model,
            nnx.Param,
            loss,
            adamw(schedule, settings.weight_decay),
            schedule,
            batches,
            LoopSettings(settings.steps, settings.log_every, settings.checkpoint_every, settings.seed),
            out,
            name="training CAE",
            progress=progress,
        )
    save_model(out / "model", model)
    _save_samples(manifest, store, model, out)
    return model


def _with_statistics(config: CaeConfig, store: Store, most: int = 500) -> CaeConfig:
    """The configuration with mean and sd of each channel over at most `most` evenly spaced cells."""
    places = range(0, len(store), max(1, len(store) // most))
    features = np.stack([store["feature"][place] for place in places]).astype(np.float32)
    mean, std = features.mean(axis=(0, 1, 2)), features.std(axis=(0, 1, 2))
    std = np.maximum(std, 1e-3 * std.max())  # a channel that never changes
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
