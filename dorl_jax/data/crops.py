"""The cell alone, on grey: what the autoencoder learns to draw."""

import cv2
import numpy as np
from jaxtyping import Bool, UInt8

from dorl_jax.data.spline import zoom_image

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
    ones = np.array(mask, np.uint8, order="C")
    first = int(ones.argmax())
    if not ones.flat[first]:
        return np.zeros_like(mask)
    # Nearly every mask is in one piece, and filling it is ten times as fast as numbering pieces.
    row, column = divmod(first, mask.shape[1])
    filled, flooded, *_ = cv2.floodFill(ones.copy(), None, (column, row), 2, flags=_CONNECTIVITY)
    if 2 * filled >= cv2.countNonZero(ones):
        return flooded == 2
    _, labels, stats, _ = cv2.connectedComponentsWithStats(ones, connectivity=_CONNECTIVITY)
    areas = stats[1:, cv2.CC_STAT_AREA]
    equals = 1 + np.flatnonzero(areas == areas.max())
    if len(equals) == 1:
        return labels == equals[0]
    # OpenCV numbers the parts in no promised order.
    return labels == labels.ravel()[np.flatnonzero(np.isin(labels, equals))[0]]


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
    part = largest_component(mask).view(np.uint8)
    left, top, width, height = cv2.boundingRect(part)
    if parity:
        height, width = max(height - 1, 1), max(width - 1, 1)
    box = np.s_[top : top + height, left : left + width]
    framed = np.full((height + 2 * border, width + 2 * border, 3), grey, np.uint8)
    inside = framed[border : border + height, border : border + width]
    cv2.copyTo(np.ascontiguousarray(image[box]), np.ascontiguousarray(part[box]), inside)
    return _resize(framed, size, parity)


def cell_view(
    image: UInt8[np.ndarray, "h w *c"], mask: Bool[np.ndarray, "h w"], margin: float, *, repeat_edge: bool = True
) -> UInt8[np.ndarray, "h2 w2 *c"]:
    """The square window around the cell, so that cells of all magnifications fill the same share of it.

    Args:
      image: RGB, or values of one channel.
      mask: the cell; the window is centred on its bounding box. Empty: the whole image is returned.
      margin: side of the window over the longer side of the box, at least 1.
      repeat_edge: beyond the image its edge is repeated; False for zeros there.

    Returns:
      The window at the image's own scale.
    """
    if is_empty(mask):
        return image
    left, top, wide, tall = cv2.boundingRect(np.ascontiguousarray(mask).view(np.uint8))
    side = max(1, round(margin * max(tall, wide)))
    y, x = (2 * top + tall - side) // 2, (2 * left + wide - side) // 2
    height, width = mask.shape
    above, before = max(0, -y), max(0, -x)
    below, behind = max(0, y + side - height), max(0, x + side - width)
    inside = image[max(0, y) : y + side, max(0, x) : x + side]
    beyond = cv2.BORDER_REPLICATE if repeat_edge else cv2.BORDER_CONSTANT
    return cv2.copyMakeBorder(inside, above, below, before, behind, beyond)


def _resize(image: UInt8[np.ndarray, "h w 3"], size: int, parity: bool) -> UInt8[np.ndarray, "size size 3"]:
    if parity:
        return zoom_image(image, size)
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_CUBIC)
