"""PNG: every checksum is verified, and only the chunks that make up the picture reach a decoder."""

import struct
import zlib
from collections.abc import Iterator
from typing import Any

import cv2
import imagecodecs
import numpy as np
from PIL.PngImagePlugin import PngImageFile

from dorl_jax.data.formats.exif import exif_orientation
from dorl_jax.data.formats.facts import ImageFacts, broken, check_pixels, upright_size
from dorl_jax.data.formats.pixels import Picture, Pixels, from_pillow, from_sixteen_bits, open_with_pillow

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY, _RGB, _PALETTE, _GREY_ALPHA, _RGB_ALPHA = 0, 2, 3, 4, 6
_CHANNELS = {_GREY: 1, _RGB: 3, _PALETTE: 1, _GREY_ALPHA: 2, _RGB_ALPHA: 4}
# Left away are profiles and gammas (ignored), texts, and the frames of an animation.
_PICTURE = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
# With these alone a file is handed to the decoder as it is.
_LEAST = {b"IHDR", b"IDAT", b"IEND"}
# First column and row of Adam7's passes, and their steps.
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def is_png(data: bytes) -> bool:
    return data[:8] == _SIGNATURE


def open_png(data: bytes) -> Picture:
    """Raises `Unreadable` on a wrong checksum of any chunk, or chunks that are missing or repeated."""
    chunks: dict[bytes, bytes] = {}
    compressed = []
    for name, content in _chunks(data):
        if name == b"IDAT":
            compressed.append(content)
        elif chunks.setdefault(name, content) is not content and name in _PICTURE:
            raise broken(f"chunk {_spell(name)} comes twice")
    if len(chunks.get(b"IHDR", b"")) != 13 or not compressed:
        raise broken("no header or no pixels")
    width, height, bits, colours, _, _, interlaced = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    check_pixels(width, height)
    if colours not in _CHANNELS:
        raise broken(f"colour type {colours}")
    chunks[b"IDAT"] = b"".join(compressed)
    animation = chunks.get(b"acTL", b"")
    orientation = exif_orientation(chunks.get(b"eXIf", b""))
    wide, tall = upright_size(width, height, orientation)
    facts = ImageFacts(
        format="PNG",
        mode={_PALETTE: "palette", _GREY: "grey", _GREY_ALPHA: "grey"}.get(colours, "RGB"),
        width=wide,
        height=tall,
        bits=bits,
        has_alpha=colours in (_GREY_ALPHA, _RGB_ALPHA) or b"tRNS" in chunks,
        pages=int.from_bytes(animation[:4], "big") if len(animation) == 8 else 1,
        orientation=orientation,
        has_profile=b"iCCP" in chunks,
    )

    def decode() -> Pixels:
        picture = data
        if chunks.keys() != _LEAST:
            picture = _SIGNATURE + b"".join(_write(name, chunks[name]) for name in _PICTURE if name in chunks)
        key = chunks.get(b"tRNS", b"")
        if bits == 16:
            return _decode_sixteen_bits(picture, struct.unpack(f">{len(key) // 2}H", key) if key else None)
        if bits == 8 and colours != _PALETTE and not key:
            return _decode_eight_bits(picture)
        _check_length(chunks[b"IDAT"], _inflated_bytes(width, height, bits * _CHANNELS[colours], bool(interlaced)))
        image = open_with_pillow(PngImageFile, picture)
        if colours == _GREY and key and bits in (2, 4):
            # Pillow scales the pixels, not the transparent value.
            image.info["transparency"] *= 255 // (2**bits - 1)
        return from_pillow(image)

    return Picture(facts, decode)


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Name and content of every chunk up to IEND."""
    view = memoryview(data)
    at = len(_SIGNATURE)
    while at + 12 <= len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        end = at + 8 + length
        if end + 4 > len(data):
            break
        if zlib.crc32(view[at + 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
            raise broken(f"wrong checksum of chunk {_spell(name)}")
        yield name, data[at + 8 : end]
        if name == b"IEND":
            return
        at = end + 4
    raise broken("the PNG file is cut short")


def _spell(name: bytes) -> str:
    return repr(name.decode("latin-1"))


def _write(name: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(content, zlib.crc32(name))
    return b"".join([struct.pack(">I", len(content)), name, content, struct.pack(">I", checksum)])


def _decode_eight_bits(data: bytes) -> Pixels:
    """By libpng as imagecodecs builds it, in two thirds of the time of OpenCV's and Pillow's.

    Pillow fills up a picture with too few pixels by zeros, where libpng gives an error.
    """
    try:
        found = imagecodecs.png_decode(data)
    except imagecodecs.PngError as error:
        raise broken("libpng could not decode its pixels") from error
    if found.ndim == 3 and found.shape[-1] == 2:
        return found.take((0, 0, 0, 1), axis=-1)
    return found


def _decode_sixteen_bits(data: bytes, key: tuple[int, ...] | None = None) -> Pixels:
    """By OpenCV: Pillow keeps only the upper 8 of the 16 bits of colours.

    Args:
      data: no palette.
      key: the transparent colour.
    """
    found: Any = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if found is None:
        raise broken("libpng could not decode its pixels")
    if found.ndim == 3:
        found = cv2.cvtColor(found, cv2.COLOR_BGRA2RGBA if found.shape[-1] == 4 else cv2.COLOR_BGR2RGB)
    # Some versions of OpenCV have made alpha of the key already.
    return from_sixteen_bits(found if key is None or found.ndim == 2 else found[..., :3], key)


def _inflated_bytes(width: int, height: int, bits: int, interlaced: bool) -> int:
    """Bytes of all rows, each with the byte that names its filter."""
    total = 0
    for left, top, right, down in _ADAM7 if interlaced else ((0, 0, 1, 1),):
        columns, rows = -((left - width) // right), -((top - height) // down)
        if columns > 0 and rows > 0:
            total += rows * (1 + (columns * bits + 7) // 8)
    return total


def _check_length(compressed: bytes, expected: int) -> None:
    try:
        found = len(zlib.decompressobj().decompress(compressed, expected))
    except zlib.error as error:
        raise broken(error) from error
    if found < expected:
        raise broken(f"{expected - found} bytes of its pixels are missing")
