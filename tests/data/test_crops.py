import cv2
import numpy as np
import pytest
from scipy import ndimage

from dorl_jax.data.crops import cell_crop, cell_view, is_empty, largest_component


def largest_by_scipy(mask: np.ndarray) -> np.ndarray:
    labels, count = ndimage.label(mask)
    if count == 0:
        return np.zeros_like(mask)
    sizes = [np.sum(labels == number) for number in range(1, count + 1)]
    return labels == 1 + int(np.argmax(sizes))


@pytest.mark.parametrize("density", [0.0, 0.05, 0.3, 0.5, 0.6, 0.9, 1.0])
def test_largest_component_as_scipys(density: float) -> None:
    rng = np.random.default_rng(int(100 * density))
    for shape in [(9, 9), (1, 20), (31, 17), (40, 64)] * 10:
        mask = rng.random(shape) < density
        np.testing.assert_array_equal(largest_component(mask), largest_by_scipy(mask))


def test_a_corner_does_not_connect() -> None:
    mask = np.array([[1, 1, 0], [0, 0, 1], [0, 0, 1]], bool)
    np.testing.assert_array_equal(largest_component(mask), [[1, 1, 0], [0, 0, 0], [0, 0, 0]])


@pytest.mark.parametrize("parity", [False, True])
def test_crop_without_a_resize(parity: bool) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
    mask = np.zeros((40, 50), bool)
    mask[5:21, 10:26] = True  # 16 x 16
    mask[5, 10] = False
    mask[30:33, 40:43] = True  # a smaller part, left out
    inner = 15 if parity else 16
    crop = cell_crop(image, mask, size=inner + 8, border=4, grey=77, parity=parity)
    expected = np.full((inner + 8, inner + 8, 3), 77, np.uint8)
    expected[4:-4, 4:-4] = image[5 : 5 + inner, 10 : 10 + inner]
    expected[4, 4] = 77
    np.testing.assert_array_equal(crop, expected)


def test_crop_is_resized_cubically() -> None:
    image = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    mask = np.zeros((60, 60), bool)
    mask[10:40, 5:55] = True
    framed = np.full((50, 70, 3), 128, np.uint8)
    framed[10:-10, 10:-10] = image[10:40, 5:55]
    np.testing.assert_array_equal(cell_crop(image, mask), cv2.resize(framed, (128, 128), interpolation=cv2.INTER_CUBIC))


def test_parity_crop_is_the_released_codes() -> None:
    image = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    mask = np.zeros((60, 60), bool)
    mask[10:40, 5:55] = True
    mask[12, 7] = False
    grey = image.copy()
    grey[~mask] = 128
    framed = np.full((49, 69, 3), 128, np.uint8)
    framed[10:-10, 10:-10] = grey[10:39, 5:54]
    # Channel by channel, as the released code's (3, h, w).
    planes = [ndimage.zoom(framed[..., c], (128 / 49, 128 / 69), order=3) for c in range(3)]
    difference = np.abs(cell_crop(image, mask, parity=True).astype(int) - np.stack(planes, -1))
    assert difference.max() <= 1


@pytest.mark.parametrize("parity", [False, True])
def test_a_mask_of_one_pixel(parity: bool) -> None:
    image = np.full((20, 20, 3), 10, np.uint8)
    mask = np.zeros((20, 20), bool)
    mask[19, 19] = True
    crop = cell_crop(image, mask, size=21, parity=parity)
    assert crop[10, 10, 0] == 10
    assert crop[0, 0, 0] == 128


def test_empty_mask_gives_the_whole_image() -> None:
    image = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    mask = np.zeros((128, 128), bool)
    assert is_empty(mask)
    np.testing.assert_array_equal(cell_crop(image, mask), image)
    mask[3, 3] = True
    assert not is_empty(mask)


def test_full_mask() -> None:
    image = np.random.default_rng(0).integers(0, 256, (108, 108, 3), dtype=np.uint8)
    crop = cell_crop(image, np.ones((108, 108), bool))
    np.testing.assert_array_equal(crop[10:-10, 10:-10], image)


def test_the_view_is_a_square_around_the_cell():
    image = np.random.RandomState(0).randint(0, 256, (30, 40, 3)).astype(np.uint8)
    mask = np.zeros((30, 40), bool)
    mask[2:12, 20:26] = True  # 10 high, 6 wide, centre (7, 23)
    view = cell_view(image, mask, 2.0)
    rows, columns = np.clip(np.arange(-3, 17), 0, 29), np.clip(np.arange(13, 33), 0, 39)
    np.testing.assert_array_equal(view, image[rows[:, None], columns])
    mask[:] = False
    np.testing.assert_array_equal(cell_view(image, mask, 2.0), image)
