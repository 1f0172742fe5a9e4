from collections.abc import Callable

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dorl_jax.data.augment import (
    Augmentation,
    _symmetry,
    augment,
    degrade,
    parity_augment,
    stain_apart,
    stain_jitter,
)

IMAGE = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)


def marked(side: int = 65) -> tuple[np.ndarray, np.ndarray]:
    """A mask without symmetry, and an image that shows it."""
    yy, xx = np.mgrid[:side, :side]
    mask = ((yy - 20) ** 2 + (xx - 25) ** 2 < 12**2) | ((abs(yy - 45) < 8) & (abs(xx - 40) < 3))
    return np.where(mask, 220, 20).astype(np.uint8)[..., None].repeat(3, -1), mask


def geometric(image: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    return augment(image, mask, rng, Augmentation(stain=0.0, white_balance=0.0, blur=0.0))


@pytest.mark.parametrize("change", [parity_augment, geometric])
def test_image_and_mask_move_together(change: Callable[..., tuple[np.ndarray, np.ndarray]]) -> None:
    image, mask = marked()
    moved = 0
    for seed in range(60):
        changed, changed_mask = change(image, mask, np.random.default_rng(seed))
        # At a level on the edge one grey step of rounding may fall either way.
        wrong = (changed[..., 0] > 120) != changed_mask
        assert np.all(np.abs(changed[wrong][:, 0].astype(int) - 120) <= 2)
        assert wrong.mean() < 0.01
        moved += not np.array_equal(mask, changed_mask)
    assert moved > 30


def test_parity_augment_draws_what_the_paper_says() -> None:
    image, mask = marked()
    symmetric = {}
    for turns in range(4):
        for axis in (0, 1):
            symmetric[np.flip(np.rot90(mask, turns), axis).tobytes()] = (turns, axis)
    rng = np.random.default_rng(0)
    turned, untouched, rotated = 0, 0, 0
    shares = np.zeros((4, 2))
    centre_mass = []
    for _ in range(1200):
        _, changed_mask = parity_augment(image, mask, rng)
        if np.array_equal(changed_mask, mask):
            untouched += 1
        elif changed_mask.tobytes() in symmetric:
            turned += 1
            shares[symmetric[changed_mask.tobytes()]] += 1
        else:
            rotated += 1
            y, x = np.argwhere(changed_mask).mean(0) - 32
            centre_mass.append(np.degrees(np.arctan2(y, x)))
    # An angle of 0, one in 40, counts as untouched. Four standard deviations are 0.06.
    np.testing.assert_allclose(np.array([turned, rotated, untouched]) / 1200, [0.5, 0.25 * 39 / 40, 0.256], atol=0.06)
    # A quarter turn and a flip make four symmetries, each in two ways.
    assert np.count_nonzero(shares) == 4
    y, x = np.argwhere(mask).mean(0) - 32
    turns = (np.array(centre_mass) - np.degrees(np.arctan2(y, x)) + 180) % 360 - 180
    assert -23 < turns.min() < -15
    assert 15 < turns.max() < 23


def test_rotation_of_the_parity_augmentation_fills_with_black_and_background() -> None:
    white, full = np.full((48, 48, 3), 255, np.uint8), np.ones((48, 48), bool)
    seen = False
    for seed in range(20):
        image, mask = parity_augment(white, full, np.random.default_rng(seed))
        np.testing.assert_array_equal(image == 255, mask[..., None].repeat(3, -1))
        seen |= not mask.all()
    assert seen


def test_augment_reaches_all_eight_symmetries() -> None:
    # A wide margin and a mark in one corner: which corner, and on which side of its diagonal.
    mask = np.zeros((99, 99), bool)
    mask[25:31, 38:44] = True
    seen = set()
    for seed in range(120):
        _, changed = augment(np.zeros((99, 99, 3), np.uint8), mask, np.random.default_rng(seed))
        y, x = np.argwhere(changed).mean(0) - 49
        seen.add((y > 0, x > 0, abs(y) > abs(x)))
    assert len(seen) == 8


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("turns", range(4))
def test_symmetries_are_those_of_numpy(turns: int, flipped: bool) -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 31, 3), dtype=np.uint8)
    expected = np.rot90(image, turns)
    expected = np.flip(expected, 0) if flipped else expected
    matrix, (height, width) = _symmetry((20, 31), turns, flipped)
    found = cv2.warpAffine(image, matrix[:2], (width, height), flags=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(found, expected)


def test_augment_zooms_within_bounds() -> None:
    yy, xx = np.mgrid[:100, :100]
    mask = (yy - 49.5) ** 2 + (xx - 49.5) ** 2 < 25**2
    image = np.zeros((100, 100, 3), np.uint8)
    zooms = [np.sqrt(augment(image, mask, np.random.default_rng(seed))[1].sum() / mask.sum()) for seed in range(100)]
    assert 0.78 < min(zooms) < 0.85
    assert 1.18 < max(zooms) < 1.27


def test_a_quarter_turn_swaps_the_sides() -> None:
    shapes = set()
    for seed in range(10):
        image, mask = augment(np.zeros((20, 30, 3), np.uint8), np.ones((20, 30), bool), np.random.default_rng(seed))
        assert image.shape[:2] == mask.shape
        assert mask.all()  # mirrored, so that nothing empty comes in
        shapes.add(mask.shape)
    assert shapes == {(20, 30), (30, 20)}


def test_magnification_one_does_not_zoom() -> None:
    yy, xx = np.mgrid[:100, :100]
    mask = (yy - 49.5) ** 2 + (xx - 49.5) ** 2 < 25**2
    how = Augmentation(magnification=1.0, stain=0.0, white_balance=0.0, blur=0.0)
    areas = [
        augment(IMAGE[:1, :1].repeat(100, 0).repeat(100, 1), mask, np.random.default_rng(seed), how)[1].sum()
        for seed in range(30)
    ]
    np.testing.assert_allclose(areas, mask.sum(), rtol=0.01)


def test_none_changes_nothing() -> None:
    mask = IMAGE[..., 0] > 128
    image, same = augment(IMAGE, mask, np.random.default_rng(0), Augmentation("none"))
    np.testing.assert_array_equal(image, IMAGE)
    np.testing.assert_array_equal(same, mask)


def test_parity_is_the_papers() -> None:
    mask = IMAGE[..., 0] > 128
    for seed in range(8):
        found = augment(IMAGE, mask, np.random.default_rng(seed), Augmentation("parity"))
        expected = parity_augment(IMAGE, mask, np.random.default_rng(seed))
        np.testing.assert_array_equal(found[0], expected[0])
        np.testing.assert_array_equal(found[1], expected[1])


def test_white_balance_is_a_gain_of_each_channel() -> None:
    image = np.arange(30, 200, dtype=np.uint8)[:, None, None].repeat(3, -1)
    gains = []
    for seed in range(200):
        changed = stain_jitter(image, np.random.default_rng(seed), 0.0, 1.0).astype(float)
        # One gain for all levels of a channel, up to the rounding to whole levels.
        own = []
        for channel in changed[:, 0].T:
            plain = channel < 255
            gain = np.mean((channel + 0.5)[plain][-40:] / (image[plain, 0, 0] + 0.5)[-40:])
            assert np.abs((image[plain, 0, 0] + 0.5) * gain - 0.5 - channel[plain]).max() < 1.1
            own.append(np.log(gain))
        gains.append(own)
    assert np.abs(gains).max() < 0.27 + 0.02
    assert np.std(gains, axis=0).min() > 0.08
    assert np.std(np.array(gains) - np.mean(gains, 1, keepdims=True)) > 0.05


@pytest.mark.parametrize("change", [stain_jitter, degrade])
def test_strength_zero_is_the_identity(change: Callable[..., np.ndarray]) -> None:
    np.testing.assert_array_equal(change(IMAGE, np.random.default_rng(0), 0.0), IMAGE)


@pytest.mark.parametrize("change", [stain_jitter, degrade])
def test_strength_is_continuous_and_grows(change: Callable[..., np.ndarray]) -> None:
    def distance(strength: float) -> float:
        changed = [change(IMAGE, np.random.default_rng(seed), strength) for seed in range(20)]
        return float(np.mean([np.abs(image.astype(int) - IMAGE).mean() for image in changed]))

    assert distance(1e-6) < 0.01
    assert distance(0.3) < distance(1.0)
    assert distance(1.0) > 1


def test_stain_jitter_is_affine_in_optical_density() -> None:
    changed = stain_jitter(IMAGE, np.random.default_rng(3), 0.5)
    density = -np.log((IMAGE.reshape(-1, 3) + 0.5) / 255.5)
    found = -np.log((changed.reshape(-1, 3) + 0.5) / 255.5)
    # Saturated and dark pixels are bent by the eight bits.
    plain = ((changed.reshape(-1, 3) > 20) & (changed.reshape(-1, 3) < 250)).all(1)
    design = np.column_stack([density, np.ones(len(density))])[plain]
    solution, *_ = np.linalg.lstsq(design, found[plain], rcond=None)
    assert np.abs(design @ solution - found[plain]).max() < 0.06
    assert np.abs(solution[:3] - np.eye(3)).max() > 0.01


def test_stain_jitter_is_pointwise() -> None:
    flat = np.broadcast_to(np.array([200, 120, 180], np.uint8), (8, 8, 3))
    changed = stain_jitter(np.ascontiguousarray(flat), np.random.default_rng(0), 1.0)
    assert (changed == changed[0, 0]).all()


def test_the_cell_alone_is_stained_anew_and_its_rim_in_between() -> None:
    _, mask = marked()
    image = np.random.default_rng(1).integers(40, 220, (*mask.shape, 3), dtype=np.uint8)
    found = stain_apart(image, mask, np.random.default_rng(5), 1.0)
    other = stain_jitter(image, np.random.default_rng(5), 1.0)
    far = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 5) > 7
    outside = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, 5) > 7
    assert far.any()
    assert outside.any()
    np.testing.assert_array_equal(found[far], other[far])
    np.testing.assert_array_equal(found[outside], image[outside])
    low, high = np.minimum(image, other).astype(int) - 1, np.maximum(image, other).astype(int) + 1
    assert ((low <= found) & (found <= high)).all()


def test_the_cell_is_stained_apart_half_the_time() -> None:
    image, mask = marked()
    how = Augmentation(magnification=1.0, stain=0.0, white_balance=0.0, blur=0.0, cell_stain=2.0)
    plain = Augmentation(magnification=1.0, stain=0.0, white_balance=0.0, blur=0.0)
    changed = []
    for seed in range(100):
        found, moved = augment(image, mask, np.random.default_rng(seed), how)
        expected, same = augment(image, mask, np.random.default_rng(seed), plain)
        np.testing.assert_array_equal(moved, same)
        changed.append(not np.array_equal(found, expected))
    # Grey pixels keep their hue, but not their density; 3.5 standard deviations about one half.
    assert 32 <= sum(changed) <= 68


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), stain=st.sampled_from([0.0, 0.5, 2.0]))
def test_pure_function_of_the_arguments(seed: int, stain: float) -> None:
    before = IMAGE.copy()
    mask = IMAGE[..., 0] > 128
    how = Augmentation(stain=stain, white_balance=stain, blur=stain, cell_stain=stain)
    first = augment(IMAGE, mask, np.random.default_rng(seed), how)
    second = augment(IMAGE, mask, np.random.default_rng(seed), how)
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])
    np.testing.assert_array_equal(IMAGE, before)
