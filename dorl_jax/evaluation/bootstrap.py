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
from jaxtyping import Bool, Float, Int

SCORES = ("accuracy", "macro_f1", "macro_f1_frequent")
"""Columns of the arrays here."""

Draws = Float[np.ndarray, "b 3"]
"""Scores in every resample."""


def draw_cells(groups: Int[np.ndarray, " n"], resamples: int, seed: int) -> Float[np.ndarray, "b n"]:
    """How often each cell is drawn in each resample; cells of a group (numbers from 0) together."""
    random = np.random.default_rng(seed)
    number = int(groups.max()) + 1
    counts = np.stack([np.bincount(random.integers(number, size=number), minlength=number) for _ in range(resamples)])
    return counts[:, groups].astype(np.float32)


def score_draws(
    weights: Float[np.ndarray, "b n"],
    true: Int[np.ndarray, " n"],
    predicted: Int[np.ndarray, " n"],
    frequent: Bool[np.ndarray, " k"],
) -> Draws:
    """Accuracy, macro-F1 and macro-F1 over the `frequent` classes, with every cell counted as often as it was drawn.

    Macro-F1 is over the classes drawn; NaN where there is none.
    """
    classes = len(frequent)
    kinds, of_cell = np.unique(true * classes + predicted, return_inverse=True)
    counted = weights @ np.eye(len(kinds), dtype=np.float32)[of_cell]
    flat = np.zeros((len(weights), classes * classes))
    flat[:, kinds] = counted
    counts = flat.reshape(-1, classes, classes)
    right, drawn = np.einsum("bkk->bk", counts), counts.sum(axis=2)
    total = drawn.sum(axis=1)
    f1 = 2 * right / np.maximum(drawn + counts.sum(axis=1), 1)

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
