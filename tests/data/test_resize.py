import cv2
import numpy as np
import pytest

from dorl_jax.data.resize import resize_image, resize_mask

RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 256, (12, 18, 3), dtype=np.uint8)


def linear(line: np.ndarray, start: float, step: float, size: int) -> np.ndarray:
    """`size` values between pixel centres, from the place `start` (centre of the first pixel is 0) on, by loops."""
    found = np.empty((size, *line.shape[1:]))
    for i in range(size):
        place = min(max(start + i * step, 0), len(line) - 1)
        left = min(int(place), len(line) - 1)
        right = min(left + 1, len(line) - 1)
        found[i] = line[left] * (1 - (place - left)) + line[right] * (place - left)
    return found


def halved_line(line: np.ndarray, size: int) -> np.ndarray:
    """The declared method along the first axis, in float64."""
    length = float(len(line))
    while length >= 2 * size:
        if len(line) % 2:
            line = np.concatenate([line, line[-1:]])
        line = (line[::2] + line[1::2]) / 2
        length /= 2
    return linear(line, (length / size - 1) / 2, length / size, size)


def test_shrinking_by_half_averages_pairs() -> None:
    blocks = PICTURE.reshape(6, 2, 9, 2, 3).mean((1, 3))
    assert np.abs(resize_image(PICTURE, (6, 9)) - blocks).max() <= 0.5
    quarters = RNG.integers(0, 256, (16, 24, 3), dtype=np.uint8)
    blocks = quarters.reshape(4, 4, 6, 4, 3).mean((1, 3))
    assert np.abs(resize_image(quarters, (4, 6)) - blocks).max() <= 1


@pytest.mark.parametrize("shape", [(363, 360), (67, 51), (33, 200), (9, 9), (5, 3)])
@pytest.mark.parametrize("size", [(4, 4), (31, 20), (16, 64), (1, 1), (2, 7)])
def test_as_the_same_method_in_float64(shape: tuple[int, int], size: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    image = cv2.GaussianBlur(rng.integers(0, 256, (*shape, 3), dtype=np.uint8), (0, 0), 1.5)
    twin = halved_line(image.astype(float), size[0])
    twin = halved_line(twin.swapaxes(0, 1), size[1]).swapaxes(0, 1)
    difference = np.abs(resize_image(image, size) - twin)
    # Every halving rounds halves up, and older versions of OpenCV round places between pixels to 1/32.
    halvings = max(np.log2(length / wanted) for length, wanted in zip(shape, size, strict=True))
    assert difference.max() <= 3.5
    assert difference.mean() < 0.6 + 0.15 * max(halvings, 0)


@pytest.mark.parametrize("size", [(12, 18), (6, 9), (5, 4), (31, 20)])
def test_into_an_array_that_is_there(size: tuple[int, int]) -> None:
    out = np.zeros((*size, 3), np.uint8)
    assert resize_image(PICTURE, size, out=out) is out
    np.testing.assert_array_equal(out, resize_image(PICTURE, size))


def test_odd_lengths_keep_their_place() -> None:
    # A ramp stays a ramp: nothing is shifted or stretched, but for half a pixel at the end.
    ramp = np.repeat(np.arange(201, dtype=np.uint8)[:, None, None], 3, axis=-1)
    for size in (3, 20, 33, 50, 67, 99):
        found = resize_image(np.repeat(ramp, 5, axis=1), (size, 5))[:, 0, 0].astype(float)
        centres = (np.arange(size) + 0.5) * 201 / size - 0.5
        assert np.abs(found - centres)[:-1].max() <= 1


@pytest.mark.parametrize(("shape", "size"), [((360, 363), 224), ((120, 120), 224), ((12, 18), (7, 10)), ((50, 50), 26)])
def test_as_opencv_where_nothing_shrinks_by_two(shape: tuple[int, int], size: int | tuple[int, int]) -> None:
    image = RNG.integers(0, 256, (*shape, 3), dtype=np.uint8)
    height_width = (size, size) if isinstance(size, int) else size
    expected = cv2.resize(image, height_width[::-1], interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(resize_image(image, size), expected)


def test_the_released_codes_way() -> None:
    image = RNG.integers(0, 256, (363, 360, 3), dtype=np.uint8)
    expected = cv2.resize(image, (64, 64), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(resize_image(image, 64, method="cv2_bilinear"), expected)
    assert (resize_image(image, 64) != expected).any()


def test_another_way_is_an_error() -> None:
    with pytest.raises(ValueError, match="no way to resize: 'area'"):
        resize_image.__wrapped__(PICTURE, 7, method="area")


def test_nearer_to_the_mean_over_area_than_bilinear() -> None:
    image = RNG.integers(0, 256, (256, 256, 3), dtype=np.uint8)
    for size in (100, 60, 31):
        area = cv2.resize(image.astype(np.float64), (size, size), interpolation=cv2.INTER_AREA)
        ours = np.abs(resize_image(image, size) - area).mean()
        assert ours < 0.8 * np.abs(resize_image(image, size, method="cv2_bilinear") - area).mean()


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
    # Versions of OpenCV differ half-way between two centres.
    rows, columns = ((2 * np.arange(n) + 1) * m % (2 * n) != 0 for m, n in zip((12, 18), size, strict=True))
    decided = np.ix_(rows, columns)
    np.testing.assert_array_equal(resize_mask(mask, size)[decided], exact.astype(bool)[decided])


@pytest.mark.parametrize("shape", [(90, 120), (91, 121), (181, 241), (363, 361)])
@pytest.mark.parametrize("size", [20, 33, 64, 200])
def test_mask_and_image_keep_together(shape: tuple[int, int], size: int) -> None:
    height, width = shape
    yy, xx = np.mgrid[:height, :width]
    mask = (yy - 0.45 * height) ** 2 + (xx - 0.58 * width) ** 2 < (height / 3) ** 2
    image = np.where(mask, 255, 0).astype(np.uint8)[..., None].repeat(3, -1)
    edge = resize_image(image, size)[..., 0] > 127
    small = resize_mask(mask, size)
    assert (edge & small).sum() / (edge | small).sum() > 0.95
    # Not shifted either, but for the half pixel of the original by which nearest pixels are off at even ratios.
    for axis in np.indices((size, size)):
        assert abs(axis[edge].mean() - axis[small].mean()) < 0.25
