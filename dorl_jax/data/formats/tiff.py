"""TIFF: what is missing shows in the header, and only the tags that make up the first page reach a decoder."""

import struct
from typing import Any

import cv2
import numpy as np
from PIL.TiffImagePlugin import TiffImageFile

from dorl_jax.data.formats.exif import ORIENTATION, Directory, first_directory, read_directory
from dorl_jax.data.formats.facts import ImageFacts, Unreadable, broken, check_pixels, upright_size
from dorl_jax.data.formats.pixels import (
    Picture,
    Pixels,
    cmyk_to_rgb,
    from_pillow,
    from_sixteen_bits,
    open_with_pillow,
    to_eight_bits,
)

# Numbers of tags (TIFF 6.0).
_SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _COLOURS = 254, 256, 257, 258, 259, 262
_STRIPS, _SAMPLES, _ROWS_PER_STRIP, _STRIP_BYTES, _PLANES, _PALETTE = 273, 277, 278, 279, 284, 320
_TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_BYTES, _EXTRA, _NUMBERS = 322, 323, 324, 325, 338, 339
_FILL_ORDER, _FAX_3, _FAX_4, _PREDICTOR, _JPEG_TABLES = 266, 292, 293, 317, 347
_YCBCR = (529, 530, 531, 532)
_PROFILE = 34675
_MAKE_THE_PICTURE = {
    *(_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _COLOURS, _STRIPS, _SAMPLES, _ROWS_PER_STRIP, _STRIP_BYTES, _PLANES),
    *(_PALETTE, _TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_BYTES, _EXTRA, _NUMBERS),
    *(_FILL_ORDER, _FAX_3, _FAX_4, _PREDICTOR, _JPEG_TABLES, *_YCBCR),
}
_WHITE_IS_0, _GREY, _RGB, _INDEX, _CMYK, _IN_YCBCR = 0, 1, 2, 3, 5, 6
_RAW, _OLD_JPEG, _JPEG = 1, 6, 7
_PREMULTIPLIED, _STRAIGHT = 1, 2

# Colours -> (channels, bits of each that are read).
_KINDS = {
    _WHITE_IS_0: (1, (1, 2, 4, 8)),
    _GREY: (1, (1, 2, 4, 8, 12, 16)),
    _RGB: (3, (8, 16)),
    _INDEX: (1, (1, 2, 4, 8)),
    _CMYK: (4, (8,)),
    _IN_YCBCR: (3, (8,)),
}


def open_tiff(data: bytes) -> Picture:
    """Raises `Unreadable` where a page's tags or the first page's pixels are missing, or of a kind that is not read.

    Read are grey of 1, 2, 4, 8, 12 and 16 bits, RGB of 8 and 16, palettes and CMYK of 8, with alpha or without, in
    strips or tiles, in all compressions that Pillow's libtiff knows but the old JPEG.
    """
    page = first_directory(data)
    width, height = page.one(_WIDTH), page.one(_HEIGHT)
    check_pixels(width, height)
    if page.one(_SUBFILE, 0) & 1:
        raise Unreadable("is a TIFF image whose first page is a reduced copy of another")
    for tag in _MAKE_THE_PICTURE - {_JPEG_TABLES, *_YCBCR}:
        page.all(tag)  # a decoder would pass over one of a wrong type
    for tag in (_PLANES, _FILL_ORDER, _PREDICTOR):
        if page.one(tag, 1) not in (1, 2):
            raise broken(f"tag {tag} is {page.one(tag)}")
    colours, bits, extra = _kind(page)
    if colours == _INDEX:
        palette = page.all(_PALETTE)
        if len(palette) != 3 * 2**bits:
            raise broken(f"a palette of {len(palette)} values")
        # Pillow takes the upper bytes, which is right whether a writer multiplied by 256 or by 257.
        if max(palette) < 256:
            raise Unreadable("is a TIFF image with a palette of 8-bit values, where 16 are due")
    _check_strips(page, len(data), width, height)
    orientation = page.one(ORIENTATION, 1)
    orientation = orientation if 1 <= orientation <= 8 else 1
    wide, tall = upright_size(width, height, orientation)
    facts = ImageFacts(
        format="TIFF",
        mode={_WHITE_IS_0: "grey", _GREY: "grey", _INDEX: "palette", _CMYK: "CMYK"}.get(colours, "RGB"),
        width=wide,
        height=tall,
        bits=bits,
        # Extra samples of another or no meaning are skipped.
        has_alpha=extra[:1] in ((_PREMULTIPLIED,), (_STRAIGHT,)),
        pages=_count_pages(data, page),
        orientation=orientation,
        has_profile=_PROFILE in page.entries,
    )

    def decode() -> Pixels:
        picture = _only_the_picture(data, page)
        image = open_with_pillow(TiffImageFile, picture)
        if bits == 16 and colours == _RGB:
            return _sixteen_bit_colours(picture, np.asarray(image))
        if bits > 8:
            return to_eight_bits(np.asarray(image), bits)
        if colours == _CMYK:
            return cmyk_to_rgb(255 - np.asarray(image))
        return from_pillow(image)

    return Picture(facts, decode)


def _kind(page: Directory) -> tuple[int, int, tuple[int, ...]]:
    """The colours, the bits of a channel, what the extra samples are."""
    colours, samples = page.one(_COLOURS), page.one(_SAMPLES, 1)
    all_bits, extra = page.all(_BITS, (1,)), page.all(_EXTRA)
    bits = all_bits[0] if all_bits else 0
    if set(page.all(_NUMBERS, (1,))) != {1}:
        raise Unreadable("is a TIFF image of signed or floating-point values, which have no known range")
    channels, allowed = _KINDS.get(colours, (0, ()))
    if colours == _RGB and samples == 4 and not extra:
        extra = (_STRAIGHT,)  # some writers do not say so
    if set(all_bits) != {bits} or bits not in allowed or samples - len(extra) != channels:
        raise Unreadable(
            f"is a TIFF image of {samples} samples of {bits} bits and colours of kind {colours}, which is not read; "
            "save grey values of 8 or 16 bits, or RGB"
        )
    compression, planes = page.one(_COMPRESSION, _RAW), page.one(_PLANES, 1)
    if (
        compression == _OLD_JPEG
        or (colours == _IN_YCBCR and compression != _JPEG)
        or (extra and (bits not in (8, 16) or colours in (_INDEX, _IN_YCBCR) or (bits == 16 and colours != _RGB)))
        or (bits == 16 and colours == _RGB and (planes != 1 or extra[:1] == (_PREMULTIPLIED,)))
    ):
        raise Unreadable("is a TIFF image of an unusual kind, which is not read; save it as RGB of 8 bits")
    return colours, bits, extra


def _check_strips(page: Directory, length: int, width: int, height: int) -> None:
    """Raises `Unreadable` unless all strips or tiles are there, whole, in the file."""
    samples, planes = page.one(_SAMPLES, 1), page.one(_PLANES, 1)
    if _TILES in page.entries:
        starts, sizes = page.all(_TILES), page.all(_TILE_BYTES)
        columns, rows = page.one(_TILE_WIDTH), page.one(_TILE_HEIGHT)
        check_pixels(columns, rows)
    else:
        starts, sizes = page.all(_STRIPS), page.all(_STRIP_BYTES)
        columns, rows = width, min(page.one(_ROWS_PER_STRIP, height), height)
    layers = samples if planes == 2 else 1
    across, down = -(-width // columns), -(-height // max(rows, 1))
    if rows < 1 or not len(starts) == len(sizes) == across * down * layers:
        raise broken("too few or too many strips")
    row_bytes = (columns * page.all(_BITS, (1,))[0] * (samples // layers) + 7) // 8
    for place, (start, size) in enumerate(zip(starts, sizes, strict=True)):
        if size < 1 or start + size > length:
            raise broken("the TIFF file is cut short")
        last_strip = _TILES not in page.entries and place % down == down - 1
        least = row_bytes * (height - rows * (down - 1) if last_strip else rows)
        if page.one(_COMPRESSION, _RAW) == _RAW and size < least:
            raise broken("a strip is too short")


def _count_pages(data: bytes, page: Directory) -> int:
    seen = {page.at}
    while page.next:
        if page.next in seen:
            raise broken("its pages go in a circle")
        seen.add(page.next)
        page = read_directory(data, page.order, page.big, page.next)
    return len(seen)


def _only_the_picture(data: bytes, page: Directory) -> bytes:
    """The file with the first page alone, without texts, profiles and orientation."""
    kept = [entry for tag, entry in sorted(page.entries.items()) if tag in _MAKE_THE_PICTURE]
    count = struct.pack(page.order + ("Q" if page.big else "H"), len(kept))
    directory = count + b"".join(kept) + bytes(8 if page.big else 4)
    # Never longer than the one it replaces.
    return data[: page.at] + directory + data[page.at + len(directory) :]


def _sixteen_bit_colours(data: bytes, upper: Pixels) -> Pixels:
    """By OpenCV, which keeps all bits; Pillow has found no fault, and read the upper bits."""
    found: Any = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if found is None or found.dtype != np.uint16 or found.ndim != 3 or found.shape[:2] != upper.shape[:2]:
        raise broken("libtiff could not decode its pixels")
    found = cv2.cvtColor(found, cv2.COLOR_BGRA2RGBA if found.shape[-1] == 4 else cv2.COLOR_BGR2RGB)
    found = found[..., : upper.shape[-1]]
    if not np.array_equal(found >> 8, upper):
        raise broken("two decoders read its pixels differently")
    return from_sixteen_bits(found)
