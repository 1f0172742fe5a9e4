"""Views of the cell alone: what the autoencoder's pixel encoder sees, as it is and changed at random."""

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import UInt8

from dorl_jax.data.augment import Augmentation, augment

_GREY = 128
# Cubic interpolation leaves grey a level or two off beside the cell's edge.
_NEAR_GREY = 2


def small_crop(crop: UInt8[np.ndarray, "s s 3"], size: int) -> UInt8[np.ndarray, "size size 3"]:
    """The cell alone (see `crops.cell_crop`) at `size` x `size` pixels, averaged over areas."""
    return cv2.resize(np.ascontiguousarray(crop), (size, size), interpolation=cv2.INTER_AREA)


def changed_crop(
    crop: UInt8[np.ndarray, "s s 3"], size: int, rng: np.random.Generator, how: Augmentation
) -> UInt8[np.ndarray, "size size 3"]:
    """The cell alone as another laboratory might show it, at `size` x `size` pixels.

    The cell is changed by `augment.augment`; around it all stays grey, whatever happens to stain and light, so that
    the background tells nothing.

    Args:
      crop: the cell on grey (see `crops.cell_crop`).
      size: in pixels.
      rng: the only source of chance.
      how: see there.
    """
    differs = (np.abs(crop.astype(np.int16) - _GREY) > _NEAR_GREY).any(axis=-1)
    share = cv2.resize(np.where(differs, np.uint8(255), np.uint8(0)), (size, size), interpolation=cv2.INTER_AREA)
    image, cell = augment(small_crop(crop, size), share > 127, rng, how)
    return np.where(cell[..., None], image, np.uint8(_GREY))


@dataclass(frozen=True)
class TwoViews:
    """Adds to a row with "crop" two changed views of it, "view_a" and "view_b" (see `changed_crop`).

    Attributes:
      size: of the views, in pixels.
      how: they are changed.
    """

    size: int
    how: Augmentation

    def __call__(self, row: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
        views = {name: changed_crop(row["crop"], self.size, rng, self.how) for name in ("view_a", "view_b")}
        return {**row, **views}
