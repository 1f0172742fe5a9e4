"""WebP, by Pillow's libwebp."""

import struct
from collections.abc import Iterator

from PIL.WebPImagePlugin import WebPImageFile

from dorl_jax.data.formats.exif import exif_orientation
from dorl_jax.data.formats.facts import ImageFacts, broken, check_pixels, upright_size
from dorl_jax.data.formats.pixels import Picture, from_pillow, open_with_pillow

_ALPHA = 0x10  # of the flags of chunk VP8X


def is_webp(data: bytes) -> bool:
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP"


def open_webp(data: bytes) -> Picture:
    """Raises `Unreadable` where chunks are missing. Of an animation the first frame is read."""
    chunks: dict[bytes, bytes] = {}
    frames = 0
    for name, content in _chunks(data):
        frames += name == b"ANMF"
        chunks.setdefault(name, content)
    width, height, has_alpha = _header(chunks)
    check_pixels(width, height)
    orientation = exif_orientation(chunks.get(b"EXIF", b""))
    wide, tall = upright_size(width, height, orientation)
    facts = ImageFacts(
        format="WebP",
        mode="RGB",
        width=wide,
        height=tall,
        has_alpha=has_alpha,
        pages=max(frames, 1),
        orientation=orientation,
        has_profile=b"ICCP" in chunks,
    )
    return Picture(facts, lambda: from_pillow(open_with_pillow(WebPImageFile, data)))


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    if len(data) < 12 or len(data) < (end := 8 + struct.unpack_from("<I", data, 4)[0]):
        raise broken("the WebP file is cut short")
    at = 12
    while at + 8 <= end:
        name, length = struct.unpack_from("<4sI", data, at)
        if at + 8 + length > end:
            raise broken(f"chunk {name.decode('latin-1')!r} is longer than the file")
        yield name, data[at + 8 : at + 8 + length]
        at += 8 + length + length % 2


def _header(chunks: dict[bytes, bytes]) -> tuple[int, int, bool]:
    """Width, height, whether there is alpha."""
    extended, lossless, lossy = (chunks.get(name, b"") for name in (b"VP8X", b"VP8L", b"VP8 "))
    if len(extended) >= 10:
        width, height = (1 + int.from_bytes(extended[start : start + 3], "little") for start in (4, 7))
        return width, height, bool(extended[0] & _ALPHA)
    if len(lossless) >= 5 and lossless[0] == 0x2F:
        bits = int.from_bytes(lossless[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF), bool(bits >> 28 & 1)
    if len(lossy) >= 10 and lossy[3:6] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", lossy, 6)
        return width & 0x3FFF, height & 0x3FFF, False
    raise broken("it has no header")
