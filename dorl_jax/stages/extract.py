"""Stage 3: what the autoencoder learns from. Images -> feature tokens, masks and crops (arXiv 2408.07467, 3.2)."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np

from dorl_jax import __version__
from dorl_jax.config import setting
from dorl_jax.data.crops import cell_crop, cell_view, is_empty
from dorl_jax.data.images import resize_image, resize_mask
from dorl_jax.data.manifest import Cell, Manifest
from dorl_jax.models import CaeConfig, LoraSam
from dorl_jax.stages.segment import features_and_logits, mask_at, run_batches, segment
from dorl_jax.store import Store, StoreWriter
from dorl_jax.training.checkpoints import load_model

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExtractSettings:
    """Features, masks and crops."""

    batch_size: int = setting(16, "images a step")
    dtype: Literal["float32", "bfloat16"] = setting("bfloat16", "type in which features are kept")
    zoom: float = setting(
        1.25, "features of the window around the cell, this many times its size; 0 for the whole image, as the original"
    )
    parity: bool = setting(False, "crop as the released code does: without the last row and column of the box")
    shard_size: int = setting(256, "cells a shard of the store")
    workers: int = setting(2, "threads that decode ahead")


def extract(
    manifest: Manifest, model_folder: Path, out: Path, settings: ExtractSettings, *, weights: str, progress: bool = True
) -> Store:
    """Run the segmenter over all cells.

    Writes `out/store` with the fields "feature" (grid, grid, C), "crop" uint8 (S, S, 3), the cell alone on grey, and
    "empty" bool, True where no mask was found and the crop is the whole image; and `out/samples.npz` (pictures). A
    killed run goes on behind its last shard.

    Args:
      manifest: the cells.
      model_folder: of the LoRA-SAM.
      out: folder.
      settings: see there.
      weights: fingerprint of the model, kept with the store.
      progress: show a bar.
    """
    model = load_model(model_folder, LoraSam)
    signature = {
        "weights": weights,
        "version": __version__,
        "dtype": settings.dtype,
        "parity": settings.parity,
        "zoom": settings.zoom,
    }
    ids = [cell.id for cell in manifest.cells]
    writer = StoreWriter(out / "store", ids, signature, settings.shard_size)
    dtype = np.dtype(ml_dtypes.bfloat16) if settings.dtype == "bfloat16" else np.dtype(np.float32)
    crop_size = CaeConfig(grid=model.config.encoder.grid[0]).image_size
    for number, places in writer.missing():
        cells = [manifest.cells[place] for place in places]
        arrays: dict[str, list[Any]] = {"feature": [], "crop": [], "empty": []}
        name = f"extracting (shard {number + 1} of {-(-len(ids) // settings.shard_size)})"
        for batch, features, margins in run_batches(
            model, cells, settings.batch_size, name=name, workers=settings.workers, progress=progress
        ):
            originals = batch["originals"]
            masks = [mask_at(margin, *image.shape[:2]) for image, margin in zip(originals, margins, strict=True)]
            if settings.zoom:
                views = [cell_view(image, mask, settings.zoom) for image, mask in zip(originals, masks, strict=True)]
                features = _features(model, views, settings.batch_size)
            arrays["feature"].extend(features.astype(dtype))
            for image, mask in zip(originals, masks, strict=True):
                arrays["crop"].append(cell_crop(image, mask, crop_size, parity=settings.parity))
                arrays["empty"].append(is_empty(mask))
        writer.write(number, {field: np.stack(rows) for field, rows in arrays.items()})
    store = Store(out / "store")
    empty = sum(bool(store["empty"][place]) for place in range(len(store)))
    if empty:
        logger.warning("no mask found in %d of %d cells; their whole image is used", empty, len(ids))
    _save_samples(manifest, model, out, settings)
    return store


def _features(model: LoraSam, views: list[np.ndarray], batch_size: int) -> np.ndarray:
    """Feature tokens of at most `batch_size` images."""
    resized = [resize_image(view, model.config.encoder.side) for view in views]
    padded = np.stack(resized + resized[-1:] * (batch_size - len(views)))  # one compiled shape
    return np.asarray(features_and_logits(model, padded)[0])[: len(views)]


def _save_samples(manifest: Manifest, model: LoraSam, out: Path, settings: ExtractSettings, each: int = 8) -> None:
    """Masks of some cells of every laboratory, for looking at."""
    cells: list[Cell] = []
    for laboratory in manifest.laboratories:
        own = manifest.of(laboratory)
        cells += own[:: max(1, len(own) // each)][:each]
    size = model.config.encoder.side
    images, masks = [], []
    for _, image, mask in segment(model, cells, settings.batch_size, name="samples", progress=False):
        images.append(resize_image(image, size))
        masks.append(resize_mask(mask, size))
    np.savez_compressed(
        out / "samples.npz",
        image=np.stack(images),
        mask=np.stack(masks),
        laboratory=np.array([cell.laboratory for cell in cells]),
        label=np.array([cell.label for cell in cells]),
    )
