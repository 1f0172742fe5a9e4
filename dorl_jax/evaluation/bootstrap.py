"""How far figures would move with other cells of the same laboratories and other seeds: intervals and comparisons.

Cells of a laboratory are drawn again with replacement, a group (patient, slide, copies of a picture) as a whole, and
seeds of the training, too. The same draws serve every method, so that two methods are compared on the same cells: a
paired test. It is a bootstrap rather than McNemar's test because macro-F1 is no sum over cells, and because a cell is
judged by many fits, of all folds, sources and seeds. The laboratories themselves are not drawn: the intervals tell
nothing of a laboratory that is not among them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

SCORES = ("accuracy", "macro_f1", "macro_f1_frequent")
"""Columns of the arrays here."""

Draws = Float[np.ndarray, "b 3"]
"""Scores in every resample."""

_BLOCK = 1024
"""Cells whose draws are added up at once, so that their copy stays small."""


def draw_groups(number: int, resamples: int, seed: int) -> UInt8[np.ndarray, "g b"]:
    """How often each of `number` groups is drawn in each resample.

    A byte each, for there may be a million groups. It holds them: that a group is drawn 256 times has a chance below
    1 / 256!.
    """
    random = np.random.default_rng(seed)
    draws = np.empty((number, resamples), np.uint8)
    for start in range(0, resamples, 64):  # a line of the cache: single columns would be slow to write
        some = np.empty((min(64, resamples - start), number), np.uint8)
        for one in some:
            one[:] = np.bincount(random.integers(number, size=number), minlength=number)
        draws[:, start : start + 64] = some.T
    return draws


def score_draws(
    draws: UInt8[np.ndarray, "g b"],
    groups: Int[np.ndarray, " n"],
    true: Int[np.ndarray, " n"],
    predicted: Int[np.ndarray, " n"],
    frequent: Bool[np.ndarray, " k"],
) -> Draws:
    """Accuracy, macro-F1 and macro-F1 over the `frequent` classes, every cell counted as often as its group was drawn.

    Macro-F1 is over the classes drawn; NaN where there is none.

    Args:
      draws: see `draw_groups`.
      groups: of the cells.
      true, predicted: their class numbers.
      frequent: of each class, whether it is.
    """
    classes = len(frequent)
    kinds = true * classes + predicted
    order = np.argsort(kinds, kind="stable")
    present, starts = np.unique(kinds[order], return_index=True)
    right, drawn, called = sums = np.zeros((3, classes, draws.shape[1]))
    for kind, own in zip(present.tolist(), np.split(groups[order], starts[1:]), strict=True):
        row, column = divmod(kind, classes)
        for start in range(0, len(own), _BLOCK):
            number = draws[own[start : start + _BLOCK]].sum(axis=0, dtype=np.uint32)
            drawn[row] += number
            called[column] += number
            if row == column:
                right[row] += number
    right, drawn, called = np.ascontiguousarray(sums.transpose(0, 2, 1))
    total = drawn.sum(axis=1)
    f1 = 2 * right / np.maximum(drawn + called, 1)

    def macro(wanted: Bool[np.ndarray, "b k"]) -> Float[np.ndarray, " b"]:
        number = wanted.sum(axis=1)
        return np.divide((f1 * wanted).sum(axis=1), number, out=np.full(len(f1), np.nan), where=number > 0)

    accuracy = np.divide(right.sum(axis=1), total, out=np.full(len(total), np.nan), where=total > 0)
    return np.stack([accuracy, macro(drawn > 0), macro((drawn > 0) & frequent)], axis=1)


def over_seeds(draws: Sequence[Draws], seed: int) -> Draws:
    """The mean over seeds that are themselves drawn again, from the draws of each seed."""
    if len(draws) == 1:
        return draws[0]
    chosen = np.random.default_rng(seed).integers(len(draws), size=(len(draws[0]), len(draws)))
    return np.stack(draws)[chosen, np.arange(len(draws[0]))[:, None]].mean(axis=1)


def interval(values: Float[np.ndarray, " b"]) -> tuple[float, float]:
    """The middle 95 % of the values; NaN where there is none."""
    known = values[np.isfinite(values)]
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.quantile(known, [0.025, 0.975])
    return float(low), float(high)


@dataclass(frozen=True)
class Difference:
    """First minus second, with the middle 95 % of the resamples and the two-sided p of no difference.

    These three are NaN where no resample has a score of both.
    """

    mean: float
    low: float
    high: float
    p: float


def difference(mean: float, first: Float[np.ndarray, " b"], second: Float[np.ndarray, " b"]) -> Difference:
    """Compare two methods by their scores in the same resamples.

    Args:
      mean: the difference of the scores themselves.
      first, second: the scores in every resample; those in which one is NaN tell nothing and are left out.
    """
    apart = first - second
    apart = apart[np.isfinite(apart)]
    if not len(apart):
        return Difference(mean, float("nan"), float("nan"), float("nan"))
    low, high = interval(apart)
    # One more than counted: no p is 0, for the data as they are belong to the resamples.
    beyond = min((apart <= 0).sum(), (apart >= 0).sum()) + 1
    return Difference(mean, low, high, float(min(1.0, 2 * beyond / (len(apart) + 1))))
