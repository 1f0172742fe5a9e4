"""Images and masks at another size."""

from typing import Literal

import cv2
import numpy as np
from jaxtyping import Bool, UInt8

Resize = Literal["bilinear", "cv2_bilinear"]


def resize_image(
    image: UInt8[np.ndarray, "h w 3"], size: int | tuple[int, int], method: Resize = "bilinear"
) -> UInt8[np.ndarray, "h2 w2 3"]:
    raise NotImplementedError


def resize_mask(mask: Bool[np.ndarray, "h w"], size: int | tuple[int, int]) -> Bool[np.ndarray, "h2 w2"]:
    """The mask at `size` (as in `resize_image`), each pixel that of the nearest pixel centre.

    Pixel i of n takes source pixel floor((i + 1/2) * m / n) of m: PyTorch's `nearest-exact` (and OpenCV's
    INTER_NEAREST_EXACT but for some ties), not PyTorch's `nearest`, which is half a pixel off.
    """
    height, width = _height_width(size)
    return mask[_nearest(mask.shape[0], height)[:, None], _nearest(mask.shape[1], width)]


def _height_width(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def _nearest(source: int, target: int) -> np.ndarray:
    return (2 * np.arange(target) + 1) * source // (2 * target)
