"""Views of the cell alone: the background never tells, and chance comes from the generator alone."""

import numpy as np

from dorl_jax.data.augment import Augmentation
from dorl_jax.data.crops import cell_crop
from dorl_jax.data.loader import array_batches
from dorl_jax.data.views import TwoViews, changed_crop, small_crop

STRONG = Augmentation("laboratory", magnification=1.0, stain=2.0, white_balance=2.0, blur=2.0)


def crop(seed=0):
    rng = np.random.RandomState(seed)
    rows, columns = np.mgrid[:90, :90]
    image = rng.randint(0, 100, (90, 90, 3)).astype(np.uint8)
    return cell_crop(image, (rows - 45) ** 2 + (columns - 40) ** 2 < 30**2)


def test_small_crops_are_means_of_squares():
    image = crop()
    means = image.reshape(64, 2, 64, 2, 3).astype(np.float64).mean((1, 3))
    assert np.abs(small_crop(image, 64) - means).max() <= 0.5 + 1e-9


def test_without_change_it_is_the_small_crop():
    image = crop()
    found = changed_crop(image, 64, np.random.default_rng(0), Augmentation("none"))
    small = small_crop(image, 64)
    same = (found == small).all(axis=-1)
    assert (found[~same] == 128).all()  # where less than half is cell, it is background
    assert 0.95 < same.mean() < 1


def test_the_background_stays_grey_whatever_the_stain():
    image = crop()
    pictures = [changed_crop(image, 48, np.random.default_rng(seed), STRONG) for seed in range(20)]
    means = np.array([picture[20:28, 20:28].mean((0, 1)) for picture in pictures])
    assert (means.std(0) > 10).all()  # the cell does change
    for picture in pictures:
        for corner in (picture[:4, :4], picture[:4, -4:], picture[-4:, :4], picture[-4:, -4:]):
            assert (corner == 128).all()


def test_two_views_differ_and_follow_from_the_generator():
    row = {"crop": crop(), "domain": np.int32(1)}
    views = TwoViews(32, STRONG)
    first, again, other = (views(row, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert first.keys() == {"crop", "domain", "view_a", "view_b"}
    assert first["view_a"].shape == (32, 32, 3)
    for name in ("view_a", "view_b"):
        np.testing.assert_array_equal(first[name], again[name])
        assert (first[name] != other[name]).any()
    assert (first["view_a"] != first["view_b"]).any()


def test_batches_of_views_go_on_where_they_were():
    arrays = {"crop": np.stack([crop(seed) for seed in range(5)]), "place": np.arange(5)}

    def batches():
        return array_batches(arrays, 2, seed=7, change=TwoViews(16, STRONG))

    whole = batches()
    expected = [next(whole) for _ in range(4)]
    later = batches()
    next(later)
    state = later.get_state()
    later = batches()
    later.set_state(state)
    for batch in expected[1:]:
        found = next(later)
        assert found.keys() == batch.keys()
        for name, array in batch.items():
            np.testing.assert_array_equal(found[name], array)
    # the third batch begins another epoch of five cells: the same cell, another view
    cells = np.concatenate([batch["place"] for batch in expected])
    views = np.concatenate([batch["view_a"] for batch in expected])
    twice = np.flatnonzero(cells == cells[-1])
    assert len(twice) == 2
    assert (views[twice[0]] != views[twice[1]]).any()
