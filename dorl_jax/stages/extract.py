"""Stage 3: what the autoencoder learns from. Images -> feature tokens, masks and crops (arXiv 2408.07467, 3.2)."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import ml_dtypes
import numpy as np

from dorl_jax import __version__
from dorl_jax.config import setting
from dorl_jax.data.cut import cut_cells
from dorl_jax.data.images import resize_image, resize_mask
from dorl_jax.data.manifest import Cell, Manifest
from dorl_jax.data.pool import buffered, worker_pool
from dorl_jax.models import CaeConfig, LoraSam
from dorl_jax.stages.segment import features_and_logits, run_batches, segment
from dorl_jax.store import Store, StoreWriter
from dorl_jax.training.checkpoints import load_model

logger = logging.getLogger(__name__)

# Batches whose cells are being cut out while the device goes on.
_AHEAD = 2


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
    workers: int = setting(-1, "processes that decode and cut out cells; 0 for threads, -1 for half the cores")


def extract(
    manifest: Manifest, model_folder: Path, out: Path, settings: ExtractSettings, *, weights: str, progress: bool = True
) -> Store:
    """Run the segmenter over all cells.

    Writes `out/store` with the fields "feature" (grid, grid, C), "crop" uint8 (S, S, 3), the cell alone on grey,
    "foreground" uint8 (grid, grid), how much of each token is cell, and "empty" bool, True where no mask was found and
    crop and foreground are of the whole image (see `cut.CutCells`); and `out/samples.npz` (pictures). A killed run goes
    on behind its last shard.

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
    missing = list(writer.missing())
    cells = [manifest.cells[place] for _, places in missing for place in places]
    rows = _rows(model, cells, crop_size, settings, done=len(ids) - len(cells), progress=progress)
    for number, places in missing:
        feature, crop, foreground, empty = map(np.stack, zip(*islice(rows, len(places)), strict=True))
        arrays = {"feature": feature.astype(dtype), "crop": crop, "foreground": foreground, "empty": empty}
        writer.write(number, arrays)
    store = Store(out / "store")
    without = sum(bool(store["empty"][place]) for place in range(len(store)))
    if without:
        logger.warning("no mask found in %d of %d cells; their whole image is used", without, len(ids))
    _save_samples(manifest, model, out, settings)
    return store


def _rows(
    model: LoraSam, cells: Sequence[Cell], crop_size: int, settings: ExtractSettings, *, done: int, progress: bool
) -> Iterator[tuple[np.ndarray, ...]]:
    """Feature, crop, foreground and whether no mask was found, of every cell in order.

    Cells are decoded, and cut out, by workers while the device computes other batches.
    """
    side, size = model.config.encoder.side, settings.batch_size
    batches = run_batches(model, cells, size, name="extracting", workers=settings.workers, done=done, progress=progress)
    with worker_pool(settings.workers) as pool:
        cutting = (
            (
                features,
                pool.submit(
                    cut_cells,
                    batch["originals"],
                    margins,
                    crop_size,
                    model.config.encoder.grid[0],
                    parity=settings.parity,
                    zoom=settings.zoom,
                    view_size=side,
                    resize=model.config.resize,
                ),
            )
            for batch, features, margins in batches
        )
        for features, future in buffered(cutting, _AHEAD):
            cut = future.result()
            if cut.views is not None:
                padding = [(0, size - len(features)), (0, 0), (0, 0), (0, 0)]
                padded = np.pad(cut.views, padding, mode="edge")  # one compiled shape
                features = np.asarray(features_and_logits(model, padded)[0])[: len(features)]
            yield from zip(features, cut.crops, cut.foreground, cut.empty, strict=True)


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
