import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from dorl_jax.data.encoding import encode_image, encode_mask
from dorl_jax.data.images import ImageError, read_image, read_mask, resize_image, resize_mask
from dorl_jax.data.sources import Part

RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 256, (17, 23, 3), dtype=np.uint8)
LEVELS = RNG.choice(np.array([0, 3, 128, 200, 255], np.uint8), (17, 23))


def decode(data: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(data)))


@pytest.mark.parametrize(
    ("mode", "settings"),
    [
        ("RGB", {}),
        ("RGB", {"progressive": True, "quality": 60}),
        ("RGB", {"subsampling": 0}),
        ("L", {}),
        ("RGB", {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0"}),
    ],
)
def test_plain_jpegs_are_stored_as_they_are(tmp_path: Path, mode: str, settings: dict[str, object]) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(PICTURE).convert(mode).save(path, **settings)
    assert encode_image(path) == path.read_bytes()


def test_turned_and_cmyk_jpegs_are_stored_as_they_are_read(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(PICTURE).save(tmp_path / "turned.jpg", exif=exif)
    Image.fromarray(PICTURE).convert("CMYK").save(tmp_path / "cmyk.jpg")
    for name in ("turned.jpg", "cmyk.jpg"):
        data = encode_image(tmp_path / name)
        assert data.startswith(b"BM")
        np.testing.assert_array_equal(decode(data), read_image(tmp_path / name))


@pytest.mark.parametrize(
    ("suffix", "mode"),
    [(suffix, mode) for suffix in ("png", "tif") for mode in ("RGB", "L", "P", "RGBA", "LA", "1")]
    + [("bmp", mode) for mode in ("RGB", "L", "P", "RGBA", "1")],
)
def test_other_images_become_bmp_of_the_same_pixels(tmp_path: Path, mode: str, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(PICTURE).convert(mode).save(path)
    np.testing.assert_array_equal(decode(encode_image(path)), read_image(path))


def test_16_bit_grey_becomes_png_of_the_same_pixels(tmp_path: Path) -> None:
    deep = RNG.integers(0, 65536, (9, 8), dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "a.tif")
    np.testing.assert_array_equal(decode(encode_image(tmp_path / "a.tif")), read_image(tmp_path / "a.tif"))
    np.testing.assert_array_equal(decode(encode_mask(tmp_path / "a.tif")) > 64, read_mask(tmp_path / "a.tif"))


def test_opencv_sees_the_same_colours(tmp_path: Path) -> None:
    Image.fromarray(PICTURE).save(tmp_path / "a.bmp")
    data = np.frombuffer(encode_image(tmp_path / "a.bmp"), np.uint8)
    np.testing.assert_array_equal(cv2.imdecode(data, cv2.IMREAD_UNCHANGED)[..., ::-1], PICTURE)


def test_part_of_a_picture(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(PICTURE).save(path)
    np.testing.assert_array_equal(decode(encode_image(Part(path, 2, 5, 7, 4))), PICTURE[5:9, 2:9])
    Image.fromarray(LEVELS).save(path)
    np.testing.assert_array_equal(decode(encode_mask(Part(path, 2, 5, 21, 12))), LEVELS[5:, 2:])


@pytest.mark.parametrize("part", [(20, 0, 4, 4), (0, 14, 4, 4), (0, 0, 0, 4)])
def test_part_outside_the_picture(tmp_path: Path, part: tuple[int, int, int, int]) -> None:
    Image.fromarray(PICTURE).save(tmp_path / "a.png")
    with pytest.raises(ImageError, match=r"a.png#xywh=.* is no rectangle within the picture, which has 23 x 17 pixels"):
        encode_image(Part(tmp_path / "a.png", *part))


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P", "1"])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_masks_keep_their_levels(tmp_path: Path, mode: str, suffix: str) -> None:
    path = tmp_path / f"mask.{suffix}"
    Image.fromarray(LEVELS).convert(mode).save(path)
    found = decode(encode_mask(path))
    assert found.ndim == 2
    expected = LEVELS if mode != "1" else np.array(Image.fromarray(LEVELS).convert("1").convert("L"))
    np.testing.assert_array_equal(found, expected)
    # The library reads the stored mask as it reads the original.
    for threshold in (2, 64, 192):
        np.testing.assert_array_equal(found > threshold, read_mask(path, threshold))


def test_first_channel_of_a_coloured_mask(tmp_path: Path) -> None:
    Image.fromarray(PICTURE).save(tmp_path / "mask.bmp")
    np.testing.assert_array_equal(decode(encode_mask(tmp_path / "mask.bmp")), PICTURE[..., 0])


@pytest.mark.parametrize("encode", [encode_image, encode_mask])
def test_what_cannot_be_read(tmp_path: Path, encode: object) -> None:
    Image.fromarray(PICTURE).resize((200, 200)).save(tmp_path / "whole.jpg")
    data = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.jpg").write_text("no image")
    for name, message in (("cut.jpg", "broken or truncated"), ("text.jpg", "is no BMP"), ("none.jpg", "no image file")):
        with pytest.raises(ImageError, match=message):
            encode(tmp_path / name)  # type: ignore[operator]


def test_at_a_size_of_its_own(tmp_path: Path) -> None:
    Image.fromarray(PICTURE).save(tmp_path / "a.jpg")
    Image.fromarray(LEVELS).save(tmp_path / "mask.png")
    expected = resize_image(read_image(tmp_path / "a.jpg"), 12)
    np.testing.assert_array_equal(decode(encode_image(tmp_path / "a.jpg", 12)), expected)
    mask = resize_mask(read_mask(tmp_path / "mask.png"), 12)
    np.testing.assert_array_equal(decode(encode_mask(tmp_path / "mask.png", 12)) > 64, mask)
