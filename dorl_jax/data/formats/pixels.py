"""From what decoders give to 8-bit arrays: (h, w) grey, (h, w, 3) RGB or (h, w, 4) RGB and straight alpha."""

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from typing import Any

import numpy as np
from jaxtyping import UInt8, UInt16
from PIL import Image

from dorl_jax.data.formats.facts import ImageFacts, Unreadable, broken

Pixels = UInt8[np.ndarray, "_ _"] | UInt8[np.ndarray, "_ _ _"]


@dataclass(frozen=True)
class Picture:
    """A picture of which only the header has been read.

    Attributes:
      facts: what the header says.
      decode: gives the pixels as they are stored, not yet turned upright. Raises `Unreadable`.
    """

    facts: ImageFacts
    decode: Callable[[], Pixels]


# What Pillow's decoders raise on broken bytes. A warning is raised where the caller has made warnings errors.
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    OverflowError,
    ZeroDivisionError,
    EOFError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Warning,
)


def open_with_pillow(plugin: Callable[[BytesIO], Image.Image], data: bytes) -> Image.Image:
    """The decoded picture, by one of Pillow's readers.

    The reader is called itself: `Image.open` hides its reasons, and warns of big pictures by the `warnings` module.
    """
    try:
        with plugin(BytesIO(data)) as image:
            image.load()
            return image.copy()
    except _DECODE_ERRORS as error:
        raise broken(error) from error


def from_pillow(image: Image.Image) -> Pixels:
    """The 8-bit array of an 8-bit image of Pillow's."""
    if image.mode in ("L", "RGB", "RGBA") and "transparency" not in image.info:
        return np.array(image)
    mode = "RGBA" if image.has_transparency_data else {"1": "L", "L": "L"}.get(image.mode, "RGB")
    try:
        return np.array(image.convert(mode))
    except (ValueError, OSError) as error:
        raise Unreadable(f"has pixels of type {image.mode}, which cannot be read: {error}") from error


def to_eight_bits(values: Any, bits: int) -> UInt8[np.ndarray, "..."]:
    """Whole numbers 0..2**bits - 1 scaled to 0..255 and rounded to the nearest."""
    return np.take(_scaled(2**bits - 1), values)


@lru_cache
def _scaled(most: int) -> UInt8[np.ndarray, " n"]:
    """What 0, 1, ... `most` are on a scale of 0..255: looking up is many times as fast as dividing."""
    return ((np.arange(most + 1) * 255 + most // 2) // most).astype(np.uint8)


def from_sixteen_bits(values: UInt16[np.ndarray, "h w"] | UInt16[np.ndarray, "h w _"], key: Any = None) -> Pixels:
    """8-bit pixels; where `key` is given, pixels of exactly that 16-bit colour are transparent."""
    pixels = to_eight_bits(values, 16)
    if key is None:
        return pixels
    if values.ndim == 2:
        values, pixels = values[..., None], np.repeat(pixels[..., None], 3, axis=-1)
    alpha = np.where((values == np.asarray(key)).all(axis=-1), 0, 255).astype(np.uint8)
    return np.dstack([pixels, alpha])


def cmyk_to_rgb(light: UInt8[np.ndarray, "h w 4"]) -> UInt8[np.ndarray, "h w 3"]:
    """RGB from the light that each ink lets through, 0..255 (255 - ink): the product with black's."""
    return np.take(_scaled(255 * 255), light[..., :3].astype(np.uint16) * light[..., 3:])


def as_rgb(pixels: Pixels) -> UInt8[np.ndarray, "h w 3"]:
    """Grey in three channels; transparent pixels over white. Raises `Unreadable` where all are transparent."""
    if pixels.ndim == 2:
        return np.repeat(pixels[..., None], 3, axis=-1)
    if pixels.shape[-1] == 3:
        return np.ascontiguousarray(pixels)
    alpha = pixels[..., 3:].astype(np.uint16)
    if not alpha.any():
        raise Unreadable("is transparent everywhere")
    return np.take(_scaled(255 * 255), pixels[..., :3] * alpha + np.uint16(255) * (np.uint16(255) - alpha))


def first_channel(pixels: Pixels) -> UInt8[np.ndarray, "h w"]:
    """The grey values, or the red ones."""
    return np.ascontiguousarray(pixels if pixels.ndim == 2 else pixels[..., 0])


def upright(pixels: Pixels, orientation: int) -> Pixels:
    """The picture as it is to be shown, from an EXIF orientation 1..8."""
    if orientation >= 5:
        pixels = np.swapaxes(pixels, 0, 1)
    # Where row 0 is the picture's bottom, and column 0 its right, once rows are rows.
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)
