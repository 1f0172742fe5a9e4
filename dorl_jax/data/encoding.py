"""Images and masks as the bytes that a built data set stores."""

import io

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from dorl_jax.data.built import read_record
from dorl_jax.data.images import FORMATS, ImageError, read_image, read_mask
from dorl_jax.data.sources import ImageSource, Part, Record

_ORIENTATION = 0x0112
# Of zlib's strategies, run lengths are the smallest and fastest on photographs; no pixel changes by it.
_PNG = (cv2.IMWRITE_PNG_COMPRESSION, 3, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE)


def encode_image(source: ImageSource) -> bytes:
    """The bytes of an image: those of the file where it is a plain JPEG, else a PNG of its RGB pixels.

    A JPEG is plain when it is RGB or grey with 8 bits and stored upright. Any other image is decoded by
    `images.read_image`, so that the PNG holds the very pixels that are read from the original.

    Raises:
      ImageError: the image cannot be read, or the part lies outside the picture.
    """
    if isinstance(source, Record):
        return read_record(source)
    if isinstance(source, Part):
        return _png(_cut(read_image(source.path), source)[..., ::-1])
    # All of it is decoded, a plain JPEG too: what is cut short must not get into a data set.
    pixels = read_image(source)
    data = source.read_bytes()
    return data if _is_plain_jpeg(data) else _png(pixels[..., ::-1])


def encode_mask(source: ImageSource) -> bytes:
    """The grey levels of a mask as a PNG of one channel, as they were published and without a threshold.

    Of a coloured mask the first channel counts, of a palette its colours, as for `images.read_mask`.

    Raises:
      ImageError: the mask cannot be read, or the part lies outside the picture.
    """
    if isinstance(source, Record):
        return read_record(source)
    path = source.path if isinstance(source, Part) else source
    # It knows all the ways in which a mask can be unreadable, and says which it is.
    read_mask(path)
    with Image.open(path, formats=FORMATS) as image:
        levels = _levels(ImageOps.exif_transpose(image))
    return _png(_cut(levels, source) if isinstance(source, Part) else levels)


def _levels(image: Image.Image) -> UInt8[np.ndarray, "h w"]:
    if image.mode.startswith("I"):
        # 16 bits: `read_mask` has refused what lies beyond.
        return ((np.asarray(image).astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    if image.mode not in ("L", "LA", "RGB", "RGBA"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    return np.asarray(image.getchannel(0))


def _cut(pixels: UInt8[np.ndarray, "h w *c"], part: Part) -> UInt8[np.ndarray, "h2 w2 *c"]:
    height, width = pixels.shape[:2]
    if part.width < 1 or part.height < 1 or part.x + part.width > width or part.y + part.height > height:
        raise ImageError(f"{part} lies outside the picture of {width} x {height} pixels")
    return pixels[part.y : part.y + part.height, part.x : part.x + part.width]


def _png(pixels: UInt8[np.ndarray, "h w *c"]) -> bytes:
    """A PNG of grey levels or of BGR."""
    done, data = cv2.imencode(".png", np.ascontiguousarray(pixels), _PNG)
    if not done:
        raise ImageError(f"an image of {pixels.shape} pixels cannot be stored as PNG")
    return data.tobytes()


def _is_plain_jpeg(data: bytes) -> bool:
    if not data.startswith(b"\xff\xd8"):
        return False
    with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
        # What begins like a JPEG may hold more pictures (MPO).
        upright = image.getexif().get(_ORIENTATION, 1) == 1
        return image.format == "JPEG" and image.mode in ("RGB", "L") and upright
