import warnings

import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    confusion_matrix,
    f1_score,
    recall_score,
)

from dorl_jax.evaluation import metrics


@pytest.fixture(params=range(20))
def cells(request):
    """Random cells of up to 5 of 6 classes, so that some are never tested and some never predicted."""
    random = np.random.default_rng(request.param)
    size = int(random.integers(1, 40))
    shown, called = random.integers(1, 6), random.integers(1, 7)
    return random.integers(0, shown, size), random.integers(0, called, size)


def test_scores_agree_with_scikit_learn(cells):
    true, predicted = cells
    counts = metrics.confusion(true, predicted, 6)
    np.testing.assert_array_equal(counts, confusion_matrix(true, predicted, labels=range(6)))
    tested = np.unique(true)
    assert metrics.accuracy(counts) == pytest.approx(accuracy_score(true, predicted))
    expected = f1_score(true, predicted, labels=tested, average="macro", zero_division=0)
    assert metrics.macro_f1(counts) == pytest.approx(expected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn's, on classes that are predicted only
        assert metrics.balanced_accuracy(counts) == pytest.approx(balanced_accuracy_score(true, predicted))
    recall = metrics.recall(counts)
    np.testing.assert_allclose(recall[tested], recall_score(true, predicted, labels=tested, average=None))
    assert np.isnan(np.delete(recall, tested)).all()


def test_floor_is_what_naming_the_commonest_class_scores():
    cells = np.array([2, 0, 5, 1])
    true = np.repeat(np.arange(4), cells)
    accuracy, macro_f1 = metrics.majority_floor(cells)
    assert accuracy == pytest.approx(5 / 8)
    expected = f1_score(true, np.full(8, 2), labels=[0, 2, 3], average="macro", zero_division=0)
    assert macro_f1 == pytest.approx(expected)


def test_ceiling_counts_the_cells_of_shown_classes():
    assert metrics.ceiling(np.array([2, 0, 5, 1]), np.array([True, True, False, True])) == pytest.approx(
        3 / 8
    )
