"""Images and masks as the bytes that a built data set stores."""

from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8

from dorl_jax.data.built import read_record
from dorl_jax.data.images import ImageError, read_image_with_facts, read_mask_values
from dorl_jax.data.sources import ImageSource, Record

# Of zlib's strategies, run lengths are the smallest and fastest on photographs; no pixel changes by it.
_PNG = (cv2.IMWRITE_PNG_COMPRESSION, 3, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE)


def encode_image(source: ImageSource) -> bytes:
    """The bytes of an image: those of the file where it is a plain JPEG, else a PNG of its RGB pixels.

    A JPEG is plain when it is a single picture, RGB or grey, and stored upright. Any other image is decoded by
    `images.read_image`, so that the PNG holds the very pixels that are read from the original.

    Raises:
      ImageError: the image cannot be read, or the part lies outside the picture.
    """
    if isinstance(source, Record):
        return read_record(source)
    # All of it is decoded, a plain JPEG too: what is cut short must not get into a data set.
    pixels, facts = read_image_with_facts(source)
    plain = facts.format == "JPEG" and facts.mode in ("grey", "RGB") and facts.orientation == facts.pages == 1
    return source.read_bytes() if plain and isinstance(source, Path) else _png(pixels[..., ::-1])


def encode_mask(source: ImageSource) -> bytes:
    """The grey levels of a mask as a PNG of one channel, as they were published and without a threshold.

    Raises:
      ImageError: the mask cannot be read, or the part lies outside the picture.
    """
    return read_record(source) if isinstance(source, Record) else _png(read_mask_values(source))


def _png(pixels: UInt8[np.ndarray, "h w *c"]) -> bytes:
    """A PNG of grey levels or of BGR."""
    done, data = cv2.imencode(".png", np.ascontiguousarray(pixels), _PNG)
    if not done:
        raise ImageError(f"an image of {pixels.shape} pixels cannot be stored as PNG")
    return data.tobytes()
