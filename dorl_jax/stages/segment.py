"""Masks of many images at their own size."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Bool, UInt8
from tqdm.auto import tqdm

from dorl_jax.data.cut import mask_at
from dorl_jax.data.loader import image_batches
from dorl_jax.data.manifest import Cell
from dorl_jax.data.pool import buffered
from dorl_jax.models import LoraSam
from dorl_jax.models.layers import AnyArray


@nnx.jit
def features_and_logits(model: LoraSam, images: AnyArray) -> tuple[jax.Array, jax.Array]:
    """Feature tokens (B, h, w, C), and how much more a pixel is cell than background (B, 4h, 4w)."""
    out = model(images)
    return out["feature"], out["low_res_logits"][..., 1] - out["low_res_logits"][..., 0]


def run_batches(
    model: LoraSam,
    cells: Sequence[Cell],
    batch_size: int,
    *,
    name: str,
    workers: int = 0,
    done: int = 0,
    progress: bool = True,
) -> Iterator[tuple[dict[str, Any], np.ndarray, np.ndarray]]:
    """(batch, features, margins) of all cells in order, valid rows only; the next batch computes meanwhile.

    `done` is what the bar starts from.
    """
    size, resize = model.config.encoder.side, model.config.resize
    batches = image_batches(cells, size, batch_size, resize=resize, workers=workers)
    with tqdm(total=done + len(cells), initial=done, desc=name, unit="cell", disable=not progress) as bar:
        computing = ((batch, features_and_logits(model, batch["image"])) for batch in batches)
        for batch, arrays in buffered(computing, 1):
            yield _fetch(batch, arrays, bar)


def _fetch(
    batch: dict[str, Any], arrays: tuple[jax.Array, jax.Array], bar: Any
) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    count = len(batch["originals"])
    features, margins = (np.asarray(array)[:count] for array in arrays)
    bar.update(count)
    return batch, features, margins


def segment(
    model: LoraSam, cells: Sequence[Cell], batch_size: int, *, name: str, workers: int = 0, progress: bool = True
) -> Iterator[tuple[int, UInt8[np.ndarray, "h w 3"], Bool[np.ndarray, "h w"]]]:
    """(place in `cells`, image, mask) of all cells in order."""
    for batch, _, margins in run_batches(model, cells, batch_size, name=name, workers=workers, progress=progress):
        for place, image, margin in zip(batch["index"], batch["originals"], margins, strict=False):
            yield int(place), image, mask_at(margin, *image.shape[:2])
