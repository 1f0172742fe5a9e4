"""Stage 2: teach SAM to segment cells. Images + masks -> LoRA-SAM (arXiv 2408.07467, section 3.1)."""

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from dorl_jax.config import expand_path, setting
from dorl_jax.data.augment import Augmentation
from dorl_jax.data.groups import draw_groups
from dorl_jax.data.images import Resize, read_image, resize_image, resize_mask
from dorl_jax.data.light import Light, in_light
from dorl_jax.data.loader import Share, segmentation_batches
from dorl_jax.data.manifest import Cell, Manifest, read_cell
from dorl_jax.errors import InputError
from dorl_jax.files import write_text
from dorl_jax.losses import segmentation_loss
from dorl_jax.models import DORL_PIXEL_MEAN, DORL_PIXEL_STD, SAM_PIXEL_MEAN, SAM_PIXEL_STD, LoraSam, SamConfig
from dorl_jax.parallel import is_main, make_mesh
from dorl_jax.stages.observing import observe_segmentation
from dorl_jax.stages.segment import segment
from dorl_jax.store import fingerprint
from dorl_jax.training.checkpoints import save_model
from dorl_jax.training.settings import TrainingSettings, train_as_set

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FinetuneSettings(TrainingSettings):
    """Fine-tuning (or training from scratch) of the segmenter."""

    variant: Literal["tiny", "vit_b", "vit_l", "vit_h"] = setting("tiny", "shape of the SAM")
    image_size: int = setting(0, "side of the input in pixels; 0 for 112 (tiny) or 224", least=0)
    checkpoint: str = setting("", "official SAM checkpoint (.pth, .safetensors) to start from; empty for fresh weights")
    encoder: Literal["lora", "lora_only", "full"] = setting(
        "full",
        "what trains: LoRA, prompt encoder and mask decoder (the method); LoRA alone; or every weight (needed without "
        "a checkpoint)",
    )
    rank: int = setting(4, "rank of the LoRA matrices (encoder = 'lora' or 'lora_only')", least=1)
    pixel_statistics: Literal["data", "sam", "dorl"] = setting(
        "data", "mean and sd that normalise the input: of the training images, SAM's, or DoRL's"
    )
    learning_rate: float = setting(5e-4, "peak learning rate", least=0)
    weight_decay: float = setting(0.1, "AdamW's weight decay", least=0)
    dice_weight: float = setting(0.8, "share of Dice in the loss; the rest is cross-entropy", least=0, most=1)
    class_weights: tuple[float, float] = setting((1.0, 1.0), "weights of background and cell in the loss", least=0)
    resize: Literal["bilinear", "cv2_bilinear"] = setting(
        "bilinear", "to the input's size; 'cv2_bilinear', the original's, skips pixels where it shrinks by 2 or more"
    )
    light: Literal["as_is", "white_patch"] = setting(
        "as_is", "of every image; 'white_patch' makes its ground, the 90th percentile of each channel, the same white"
    )
    augment: Literal["none", "parity", "laboratory"] = setting(
        "laboratory",
        "change images and masks at random: 'parity' as the original; 'laboratory' by symmetries, small rotations and "
        "the look of another laboratory, by the strengths that follow",
    )
    magnification: float = setting(1.25, "zoom by up to this factor, or its inverse; 1 for none", least=1)
    stain: float = setting(1.0, "strength of the random amount, hue and purity of the dyes; 0 for none", least=0)
    white_balance: float = setting(
        1.0, "strength of the random brightness and colour of the light; 0 for none", least=0
    )
    blur: float = setting(1.0, "strength of random blur and noise; 0 for none", least=0)
    cell_stain: float = setting(
        0.0,
        "strength of a change, half the time, of the dyes of the cell alone; for laboratories that are not seen",
        least=0,
    )
    balance: Literal["none", "laboratory", "class", "laboratory_and_class"] = setting(
        "laboratory", "take these equally often, whatever their size"
    )
    held_out: float = setting(
        0.2, "share of the masked cells of each laboratory that is kept for the test", least=0, most=1
    )
    validation: float = setting(
        0.1, "share of the other masked cells that does not train, but selects; 0 for none", least=0, most=1
    )
    select: str = setting("iou", "number of validation.csv that tells the best checkpoint; empty for the last one")

    def __post_init__(self) -> None:
        """Refuse a loss of nothing, too.

        Raises:
          InputError: names the setting.
        """
        super().__post_init__()
        if not any(self.class_weights):
            raise InputError(f"class_weights = {list(self.class_weights)}: one of them above 0 is needed to learn from")


def finetune_sam(manifest: Manifest, out: Path, settings: FinetuneSettings, *, progress: bool = True) -> LoraSam:
    """Train the segmenter on the cells that have a mask, select it on some kept apart, and test it on others.

    Writes into `out`: `model`, `metrics.csv`, `validation.csv`, `tensorboard`, `pictures`, `trained.txt` (what trains),
    `held_out.json` (mean IoU of each laboratory, IoU of each cell), `held_out_samples.npz` (pictures), `checkpoints`. A
    killed run goes on where it was.

    Raises:
      InputError: no cell has a mask; LoRA without a checkpoint; a checkpoint that does not fit; a loss that breaks.
      Interrupted: SIGTERM; the state was saved.
    """
    learning, test = split_masked(manifest.cells, settings.held_out, settings.seed)
    if not learning or not test:
        raise InputError(
            f"finetune_sam.held_out = {settings.held_out} leaves {len(learning)} cells to train on, {len(test)} to test"
        )
    training, selecting = split_masked(learning, settings.validation, settings.seed + 1, least=1)
    if not training:
        raise InputError(f"finetune_sam.validation = {settings.validation} leaves no cell to train on")
    if settings.select and not selecting:
        raise InputError(
            "finetune_sam.select needs cells that do not train: set finetune_sam.validation, or select = ''"
        )
    model = _make_model(settings, training)
    config, mesh = model.config, make_mesh(settings.model_axis)
    batches = segmentation_batches(
        training,
        config.encoder.side,
        settings.batch_size,
        settings.seed,
        augmentation=Augmentation(
            settings.augment,
            settings.magnification,
            settings.stain,
            settings.white_balance,
            settings.blur,
            settings.cell_stain,
        ),
        balance=settings.balance,
        resize=settings.resize,
        light=settings.light,
        workers=settings.workers,
        share=Share(jax.process_index(), jax.process_count()),
    )
    objective = segmentation_objective(config, settings.dice_weight, settings.class_weights)
    observe = None
    if selecting:
        observe = observe_segmentation(
            selecting,
            config.encoder.side,
            config.resize,
            config.light,
            settings.batch_size,
            objective.of_logits,
            mesh,
        )
    with closing(batches):
        train_as_set(
            model,
            model.trainable(settings.encoder),
            objective,
            batches,
            settings,
            out,
            name="fine-tuning SAM",
            ids=[cell.id for cell in training],
            data=fingerprint([cell.id for cell in training]),
            mode="min" if settings.select == "loss" else "max",
            observe=observe,
            progress=progress,
        )
    if is_main():
        save_model(out / "model", model)
        _test(model, test, out, settings, progress)
    return model


@dataclass(frozen=True)
class SegmentationObjective:
    """The loss of a batch of images and masks, as `training.step` wants it."""

    size: int
    dice_weight: float
    class_weights: tuple[float, ...]

    def __call__(self, model: LoraSam, batch: Mapping[str, Array], key: Array) -> dict[str, Array]:
        """Losses of the batch; nothing is drawn."""
        return self.of_logits(model(batch["image"])["low_res_logits"], batch["mask"])

    def of_logits(self, low_res_logits: Array, masks: Array) -> dict[str, Array]:
        """Losses of logits (B, 4h, 4w, 2) against masks at the input's size."""
        labels = _shrink(masks, self.size)
        return segmentation_loss(low_res_logits, labels, self.dice_weight, self.class_weights)


def segmentation_objective(
    config: SamConfig, dice_weight: float = 0.8, class_weights: tuple[float, ...] = (1.0, 1.0)
) -> SegmentationObjective:
    """The fine-tuning's loss for a model of that shape.

    Args:
      config: of the model.
      dice_weight, class_weights: see `losses.segmentation_loss`.
    """
    return SegmentationObjective(4 * config.encoder.grid[0], dice_weight, class_weights)


def split_masked(cells: Sequence[Cell], share: float, seed: int, *, least: int = 0) -> tuple[list[Cell], list[Cell]]:
    """The cells that have a mask, in two parts: of every class of every laboratory `share` go to the second.

    A group (patient, slide) is not parted: of cells that have one, whole groups go to the second part until it has
    `share` of the laboratory's, whatever their classes; a laboratory's only group stays in the first.

    Args:
      cells: those without a mask are left out.
      share: 0..1.
      seed: of the draw.
      least: cells of each laboratory that the second part has in any case, if `share` is not 0.

    Raises:
      InputError: no cell has a mask.
    """
    alone: dict[tuple[str, str], list[Cell]] = {}
    grouped: dict[str, list[Cell]] = {}
    for cell in cells:
        if cell.mask is not None and cell.group:
            grouped.setdefault(cell.laboratory, []).append(cell)
        elif cell.mask is not None:
            alone.setdefault((cell.laboratory, cell.label), []).append(cell)
    if not alone and not grouped:
        raise InputError("no cell has a mask: fill the column `mask` of labels.csv in at least one laboratory")
    rng = np.random.default_rng(seed)
    first: list[Cell] = []
    second: list[Cell] = []
    for _, own in sorted(alone.items()):
        order = rng.permutation(len(own))
        cut = round(share * len(own))
        second += [own[place] for place in sorted(order[:cut])]
        first += [own[place] for place in sorted(order[cut:])]
    for _, own in sorted(grouped.items()):
        drawn = draw_groups(own, round(share * len(own)), rng)
        second += [cell for cell in own if cell.whole_group in drawn]
        first += [cell for cell in own if cell.whole_group not in drawn]
    if share and least:
        for laboratory in sorted({cell.laboratory for cell in first}):
            missing = max(0, least - sum(cell.laboratory == laboratory for cell in second))
            own = [cell for cell in first if cell.laboratory == laboratory and not cell.group]
            moved = [own[place] for place in rng.permutation(len(own))[:missing]]
            if not own:
                own = [cell for cell in first if cell.laboratory == laboratory]
                drawn = draw_groups(own, missing, rng)
                moved = [cell for cell in own if cell.whole_group in drawn]
            second += moved
            ids = {cell.id for cell in moved}
            first = [cell for cell in first if cell.id not in ids]
    return first, second


def _make_model(settings: FinetuneSettings, cells: Sequence[Cell]) -> LoraSam:
    image_size = settings.image_size or (112 if settings.variant == "tiny" else 224)
    try:
        config = SamConfig.preset(settings.variant, image_size)
    except ValueError as error:
        raise InputError(f"finetune_sam.image_size = {image_size}: {error}") from error
    if settings.pixel_statistics == "data":
        mean, std = pixel_statistics(cells, image_size, settings.resize, settings.light)
    elif settings.pixel_statistics == "sam":
        mean, std = SAM_PIXEL_MEAN, SAM_PIXEL_STD
    else:
        mean, std = DORL_PIXEL_MEAN, DORL_PIXEL_STD
    rank = 0 if settings.encoder == "full" else settings.rank
    if settings.checkpoint:
        from weights_conversion import convert_lora_sam

        path = expand_path(settings.checkpoint, "finetune_sam.checkpoint")
        return convert_lora_sam(
            path,
            None,
            settings.variant,
            image_size,
            rank,
            mean,
            std,
            resize=settings.resize,
            light=settings.light,
            seed=settings.seed,
        )
    if settings.encoder != "full":
        raise InputError(
            f"finetune_sam.encoder = {settings.encoder!r} tunes a trained SAM: give finetune_sam.checkpoint, or 'full'"
        )
    config = replace(config, pixel_mean=mean, pixel_std=std, resize=settings.resize, light=settings.light)
    model = LoraSam(config, None, rngs=nnx.Rngs(settings.seed))
    # Zeros are for tables that a checkpoint fills; a fresh ViT learns faster from small random positions.
    positions = model.sam.image_encoder.pos_embed
    noise = 0.02 * jax.random.normal(jax.random.key(settings.seed), positions.shape)
    positions.set_value(noise)
    return model


def pixel_statistics(
    cells: Sequence[Cell], image_size: int, resize: Resize = "bilinear", light: Light = "as_is", most: int = 200
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and sd of each channel (0..255) over evenly spaced cells, `most` to twice as many."""
    chosen = cells[:: max(1, len(cells) // most)]
    images = [in_light(read_image(cell.image), light) for cell in chosen]
    pixels = np.stack([resize_image(image, image_size, resize) for image in images]).reshape(-1, 3)
    mean, std = pixels.mean(axis=0), np.maximum(pixels.std(axis=0), 1.0)
    return (float(mean[0]), float(mean[1]), float(mean[2])), (float(std[0]), float(std[1]), float(std[2]))


def _shrink(masks: Array, size: int) -> Array:
    """Nearest-neighbour to the size of the logits: of each square the pixel behind its centre."""
    places = ((jnp.arange(size) + 0.5) * masks.shape[1] / size).astype(jnp.int32)
    return masks[:, places[:, None], places[None, :]].astype(jnp.int32)


def _test(model: LoraSam, cells: Sequence[Cell], out: Path, settings: FinetuneSettings, progress: bool) -> None:
    rows: list[dict[str, Any]] = []
    pictures: list[tuple[Cell, np.ndarray, np.ndarray, np.ndarray, float]] = []
    size = model.config.encoder.side
    for place, image, predicted in segment(model, cells, settings.batch_size, name="testing masks", progress=progress):
        _, truth = read_cell(cells[place])
        assert truth is not None
        iou = intersection_over_union(predicted, truth)
        rows.append({"id": cells[place].id, "laboratory": cells[place].laboratory, "iou": iou})
        small = resize_image(image, size), resize_mask(truth, size), resize_mask(predicted, size)
        pictures.append((cells[place], *small, iou))
    laboratories = sorted({row["laboratory"] for row in rows})
    mean_iou = {lab: float(np.mean([r["iou"] for r in rows if r["laboratory"] == lab])) for lab in laboratories}
    write_text(out / "held_out.json", json.dumps({"mean_iou": mean_iou, "cells": rows}, indent=1) + "\n")
    chosen = [picture for lab in laboratories for picture in _worst_and_typical(pictures, lab)]
    np.savez_compressed(
        out / "held_out_samples.npz",
        image=np.stack([picture[1] for picture in chosen]),
        truth=np.stack([picture[2] for picture in chosen]),
        predicted=np.stack([picture[3] for picture in chosen]),
        laboratory=np.array([picture[0].laboratory for picture in chosen]),
        iou=np.array([picture[4] for picture in chosen], np.float32),
    )
    logger.info("mean IoU of held-out masks: %s", ", ".join(f"{lab} {iou:.3f}" for lab, iou in mean_iou.items()))


def intersection_over_union(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Pixels in both over pixels in either, 0..1; 1 if both are empty."""
    either = np.logical_or(predicted, truth).sum()
    return float(np.logical_and(predicted, truth).sum() / either) if either else 1.0


def _worst_and_typical(pictures: list[Any], laboratory: str, each: int = 4) -> list[Any]:
    """The worst masks of a laboratory, then some spread evenly over the rest."""
    ordered = sorted((p for p in pictures if p[0].laboratory == laboratory), key=lambda picture: picture[4])
    rest = ordered[each:]
    return ordered[:each] + rest[:: max(1, len(rest) // each)][:each]
