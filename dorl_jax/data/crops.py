"""The cell alone, on grey: what the autoencoder learns to draw."""

import cv2
import numpy as np
from jaxtyping import Bool, UInt8
from scipy import ndimage

# An edge neighbour is connected, a corner neighbour is not: the default of scipy.ndimage.label, which the
# released code relies on.
_CONNECTIVITY = 4


def is_empty(mask: Bool[np.ndarray, "h w"]) -> bool:
    """Whether the mask holds no cell, so that `cell_crop` falls back to the whole image."""
    return not mask.any()


def largest_component(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """The largest 4-connected part of the mask; of equals, the one met first row by row. Empty stays empty.

    Source: the released code's masks (arXiv 2408.07467).
    """
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=_CONNECTIVITY)
    if count == 1:
        return np.zeros_like(mask)
    areas = stats[1:, cv2.CC_STAT_AREA]
    equals = 1 + np.flatnonzero(areas == areas.max())
    if len(equals) == 1:
        return labels == equals[0]
    # OpenCV numbers the parts in no promised order.
    first = labels.ravel()[np.flatnonzero(np.isin(labels, equals))[0]]
    return labels == first


def cell_crop(
    image: UInt8[np.ndarray, "h w 3"],
    mask: Bool[np.ndarray, "h w"],
    size: int = 128,
    border: int = 10,
    grey: int = 128,
    parity: bool = False,
) -> UInt8[np.ndarray, "size size 3"]:
    """The largest part of the mask cut out on grey, at `size` x `size`; the aspect is not kept.

    Pixels outside the part become `grey`, its bounding box is cut out, `border` pixels of `grey` are put on
    every side, and the result is resized cubically (OpenCV's INTER_CUBIC). Where the mask is empty the whole
    image is resized instead; `is_empty` tells.

    Args:
      image: RGB, 0..255.
      mask: True on the cell, of the image's height and width.
      size: side of the crop, in pixels.
      border: in pixels before the resize.
      grey: 0..255.
      parity: do as the released code: leave out the last row and column of the box (unless nothing would be
        left) and resize by cubic splines between corner-aligned grids (scipy.ndimage.zoom).

    Source: arXiv 2408.07467 and its released code.
    """
    if is_empty(mask):
        return _resize(image, size, parity)
    part = largest_component(mask)
    rows, columns = np.flatnonzero(part.any(axis=1)), np.flatnonzero(part.any(axis=0))
    top, left, bottom, right = rows[0], columns[0], rows[-1] + 1, columns[-1] + 1
    if parity:
        bottom, right = max(bottom - 1, top + 1), max(right - 1, left + 1)
    box = np.s_[top:bottom, left:right]
    cell = np.where(part[box][..., None], image[box], np.uint8(grey))
    return _resize(np.pad(cell, ((border, border), (border, border), (0, 0)), constant_values=grey), size, parity)


def cell_view(
    image: UInt8[np.ndarray, "h w 3"], mask: Bool[np.ndarray, "h w"], margin: float
) -> UInt8[np.ndarray, "h2 w2 3"]:
    """The square window around the cell, so that cells of all magnifications fill the same share of it.

    Args:
      image: RGB.
      mask: the cell; the window is centred on its bounding box. Empty: the whole image is returned.
      margin: side of the window over the longer side of the box, at least 1.

    Returns:
      The window at the image's own scale; beyond the image its edge is repeated.
    """
    if is_empty(mask):
        return image
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    side = max(1, round(margin * float(max(bottom - top, right - left))))
    y, x = int(top + bottom - side) // 2, int(left + right - side) // 2
    height, width = mask.shape
    above, before = max(0, -y), max(0, -x)
    below, behind = max(0, y + side - height), max(0, x + side - width)
    inside = image[max(0, y) : y + side, max(0, x) : x + side]
    return cv2.copyMakeBorder(inside, above, below, before, behind, cv2.BORDER_REPLICATE)


def _resize(image: UInt8[np.ndarray, "h w 3"], size: int, parity: bool) -> UInt8[np.ndarray, "size size 3"]:
    if parity:
        return ndimage.zoom(image, (size / image.shape[0], size / image.shape[1], 1), order=3)
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_CUBIC)
