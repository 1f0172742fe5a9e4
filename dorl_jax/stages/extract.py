"""Stage 3: what the autoencoder learns from. Images -> feature tokens, masks and crops (arXiv 2408.07467, 3.2)."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import ml_dtypes
import numpy as np
from tqdm.auto import tqdm

from dorl_jax import __version__
from dorl_jax.config import Settings, setting
from dorl_jax.data.images import resize_image, resize_mask
from dorl_jax.data.loader import CellSources, picture_batches
from dorl_jax.data.manifest import Cell, Manifest
from dorl_jax.data.pictures import FilePictures
from dorl_jax.embedding.engine import Engine
from dorl_jax.embedding.shards import batches_of, joined, whole_batches
from dorl_jax.errors import InputError, name_some
from dorl_jax.locks import locked
from dorl_jax.models import LoraSam
from dorl_jax.stages.segment import segment
from dorl_jax.store import Store, StoreWriter
from dorl_jax.training.checkpoints import load_model

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExtractSettings(Settings):
    """Features, masks and crops."""

    batch_size: int = setting(16, "images a step", least=1)
    dtype: Literal["float32", "bfloat16"] = setting("bfloat16", "type in which features are kept")
    zoom: float = setting(
        1.25,
        "features of the window around the cell, this many times its size; 0 for the whole image, as the original",
        least=0,
    )
    parity: bool = setting(False, "crop as the released code does: without the last row and column of the box")
    shard_size: int = setting(256, "cells a shard of the store, rounded up to whole batches", least=1)
    workers: int = setting(
        -1, "processes that decode and cut out cells; 0 for threads, -1 for half the cores", least=-1
    )


def extract(
    manifest: Manifest, model_folder: Path, out: Path, settings: ExtractSettings, *, weights: str, progress: bool = True
) -> Store:
    """Run the segmenter over all cells.

    Writes `out/store` with the fields "feature" (grid, grid, C), "crop" uint8 (S, S, 3), the cell alone on grey,
    "foreground" uint8 (grid, grid), how much of each token is cell, "area" float32 (), of the cell in pixels of its
    image, and "empty" bool, True where no mask was found and all of these are of the whole image (see `cut.CutCells`);
    and `out/samples.npz` (pictures). A killed run goes on behind its last shard.

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
    size = settings.batch_size
    shard_size = whole_batches(settings.shard_size, size)
    writer = StoreWriter(out / "store", ids, signature, shard_size, redo="run `extract` again")
    with locked(out / "store" / "writing.lock"):
        writer.clean()
        _fill(writer, manifest.cells, model, settings, shard_size, progress=progress)
    store = Store(out / "store")
    without = sum(bool(store["empty"][place]) for place in range(len(store)))
    if without:
        logger.warning("no mask found in %d of %d cells; their whole image is used", without, len(ids))
    _save_samples(manifest, model, out, settings)
    return store


def _fill(
    writer: StoreWriter,
    cells: Sequence[Cell],
    model: LoraSam,
    settings: ExtractSettings,
    shard_size: int,
    *,
    progress: bool,
) -> None:
    """Write the shards that are missing.

    Cells are decoded, and cut out, by workers while the device computes other batches.
    """
    size, workers = settings.batch_size, settings.workers
    missing = writer.missing()
    engine = Engine(model, None, batch_size=size, zoom=settings.zoom, parity=settings.parity, workers=workers)
    batches = picture_batches(
        FilePictures(CellSources(cells, masks=False)),
        model.config.encoder.side,
        size,
        range(len(cells)),
        numbers=[number for shard in missing for number in batches_of(shard, shard_size, size)],
        resize=model.config.resize,
        light=model.config.light,
        workers=workers,
    )
    dtype = np.dtype(ml_dtypes.bfloat16) if settings.dtype == "bfloat16" else np.dtype(np.float32)
    done = len(cells) - sum(len(places) for _, places in missing)
    with tqdm(total=len(cells), initial=done, desc="extracting", unit="cell", disable=not progress) as bar:
        for number, rows in joined(engine.run(batches), missing, shard_size, size, bar):
            reasons = [f"{cells[place].id}: {why}" for place, why in zip(rows.index, rows.reason, strict=True) if why]
            if reasons:
                raise InputError(f"nothing can be extracted of {name_some(reasons)}; leave them out of the data")
            writer.write(number, {**rows.arrays, "feature": rows.arrays["feature"].astype(dtype)})


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
