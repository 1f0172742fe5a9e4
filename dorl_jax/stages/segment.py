"""Masks of many images at their own size."""

from collections.abc import Iterator, Sequence

import jax
import numpy as np
from flax import nnx
from jaxtyping import Bool, UInt8
from tqdm.auto import tqdm

from dorl_jax.data.cut import mask_at
from dorl_jax.data.loader import CellSources, picture_batches
from dorl_jax.data.manifest import Cell
from dorl_jax.data.pictures import FilePictures, Pictures
from dorl_jax.data.pool import buffered
from dorl_jax.models import LoraSam
from dorl_jax.models.layers import AnyArray

Segmented = tuple[int, UInt8[np.ndarray, "h w 3"], Bool[np.ndarray, "h w"]]


@nnx.jit
def _margins(model: LoraSam, images: AnyArray) -> jax.Array:
    """How much more a pixel is cell than background (B, 4h, 4w)."""
    logits = model(images)["low_res_logits"]
    return logits[..., 1] - logits[..., 0]


def segment(
    model: LoraSam, cells: Sequence[Cell], batch_size: int, *, name: str, workers: int = 0, progress: bool = True
) -> Iterator[Segmented]:
    """(place in `cells`, image in the model's light, mask) of all cells in order."""
    pictures = FilePictures(CellSources(cells, masks=False))
    with tqdm(total=len(cells), desc=name, unit="cell", disable=not progress) as bar:
        for segmented in segment_pictures(model, pictures, batch_size, workers=workers):
            bar.update()
            yield segmented


def segment_pictures(model: LoraSam, pictures: Pictures, batch_size: int, *, workers: int = 0) -> Iterator[Segmented]:
    """(place, image in the model's light, mask) of all pictures in order; the next batch computes meanwhile."""
    config = model.config
    batches = picture_batches(
        pictures,
        config.encoder.side,
        batch_size,
        range(len(pictures)),
        resize=config.resize,
        light=config.light,
        workers=workers,
    )
    for batch, margins in buffered(((batch, _margins(model, batch["image"])) for batch in batches), 1):
        count = int(batch["valid"].sum())
        cut = zip(batch["index"][:count], batch["originals"], np.asarray(margins)[:count], strict=True)
        for place, image, margin in cut:
            yield int(place), image, mask_at(margin, *image.shape[:2])
