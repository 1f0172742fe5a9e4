"""The numbers of pictures and masks, where they can be told beforehand."""

import numpy as np
import pytest

from dorl_jax.data.check.colours import BINS, colour_difference, histogram, mean_colour, measure_look
from dorl_jax.data.check.mask_facts import measure_mask


def test_a_flat_picture() -> None:
    look = measure_look(np.full((20, 30, 3), (200, 150, 100), np.uint8))
    assert (look.mean, look.sd, look.background) == ((200, 150, 100), (0, 0, 0), (200, 150, 100))
    assert (look.optical_density, look.contrast, look.sharpness) == (0, 0, 0)
    assert look.saturation == pytest.approx(0.5)


def test_a_dark_square_on_light() -> None:
    image = np.full((40, 40, 3), (250, 240, 230), np.uint8)
    image[10:20, 10:20] = (25, 120, 23)
    look = measure_look(image)
    share = 100 / 1600
    assert look.background == (250, 240, 230)
    np.testing.assert_allclose(look.mean, [250 - 225 * share, 240 - 120 * share, 230 - 207 * share])
    # Transmission of 1/10, 1/2, 1/10 on a sixteenth of the pixels.
    assert look.optical_density == pytest.approx(share * (1 + np.log10(2) + 1) / 3, rel=1e-6)
    expected = (1 - share) * (20 / 250) + share * (97 / 120)
    assert look.saturation == pytest.approx(expected, rel=1e-6)
    counts = histogram(image)
    assert counts.shape == (3, BINS)
    np.testing.assert_allclose(counts.sum(1), 1)
    np.testing.assert_allclose(counts[0, [250 // 8, 25 // 8]], [1 - share, share])


def test_sharpness_is_the_variance_of_the_laplacian() -> None:
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (30, 30)).astype(np.uint8)
    padded = np.pad(grey.astype(float), 1, mode="reflect")
    laplacian = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:] - 4 * padded[1:-1, 1:-1]
    assert measure_look(grey[..., None].repeat(3, -1)).sharpness == pytest.approx(laplacian.var(), rel=1e-3)


def test_differences_of_colours() -> None:
    assert colour_difference((0.0, 0.0, 0.0), (255.0, 255.0, 255.0)) == pytest.approx(100, abs=0.01)
    assert colour_difference((10.0, 20.0, 30.0), (10.0, 20.0, 30.0)) == 0
    # sRGB red and green, published L*a*b*: (53.24, 80.09, 67.20) and (87.73, -86.18, 83.18).
    expected = np.linalg.norm(np.subtract((53.24, 80.09, 67.20), (87.73, -86.18, 83.18)))
    assert colour_difference((255.0, 0.0, 0.0), (0.0, 255.0, 0.0)) == pytest.approx(expected, rel=2e-3)
    assert mean_colour([(0.0, 10.0, 20.0), (10.0, 20.0, 40.0)]) == (5, 15, 30)


def test_masks() -> None:
    values = np.zeros((20, 20), np.uint8)
    assert measure_mask(values).coverage == 0
    values[5:15, 5:15] = 128
    values[8:10, 8:10] = 255
    facts = measure_mask(values)
    assert (facts.coverage, facts.touches_border, facts.pieces, facts.nucleus, facts.stray) == (
        0.25,
        False,
        1,
        True,
        (),
    )
    values[:3, :3] = 190
    values[18, 18] = 20
    facts = measure_mask(values)
    assert (facts.touches_border, facts.pieces, facts.stray) == (True, 2, (20, 190))
    assert facts.coverage == pytest.approx(109 / 400)
