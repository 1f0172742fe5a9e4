import tracemalloc

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from dorl_jax.evaluation.bootstrap import difference, draw_groups, interval, over_seeds, score_draws


def scores_as_matrices(groups, true, predicted, frequent, resamples, seed):
    """The same scores from a weight for every cell and resample, and a matrix product: plain, and large."""
    random = np.random.default_rng(seed)
    number, classes = int(groups.max()) + 1, len(frequent)
    weights = np.stack([np.bincount(random.integers(number, size=number), minlength=number) for _ in range(resamples)])
    kinds = np.eye(classes * classes, dtype=np.float32)[true * classes + predicted]
    counts = (weights[:, groups].astype(np.float32) @ kinds).astype(float).reshape(-1, classes, classes)
    right, drawn = np.einsum("bkk->bk", counts), counts.sum(axis=2)
    f1 = 2 * right / np.maximum(drawn + counts.sum(axis=1), 1)

    def mean(values, wanted):
        number = wanted.sum(axis=1)
        return np.divide((values * wanted).sum(axis=1), number, out=np.full(len(values), np.nan), where=number > 0)

    total = drawn.sum(axis=1)
    accuracy = np.divide(right.sum(axis=1), total, out=np.full(resamples, np.nan), where=total > 0)
    return np.stack([accuracy, mean(f1, drawn > 0), mean(f1, (drawn > 0) & frequent)], axis=1)


@pytest.mark.parametrize(("cells", "number", "classes"), [(3000, 3000, 13), (2500, 40, 5), (60, 300, 4), (2, 3, 2)])
def test_scores_are_to_the_bit_those_of_matrices(cells, number, classes):
    """Also where cells are fewer than the laboratory's groups, so that some resamples have none of them."""
    random = np.random.default_rng(cells)
    groups = random.permutation(np.arange(cells) % number) if cells >= number else random.permutation(number)[:cells]
    groups[0] = number - 1  # the twin knows the number from the groups
    true, predicted = random.integers(0, classes, (2, cells))
    frequent = np.arange(classes) != 1
    found = score_draws(draw_groups(number, 130, seed=7), groups, true, predicted, frequent)
    np.testing.assert_array_equal(found, scores_as_matrices(groups, true, predicted, frequent, 130, 7))
    assert np.isnan(found).any() == (cells == 2)


def test_a_resample_takes_a_byte_for_each_group():
    cells, resamples = 20_000, 250
    random = np.random.default_rng(0)
    true, predicted = random.integers(0, 5, (2, cells))
    tracemalloc.start()
    draws = draw_groups(cells, resamples, seed=0)
    score_draws(draws, np.arange(cells), true, predicted, np.ones(5, bool))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert draws.nbytes == cells * resamples
    assert peak < 2 * draws.nbytes


def test_scores_of_a_resample_are_those_of_the_repeated_cells():
    random = np.random.default_rng(0)
    true, predicted = random.integers(0, 4, 50), random.integers(0, 5, 50)
    frequent = np.array([True, False, True, True, False])
    draws = draw_groups(50, 20, seed=1)
    np.testing.assert_array_equal(draws.sum(axis=0), 50)
    found = score_draws(draws, np.arange(50), true, predicted, frequent)
    for row, scores in zip(draws.T, found, strict=True):
        a, b = np.repeat(true, row), np.repeat(predicted, row)
        shown = np.unique(a)
        expected = [
            accuracy_score(a, b),
            f1_score(a, b, labels=shown, average="macro", zero_division=0),
            f1_score(a, b, labels=shown[frequent[shown]], average="macro", zero_division=0),
        ]
        np.testing.assert_allclose(scores, expected, rtol=1e-6)


def test_a_group_is_drawn_as_a_whole():
    """Three wrong cells of one group, three right ones of two: accuracy follows from how often each group is drawn."""
    groups = np.array([0, 0, 0, 1, 2, 2])
    draws = draw_groups(3, 200, seed=0).astype(int)
    wrong = np.array([1, 1, 1, 0, 0, 0])
    found = score_draws(draws.astype(np.uint8), groups, np.zeros(6, int), wrong, np.ones(2, bool))
    expected = (draws[1] + 2 * draws[2]) / (3 * draws[0] + draws[1] + 2 * draws[2])
    np.testing.assert_allclose(found[:, 0], expected)
    np.testing.assert_array_equal(draws.sum(axis=0), 3)
    assert (draws[0] != draws[2]).any()


def test_interval_has_the_width_of_the_binomial():
    """400 cells of which 70 % are right: sd sqrt(0.7 * 0.3 / 400)."""
    true = np.zeros(400, int)
    predicted = (np.arange(400) >= 280).astype(int)
    draws = score_draws(draw_groups(400, 4000, seed=0), np.arange(400), true, predicted, np.array([True, True]))
    low, high = interval(draws[:, 0])
    assert (low + high) / 2 == pytest.approx(0.7, abs=0.005)
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(0.7 * 0.3 / 400), rel=0.07)


def test_coverage_of_the_interval():
    """Of samples from a known population, about 95 in 100 intervals hold its accuracy."""
    random = np.random.default_rng(3)
    hit = 0
    for trial in range(200):
        wrong = (random.random(150) < 0.35).astype(int)
        drawn = draw_groups(150, 300, seed=trial)
        draws = score_draws(drawn, np.arange(150), np.zeros(150, int), wrong, np.ones(2, bool))
        low, high = interval(draws[:, 0])
        hit += low <= 0.65 <= high
    assert 180 <= hit <= 199


def test_no_difference_is_seldom_called_one_and_a_clear_one_always():
    """p under the null is about uniform, paired or not; ten points of 400 cells are seen."""
    random = np.random.default_rng(4)
    drawn, cells = draw_groups(400, 500, seed=0), np.arange(400)
    true, frequent = np.zeros(400, int), np.ones(2, bool)
    below = 0
    for _ in range(200):
        first, second = ((random.random(400) < 0.3).astype(int) for _ in range(2))
        draws = [score_draws(drawn, cells, true, one, frequent)[:, 0] for one in (first, second)]
        below += difference(second.mean() - first.mean(), *draws).p < 0.05
    assert 1 <= below <= 22
    better, worse = (random.random(400) < 0.25).astype(int), (random.random(400) < 0.40).astype(int)
    draws = [score_draws(drawn, cells, true, one, frequent)[:, 0] for one in (better, worse)]
    found = difference(worse.mean() - better.mean(), *draws)
    assert found.p < 0.01
    assert found.low > 0
    assert found.low < found.mean < found.high


def test_the_same_predictions_do_not_differ():
    draws = np.random.default_rng(0).normal(size=300)
    found = difference(0.0, draws, draws)
    assert (found.mean, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)


def test_resamples_without_a_score_count_for_nothing():
    """p and interval are those of the finite resamples alone; without any nothing is told, least of all p = 0."""
    random = np.random.default_rng(5)
    first, second = random.normal(0.1, 1, 400), random.normal(size=400)
    with_gaps = first.copy()
    with_gaps[100:] = np.nan
    other_gaps = second.copy()
    other_gaps[:20] = np.nan
    found = difference(0.1, with_gaps, other_gaps)
    assert found == difference(0.1, first[20:100], second[20:100])
    below = int((first[20:100] <= second[20:100]).sum())
    assert found.p == pytest.approx(2 * (min(below, 80 - below) + 1) / 81)
    none = difference(0.1, np.full(400, np.nan), second)
    assert none.mean == 0.1
    assert np.isnan([none.low, none.high, none.p]).all()


def test_seeds_that_differ_widen_the_interval():
    cells = np.random.default_rng(0).normal(0.5, 0.01, (1000, 3))
    together = over_seeds([cells, cells, cells], seed=0)
    apart = over_seeds([cells - 0.2, cells, cells + 0.2], seed=0)
    np.testing.assert_allclose(together, cells)
    assert apart.mean() == pytest.approx(0.5, abs=0.02)
    # Three values 0.2 apart, three drawn with replacement: sd 0.2 * sqrt(2 / 3) / sqrt(3)
    assert apart[:, 0].std() == pytest.approx(0.2 * np.sqrt(2 / 3) / np.sqrt(3), rel=0.1)
