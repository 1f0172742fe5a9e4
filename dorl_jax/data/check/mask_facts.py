"""What is to be known of one mask."""

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import UInt8

from dorl_jax.data.images import MASK_THRESHOLD

LEVELS = (0, 128, 255)

# Of the mask's area; smaller pieces are specks of the drawing.
_LEAST_PIECE = 0.01


@dataclass(frozen=True)
class MaskFacts:
    """One mask.

    Attributes:
      coverage: share of the picture that is cell, 0..1.
      touches_border: whether a pixel of the outermost rows or columns is cell.
      all_corners: whether the cell covers the four corners, as the background does of a mask that is inverted.
      pieces: 8-connected components of the cell, those above a hundredth of its area.
      nucleus: whether cytoplasm (128) and nucleus (255) are told apart.
      stray: the values other than 0, 128 and 255.
    """

    coverage: float
    touches_border: bool
    all_corners: bool
    pieces: int
    nucleus: bool
    stray: tuple[int, ...]


def measure_mask(values: UInt8[np.ndarray, "h w"]) -> MaskFacts:
    """The facts of a mask with the values 0, 128 and 255."""
    cell = (values > MASK_THRESHOLD).astype(np.uint8)
    area = int(cell.sum())
    _, _, stats, _ = cv2.connectedComponentsWithStats(cell, connectivity=8)
    pieces = stats[1:, cv2.CC_STAT_AREA]
    found = np.flatnonzero(np.bincount(values.ravel(), minlength=256)).tolist()
    return MaskFacts(
        coverage=area / cell.size,
        touches_border=bool(cell[[0, -1]].any() or cell[:, [0, -1]].any()),
        all_corners=bool(cell[[0, 0, -1, -1], [0, -1, 0, -1]].all()),
        pieces=int((pieces > _LEAST_PIECE * area).sum()),
        nucleus={128, 255} <= set(found),
        stray=tuple(value for value in found if value not in LEVELS),
    )
