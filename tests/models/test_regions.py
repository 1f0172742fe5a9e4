"""Statistics of the regions of a cell against OpenCV, NumPy and the classical baseline."""

import cv2
import jax.numpy as jnp
import numpy as np
import pytest

from dorl_jax.baselines import colour_texture, texture
from dorl_jax.models.co_occurrence import co_occurrence, grey_levels
from dorl_jax.models.hu_moments import hu_moments
from dorl_jax.models.regions import (
    REGION_NUMBERS,
    RELATION_NUMBERS,
    _counts,
    _histograms,
    band_energies,
    cell_mask,
    colour_channels,
    local_binary_patterns,
    masked_moments,
    otsu,
    region_statistics,
    relation_statistics,
    size_statistics,
)

SIDE = 64


@pytest.fixture(scope="module")
def crops():
    """Two cells on grey: a round nucleus, and one of two lobes, in a noisy cytoplasm."""
    rng = np.random.RandomState(0)
    y, x = np.mgrid[:SIDE, :SIDE]
    made = []
    for nucleus in (
        np.hypot(y - 30, x - 34) < 11,
        (np.hypot(y - 24, x - 25) < 7) | (np.hypot(y - 40, x - 39) < 8),
    ):
        image = np.full((SIDE, SIDE, 3), 128, np.uint8)
        cell = np.hypot(y - 32, x - 32) < 26
        image[cell] = (210, 180, 200)
        image[nucleus] = (110, 60, 150)
        noise = rng.randint(-12, 13, image.shape)
        made.append(np.where(cell[..., None], np.clip(image + noise, 0, 255), 128).astype(np.uint8))
    return np.stack(made)


@pytest.fixture(scope="module")
def cells():
    y, x = np.mgrid[:SIDE, :SIDE]
    return np.stack([np.hypot(y - 32, x - 32) < 22, np.hypot(y - 28, x - 30) < 9])


def test_the_mask_is_the_cell_without_its_rim(crops):
    y, x = np.mgrid[:SIDE, :SIDE]
    cell = np.hypot(y - 32, x - 32) < 26
    expected = cv2.erode(cell.astype(np.uint8), np.ones((3, 3), np.uint8), borderValue=0) > 0
    np.testing.assert_array_equal(cell_mask(jnp.asarray(crops, jnp.float32)), [expected, expected])


def test_all_of_a_crop_without_a_cell():
    assert np.asarray(cell_mask(jnp.full((1, SIDE, SIDE, 3), 128.0))).all()


def test_otsu_as_opencv_finds_it(crops, cells):
    found = otsu(jnp.asarray(crops[..., 1], jnp.float32), jnp.asarray(cells))
    for crop, cell, one in zip(crops, cells, np.asarray(found), strict=True):
        values = crop[..., 1][cell].reshape(-1, 1)
        threshold, _ = cv2.threshold(values, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
        # Where no pixel lies between, thresholds part the same: OpenCV takes another.
        np.testing.assert_array_equal(values <= one, values <= threshold)


def test_channels_as_opencv_has_them(crops):
    found = np.asarray(colour_channels(jnp.asarray(crops, jnp.float32)))
    for crop, one in zip(crops, found, strict=True):
        expected = colour_texture._channels(crop)
        np.testing.assert_allclose(one[..., :7], expected[..., :7], atol=2e-3)
        # Theirs is the angle on a hexagon, ours on a circle: at most 1.2 degrees apart.
        np.testing.assert_allclose(one[..., 7:], expected[..., 7:], atol=0.022)


def test_moments(cells):
    channels = np.random.RandomState(1).gamma(2, size=(2, SIDE, SIDE, 3)).astype(np.float32)
    found = np.asarray(masked_moments(jnp.asarray(channels), jnp.asarray(cells)))
    for values, cell, one in zip(channels, cells, found, strict=True):
        inside = values[cell].astype(np.float64)
        spread = inside.std(0)
        skew = ((inside - inside.mean(0)) ** 3).mean(0) / spread**3
        np.testing.assert_allclose(one, np.concatenate([inside.mean(0), spread, skew]), rtol=2e-4)


@pytest.mark.parametrize("radius", [1, 2, 4])
def test_patterns(crops, cells, radius):
    grey = crops[..., 1].astype(np.float32)
    (found,) = local_binary_patterns(jnp.asarray(grey), (jnp.asarray(cells),), radius)
    for image, cell, one in zip(grey, cells, np.asarray(found), strict=True):
        np.testing.assert_allclose(one, texture.local_binary_patterns(image, cell, radius), atol=2e-3)


def test_bands(crops, cells):
    found = np.asarray(band_energies(jnp.asarray(crops, jnp.float32), jnp.asarray(cells))).reshape(2, 3, 4)
    for crop, cell, one in zip(crops, cells, found, strict=True):
        for channel in range(3):
            expected = texture.band_energies(crop[..., channel].astype(np.float32), cell, (0.0, 1.0, 2.0, 4.0, 8.0))
            np.testing.assert_allclose(255 * one[channel], expected, rtol=2e-2, atol=0.02)


def test_the_shape_of_round_and_lobed_nuclei(crops):
    numbers = np.asarray(region_statistics(crops / np.float32(255)))
    share, apart, cell_dispersion, cell_eccentricity, dispersion, eccentricity, *left = numbers[:, 164:177].T
    y, x = np.mgrid[:SIDE, :SIDE]
    # A disc's share of the cell (less its rim of a pixel) and distance from its middle.
    np.testing.assert_allclose(share[0], 11**2 / 25**2, rtol=0.05)
    np.testing.assert_allclose(apart[0], np.hypot(2, 2) / 25, rtol=0.05)
    np.testing.assert_allclose(cell_dispersion, 1, atol=0.01)
    np.testing.assert_allclose(cell_eccentricity, 0, atol=0.05)
    np.testing.assert_allclose(dispersion[0], 1, atol=0.02)
    lobes = (np.hypot(y - 24, x - 25) < 7) | (np.hypot(y - 40, x - 39) < 8)
    moments = cv2.moments(lobes.astype(np.uint8), binaryImage=True)
    hu = moments["nu20"] + moments["nu02"]
    np.testing.assert_allclose(dispersion[1], 2 * np.pi * hu, rtol=0.03)
    assert eccentricity[1] > 0.9 > eccentricity[0] + 0.6
    for pixels, erosion in ((1, left[0]), (4, left[2]), (6, left[3])):
        kernel = np.ones((2 * pixels + 1, 2 * pixels + 1), np.uint8)
        expected = cv2.erode(lobes.astype(np.uint8), kernel, borderValue=0).sum() / lobes.sum()
        np.testing.assert_allclose(erosion[1], expected, atol=0.03)


def test_histograms(crops, cells):
    channels = colour_channels(jnp.asarray(crops, jnp.float32))
    found = _histograms(channels, jnp.asarray(cells))
    for values, cell, one in zip(np.asarray(channels), cells, np.asarray(found), strict=True):
        # A few pixels of hundreds may lie on an edge, where rounding decides.
        np.testing.assert_allclose(one, colour_texture._histograms(values[cell]), atol=2e-3)
        np.testing.assert_allclose(one.reshape(4, 12).sum(axis=1), 1, rtol=1e-6)


def test_co_occurrence(crops, cells):
    green = jnp.asarray(crops[..., 1], jnp.float32)
    levels = grey_levels(green, _counts(green, jnp.asarray(cells)))
    (found,) = co_occurrence(levels, (jnp.asarray(cells),))
    for grey, cell, level, one in zip(crops[..., 1], cells, np.asarray(levels), np.asarray(found), strict=True):
        expected = colour_texture._levels(grey.astype(np.float32), cell)
        np.testing.assert_array_equal(level, expected)
        tables = [texture.co_occurrence(expected, cell, distance, 16) for distance in (1, 2, 4, 8)]
        numbers = np.concatenate([texture.co_occurrence_numbers(table) for table in tables])
        np.testing.assert_allclose(one, numbers, rtol=1e-4, atol=1e-5)


def test_hu_moments(cells):
    y, x = np.mgrid[:SIDE, :SIDE]
    lobes = (np.hypot(y - 24, x - 20) < 7) | (np.hypot(y - 40, x - 39) < 11)
    regions = np.stack([lobes, (y > 20) & (x > y), *cells])
    found = np.asarray(hu_moments(jnp.asarray(regions)))
    for region, one in zip(regions, found, strict=True):
        hu = cv2.HuMoments(cv2.moments(region.astype(np.uint8), binaryImage=True))[:, 0]
        np.testing.assert_allclose(one, np.log10(np.abs(hu) + 1e-6), atol=1e-3)
    assert np.isfinite(hu_moments(jnp.zeros((1, SIDE, SIDE), bool))).all()


@pytest.mark.parametrize(
    ("statistics", "count"), [(region_statistics, REGION_NUMBERS), (relation_statistics, RELATION_NUMBERS)]
)
def test_mirrored_and_turned(crops, statistics, count):
    crop = crops / np.float32(255)
    plain = np.asarray(statistics(crop))
    assert plain.shape == (2, count)
    for changed in (crop[:, ::-1], crop[:, :, ::-1], np.rot90(crop, axes=(1, 2))):
        np.testing.assert_allclose(statistics(changed), plain, rtol=2e-3, atol=2e-3)


def test_relations_of_what_the_regions_are(crops):
    """Written out once more from the numbers of the regions."""
    crop = crops / np.float32(255)
    regions, found = np.asarray(region_statistics(crop)), np.asarray(relation_statistics(crop))
    cell, nucleus, cytoplasm = (regions[:, 27 * place : 27 * place + 27].reshape(2, 3, 9) for place in range(3))
    patterns, bands, shape = regions[:, 90:140], regions[:, 140:164].reshape(2, 2, 12), regions[:, 164:177]
    expected = [nucleus[:, 0] - cell[:, 0], cytoplasm[:, 0] - cell[:, 0]]
    expected += [np.log((one[:, 1] + 1e-3) / (cell[:, 1] + 1e-3)) for one in (nucleus, cytoplasm)]
    expected += [one[:, 2] for one in (cell, nucleus, cytoplasm)]
    expected += [patterns, shape, np.log((bands[:, 0] + 4e-4) / (bands[:, 1] + 4e-4))]
    np.testing.assert_allclose(found, np.concatenate(expected, axis=1), rtol=1e-4, atol=1e-5)


def test_a_tint_of_the_whole_cell_leaves_relations_alone(crops):
    """Optical densities add up: a filter in front of the camera moves regions, and relations hardly."""
    filtered = np.where(crops == 128, 128, np.round((crops + 1.0) * [0.85, 0.95, 0.9] - 1)).clip(0, 255)
    plain, tinted = crops / np.float32(255), (filtered / 255).astype(np.float32)
    density = np.s_[:, 3:6]
    moved = np.abs(region_statistics(tinted) - region_statistics(plain))[density]
    left = np.abs(relation_statistics(tinted) - relation_statistics(plain))[density]
    np.testing.assert_allclose(moved, np.tile(-np.log10([0.85, 0.95, 0.9]), (2, 1)), rtol=0.1)
    assert left.max() < 0.003 < 0.1 * moved.max() + 0.003


def test_no_cell_gives_finite_numbers():
    for statistics in (region_statistics, relation_statistics):
        for grey in (128 / 255, 0.0):
            assert np.isfinite(statistics(np.full((1, SIDE, SIDE, 3), grey, np.float32))).all()


def test_sizes_are_logarithms_of_areas_in_the_image(crops):
    """Nucleus and cytoplasm of the first cell as they were drawn, but for the rim that the mask leaves out."""
    y, x = np.mgrid[:SIDE, :SIDE]
    whole = cv2.erode((np.hypot(y - 32, x - 32) < 26).astype(np.uint8), np.ones((3, 3), np.uint8), borderValue=0).sum()
    nucleus = (np.hypot(y - 30, x - 34) < 11).sum()
    areas = np.array([5000.0, 80.0], np.float32)
    found = np.asarray(size_statistics(jnp.asarray(crops, jnp.float32) / 255, areas))
    np.testing.assert_allclose(found[:, 0], np.log(areas), rtol=1e-6)
    np.testing.assert_allclose(np.exp(found[0, 1:]) / 5000, [nucleus / whole, 1 - nucleus / whole], rtol=0.02)
    # Of another magnification: the same for all, and for all three alike.
    larger = np.asarray(size_statistics(jnp.asarray(crops, jnp.float32) / 255, 4 * areas))
    np.testing.assert_allclose(larger - found, np.log(4), rtol=1e-5)
    nothing = np.asarray(size_statistics(jnp.full((1, SIDE, SIDE, 3), 128 / 255), np.zeros(1, np.float32)))
    assert np.isfinite(nothing).all()
