"""Images and masks as the bytes that a built data set stores."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8

from dorl_jax.data.built import read_record
from dorl_jax.data.images import ImageError, read_image_with_facts, read_mask_values, resize_image, resize_mask
from dorl_jax.data.sources import ImageSource, Record

# Of zlib's strategies, run lengths are the smallest and fastest on photographs; no pixel changes by it.
_PNG = (cv2.IMWRITE_PNG_COMPRESSION, 3, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE)


def encode_image(source: ImageSource, size: int | None = None) -> bytes:
    """The bytes of an image: those of the file where it is a plain JPEG, else a BMP of its RGB pixels.

    A JPEG is plain when it is a single picture, RGB or grey, and stored upright. Any other image is decoded by
    `images.read_image`, so that the BMP holds the very pixels that are read from the original. It is read five times as
    fast as a PNG, and ArrayRecord files compress what they hold.

    Args:
      source: of the image.
      size: store a BMP of this side, in pixels, in any case.

    Raises:
      ImageError: the image cannot be read, or the part lies outside the picture.
    """
    if isinstance(source, Record) and not size:
        return read_record(source)
    # All of it is decoded, a plain JPEG too: what is cut short must not get into a data set.
    pixels, facts = read_image_with_facts(source)
    plain = facts.format == "JPEG" and facts.mode in ("grey", "RGB") and facts.orientation == facts.pages == 1
    if plain and isinstance(source, Path) and not size:
        return source.read_bytes()
    return _encode(".bmp", (resize_image(pixels, size) if size else pixels)[..., ::-1])


def encode_mask(source: ImageSource, size: int | None = None) -> bytes:
    """The grey levels of a mask as a PNG of one channel, as they were published and without a threshold.

    Args:
      source: of the mask.
      size: store it at this side, in pixels; of each pixel the nearest (`images.resize_mask`).

    Raises:
      ImageError: the mask cannot be read, or the part lies outside the picture.
    """
    if isinstance(source, Record) and not size:
        return read_record(source)
    values = read_mask_values(source)
    return _encode(".png", resize_mask(values, size) if size else values, _PNG)


def _encode(suffix: str, pixels: UInt8[np.ndarray, "h w *c"], settings: Sequence[int] = ()) -> bytes:
    """A picture of grey levels or of BGR."""
    done, data = cv2.imencode(suffix, np.ascontiguousarray(pixels), settings)
    if not done:
        raise ImageError(f"an image of {pixels.shape} pixels cannot be stored as {suffix}")
    return data.tobytes()
