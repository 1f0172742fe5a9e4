import csv
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy import ndimage

from dorl_jax.data.crops import cell_crop, cell_view, is_empty, largest_component
from dorl_jax.data.images import read_image, read_mask
from dorl_jax.data.spline import zoom_image


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


def blobs(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """A mask of a few round parts, or of dust, as it comes."""
    noise = rng.standard_normal(shape)
    smooth = ndimage.gaussian_filter(noise, rng.uniform(0, 6))
    return smooth > rng.choice([0, 0.5, 1, 2]) * smooth.std()


def many_cells(count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Images and masks: one to many parts, on the border and off it, thin, one pixel."""
    rng = np.random.default_rng(3)
    for place in range(count):
        shape = (int(rng.integers(1, 90)), int(rng.integers(1, 90)))
        mask = blobs(rng, shape)
        if place % 5 == 1:
            mask[:] = False
            mask[rng.integers(shape[0]), rng.integers(shape[1])] = True
        elif place % 5 == 2:
            mask[:] = False
            mask[:: int(rng.integers(2, 9)), :: int(rng.integers(2, 9))] = True  # equal parts
        elif place % 5 == 3:
            mask = np.pad(mask, 3)[: shape[0], : shape[1]]
        if mask.any():
            yield rng.integers(0, 256, (*shape, 3), dtype=np.uint8), mask


def original_crop(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The released code's rule, step by step with SciPy; a box of which nothing would be left keeps a pixel."""
    labels, _ = ndimage.label(mask)
    counts = np.bincount(labels.ravel())
    counts[0] = 0
    part = labels == np.argmax(counts)
    rows, columns = np.where(part.any(axis=1))[0], np.where(part.any(axis=0))[0]
    grey = image.copy()
    grey[~part] = 128
    cell = grey[rows[0] : max(rows[-1], rows[0] + 1), columns[0] : max(columns[-1], columns[0] + 1)]
    framed = np.pad(cell, ((10, 10), (10, 10), (0, 0)), constant_values=128)
    return ndimage.zoom(framed, (128 / framed.shape[0], 128 / framed.shape[1], 1), order=3)


def check_parity(image: np.ndarray, mask: np.ndarray) -> None:
    expected = original_crop(image, mask)
    difference = np.abs(cell_crop(image, mask, parity=True).astype(int) - expected)
    # Only values half-way between two levels may differ, and there are next to none.
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3


def test_parity_crops_of_many_masks() -> None:
    for image, mask in many_cells(20):
        check_parity(image, mask)


@pytest.mark.slow
def test_parity_crops_of_hundreds_of_masks() -> None:
    for image, mask in many_cells(500):
        check_parity(image, mask)


def real_cells(folder: Path, step: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for laboratory in ("bccd", "cellavision_blog", "jiangxi_tecom"):
        with (folder / laboratory / "labels.csv").open(newline="") as table:
            for row in list(csv.DictReader(table))[::step]:
                if row["mask"]:
                    yield read_image(folder / laboratory / row["file"]), read_mask(folder / laboratory / row["mask"])


@pytest.mark.slow
def test_parity_crops_of_real_cells(real_data: Path) -> None:
    cells = list(real_cells(real_data, step=8))
    assert len(cells) > 80
    for image, mask in cells:
        np.testing.assert_array_equal(largest_component(mask), largest_by_scipy(mask))
        check_parity(image, mask)


def crop_by_loops(image: np.ndarray, mask: np.ndarray, border: int, grey: int) -> np.ndarray:
    """What `cell_crop` resizes: the largest part by flooding, pixel by pixel."""
    best: set[tuple[int, int]] = set()
    free = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    for start in sorted(free):
        if start not in free:
            continue
        part, front = {start}, [start]
        free.discard(start)
        while front:
            y, x = front.pop()
            for near in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                if near in free:
                    free.discard(near)
                    part.add(near)
                    front.append(near)
        if len(part) > len(best):
            best = part
    top, left = min(y for y, _ in best), min(x for _, x in best)
    bottom, right = max(y for y, _ in best), max(x for _, x in best)
    framed = np.full((bottom - top + 1 + 2 * border, right - left + 1 + 2 * border, 3), grey, np.uint8)
    for y, x in best:
        framed[y - top + border, x - left + border] = image[y, x]
    return framed


def test_crops_as_by_loops() -> None:
    for image, mask in many_cells(120):
        framed = crop_by_loops(image, mask, border=3, grey=99)
        expected = cv2.resize(framed, (32, 32), interpolation=cv2.INTER_CUBIC)
        np.testing.assert_array_equal(cell_crop(image, mask, size=32, border=3, grey=99), expected)


def test_memory_of_any_order() -> None:
    """Turned and mirrored arrays are views whose rows do not follow one another."""
    image, mask = next(many_cells(1))
    plain = cell_crop(np.rot90(image).copy(), np.rot90(mask).copy())
    np.testing.assert_array_equal(cell_crop(np.rot90(image), np.rot90(mask)), plain)
    before = image.copy(), mask.copy()
    np.testing.assert_array_equal(
        cell_crop(image[::-1, ::-1], mask[::-1, ::-1]), cell_crop(image[::-1, ::-1].copy(), mask[::-1, ::-1].copy())
    )
    np.testing.assert_array_equal(
        cell_view(image[:, ::-1], mask[:, ::-1], 1.5), cell_view(image[:, ::-1].copy(), mask[:, ::-1].copy(), 1.5)
    )
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(mask, before[1])


def test_for_other_processes() -> None:
    """The functions can be sent to worker processes, which need no JAX for them."""
    for function in (cell_crop, cell_view, largest_component, is_empty, read_image):
        assert pickle.loads(pickle.dumps(function)) is function  # noqa: S301 - our own
    code = "import sys, dorl_jax.data.crops, dorl_jax.data.images; assert not {'jax', 'flax'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


@pytest.mark.parametrize("size", [128, 100, 96, 2, 1])
def test_zoom_as_scipys(size: int) -> None:
    """Also where a rounding error of SciPy's leaves the last row black, as from 50 pixels to 96."""
    rng = np.random.default_rng(size)
    for length in [1, 2, 3, 7, 14, 27, 50, 60, 99, 128, 241, 777]:
        image = rng.integers(0, 256, (length, 5, 3), dtype=np.uint8)
        for turned in (image, image.swapaxes(0, 1)):
            factors = (size / turned.shape[0], size / turned.shape[1], 1)
            expected = ndimage.zoom(turned, factors, order=3)
            difference = np.abs(zoom_image(turned, size).astype(int) - expected)
            assert difference.max() <= 1
            assert (difference > 0).mean() < 5e-3
    black = ndimage.zoom(np.full((50, 50), 200, np.uint8), 96 / 50, order=3)[-1, 5]
    assert black == zoom_image(np.full((50, 50, 3), 200, np.uint8), 96)[-1, 5, 0] == 0
