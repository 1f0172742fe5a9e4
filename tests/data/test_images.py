import contextlib
import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from dorl_jax.data import images
from dorl_jax.data.images import ImageError, read_image, read_mask, resize_image, resize_mask

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


def test_sixteen_bit_colour_is_scaled(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), PICTURE[..., ::-1].astype(np.uint16) * 257)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), PICTURE)


@pytest.mark.parametrize("values", [np.zeros((2, 2), np.float32), np.full((2, 2), 70000, np.int32)])
def test_values_without_a_known_range_are_refused(tmp_path: Path, values: np.ndarray) -> None:
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(ImageError, match=r"a\.tif: grey values beyond 0\.\.65535"):
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
    with pytest.raises(ImageError, match=r"a\.png is no BMP, PNG, JPEG or TIFF image"):
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


def _png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [9000, 10_000, 50_000])
def test_decompression_bomb_is_refused_unopened(tmp_path: Path, side: int) -> None:
    (tmp_path / "a.png").write_bytes(_png_header(side, side))
    with pytest.raises(ImageError, match=r"a\.png .*pixels"):
        read_image(tmp_path / "a.png")


def test_bound_on_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(PICTURE).save(tmp_path / "a.png")
    monkeypatch.setattr(images, "MOST_PIXELS", 12 * 18)
    read_image(tmp_path / "a.png")
    monkeypatch.setattr(images, "MOST_PIXELS", 12 * 18 - 1)
    with pytest.raises(ImageError, match="18 x 12 pixels, more than 215"):
        read_image(tmp_path / "a.png")


def test_shrinking_averages_over_area() -> None:
    halved = resize_image(PICTURE, (6, 9))
    blocks = PICTURE.reshape(6, 2, 9, 2, 3).mean((1, 3))
    assert np.abs(halved - blocks).max() <= 0.5


def test_enlarging_is_linear_between_pixel_centres() -> None:
    step = np.array([[0, 100]], np.uint8)[..., None].repeat(3, -1)
    np.testing.assert_array_equal(resize_image(step, (1, 4))[0, :, 0], [0, 25, 75, 100])


def test_each_axis_is_resized_its_own_way() -> None:
    columns = np.tile(np.array([[0], [100]], np.uint8), (4, 2))[..., None].repeat(3, -1)
    resized = resize_image(columns, (4, 4))
    np.testing.assert_array_equal(resized, np.full((4, 4, 3), 50))


def test_resize_to_a_square_or_not_at_all() -> None:
    assert resize_image(PICTURE, 7).shape == (7, 7, 3)
    np.testing.assert_array_equal(resize_image(PICTURE, (12, 18)), PICTURE)


@pytest.mark.parametrize("size", [(5, 7), (12, 18), (29, 40), (24, 9), (1, 1)])
def test_mask_takes_the_nearest_pixel_centre(size: tuple[int, int]) -> None:
    mask = RNG.random((12, 18)) < 0.5
    twin = np.empty(size, bool)
    for i in range(size[0]):
        for j in range(size[1]):
            # Half-way between two centres the later one is taken, as in PyTorch's nearest-exact.
            y = ((2 * i + 1) * 12) // (2 * size[0])
            x = ((2 * j + 1) * 18) // (2 * size[1])
            centre = ((i + 0.5) * 12 / size[0], (j + 0.5) * 18 / size[1])
            assert abs(y + 0.5 - centre[0]) <= 0.5 + 1e-9
            assert abs(x + 0.5 - centre[1]) <= 0.5 + 1e-9
            twin[i, j] = mask[y, x]
    np.testing.assert_array_equal(resize_mask(mask, size), twin)
    exact = cv2.resize(mask.astype(np.uint8), size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    np.testing.assert_array_equal(resize_mask(mask, size), exact.astype(bool))


def test_mask_and_image_keep_together() -> None:
    yy, xx = np.mgrid[:90, :120]
    mask = (yy - 40) ** 2 + (xx - 70) ** 2 < 30**2
    image = np.where(mask, 255, 0).astype(np.uint8)[..., None].repeat(3, -1)
    for size in (33, 64, 200):
        edge = resize_image(image, size)[..., 0] > 127
        small = resize_mask(mask, size)
        assert (edge & small).sum() / (edge | small).sum() > 0.95
