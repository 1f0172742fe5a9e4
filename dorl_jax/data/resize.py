"""Images and masks at another size."""

from typing import Literal

import cv2
import numpy as np
from jaxtyping import Shaped, UInt8

Resize = Literal["bilinear", "cv2_bilinear"]


def resize_image(
    image: UInt8[np.ndarray, "h w 3"],
    size: int | tuple[int, int],
    method: Resize = "bilinear",
    out: UInt8[np.ndarray, "h2 w2 3"] | None = None,
) -> UInt8[np.ndarray, "h2 w2 3"]:
    """The image at `size`; the aspect is not kept.

    Args:
      image: RGB, 0..255.
      size: a side of a square, or height and width, in pixels.
      method: "bilinear": while an axis shrinks by two or more, its pixels are averaged in pairs; what is left is
        interpolated linearly between pixel centres. "cv2_bilinear": interpolated only (OpenCV's INTER_LINEAR), as
        the released code does, so that most pixels are skipped where an image shrinks much. The two are the same
        where it shrinks by less than two, or grows.
      out: where the result is put, in one piece of memory; None for a new array.
    """
    if method not in ("bilinear", "cv2_bilinear"):
        raise ValueError(f"no way to resize: {method!r}")
    height, width = _height_width(size)
    extent: tuple[float, float] = image.shape[:2]
    if method == "bilinear":
        image, extent = _halve(image, height, width)
    if extent != image.shape[:2]:
        # A repeated edge belongs to the last pixel, but not to the picture that is stretched to the new size.
        down, right = extent[0] / height, extent[1] / width
        places = np.array([[right, 0, (right - 1) / 2], [0, down, (down - 1) / 2]])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        return cv2.warpAffine(image, places, (width, height), out, flags=flags, borderMode=cv2.BORDER_REPLICATE)
    if (height, width) != image.shape[:2]:
        return cv2.resize(image, (width, height), out, interpolation=cv2.INTER_LINEAR)
    if out is None:
        return image
    out[...] = image
    return out


def _halve(
    image: UInt8[np.ndarray, "h w 3"], height: int, width: int
) -> tuple[UInt8[np.ndarray, "h2 w2 3"], tuple[float, float]]:
    """The image with each axis halved until it is less than twice the one wanted.

    The last row or column of an odd number is repeated first.

    Returns:
      The image, and the height and width of the picture in its pixels, which are less where an edge was repeated.
    """
    tall, wide = float(image.shape[0]), float(image.shape[1])
    while (shorter := tall >= 2 * height) | (narrower := wide >= 2 * width):
        rows, columns = image.shape[:2]
        below, behind = rows % 2 if shorter else 0, columns % 2 if narrower else 0
        if below or behind:
            image = cv2.copyMakeBorder(image, 0, below, 0, behind, cv2.BORDER_REPLICATE)
        new = ((columns + behind) // 2 if narrower else columns, (rows + below) // 2 if shorter else rows)
        # At exactly one half, the mean of two or four pixels.
        image = cv2.resize(image, new, interpolation=cv2.INTER_AREA)
        tall, wide = tall / 2 if shorter else tall, wide / 2 if narrower else wide
    return image, (tall, wide)


def resize_mask(mask: Shaped[np.ndarray, "h w"], size: int | tuple[int, int]) -> Shaped[np.ndarray, "h2 w2"]:
    """The mask, or its grey levels, at `size` (as in `resize_image`), each pixel that of the nearest pixel centre.

    Pixel i of n takes source pixel floor((i + 1/2) * m / n) of m: PyTorch's `nearest-exact` (and OpenCV's
    INTER_NEAREST_EXACT but for some ties), not PyTorch's `nearest`, which is half a pixel off.
    """
    height, width = _height_width(size)
    # Row by row, then column by column: a quarter of the time of picking every pixel by itself.
    return mask.take(_nearest(mask.shape[0], height), axis=0).take(_nearest(mask.shape[1], width), axis=1)


def _height_width(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def _nearest(source: int, target: int) -> np.ndarray:
    return (2 * np.arange(target) + 1) * source // (2 * target)
