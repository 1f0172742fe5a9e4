"""Pictures and masks from files, and to another size."""

import struct
import zlib
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageOps

from dorl_jax.errors import InputError

FORMATS = ("BMP", "PNG", "JPEG", "TIFF")
# Far above a cell, or a camera's frame; far below what fills the memory.
MOST_PIXELS = 2**26

# What Pillow's decoders raise on broken bytes; a warning counts where the caller has made warnings errors.
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    OverflowError,
    EOFError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Warning,
)


ResizeMethod = Literal["bilinear", "cv2_bilinear"]


class ImageError(InputError):
    """A file that gives no usable image or mask; the message names the file."""


def read_image(path: str | Path) -> UInt8[np.ndarray, "h w 3"]:
    """An image file as RGB.

    BMP, PNG, JPEG and TIFF (the first page). The EXIF orientation is applied; transparent pixels are laid
    over white; palette, grey and CMYK images are converted; 16-bit grey is scaled from 0..65535 to 0..255.

    Returns:
      RGB, 0..255.

    Raises:
      ImageError: no such file, another format, broken or cut short, more than 2**26 pixels, or a pixel type
        without a defined range (floating point).
    """
    image = _decode(path)
    if image.mode.startswith(("I", "F")):
        return np.repeat(_deep_grey(image, path)[..., None], 3, axis=-1)
    if image.has_transparency_data:
        layer = _convert(image, "RGBA", path)
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return np.array(_convert(image, "RGB", path))


def read_mask(path: str | Path, threshold: int = 64) -> Bool[np.ndarray, "h w"]:
    """A mask file: True where the cell is.

    The convention is 0 for the background (red cells included), 128 for the cytoplasm, 255 for the nucleus,
    so the cell is everything above 64 and the nucleus everything above 192; stray values between are rounded
    to the nearest of the three. Of a coloured mask the first channel counts, of a palette its colours.

    Args:
      path: as for `read_image`.
      threshold: a pixel is True above it, 0..254.

    Raises:
      ImageError: as for `read_image`.
    """
    image = _decode(path)
    if image.mode.startswith(("I", "F")):
        values = _deep_grey(image, path)
    else:
        if image.mode not in ("L", "LA", "RGB", "RGBA"):
            image = _convert(image, "L" if image.mode == "1" else "RGB", path)
        values = np.asarray(image.getchannel(0))
    return values > threshold


def resize_image(
    image: UInt8[np.ndarray, "h w 3"], size: int | tuple[int, int], method: ResizeMethod = "bilinear"
) -> UInt8[np.ndarray, "h2 w2 3"]:
    """The image at `size` (a side of a square, or height and width); the aspect is not kept.

    An axis that shrinks is averaged over area (OpenCV's INTER_AREA), one that grows is interpolated linearly
    between pixel centres (INTER_LINEAR).
    """
    height, width = _height_width(size)
    least = (min(height, image.shape[0]), min(width, image.shape[1]))
    if least != image.shape[:2]:
        image = cv2.resize(image, least[::-1], interpolation=cv2.INTER_AREA)
    if (height, width) != image.shape[:2]:
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    return image


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


def _decode(path: str | Path) -> Image.Image:
    if not Path(path).is_file():
        raise ImageError(f"no image file at {path}")
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MOST_PIXELS:
                raise ImageError(f"{path} has {image.width} x {image.height} pixels, more than {MOST_PIXELS}")
            image.load()
            # The copy outlives the file; without an orientation tag `exif_transpose` is one.
            return ImageOps.exif_transpose(image)
    except ImageError:
        raise
    except Image.UnidentifiedImageError as error:
        raise ImageError(f"{path} is no {', '.join(FORMATS[:-1])} or {FORMATS[-1]} image") from error
    except _DECODE_ERRORS as error:
        raise ImageError(f"{path} is a broken or truncated image: {error}") from error


def _convert(image: Image.Image, mode: str, path: str | Path) -> Image.Image:
    try:
        return image.convert(mode)
    except (ValueError, OSError) as error:
        raise ImageError(f"{path}: pixels of type {image.mode} cannot be read: {error}") from error


def _deep_grey(image: Image.Image, path: str | Path) -> UInt8[np.ndarray, "h w"]:
    values: Any = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise ImageError(f"{path}: grey values beyond 0..65535 have no known range; save 8 or 16 bits")
    return ((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
