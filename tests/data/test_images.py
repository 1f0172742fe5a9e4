import contextlib
import io
import os
import struct
import sys
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
from pictures import bmp, png, rows_of, save, scene, tiff, valid_files
from PIL import Image, ImageCms, ImageOps

from dorl_jax.data import images
from dorl_jax.data.formats import facts
from dorl_jax.data.images import (
    ImageError,
    decode_image,
    inspect_image,
    read_image,
    read_image_with_facts,
    read_mask,
    read_mask_values,
)
from dorl_jax.data.sources import Part, Record

RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 256, (12, 18, 3), dtype=np.uint8)


@pytest.mark.parametrize("suffix", ["bmp", "png", "tif"])
def test_lossless_formats_give_the_pixels(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(PICTURE).save(path)
    np.testing.assert_array_equal(read_image(path), PICTURE)


def test_jpeg_is_near(tmp_path: Path) -> None:
    smooth = np.broadcast_to(np.arange(0, 240, 10, dtype=np.uint8)[:, None, None], (24, 18, 3)).copy()
    Image.fromarray(smooth).save(tmp_path / "a.jpg", quality=95)
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - smooth).max() < 8


def test_the_content_counts_not_the_suffix(tmp_path: Path) -> None:
    Image.fromarray(PICTURE).save(tmp_path / "a.jpg", format="PNG")
    np.testing.assert_array_equal(read_image(tmp_path / "a.jpg"), PICTURE)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_exif_orientation_is_applied(tmp_path: Path, suffix: str) -> None:
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:, :16] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise, for display
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(np.rot90(upright)).save(path, exif=exif)
    found = read_image(path)
    assert found.shape == upright.shape
    assert np.abs(found.astype(int) - upright).max() < 8


def test_transparent_pixels_are_white(tmp_path: Path) -> None:
    pixels = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 0, 0, 51]]], np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png")[0], [[10, 20, 30], [255] * 3, [204] * 3])


def test_palette_with_and_without_transparency(tmp_path: Path) -> None:
    image = Image.frombytes("P", (3, 1), bytes([0, 1, 2]))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png")[0], [[10, 20, 30], [40, 50, 60], [70, 80, 90]])
    image.save(tmp_path / "b.png", transparency=1)
    np.testing.assert_array_equal(read_image(tmp_path / "b.png")[0], [[10, 20, 30], [255] * 3, [70, 80, 90]])


def test_grey_one_bit_and_cmyk(tmp_path: Path) -> None:
    Image.fromarray(np.array([[3, 200]], np.uint8)).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png")[0], [[3] * 3, [200] * 3])
    Image.fromarray(np.array([[False, True]])).save(tmp_path / "bit.png")
    np.testing.assert_array_equal(read_image(tmp_path / "bit.png")[0], [[0] * 3, [255] * 3])
    Image.new("CMYK", (2, 1), (255, 0, 0, 0)).save(tmp_path / "cmyk.tif")
    np.testing.assert_array_equal(read_image(tmp_path / "cmyk.tif")[0], [[0, 255, 255]] * 2)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_grey_is_scaled(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 128, 257, 32896, 65407, 65535]], np.uint16)
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(values).save(path)
    expected = np.round(values / 257).astype(np.uint8)
    np.testing.assert_array_equal(read_image(path), np.repeat(expected[..., None], 3, -1))
    np.testing.assert_array_equal(read_mask(path), expected > 64)


@pytest.mark.parametrize("values", [np.zeros((2, 2), np.float32), np.full((2, 2), 70000, np.int32)])
def test_values_without_a_known_range_are_refused(tmp_path: Path, values: np.ndarray) -> None:
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(ImageError, match=r"a\.tif is a TIFF image of signed or floating-point values"):
        read_image(tmp_path / "a.tif")


def test_mask_convention(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 64, 65, 128, 192, 193, 255]], np.uint8)).save(tmp_path / "m.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png")[0], [0, 0, 1, 1, 1, 1, 1])
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png", threshold=192)[0], [0, 0, 0, 0, 0, 1, 1])


def test_mask_in_colour_palette_and_one_bit(tmp_path: Path) -> None:
    rgb = np.array([[[128, 0, 0], [0, 255, 255]]], np.uint8)
    Image.fromarray(rgb).save(tmp_path / "rgb.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "rgb.png")[0], [True, False])
    palette = Image.frombytes("P", (2, 1), bytes([1, 0]))
    palette.putpalette([0, 0, 0, 128, 0, 0])
    palette.save(tmp_path / "palette.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "palette.png")[0], [True, False])
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "bit.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "bit.png")[0], [True, False])


@pytest.mark.parametrize("read", [read_image, read_mask])
@pytest.mark.parametrize("content", [b"", b"no image", b"GIF89a\x01\x00\x01\x00\x00\x00\x00;"])
def test_no_image(tmp_path: Path, content: bytes, read: Callable[[Path], np.ndarray]) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ImageError, match=r"a\.png is no BMP, PNG, JPEG, TIFF or WebP image"):
        read(tmp_path / "a.png")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"no image file at .*none\.png"):
        read_image(tmp_path / "none.png")
    with pytest.raises(ImageError, match="no image file at"):
        read_image(tmp_path)


@pytest.mark.parametrize("format", ["BMP", "PNG", "JPEG", "TIFF"])
def test_broken_bytes_raise_the_one_error(tmp_path: Path, format: str) -> None:
    buffer = io.BytesIO()
    Image.fromarray(PICTURE).save(buffer, format)
    whole = np.frombuffer(buffer.getvalue(), np.uint8)
    path = tmp_path / "a.img"
    path.write_bytes(whole[: len(whole) * 3 // 4].tobytes())
    with pytest.raises(ImageError, match=r"a\.img is a broken or truncated image"):
        read_image(path)
    rng = np.random.default_rng(0)
    for _ in range(300):
        spoilt = whole.copy()
        places = rng.integers(0, min(len(whole), 400), 3)
        spoilt[places] = rng.integers(0, 256, 3)
        path.write_bytes(spoilt[: rng.integers(1, len(whole) + 1)].tobytes())
        # Any other exception fails the test.
        with contextlib.suppress(ImageError):
            read_image(path)


def test_bound_on_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(PICTURE).save(tmp_path / "a.png")
    monkeypatch.setattr(facts, "MOST_PIXELS", 12 * 18)
    read_image(tmp_path / "a.png")
    monkeypatch.setattr(facts, "MOST_PIXELS", 12 * 18 - 1)
    with pytest.raises(ImageError, match="18 x 12 pixels, more than 215"):
        read_image(tmp_path / "a.png")


def test_bound_on_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.bmp"
    Image.fromarray(PICTURE).save(path)
    size = path.stat().st_size
    monkeypatch.setattr(images, "MOST_BYTES", size)
    np.testing.assert_array_equal(read_image(path), PICTURE)
    monkeypatch.setattr(images, "MOST_BYTES", size - 1)
    with pytest.raises(ImageError, match=rf"a\.bmp has {size} bytes, more than {size - 1}"):
        read_image(path)


def _huge(format: str, width: int, height: int) -> bytes:
    """A small file that announces this size."""
    if format == "PNG":
        return png(width, height, 8, 2, b"0")
    if format == "TIFF":
        return tiff(b"0" * 100, width, height, 8, 2, 3, compression=8)
    if format == "BMP":
        return bmp(b"0" * 100, width, height, 8, 1, bytes(1024))
    if format == "JPEG":
        data = bytearray(save(Image.fromarray(PICTURE), "JPEG"))
        struct.pack_into(">HH", data, data.find(b"\xff\xc0") + 5, min(height, 65500), min(width, 65500))
        return bytes(data)
    # A canvas for an animation, for which libwebp asks all its memory at once.
    content = bytes([2, 0, 0, 0]) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"RIFF" + struct.pack("<I4s4sI", 12 + len(content), b"WEBP", b"VP8X", len(content)) + content


@pytest.mark.parametrize("side", [9000, 20_000, 2**24 - 1])
@pytest.mark.parametrize("format", ["BMP", "PNG", "JPEG", "TIFF", "WebP"])
def test_decompression_bomb_is_refused_by_its_header(format: str, side: int) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ImageError, match=r"^bomb has \d+ x \d+ pixels, more than 67108864$"):
            decode_image(_huge(format, side, side), "bomb")
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_a_very_long_row_is_refused() -> None:
    for format in ("PNG", "TIFF", "WebP"):
        with pytest.raises(ImageError, match=r"^bomb has 16000000 x 4 pixels, more than 65535 on a side$"):
            decode_image(_huge(format, 16_000_000, 4), "bomb")


def test_a_bomb_in_a_text_is_not_lit() -> None:
    text = b"Comment\0\0" + zlib.compress(bytes(200 * 2**20), 9)
    data = png(18, 12, 8, 2, rows_of(PICTURE), (b"zTXt", text), (b"iCCP", text))
    np.testing.assert_array_equal(decode_image(data, "a"), PICTURE)


def test_a_tile_of_a_tiff_may_not_be_huge() -> None:
    more = ((322, 4, (2**20,)), (323, 4, (2**20,)), (324, 4, (8,)), (325, 4, (100,)))
    data = tiff(bytes(100), 18, 12, 8, 2, 3, compression=8, more=more, without=(273, 278, 279))
    with pytest.raises(ImageError, match="1048576 x 1048576 pixels"):
        decode_image(data, "a")


def test_scans_without_end_are_refused() -> None:
    data = save(Image.fromarray(PICTURE), "JPEG", progressive=True)
    scan = data.rindex(b"\xff\xda")
    with pytest.raises(ImageError, match="more than 200 scans"):
        decode_image(data[:-2] + data[scan:-2] * 300 + data[-2:], "a")


SCENE = scene()


def over_white(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255.0
    return np.rint(colours * share + 255 * (1 - share)).astype(np.uint8)


def expected_pixels() -> dict[str, np.ndarray]:
    """What the lossless files of `valid_files` hold, by what their names say of it."""
    picture = Image.fromarray(SCENE)
    grey = np.asarray(picture.convert("L"))
    deep = SCENE[..., 0].astype(int) * 257 - (SCENE[..., 0] > 100) * 90
    alpha = 255 - SCENE[..., 1]
    palette = picture.quantize(40)
    return {
        "rgb": SCENE,
        "grey": grey,
        "palette": np.asarray(palette.convert("RGB")),
        "palette alpha": over_white(np.asarray(palette.convert("RGB")), 6 * np.asarray(palette)),
        "1": np.where(np.asarray(picture.convert("1")), 255, 0),
        "rgba": over_white(SCENE, alpha),
        "grey alpha": over_white(np.repeat(grey[..., None], 3, -1), alpha),
        "16": np.rint(deep / 257),
        "565": np.stack(
            [(SCENE[..., c] >> s).astype(int) * 255 // (2 ** (8 - s) - 1) for c, s in enumerate((3, 2, 3))], -1
        ),
        "turned": np.rot90(SCENE, -1),
    }


KINDS = {
    **dict.fromkeys(("bmp-rgb", "bmp-32", "bmp-from the top", "png-rgb", "png-rgb 16", "png-interlaced"), "rgb"),
    **dict.fromkeys(("png-animated", "tiff-rgb", "tiff-cmyk", "tiff-rgb 16", "tiff-rgb 16 deflate"), "rgb"),
    **dict.fromkeys(("tiff-lzw", "tiff-deflate", "tiff-tiles", "tiff-planes", "tiff-big", "tiff-motorola"), "rgb"),
    **dict.fromkeys(("tiff-pages", "webp-lossless", "webp-animated"), "rgb"),
    **dict.fromkeys(("bmp-grey", "png-grey", "tiff-grey", "tiff-grey lzw", "tiff-packbits"), "grey"),
    **dict.fromkeys(("bmp-palette", "bmp-rle", "png-palette", "tiff-palette"), "palette"),
    **dict.fromkeys(("bmp-1", "png-1", "tiff-1", "tiff-fax"), "1"),
    **dict.fromkeys(("png-rgba", "png-rgba 16", "tiff-rgba", "webp-rgba"), "rgba"),
    **dict.fromkeys(("png-turned", "tiff-turned", "webp-turned"), "turned"),
    **dict.fromkeys(("png-16", "tiff-16"), "16"),
    "png-palette alpha": "palette alpha",
    "png-grey alpha": "grey alpha",
    "bmp-565": "565",
}


@pytest.mark.parametrize("name", KINDS)
def test_every_lossless_kind_gives_the_pixels(name: str) -> None:
    expected = expected_pixels()[KINDS[name]]
    expected = np.broadcast_to(expected[..., None], (*expected.shape, 3)) if expected.ndim == 2 else expected
    found = decode_image(valid_files()[name], name)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.uint8
    assert found.flags.c_contiguous


@pytest.mark.parametrize("name", sorted(set(valid_files()) - KINDS.keys()))
def test_every_lossy_kind_is_near(name: str) -> None:
    found = decode_image(valid_files()[name], name).astype(int)
    expected = SCENE
    if "grey" in name:
        expected = np.asarray(Image.fromarray(SCENE).convert("L"))[..., None]
    elif "turned" in name:
        expected = np.rot90(SCENE, -1)
    elif "alpha" in name:
        expected = expected_pixels()["rgba"]
    # Coarse colours under fine noise; swapped channels, or inks for light, are 40 and more apart.
    assert np.abs(found - expected).mean() < 8


def test_jpeg_is_decoded_as_pillow_does() -> None:
    files = {name: data for name, data in valid_files().items() if name.startswith("jpeg-")}
    for name, data in files.items():
        with Image.open(io.BytesIO(data)) as image:
            expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB")).astype(int)
        assert np.abs(decode_image(data, name) - expected).max() <= (1 if "cmyk" in name else 0), name


def test_what_the_header_says(tmp_path: Path) -> None:
    stated = {
        "bmp-grey": ("BMP", "palette", 8, False, ()),
        "bmp-1": ("BMP", "palette", 1, False, ()),
        "png-grey": ("PNG", "grey", 8, False, ()),
        "png-rgba": ("PNG", "RGB", 8, True, ("transparent pixels laid over white",)),
        "png-palette alpha": ("PNG", "palette", 8, True, ("transparent pixels laid over white",)),
        "png-rgb 16": ("PNG", "RGB", 16, False, ("16 bits scaled to 8",)),
        "png-turned": ("PNG", "RGB", 8, False, ("EXIF orientation 6 applied",)),
        "png-animated": ("PNG", "RGB", 8, False, ("first of 2 frames",)),
        "jpeg-rgb": ("JPEG", "RGB", 8, False, ()),
        "jpeg-grey": ("JPEG", "grey", 8, False, ()),
        "jpeg-cmyk": ("JPEG", "CMYK", 8, False, ("CMYK converted to RGB without a profile",)),
        "jpeg-turned": ("JPEG", "RGB", 8, False, ("EXIF orientation 6 applied",)),
        "tiff-16": ("TIFF", "grey", 16, False, ("16 bits scaled to 8",)),
        "tiff-pages": ("TIFF", "RGB", 8, False, ("first of 3 pages",)),
        "tiff-turned": ("TIFF", "RGB", 8, False, ("EXIF orientation 6 applied",)),
        "tiff-palette": ("TIFF", "palette", 8, False, ()),
        "webp-lossy": ("WebP", "RGB", 8, False, ()),
        "webp-rgba": ("WebP", "RGB", 8, True, ("transparent pixels laid over white",)),
        "webp-animated": ("WebP", "RGB", 8, False, ("first of 2 frames",)),
        "webp-turned": ("WebP", "RGB", 8, False, ("EXIF orientation 6 applied",)),
    }
    files = valid_files()
    for name, data in files.items():
        path = tmp_path / name
        path.write_bytes(data)
        found = inspect_image(path)
        image, with_image = read_image_with_facts(path)
        assert found == with_image
        assert (found.height, found.width) == image.shape[:2] == ((26, 19) if "turned" in name else (19, 26))
        if name in stated:
            assert (found.format, found.mode, found.bits, found.has_alpha, found.notes) == stated[name], name


def test_pictures_of_a_multi_picture_file_are_counted(tmp_path: Path) -> None:
    first, second = (Image.fromarray(scene(seed=seed)) for seed in (0, 1))
    first.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[second])
    image, found = read_image_with_facts(tmp_path / "a.jpg")
    assert found.notes == ("first of 2 frames",)
    assert np.abs(image.astype(int) - SCENE).mean() < 8


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation(tmp_path: Path, suffix: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    options = {"lossless": True} if suffix == "webp" else {"quality": 100, "subsampling": 0} if suffix == "jpg" else {}
    Image.fromarray(SCENE).save(path, exif=exif, **options)
    # By where the standard says that the stored first row and column are seen.
    seen = {
        1: SCENE,
        2: SCENE[:, ::-1],
        3: SCENE[::-1, ::-1],
        4: SCENE[::-1],
        5: SCENE.swapaxes(0, 1),
        6: np.rot90(SCENE, -1),
        7: SCENE.swapaxes(0, 1)[::-1, ::-1],
        8: np.rot90(SCENE),
    }[orientation]
    found = read_image(path)
    assert np.abs(found.astype(int) - seen).max() <= (6 if suffix == "jpg" else 0)
    assert inspect_image(path).orientation == orientation


@pytest.mark.parametrize("name", ["png-rgb", "jpeg-rgb", "tiff-rgb", "webp-lossless"])
def test_a_colour_profile_is_ignored_and_said(tmp_path: Path, name: str) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    with Image.open(io.BytesIO(valid_files()[name])) as image:
        path = tmp_path / "a"
        options = {"lossless": True} if image.format == "WEBP" else {"quality": 90} if image.format == "JPEG" else {}
        plain = save(image, image.format or "", **options)
        path.write_bytes(save(image, image.format or "", icc_profile=profile, **options))
    image, found = read_image_with_facts(path)
    assert found.notes == ("embedded colour profile ignored",)
    np.testing.assert_array_equal(image, decode_image(plain, "plain"))


def test_broken_exif_means_no_orientation() -> None:
    for block in (
        b"Exif\0\0",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0garbage",
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff",
    ):
        data = save(Image.fromarray(SCENE), "JPEG", exif=block)
        assert decode_image(data, "a").shape == SCENE.shape


def test_orientation_in_other_places_than_exif_does_not_count() -> None:
    text = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    data = tiff(SCENE.tobytes(), 26, 19, 8, 2, 3, more=((700, 4, struct.unpack("<15I", text.ljust(60)[:60])),))
    np.testing.assert_array_equal(decode_image(data, "a"), SCENE)


def test_sixteen_bits_are_rounded_not_cut() -> None:
    values = np.arange(0, 65536, 37)[:1764].reshape(14, 42, 3).astype(np.uint16)
    expected = np.rint(values / 257.0).astype(np.uint8)
    assert (expected != values >> 8).mean() > 0.2  # a reader that takes the upper byte would show
    done, as_png = cv2.imencode(".png", values[..., ::-1])
    assert done
    tiles = np.zeros((1, 16, 3, 16, 3), np.uint16)
    tiles.reshape(16, 48, 3)[:14, :42] = values
    tile_bytes = tiles.swapaxes(1, 2).tobytes()
    size = 16 * 16 * 6
    more = ((322, 3, (16,)), (323, 3, (16,)), (324, 4, (8, 8 + size, 8 + 2 * size)), (325, 4, (size,) * 3))
    for data in (
        as_png.tobytes(),
        tiff(values.tobytes(), 42, 14, 16, 2, 3),
        tiff(values.astype(">u2").tobytes(), 42, 14, 16, 2, 3, order=">"),
        tiff(zlib.compress(values.tobytes()), 42, 14, 16, 2, 3, compression=8, big=True),
        tiff(tile_bytes, 42, 14, 16, 2, 3, more=more, without=(273, 278, 279)),
    ):
        np.testing.assert_array_equal(decode_image(data, "a"), expected)
    opaque = np.dstack([values, np.full((14, 42), 65535, np.uint16)])
    half = np.dstack([values, np.full((14, 42), 32896, np.uint16)])
    np.testing.assert_array_equal(
        decode_image(tiff(opaque.tobytes(), 42, 14, 16, 2, 4, more=((338, 3, (2,)),)), "a"), expected
    )
    over = over_white(expected, np.full((14, 42), 128))
    np.testing.assert_array_equal(
        decode_image(tiff(half.tobytes(), 42, 14, 16, 2, 4, more=((338, 3, (2,)),)), "a"), over
    )


def test_twelve_bits_have_a_range_of_their_own() -> None:
    found = decode_image(tiff(bytes([0xAB, 0xC1, 0x23]), 2, 1, 12, 1), "a")
    np.testing.assert_array_equal(found[0, :, 0], [round(0xABC * 255 / 4095), round(0x123 * 255 / 4095)])


def test_a_transparent_colour() -> None:
    def found(bits: int, colours: int, rows: bytes, key: bytes, width: int = 2) -> list:
        return decode_image(png(width, 1, bits, colours, b"\0" + rows, (b"tRNS", key)), "a")[0].tolist()

    white = [255] * 3
    assert found(2, 0, bytes([0b00011011]), b"\0\2", 4) == [[0] * 3, [85] * 3, white, white]
    assert found(4, 0, bytes([0x38]), b"\0\3") == [white, [136] * 3]
    assert found(1, 0, bytes([0b01000000]), b"\0\0") == [white, white]
    assert found(8, 0, bytes([3, 4]), b"\0\3") == [white, [4] * 3]
    # Of the same upper byte, but not of the same 16 bits.
    assert found(16, 0, struct.pack(">2H", 770, 771), b"\3\2") == [white, [3] * 3]
    colours = struct.pack(">6H", 256, 512, 768, 256, 512, 769)
    assert found(16, 2, colours, struct.pack(">3H", 256, 512, 768)) == [white, [1, 2, 3]]
    assert found(8, 2, bytes([1, 2, 3, 1, 2, 4]), struct.pack(">3H", 1, 2, 3)) == [white, [1, 2, 4]]


def test_transparent_everywhere_is_no_image(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "a.png")
    with pytest.raises(ImageError, match=r"a\.png is transparent everywhere"):
        read_image(tmp_path / "a.png")
    Image.new("RGBA", (4, 4), (200, 0, 0, 0)).save(tmp_path / "a.png")
    assert read_mask(tmp_path / "a.png").all()


def test_white_as_zero_is_turned_round() -> None:
    for data, expected in (
        (tiff(bytes([1, 200]), 2, 1, 8, 0), [254, 55]),
        (tiff(bytes([0b10000000]), 2, 1, 1, 0), [0, 255]),
        (tiff(bytes([0x1F]), 2, 1, 4, 0), [238, 0]),
    ):
        np.testing.assert_array_equal(decode_image(data, "a")[0, :, 0], expected)


PIXELS = SCENE.tobytes()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (tiff(bytes(4), 2, 1, 16, 0), "samples of 16 bits and colours of kind 0"),  # decoders do not turn it round
        (tiff(SCENE.astype("<u2").tobytes(), 26, 19, 16, 2, 3, planes=2), "unusual kind"),  # and read this wrongly
        (tiff(PIXELS, 26, 19, 8, 6, 3), "unusual kind"),  # YCbCr without JPEG
        (tiff(PIXELS, 26, 19, 8, 8, 3), "colours of kind 8"),  # CIE Lab
        (tiff(PIXELS, 26, 19, 8, 2, 3, compression=6), "unusual kind"),
        (tiff(PIXELS, 26, 19, 8, 2, 3, more=((339, 3, (2, 2, 2)),)), "signed or floating-point"),
        (tiff(PIXELS, 26, 19, 8, 2, 3, without=(262,)), "tag 262 has 0 values"),
        (tiff(PIXELS, 26, 19, 8, 2, 3, without=(279,)), "too few or too many strips"),
        (tiff(PIXELS, 26, 19, 8, 2, 3, more=((254, 4, (1,)),)), "a reduced copy"),
        (tiff(PIXELS, 26, 19, 8, 2, 3, more=((278, 4, (10,)),)), "too few or too many strips"),
        (tiff(PIXELS, 26, 19, 8, 2, 3, more=((278, 4, (0,)),)), "too few or too many strips"),
        (tiff(PIXELS, 26, 19, 8, 2, 3, more=((279, 4, (1400,)),)), "a strip is too short"),
        (tiff(PIXELS, 26, 19, 8, 2, 3, more=((279, 4, (9999,)),)), "cut short"),
        (tiff(PIXELS, 26, 19, 8, 2, 3, more=((256, 4, (26, 26)),)), "tag 256 has 2 values"),
        (tiff(bytes(4), 2, 2, 8, 3, more=((320, 3, tuple(range(256)) * 3),)), "a palette of 8-bit values"),
        (tiff(bytes(4), 2, 2, 8, 3, more=((320, 3, (1, 2, 3)),)), "a palette of 3 values"),
        (tiff(PIXELS, 26, 19, 8, 2, 3, more=((284, 3, (0,)),)), "tag 284 is 0"),
        (tiff(bytes(4), 0, 2, 8, 1), "has 0 x 2 pixels"),
        (bmp(bytes(4), 1, 1, 24, 4), "compression 4"),
        (bmp(bytes(4), 1, 1, 2), "of 2 bits"),
        (bmp(bytes(16), 1, 1, 32, 3, bytes(12)), "no bits are given to its colours"),
        (png(2, 2, 8, 5, bytes(20)), "colour type 5"),
        (png(2, 2, 8, 0, bytes(6), (b"tRNS", b"\0\1"), (b"tRNS", b"\0\1")), "'tRNS' comes twice"),
        (png(0, 2, 8, 0, bytes(6)), "has 0 x 2 pixels"),
        (png(2, 2, 8, 0, bytes(5)), "libpng could not decode"),
        (png(2, 2, 2, 0, bytes(3)), "1 bytes of its pixels are missing"),
    ],
)
def test_what_is_refused_and_why(data: bytes, reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        decode_image(data, "a")


def _prefixes(name: str, data: bytes, step: int) -> None:
    whole = decode_image(data, name)
    for length in range(0, len(data), step):
        try:
            found = decode_image(data[:length], name)
        except ImageError:
            continue
        np.testing.assert_array_equal(found, whole, err_msg=f"{name}, {length} bytes")


@pytest.mark.parametrize("name", valid_files())
def test_a_file_cut_short_is_refused_or_whole(name: str) -> None:
    _prefixes(name, valid_files()[name], step=37)


@pytest.mark.slow
@pytest.mark.parametrize("name", valid_files())
def test_a_file_cut_anywhere_is_refused_or_whole(name: str) -> None:
    _prefixes(name, valid_files()[name], step=1)


@pytest.mark.parametrize("name", [name for name in valid_files() if name.startswith("png-")])
def test_one_wrong_byte_in_a_png_is_noticed(name: str) -> None:
    data = valid_files()[name]
    whole = decode_image(data, name)
    for place in range(len(data)):
        spoilt = bytearray(data)
        spoilt[place] ^= 1 << place % 8
        try:
            found = decode_image(bytes(spoilt), name)
        except ImageError:
            continue
        np.testing.assert_array_equal(found, whole)


def test_a_part_of_a_picture(tmp_path: Path) -> None:
    path = tmp_path / "sheet.tif"
    Image.fromarray(SCENE).save(path)
    part = Part(path, 5, 3, 10, 7)
    image, found = read_image_with_facts(part)
    np.testing.assert_array_equal(image, SCENE[3:10, 5:15])
    assert image.base is None  # the sheet is not kept
    assert (found.width, found.height) == (10, 7)
    assert inspect_image(part) == found
    mask = np.where(SCENE > 100, 255, 0).astype(np.uint8)
    Image.fromarray(mask).save(path)
    np.testing.assert_array_equal(read_mask(part), mask[3:10, 5:15, 0] > 64)
    np.testing.assert_array_equal(read_image(Part(path, 0, 0, 26, 19)), mask)


@pytest.mark.parametrize(
    "box", [(17, 0, 10, 5), (0, 15, 5, 5), (0, 0, 0, 5), (26, 0, 1, 1), (0, 0, 27, 1), (-1, 0, 5, 5)]
)
@pytest.mark.parametrize("read", [read_image, read_mask, inspect_image])
def test_a_part_beyond_the_picture(tmp_path: Path, box: tuple[int, int, int, int], read: Callable) -> None:
    path = tmp_path / "sheet.png"
    Image.fromarray(SCENE).save(path)
    with pytest.raises(ImageError, match=r"sheet\.png#xywh=.* is no rectangle within .* 26 x 19 pixels"):
        read(Part(path, *box))


def test_a_record(monkeypatch: pytest.MonkeyPatch) -> None:
    held = {"image": save(Image.fromarray(SCENE), "PNG"), "mask": save(Image.fromarray(SCENE[..., 0]), "PNG")}
    built = ModuleType("dorl_jax.data.built")
    built.read_record = lambda record: held[record.field]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "dorl_jax.data.built", built)
    image, mask = (Record(Path("set") / "1.0.0", "train", 3, field) for field in ("image", "mask"))
    np.testing.assert_array_equal(read_image(image), SCENE)
    np.testing.assert_array_equal(read_mask_values(mask), SCENE[..., 0])
    assert inspect_image(mask).mode == "grey"
    held["image"] = held["image"][:50]
    with pytest.raises(ImageError, match=r"^set/1\.0\.0#train\[3\]\.image is a broken or truncated image: "):
        read_image(image)


def test_a_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.tif"
    Image.fromarray(SCENE).save(path)
    opened = []
    real = os.open
    monkeypatch.setattr(os, "open", lambda name, *args: opened.append(name) or real(name, *args))
    monkeypatch.setattr("builtins.open", None)
    np.testing.assert_array_equal(read_image(str(path)), SCENE)
    assert opened == [str(path)]


def test_a_pipe_is_no_image(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ImageError, match="no image file at .*pipe"):
        read_image(tmp_path / "pipe")


def test_a_file_that_comes_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(SCENE).save(path)
    real = os.read
    monkeypatch.setattr(os, "read", lambda file, size: real(file, min(size, 100)))
    np.testing.assert_array_equal(read_image(path), SCENE)


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(SCENE).save(path)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ImageError, match=r"a\.png cannot be read: Permission denied"):
        read_image(path)


def test_mask_values_before_the_threshold(tmp_path: Path) -> None:
    values = np.array([[0, 30, 128, 255]], np.uint8)
    with_alpha = np.dstack([values, values, values, np.array([[0, 255, 0, 7]], np.uint8)])
    indexed = Image.frombytes("P", (4, 1), bytes([0, 1, 2, 3]))
    indexed.putpalette([0, 9, 9, 30, 9, 9, 128, 9, 9, 255, 9, 9])
    deep = values.astype(np.uint16) * 257
    for name, image, options in (
        ("grey.png", Image.fromarray(values), {}),
        ("grey.bmp", Image.fromarray(values), {}),
        ("grey.tif", Image.fromarray(values), {"compression": "tiff_lzw"}),
        ("rgba.png", Image.fromarray(with_alpha), {}),
        ("la.png", Image.fromarray(with_alpha).convert("LA"), {}),
        ("palette.png", indexed, {}),
        ("transparent palette.png", indexed, {"transparency": bytes([0, 255, 3, 4])}),
        ("palette.tif", indexed, {}),
        ("deep.png", Image.fromarray(deep), {}),
        ("deep.tif", Image.fromarray(deep), {}),
    ):
        image.save(tmp_path / name, **options)
        np.testing.assert_array_equal(read_mask_values(tmp_path / name), values, err_msg=name)
        np.testing.assert_array_equal(read_mask(tmp_path / name), values > 64, err_msg=name)
    Image.fromarray(np.array([[False, True]])).save(tmp_path / "bit.png")
    np.testing.assert_array_equal(read_mask_values(tmp_path / "bit.png"), [[0, 255]])


def test_real_cells_are_read_as_opencv_reads_them(real_data: Path) -> None:
    paths = sorted(path for suffix in ("jpg", "bmp", "png") for path in real_data.rglob(f"images/**/*.{suffix}"))[::60]
    assert len({path.suffix for path in paths}) == 3
    for path in paths:
        expected = cv2.imread(str(path), cv2.IMREAD_COLOR)[..., ::-1].astype(int)
        # Its build of libjpeg-turbo is not ours.
        assert np.abs(read_image(path) - expected).max() <= (2 if path.suffix == ".jpg" else 0), path
