"""Small pictures of cells, read again from where their images are."""

import logging
from collections.abc import Iterator

import numpy as np
from jaxtyping import UInt8

from dorl_jax.data.images import ImageError, read_image
from dorl_jax.data.pool import buffered, worker_pool
from dorl_jax.data.sources import parse_source
from dorl_jax.sheets import fit_square
from dorl_jax.vectors import Vectors

logger = logging.getLogger(__name__)

# Pictures that are decoded ahead of the one that is needed.
_AHEAD = 16
# Where no picture can be had.
_MISSING = 200


def thumbnails(vectors: Vectors, side: int, workers: int = 0) -> Iterator[UInt8[np.ndarray, "side side 3"]]:
    """A picture a cell in order, its longer side of `side` pixels, the rest white.

    A picture that cannot be read is grey; how many are, and why the first, is logged as a warning at the end.

    Args:
      vectors: with the column `source`.
      side: in pixels.
      workers: see `dorl_jax.data.pool.worker_pool`.

    Raises:
      InputError: no column `source`.
    """
    return _read(vectors.texts("source").tolist(), side, workers)


def _read(sources: list[str], side: int, workers: int) -> Iterator[np.ndarray]:
    reasons = []
    with worker_pool(workers) as pool:
        for picture in buffered((pool.submit(_thumbnail, source, side) for source in sources), _AHEAD):
            pixels = picture.result()
            if isinstance(pixels, str):
                reasons.append(pixels)
                pixels = np.full((side, side, 3), _MISSING, np.uint8)
            yield pixels
    if reasons:
        logger.warning(
            "%d of %d pictures are grey, for they cannot be read: %s", len(reasons), len(sources), reasons[0]
        )


def _thumbnail(source: str, side: int) -> np.ndarray | str:
    """The picture, or why there is none."""
    try:
        return fit_square(read_image(parse_source(source)), side)
    except ImageError as error:
        return str(error)
