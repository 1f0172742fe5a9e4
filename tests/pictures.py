"""Small valid files of every format and mode that is read, and the means to write those that no library writes."""

import io
import struct
import zlib
from typing import Any

import cv2
import numpy as np
from PIL import Image

ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def scene(height: int = 19, width: int = 26, seed: int = 0) -> np.ndarray:
    """Something smooth with some noise, RGB."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [128 + 90 * np.sin((x * a + y * b) / 5 + seed) for a, b in ((1, 0.3), (0.2, 1), (0.7, -0.6))]
    return np.clip(np.stack(waves, -1) + rng.normal(0, 6, (height, width, 3)), 0, 255).astype(np.uint8)


def save(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png_chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(
    width: int,
    height: int,
    bits: int,
    colours: int,
    rows: bytes,
    *chunks: tuple[bytes, bytes],
    interlaced: bool = False,
) -> bytes:
    """A PNG of unfiltered rows, each with its leading 0 already; further chunks come before the pixels."""
    header = struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, int(interlaced))
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*part) for part in parts)


def rows_of(picture: np.ndarray) -> bytes:
    """A picture's rows as PNG has them, unfiltered."""
    return b"".join(b"\0" + row.tobytes() for row in picture)


def interlaced_png(picture: np.ndarray) -> bytes:
    """An 8-bit RGB picture in Adam7's seven passes."""
    passes = [picture[top::down, left::right] for left, top, right, down in ADAM7]
    rows = b"".join(rows_of(part) for part in passes if part.size)
    return png(picture.shape[1], picture.shape[0], 8, 2, rows, interlaced=True)


def tiff(
    pixels: bytes,
    width: int,
    height: int,
    bits: int,
    colours: int,
    samples: int = 1,
    *,
    order: str = "<",
    big: bool = False,
    planes: int = 1,
    compression: int = 1,
    more: tuple[tuple[int, int, tuple[int, ...]], ...] = (),
    without: tuple[int, ...] = (),
    pages: int = 1,
) -> bytes:
    """A TIFF of one strip a plane, by hand.

    Args:
      more: (tag, type 3 or 4, values), in place of those of the same tag.
      without: tags to leave out.
      pages: directories, all of the same strips.
    """
    place = "Q" if big else "I"
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "H", 43 if big else 42)
    head += struct.pack(order + "HH", 8, 0) if big else b""
    first = len(head) + struct.calcsize(order + place)
    strips = planes if planes == 1 else samples
    size = len(pixels) // strips
    tags = {
        256: (4, (width,)),
        257: (4, (height,)),
        258: (3, (bits,) * samples),
        259: (3, (compression,)),
        262: (3, (colours,)),
        273: (4, tuple(first + size * strip for strip in range(strips))),
        277: (3, (samples,)),
        278: (4, (height,)),
        279: (4, (size,) * strips),
        284: (3, (planes,)),
    }
    tags |= {tag: (kind, values) for tag, kind, values in more}
    tags = {tag: entry for tag, entry in tags.items() if tag not in without}
    out = head + struct.pack(order + place, first + len(pixels)) + pixels
    for page in range(pages):
        entry = 20 if big else 12
        directory_bytes = (8 if big else 2) + entry * len(tags) + (8 if big else 4)
        behind, listed = b"", b""
        for tag, (kind, values) in sorted(tags.items()):
            content = struct.pack(f"{order}{len(values)}{'H' if kind == 3 else 'I'}", *values)
            if len(content) > (8 if big else 4):
                where = struct.pack(order + place, len(out) + directory_bytes + len(behind))
                behind, content = behind + content, where
            listed += struct.pack(f"{order}HH{place}", tag, kind, len(values)) + content.ljust(8 if big else 4, b"\0")
        after = len(out) + directory_bytes + len(behind) if page + 1 < pages else 0
        out += (
            struct.pack(order + ("Q" if big else "H"), len(tags)) + listed + struct.pack(order + place, after) + behind
        )
    return out


def bmp(pixels: bytes, width: int, height: int, bits: int, compression: int = 0, between: bytes = b"") -> bytes:
    """A BMP with the 40-byte header; `between` are masks or the palette."""
    colours = len(between) // 4 if bits <= 8 else 0
    start = 54 + len(between)
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(pixels), 0, 0, colours, 0)
    return b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start) + info + between + pixels


def _with_cv2(suffix: str, picture: np.ndarray, *options: int) -> bytes:
    done, data = cv2.imencode(suffix, picture, list(options))
    assert done
    return data.tobytes()


def valid_files(seed: int = 0) -> dict[str, bytes]:
    """Name -> bytes; the part of the name before the first "-" is the format."""
    picture = scene(seed=seed)
    rgb = Image.fromarray(picture)
    alpha = np.dstack([picture, 255 - picture[..., 1]])
    rgba = Image.fromarray(alpha)
    deep = picture.astype(np.uint16) * 257 - (picture > 100) * np.uint16(90)
    deep_alpha = np.dstack([deep, 65535 - deep[..., 1]])
    grey, one_bit, palette = rgb.convert("L"), rgb.convert("1"), rgb.quantize(40)
    turned = Image.Exif()
    turned[0x0112] = 6
    deep_bytes = deep.astype("<u2").tobytes()
    return {
        "bmp-rgb": save(rgb, "BMP"),
        "bmp-grey": save(grey, "BMP"),
        "bmp-palette": save(palette, "BMP"),
        "bmp-1": save(one_bit, "BMP"),
        "bmp-32": save(rgba, "BMP"),
        "bmp-from the top": _bmp_from_the_top(picture),
        "bmp-565": _bmp_565(picture),
        "bmp-rle": _bmp_rle(np.asarray(palette), palette),
        "png-rgb": save(rgb, "PNG"),
        "png-grey": save(grey, "PNG"),
        "png-palette": save(palette, "PNG"),
        "png-palette alpha": save(palette, "PNG", transparency=bytes(range(0, 240, 6))),
        "png-1": save(one_bit, "PNG"),
        "png-rgba": save(rgba, "PNG"),
        "png-grey alpha": save(rgba.convert("LA"), "PNG"),
        "png-16": _with_cv2(".png", deep[..., 0]),
        "png-rgb 16": _with_cv2(".png", deep[..., ::-1]),
        "png-rgba 16": _with_cv2(".png", deep_alpha[..., [2, 1, 0, 3]]),
        "png-interlaced": interlaced_png(picture),
        "png-turned": save(rgb, "PNG", exif=turned),
        "png-animated": save(rgb, "PNG", save_all=True, append_images=[rgb.rotate(180)]),
        "jpeg-rgb": save(rgb, "JPEG", quality=90),
        "jpeg-444": save(rgb, "JPEG", quality=95, subsampling=0),
        "jpeg-grey": save(grey, "JPEG"),
        "jpeg-progressive": save(rgb, "JPEG", progressive=True),
        "jpeg-restarts": save(rgb, "JPEG", restart_marker_blocks=2),
        "jpeg-cmyk": save(rgb.convert("CMYK"), "JPEG"),
        "jpeg-stored as rgb": save(rgb, "JPEG", keep_rgb=True),
        "jpeg-turned": save(rgb, "JPEG", exif=turned),
        "tiff-rgb": save(rgb, "TIFF"),
        "tiff-grey": save(grey, "TIFF"),
        "tiff-palette": save(palette, "TIFF"),
        "tiff-1": save(one_bit, "TIFF"),
        "tiff-rgba": save(rgba, "TIFF"),
        "tiff-cmyk": save(rgb.convert("CMYK"), "TIFF"),
        "tiff-16": save(Image.fromarray(deep[..., 0]), "TIFF"),
        "tiff-rgb 16": tiff(deep_bytes, 26, 19, 16, 2, 3),
        "tiff-rgb 16 deflate": tiff(zlib.compress(deep_bytes), 26, 19, 16, 2, 3, compression=8),
        "tiff-lzw": save(rgb, "TIFF", compression="tiff_lzw"),
        "tiff-grey lzw": save(grey, "TIFF", compression="tiff_lzw"),
        "tiff-deflate": save(rgb, "TIFF", compression="tiff_adobe_deflate"),
        "tiff-packbits": save(grey, "TIFF", compression="packbits"),
        "tiff-jpeg": save(rgb, "TIFF", compression="jpeg"),
        "tiff-fax": save(one_bit, "TIFF", compression="group4"),
        "tiff-tiles": _tiled(picture),
        "tiff-planes": tiff(picture.transpose(2, 0, 1).tobytes(), 26, 19, 8, 2, 3, planes=2),
        "tiff-big": tiff(picture.tobytes(), 26, 19, 8, 2, 3, big=True),
        "tiff-motorola": tiff(picture.tobytes(), 26, 19, 8, 2, 3, order=">"),
        "tiff-pages": save(rgb, "TIFF", save_all=True, append_images=[rgb.rotate(180), grey]),
        "tiff-turned": tiff(picture.tobytes(), 26, 19, 8, 2, 3, more=((274, 3, (6,)),)),
        "webp-lossy": save(rgb, "WEBP", quality=80),
        "webp-lossless": save(rgb, "WEBP", lossless=True),
        "webp-rgba": save(rgba, "WEBP", lossless=True, exact=True),
        "webp-lossy alpha": save(rgba, "WEBP", quality=80),
        "webp-animated": save(rgb, "WEBP", save_all=True, append_images=[rgb.rotate(180)], lossless=True),
        "webp-turned": save(rgb, "WEBP", lossless=True, exif=turned),
    }


def _bmp_from_the_top(picture: np.ndarray) -> bytes:
    height, width = picture.shape[:2]
    rows = np.zeros((height, (3 * width + 3) // 4 * 4), np.uint8)
    rows[:, : 3 * width] = picture[..., ::-1].reshape(height, -1)
    return bmp(rows.tobytes(), width, -height, 24)


def _bmp_565(picture: np.ndarray) -> bytes:
    red, green, blue = (picture[..., channel].astype(np.uint16) for channel in range(3))
    words = (red >> 3 << 11 | green >> 2 << 5 | blue >> 3).astype("<u2")
    masks = struct.pack("<III", 0xF800, 0x7E0, 0x1F)
    return bmp(words[::-1].tobytes(), picture.shape[1], picture.shape[0], 16, 3, masks)


def _bmp_rle(indices: np.ndarray, image: Image.Image) -> bytes:
    height, width = indices.shape
    lines = [b"".join(bytes([1, value]) for value in row) + b"\0\0" for row in indices[::-1]]
    colours = np.array(image.getpalette(), np.uint8).reshape(-1, 3)
    table = np.zeros((256, 4), np.uint8)
    table[: len(colours), :3] = colours[:, ::-1]
    return bmp(b"".join(lines) + b"\0\1", width, height, 8, 1, table.tobytes())


def _tiled(picture: np.ndarray) -> bytes:
    """Tiles of 16 x 16, filled up with zeros."""
    height, width = picture.shape[:2]
    across, down = -(-width // 16), -(-height // 16)
    full = np.zeros((16 * down, 16 * across, 3), np.uint8)
    full[:height, :width] = picture
    tiles = full.reshape(down, 16, across, 16, 3).swapaxes(1, 2).reshape(down * across, -1)
    starts = tuple(8 + tiles.shape[1] * place for place in range(len(tiles)))
    sizes = (tiles.shape[1],) * len(tiles)
    more = ((322, 3, (16,)), (323, 3, (16,)), (324, 4, starts), (325, 4, sizes))
    return tiff(tiles.tobytes(), width, height, 8, 2, 3, more=more, without=(273, 278, 279))
