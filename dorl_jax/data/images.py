"""Pictures and masks from files, parts of pictures, records and members of archives, and to another size."""

import os
import stat
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from jaxtyping import Bool, UInt8

from dorl_jax.data.formats.bmp import is_bmp, open_bmp
from dorl_jax.data.formats.exif import is_tiff
from dorl_jax.data.formats.facts import MOST_PIXELS, ImageFacts, Unreadable
from dorl_jax.data.formats.jpeg import is_jpeg, open_jpeg
from dorl_jax.data.formats.pixels import Picture, Pixels, as_rgb, first_channel, upright
from dorl_jax.data.formats.png import is_png, open_png
from dorl_jax.data.formats.tiff import open_tiff
from dorl_jax.data.formats.webp import is_webp, open_webp
from dorl_jax.data.resize import Resize, resize_image, resize_mask
from dorl_jax.data.sources import ImageSource, Part, Record, TarMember, ZipMember
from dorl_jax.data.tar_files import read_tar_member
from dorl_jax.data.zip_files import read_zip_member
from dorl_jax.errors import InputError

__all__ = [
    "FORMATS",
    "MASK_THRESHOLD",
    "MOST_BYTES",
    "MOST_PIXELS",
    "SMALLEST_SIDE",
    "ImageError",
    "ImageFacts",
    "Resize",
    "decode_image",
    "inspect_image",
    "read_image",
    "read_image_with_facts",
    "read_mask",
    "read_mask_values",
    "resize_image",
    "resize_mask",
]

# What MOST_PIXELS take, uncompressed, with four channels of 16 bits.
MOST_BYTES = 8 * MOST_PIXELS
# Of a cell that can be used; what can be read may be smaller.
SMALLEST_SIDE = 16
# The cell is above it in a mask, half-way to the cytoplasm's 128.
MASK_THRESHOLD = 64

_READERS: dict[str, tuple[Callable[[bytes], bool], Callable[[bytes], Picture]]] = {
    "BMP": (is_bmp, open_bmp),
    "PNG": (is_png, open_png),
    "JPEG": (is_jpeg, open_jpeg),
    "TIFF": (is_tiff, open_tiff),
    "WebP": (is_webp, open_webp),
}
FORMATS = tuple(_READERS)


class ImageError(InputError):
    """A file that gives no usable image or mask; the message names the file."""


def read_image(source: str | ImageSource) -> UInt8[np.ndarray, "h w 3"]:
    """An image as RGB.

    BMP, PNG, JPEG, TIFF and WebP, known by their content, not by the file's name. The first page or frame is
    read. The EXIF orientation is applied; transparent pixels are laid over white; palette, grey and CMYK images
    are converted; values of more than 8 bits are scaled (65535 becomes 255) and rounded. Embedded colour
    profiles and gammas are ignored: the numbers in the file count. `inspect_image` tells which of these apply.

    Args:
      source: a file, a rectangle of a picture in a file, a record of a built data set, or a member of an archive.

    Returns:
      RGB, 0..255.

    Raises:
      ImageError: no such file, more than `MOST_BYTES`, another format, broken or cut short as far as that can be
        noticed (PNG: always; JPEG: nearly; the others: where bytes are missing), more than `MOST_PIXELS` pixels
        or 65535 on a side, a pixel type without a defined range (floating point), transparent everywhere, or a
        rectangle that leaves its picture.
    """
    return read_image_with_facts(source)[0]


def read_image_with_facts(source: str | ImageSource) -> tuple[UInt8[np.ndarray, "h w 3"], ImageFacts]:
    """As `read_image`, and what `inspect_image` says, from one reading of the file."""
    data, name = _read_bytes(source)
    image, facts = _decode(data, name, as_rgb)
    return _cut(image, source), _facts_of_part(facts, source)


def read_mask(source: str | ImageSource, threshold: int = MASK_THRESHOLD) -> Bool[np.ndarray, "h w"]:
    """A mask: True where the cell is.

    The convention is 0 for the background (red cells included), 128 for the cytoplasm, 255 for the nucleus,
    so the cell is everything above 64 and the nucleus everything above 192; stray values between are rounded
    to the nearest of the three.

    Args:
      source: as for `read_image`.
      threshold: a pixel is True above it, 0..254.

    Raises:
      ImageError: as for `read_image`.
    """
    return read_mask_values(source) > threshold


def read_mask_values(source: str | ImageSource) -> UInt8[np.ndarray, "h w"]:
    """A mask's values before the threshold of `read_mask`, 0..255.

    Of a coloured mask the first channel counts, of a palette its colours; alpha does not count. Two-valued
    pixels are 0 and 255, values of more than 8 bits are scaled as in `read_image`.

    Raises:
      ImageError: as for `read_image`.
    """
    data, name = _read_bytes(source)
    return _cut(_decode(data, name, first_channel)[0], source)


def decode_image(data: bytes, name: str) -> UInt8[np.ndarray, "h w 3"]:
    """As `read_image`, from the bytes of a file.

    Args:
      data: the whole file.
      name: what messages call it.
    """
    return _decode(data, name, as_rgb)[0]


def inspect_image(source: str | ImageSource) -> ImageFacts:
    """What the header says; no pixel is decoded.

    Raises:
      ImageError: as for `read_image`, as far as the header and the length of the file tell.
    """
    data, name = _read_bytes(source)
    return _facts_of_part(_open(data, name).facts, source)


def _read_bytes(source: str | ImageSource) -> tuple[bytes, str]:
    """All bytes of the file, and how messages call the source."""
    if isinstance(source, Record):
        # Only then: reading records brings in a library of its own.
        from dorl_jax.data.built import read_record

        return read_record(source), str(source)
    if isinstance(source, TarMember | ZipMember):
        return _read_member(source)
    path = str(source.path if isinstance(source, Part) else source)
    try:
        # Not to wait where it is a pipe. Where files are small, Python's file objects take longer than reading.
        file = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        try:
            status = os.fstat(file)
            if not stat.S_ISREG(status.st_mode):
                raise ImageError(f"no image file at {path}")
            if status.st_size > MOST_BYTES:
                raise ImageError(f"{path} has {status.st_size} bytes, more than {MOST_BYTES}")
            return _read_all(file, status.st_size), str(source)
        finally:
            os.close(file)
    except FileNotFoundError as error:
        raise ImageError(f"no image file at {path}") from error
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error.strerror}") from error


def _read_member(member: TarMember | ZipMember) -> tuple[bytes, str]:
    name = f"{member.name} in {member.path}"
    if member.size > MOST_BYTES:
        raise ImageError(f"{name} has {member.size} bytes, more than {MOST_BYTES}")
    try:
        return read_tar_member(member) if isinstance(member, TarMember) else read_zip_member(member), name
    except Unreadable as error:
        raise ImageError(f"{name} {error}") from error
    except FileNotFoundError as error:
        raise ImageError(f"no archive at {member.path}") from error
    except OSError as error:
        raise ImageError(f"{member.path} cannot be read: {error.strerror}") from error


def _read_all(file: int, size: int) -> bytes:
    data = os.read(file, size + 1)
    if len(data) == size:
        return data
    # Less at a time from some file systems, or a file that grows.
    parts = [data]
    while parts[-1] and sum(map(len, parts)) <= MOST_BYTES:
        parts.append(os.read(file, 1 << 20))
    return b"".join(parts)


def _open(data: bytes, name: str) -> Picture:
    for knows, open_picture in _READERS.values():
        if knows(data):
            try:
                return open_picture(data)
            except Unreadable as error:
                raise ImageError(f"{name} {error}") from error
    raise ImageError(f"{name} is no {', '.join(FORMATS[:-1])} or {FORMATS[-1]} image")


def _decode(data: bytes, name: str, take: Callable[[Pixels], np.ndarray]) -> tuple[np.ndarray, ImageFacts]:
    picture = _open(data, name)
    facts = picture.facts
    try:
        pixels = take(upright(picture.decode(), facts.orientation))
    except Unreadable as error:
        raise ImageError(f"{name} {error}") from error
    if pixels.shape[:2] != (facts.height, facts.width):
        found = f"{pixels.shape[1]} x {pixels.shape[0]}"
        raise ImageError(f"{name} has {found} pixels, but announces {facts.width} x {facts.height}")
    return pixels, facts


def _cut(pixels: np.ndarray, source: str | ImageSource) -> np.ndarray:
    if not isinstance(source, Part):
        return pixels
    _check_part(source, pixels.shape[1], pixels.shape[0])
    # A copy, so that the rest of the picture can be forgotten.
    return pixels[source.y : source.y + source.height, source.x : source.x + source.width].copy()


def _facts_of_part(facts: ImageFacts, source: str | ImageSource) -> ImageFacts:
    if not isinstance(source, Part):
        return facts
    _check_part(source, facts.width, facts.height)
    return replace(facts, width=source.width, height=source.height)


def _check_part(part: Part, width: int, height: int) -> None:
    inside = 0 <= part.x < part.x + part.width <= width and 0 <= part.y < part.y + part.height <= height
    if not inside:
        raise ImageError(f"{part} is no rectangle within the picture, which has {width} x {height} pixels")
