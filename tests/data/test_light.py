import cv2
import numpy as np
import pytest

from dorl_jax.data.light import in_light

RNG = np.random.default_rng(0)
SMEAR = cv2.GaussianBlur(RNG.integers(20, 250, (61, 47, 3), dtype=np.uint8), (0, 0), 2)


def by_sorting(image: np.ndarray) -> np.ndarray:
    """Channel by channel: the least value that nine tenths of the pixels do not exceed becomes 235."""
    out = np.empty_like(image)
    for channel in range(3):
        values = np.sort(image[..., channel], axis=None)
        ground = values[-(-9 * len(values) // 10) - 1]
        out[..., channel] = np.clip(np.rint(image[..., channel] * (235 / max(int(ground), 1))), 0, 255)
    return out


@pytest.mark.parametrize("shape", [(61, 47), (1, 1), (10, 1), (3, 7)])
def test_as_by_sorting(shape: tuple[int, int]) -> None:
    image = RNG.integers(0, 256, (*shape, 3), dtype=np.uint8)
    image[..., 1] //= 3
    np.testing.assert_array_equal(in_light(image, "white_patch"), by_sorting(image))


def test_another_lamp_makes_no_difference() -> None:
    """A camera that sees each channel by another factor; rounding to levels is all that stays."""
    lit = np.rint(SMEAR * np.array([0.95, 0.8, 0.6])).astype(np.uint8)
    assert np.abs(lit.astype(int) - SMEAR).mean() > 20
    found = in_light(lit, "white_patch").astype(int) - in_light(SMEAR, "white_patch")
    # Half a level, 235 / 108 as large, and the ground's own rounding.
    assert np.abs(found).max() <= 3


def test_what_is_left_alone() -> None:
    assert in_light(SMEAR, "as_is") is SMEAR
    black = np.zeros((4, 4, 3), np.uint8)
    np.testing.assert_array_equal(in_light(black, "white_patch"), black)
    before = SMEAR.copy()
    in_light(SMEAR, "white_patch")
    np.testing.assert_array_equal(SMEAR, before)
