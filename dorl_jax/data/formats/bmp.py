"""BMP: 1 to 32 bits; palettes, bit fields and run lengths by Pillow."""

import struct

import cv2
import numpy as np
from PIL.BmpImagePlugin import BmpImageFile

from dorl_jax.data.formats.facts import ImageFacts, Unreadable, broken, check_pixels
from dorl_jax.data.formats.pixels import Picture, Pixels, from_pillow, open_with_pillow

_HEADERS = (12, 40, 52, 56, 64, 108, 124)
_RAW, _RLE8, _RLE4, _BIT_FIELDS = range(4)


def is_bmp(data: bytes) -> bool:
    return data[:2] == b"BM"


def open_bmp(data: bytes) -> Picture:
    """Raises `Unreadable` where pixels are missing or of an unknown kind."""
    try:
        start, size = struct.unpack_from("<II", data, 10)
        if size not in _HEADERS:
            raise Unreadable(f"is a BMP image with a header of {size} bytes, which is unknown")
        if size == 12:
            width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
            compression = _RAW
        else:
            width, height, _, bits, compression = struct.unpack_from("<iiHHI", data, 18)
    except struct.error as error:
        raise broken("the BMP file is cut short") from error
    from_below, height = height > 0, abs(height)
    check_pixels(width, height)
    if bits not in (1, 4, 8, 16, 24, 32) or compression not in (_RAW, _RLE8, _RLE4, _BIT_FIELDS):
        raise Unreadable(f"is a BMP image of {bits} bits and compression {compression}, which is not read")
    if start < 14 + size:
        raise broken("its pixels start within its header")
    stride = (width * bits + 31) // 32 * 4
    if compression in (_RAW, _BIT_FIELDS) and len(data) < start + stride * height:
        raise broken("the BMP file is cut short")
    has_alpha = False
    if compression == _BIT_FIELDS:
        # At least a row of four bytes comes after the masks. Only longer headers have a mask for alpha.
        masks = struct.unpack_from("<4I", data, 54)
        if not any(masks[:3]):
            raise broken("no bits are given to its colours")
        has_alpha = bits == 32 and size >= 56 and masks[3] != 0
    facts = ImageFacts(
        format="BMP",
        mode="palette" if bits <= 8 else "RGB",
        width=width,
        height=height,
        bits=5 if bits == 16 else min(bits, 8),
        has_alpha=has_alpha,
    )

    def decode() -> Pixels:
        if bits != 24 or compression != _RAW:
            return from_pillow(open_with_pillow(BmpImageFile, data))
        # Blue, green, red, in rows padded to four bytes.
        rows = np.ndarray((height, width, 3), np.uint8, data, start, (stride, 3, 1))
        colours = cv2.cvtColor(rows, cv2.COLOR_BGR2RGB)
        return np.ascontiguousarray(colours[::-1]) if from_below else colours

    return Picture(facts, decode)
