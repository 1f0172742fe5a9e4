"""What is said of predictions that are given, without any fit."""

import weakref
from dataclasses import dataclass

import numpy as np
import pytest

from dorl_jax.evaluation import summary
from dorl_jax.evaluation.latents import Latents
from dorl_jax.evaluation.splits import Split


@dataclass(frozen=True)
class Settings:
    seed: int
    resamples: int


def said(cells, tested, settings):
    """`tested`: a list, or a function that gives them."""
    names = np.unique(cells.laboratories).tolist()
    splits = {name: Split(np.flatnonzero(cells.laboratories == name), []) for name in names}
    return summary.summarise(tested if callable(tested) else lambda: tested, cells, splits, settings, "mlp", [], {})


def call(cells, method, source, target, rows, predicted, fold=0, seed=0):
    classes = np.unique(cells.labels)
    return summary.Tested(
        method=method,
        seed=seed,
        adaptation="none",
        setting="held_out",
        kind="pair",
        source=source,
        target=target,
        classifier="mlp",
        fold=fold,
        rows=rows,
        true=np.searchsorted(classes, cells.labels[rows]),
        predicted=predicted,
    )


def test_methods_are_not_compared_where_no_resample_has_a_tested_cell():
    cells = Latents(
        np.arange(8).astype(str), np.array(list("AAAABBBB")), np.array(list("xyxyxyxy")), np.zeros((8, 1), np.float32)
    )
    tested = [
        call(cells, method, "A", "B", np.array([4]), np.array([predicted]))
        for method, predicted in (("m", 0), ("n", 1))
    ]
    met = set()
    for seed in range(8):
        # B's seed is one up; the tested cell is its first.
        drawn = 0 in np.random.default_rng(seed + 1).integers(4, size=4)
        found = said(cells, tested, Settings(seed, resamples=1))
        assert len(found.comparisons) == drawn
        assert [mean.accuracy.low for mean in found.means] == ([1.0, 0.0] if drawn else [None, None])
        met.add(drawn)
    assert met == {True, False}
    many = said(cells, tested, Settings(0, resamples=400)).comparisons[0].accuracy
    # Always the same sign: the least p that there is, of the resamples that have the cell.
    random = np.random.default_rng(1)
    known = sum(0 in random.integers(4, size=4) for _ in range(400))
    assert known < 320
    assert many.p == pytest.approx(2 / (known + 1))


def test_predictions_are_taken_one_after_the_other():
    """Together they would take more memory than the vectors."""
    cells = Latents(
        np.arange(40).astype(str),
        np.repeat(["A", "B"], 20),
        np.tile(["x", "y"], 20),
        np.zeros((40, 1), np.float32),
    )
    rows, alive, most = np.arange(20, 40), [], []

    def tested():
        for fold in range(10):
            one = call(cells, "m", "A", "B", rows, np.full(20, fold % 2), fold)
            alive.append(weakref.ref(one))
            most.append(sum(ref() is not None for ref in alive))
            yield one

    found = said(cells, tested, Settings(0, resamples=100))
    assert [row.fold for row in found.rows] == list(range(10))
    assert max(most) <= 2
