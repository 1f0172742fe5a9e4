"""Scores read off a confusion matrix; rows are the true classes, columns the predicted ones."""

from typing import overload

import numpy as np
from jaxtyping import Bool, Float, Int

Counts = Int[np.ndarray, "k k"]


def confusion(true: Int[np.ndarray, " n"], predicted: Int[np.ndarray, " n"], classes: int) -> Counts:
    """How often a cell of class i was called j, for class numbers 0..classes-1."""
    return np.bincount(true * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def accuracy(counts: Counts) -> float:
    """Share of cells called what they are, 0..1."""
    return float(np.trace(counts) / counts.sum())


def recall(counts: Counts) -> Float[np.ndarray, " k"]:
    """Per class, the share of its cells that were found; NaN where no cell of the class was tested."""
    tested = counts.sum(axis=1)
    return np.divide(np.diag(counts), tested, out=np.full(len(counts), np.nan), where=tested > 0)


def balanced_accuracy(counts: Counts) -> float:
    """Mean recall over the classes that were tested, 0..1."""
    return float(np.nanmean(recall(counts)))


@overload
def macro_f1(counts: Counts) -> float: ...
@overload
def macro_f1(counts: Counts, wanted: Bool[np.ndarray, " k"]) -> float | None: ...


def macro_f1(counts: Counts, wanted: Bool[np.ndarray, " k"] | None = None) -> float | None:
    """Mean F1 over the classes that were tested, 0..1, or over the `wanted` ones among them; None if there is none.

    A predicted class of which no cell was tested has no F1 of its own; it costs the classes whose cells it
    took.
    """
    tested = counts.sum(axis=1)
    f1 = 2 * np.diag(counts) / np.maximum(tested + counts.sum(axis=0), 1)
    counted = (tested > 0) if wanted is None else (tested > 0) & wanted
    return float(f1[counted].mean()) if counted.any() else None


def majority_floor(cells: Int[np.ndarray, " k"]) -> tuple[float, float]:
    """Accuracy and macro-F1 of calling every cell the commonest class, given the cells of each class."""
    share = float(cells.max() / cells.sum())
    return share, 2 * share / (1 + share) / int((cells > 0).sum())


def ceiling(cells: Int[np.ndarray, " k"], shown: Bool[np.ndarray, " k"]) -> float:
    """Highest accuracy open to a classifier that was shown only some of the classes, 0..1."""
    return float(cells[shown].sum() / cells.sum())
