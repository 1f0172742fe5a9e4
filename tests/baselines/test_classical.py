"""Colour, texture and shape against definitions written out, and against closed forms."""

import cv2
import numpy as np
import pytest
from scipy import stats

from dorl_jax.baselines.cells import Cells
from dorl_jax.baselines.colour_texture import PARTS, _channels, _histograms, _moments, _otsu, cell_mask, colour_texture
from dorl_jax.baselines.shapes import SHAPE_NUMBERS, shape_numbers
from dorl_jax.baselines.texture import band_energies, co_occurrence, co_occurrence_numbers, local_binary_patterns
from dorl_jax.data.crops import cell_crop

RNG = np.random.default_rng(5)


def blob(height: int = 40, width: int = 50) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return (y - 18) ** 2 / 200 + (x - 26) ** 2 / 300 + 0.3 * np.sin(x / 3) < 1


def patterns_by_definition(grey: np.ndarray, region: np.ndarray, radius: int) -> np.ndarray:
    counts = np.zeros(10)
    height, width = grey.shape
    for y in range(radius, height - radius):
        for x in range(radius, width - radius):
            if not region[y, x]:
                continue
            bits = []
            for k in range(8):
                fy, fx = y - radius * np.sin(np.pi * k / 4), x + radius * np.cos(np.pi * k / 4)
                y0, x0 = int(np.floor(fy + 1e-9)), int(np.floor(fx + 1e-9))
                dy, dx = max(fy - y0, 0), max(fx - x0, 0)
                y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
                upper = (1 - dx) * grey[y0, x0] + dx * grey[y0, x1]
                lower = (1 - dx) * grey[y1, x0] + dx * grey[y1, x1]
                bits.append((1 - dy) * upper + dy * lower >= grey[y, x] - 1e-6)
            changes = sum(bits[k] != bits[k - 1] for k in range(8))
            counts[sum(bits) if changes <= 2 else 9] += 1
    return counts / counts.sum()


@pytest.mark.parametrize("radius", [1, 2, 4])
def test_local_binary_patterns_by_their_definition(radius: int) -> None:
    grey = cv2.GaussianBlur(RNG.uniform(0, 255, (40, 50)).astype(np.float32), (0, 0), 1.0)
    found = local_binary_patterns(grey, blob(), radius)
    np.testing.assert_allclose(found, patterns_by_definition(grey, blob(), radius), atol=2e-3)
    assert not local_binary_patterns(grey, np.zeros_like(blob()), radius).any()


def test_a_flat_region_has_one_pattern() -> None:
    assert local_binary_patterns(np.full((20, 20), 7.0), np.ones((20, 20), bool), 2)[8] == 1


@pytest.mark.parametrize("distance", [1, 3])
def test_co_occurrence_by_counting(distance: int) -> None:
    levels, region = RNG.integers(0, 5, (40, 50)).astype(np.uint8), blob()
    counted = np.zeros((5, 5))
    for y in range(40):
        for x in range(50):
            for dy in (-distance, 0, distance):
                for dx in (-distance, 0, distance):
                    there = (y + dy, x + dx)
                    if (dy or dx) and 0 <= there[0] < 40 and 0 <= there[1] < 50 and region[y, x] and region[there]:
                        counted[levels[y, x], levels[there]] += 1
    np.testing.assert_allclose(co_occurrence(levels, region, distance, 5), counted / counted.sum(), rtol=1e-12)
    assert not co_occurrence(levels, np.zeros_like(region), distance, 5).any()


def test_numbers_of_co_occurrence_in_closed_form() -> None:
    # Contrast, homogeneity, energy, correlation, entropy.
    np.testing.assert_allclose(co_occurrence_numbers(np.eye(4) / 4), [0, 1, 0.5, 1, 2], atol=1e-12)
    np.testing.assert_allclose(co_occurrence_numbers(np.full((2, 2), 0.25)), [0.5, 0.75, 0.5, 0, 2], atol=1e-12)
    np.testing.assert_allclose(co_occurrence_numbers(np.fliplr(np.eye(2)) / 2), [1, 0.5, np.sqrt(0.5), -1, 1])
    assert co_occurrence_numbers(np.diag([1.0, 0])) == [0, 1, 1, 0, 0]


def test_energies_of_a_wave_are_where_its_length_is() -> None:
    x = np.arange(256)
    everywhere = np.ones((64, 256), bool)
    sigmas = (0.0, 1.0, 2.0, 4.0, 8.0)
    for length in (6, 12, 24, 48):
        wave = np.tile(np.cos(2 * np.pi * (x + 0.5) / length), (64, 1)).astype(np.float32)
        # A blur leaves so much of a wave, and its root mean square is sqrt(1 / 2) of its height.
        gain = np.exp(-((2 * np.pi * np.array(sigmas) / length) ** 2) / 2)
        expected = -np.diff(gain) * np.sqrt(0.5)
        np.testing.assert_allclose(band_energies(wave, everywhere, sigmas), expected, atol=0.015)
    assert band_energies(wave, np.zeros_like(everywhere), sigmas) == [0] * 4


def test_shapes_in_closed_form() -> None:
    y, x = np.mgrid[:200, :240]
    disc = (y - 100) ** 2 + (x - 120) ** 2 <= 80**2
    roundness, solidity, extent, eccentricity, holes, parts = shape_numbers(disc)[:6]
    assert roundness == pytest.approx(1, abs=0.12)
    assert solidity == pytest.approx(1, abs=0.02)
    assert extent == pytest.approx(np.pi / 4, abs=0.02)
    assert (eccentricity, holes, parts) == (pytest.approx(0, abs=0.05), 0, 1)
    ellipse = (y - 100) ** 2 / 40**2 + (x - 120) ** 2 / 100**2 <= 1
    assert shape_numbers(ellipse)[3] == pytest.approx(np.sqrt(1 - 0.16), abs=0.01)
    ring = disc & ((y - 100) ** 2 + (x - 120) ** 2 > 40**2)
    assert shape_numbers(ring)[4] == pytest.approx(0.25, abs=0.01)
    rectangle = np.zeros((200, 240), bool)
    rectangle[20:60, 30:180] = True
    assert shape_numbers(rectangle)[1:3] == [1, 1]
    two = rectangle.copy()
    two[150:190, 30:180] = True
    two[100, 100] = True  # too small to be counted
    assert shape_numbers(two)[5] == 2
    assert shape_numbers(np.zeros((9, 9), bool)) == [0] * SHAPE_NUMBERS


def test_shapes_do_not_change_with_size_or_turns() -> None:
    region = blob(80, 100)
    twice = np.kron(region, np.ones((2, 2))).astype(bool)
    np.testing.assert_allclose(shape_numbers(twice)[1:6], shape_numbers(region)[1:6], atol=0.05)
    np.testing.assert_allclose(shape_numbers(np.rot90(region).copy()), shape_numbers(region), atol=1e-6)
    np.testing.assert_allclose(shape_numbers(region[:, ::-1].copy()), shape_numbers(region), atol=1e-6)


def test_moments_are_those_of_scipy() -> None:
    values = RNG.gamma(2, size=(500, 3))
    expected = [*values.mean(0), *values.std(0), *stats.skew(values)]
    np.testing.assert_allclose(_moments(values), expected, rtol=1e-9)


def test_otsu_parts_two_hills() -> None:
    values = np.concatenate([RNG.normal(60, 8, 3000), RNG.normal(180, 8, 3000)]).clip(0, 255).astype(np.uint8)
    between = [
        np.var(values[values <= t]) * (values <= t).mean() + np.var(values[values > t]) * (values > t).mean()
        for t in range(40, 200)
    ]
    assert _otsu(values) == 40 + int(np.argmin(between))


def test_channels_of_known_colours() -> None:
    white, red, black = _channels(np.array([[[255, 255, 255], [255, 0, 0], [0, 0, 0]]], np.uint8))[0]
    np.testing.assert_allclose(white, [1, 0, 0, 0, 0, 0, 0, 0, 0], atol=1e-3)
    np.testing.assert_allclose(red[:3], [0.5324, 0.8009, 0.6720], atol=2e-3)  # CIE L*a*b* of sRGB's red, D65
    np.testing.assert_allclose(red[3:], [0, np.log10(256), np.log10(256), 1, 1, 0], atol=1e-3)
    np.testing.assert_allclose(black[3:7], [np.log10(256)] * 3 + [0], atol=1e-3)


def test_the_mask_of_a_crop_is_the_cell() -> None:
    image = np.full((90, 110, 3), 230, np.uint8)
    mask = blob(90, 110)
    image[mask] = RNG.integers(40, 110, (int(mask.sum()), 3))
    crop = cell_crop(image, mask)
    expected = cell_crop(np.full_like(image, 255), mask)[..., 0] > 190
    found = cell_mask(crop)
    assert (found & expected).sum() / (found | expected).sum() > 0.94
    assert cell_mask(np.full((128, 128, 3), 128, np.uint8)).all()


def test_a_cell_mirrored_or_turned_has_the_same_vector(cells: Cells) -> None:
    for place in (0, 7, 25):
        crop, foreground = cells.crops[place], cells.foreground(place)
        vector = colour_texture(crop, foreground)
        for change in (np.fliplr, np.flipud, np.rot90):
            changed = colour_texture(np.ascontiguousarray(change(crop)), np.ascontiguousarray(change(foreground)))
            np.testing.assert_allclose(changed, vector, rtol=2e-3, atol=4e-3)


def test_the_parts_are_what_their_names_say(cells: Cells) -> None:
    """Colour ends with the histograms, and shape begins with that of the cell."""
    crop = cells.crops[0]
    mask = cell_mask(crop)
    colour, texture, shape, size = np.split(colour_texture(crop), np.cumsum(list(PARTS.values()))[:-1])
    histograms = _histograms(_channels(crop)[mask])
    np.testing.assert_allclose(colour[-len(histograms) :], histograms, rtol=1e-5)
    np.testing.assert_allclose(shape[:SHAPE_NUMBERS], shape_numbers(mask), rtol=1e-5)
    assert (len(texture), len(shape)) == (PARTS["texture"], PARTS["shape"])
    assert size[0] == pytest.approx(np.log(mask.sum()))
    of_image = colour_texture(crop, area=1000.0)[-PARTS["size"] :]
    assert of_image[0] == pytest.approx(np.log(1000))
    np.testing.assert_allclose(of_image - size, np.log(1000 / mask.sum()), rtol=1e-5)
    assert np.exp(of_image[1:]).sum() == pytest.approx(1000, abs=2)


def test_the_stretch_of_the_crop_is_undone() -> None:
    """A tall ellipse, whose crop is stretched to nearly a disc."""
    y, x = np.mgrid[:200, :200]
    mask = (y - 100) ** 2 / 80**2 + (x - 100) ** 2 / 40**2 < 1
    image = np.where(mask[..., None], RNG.integers(60, 120, (200, 200, 3)), 220).astype(np.uint8)
    crop = cell_crop(image, mask)
    foreground = cv2.resize(mask.astype(np.uint8) * 255, (14, 14), interpolation=cv2.INTER_AREA)
    # Behind the 3 * 27 + 3 + 48 numbers of colour, 50 of patterns, 40 of co-occurrence and 24 of bands.
    eccentricity = 81 + 3 * 9 - 27 + 9 + 48 + 50 + 40 + 24 + 3
    assert colour_texture(crop)[eccentricity] < 0.5
    assert colour_texture(crop, foreground)[eccentricity] == pytest.approx(np.sqrt(0.75), abs=0.03)


@pytest.mark.parametrize("value", [0, 128, 255])
def test_crops_without_a_cell_have_finite_vectors(value: int) -> None:
    vector = colour_texture(np.full((128, 128, 3), value, np.uint8), np.zeros((14, 14), np.uint8))
    assert len(vector) == 286
    assert np.isfinite(vector).all()
