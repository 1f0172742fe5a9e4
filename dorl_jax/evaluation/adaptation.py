"""What unlabelled cells of a laboratory can do for a classifier trained in another."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Float32, Int, Shaped

from dorl_jax.evaluation.latents import Latents

Adaptation = Literal["none", "own", "self_training", "co_training"]

TRAINING_ON = ("self_training", "co_training")
"""Adaptations that train on the target's unlabelled cells."""

ADAPTATIONS = {
    "none": "vectors as they are, scaled by the source's cells",
    "own": "each laboratory in units of its own mean and sd, from its unlabelled cells",
    "self_training": "own, then rounds of training on confident pseudo-labels of the target's unlabelled cells",
    "co_training": "as self_training, by a classifier for each part of the vector, which name cells together; the "
    "parts 'pixels' and 'relations' are in the source's units",
}

ROUNDS = 8
"""Of self-training and co-training, unless another number is asked for."""

# Vectors that are scaled at once.
_ROWS = 4096
# Of the target's cells, how many the last round trusts.
_LAST_SHARE = 0.8


def in_own_units(vectors: Float[np.ndarray, "n d"], basis: Float[np.ndarray, "m d"]) -> Float32[np.ndarray, "n d"]:
    """The vectors by mean and sd of each component over `basis`; a component that does not vary there becomes 0."""
    # Sums in fp64, but no copy in fp64 of what may be millions of vectors.
    mean = basis.mean(axis=0, dtype=np.float64)
    squares = sum(np.square(basis[start : start + _ROWS] - mean).sum(axis=0) for start in range(0, len(basis), _ROWS))
    spread = np.sqrt(squares / len(basis))
    # Of equal numbers the computed mean, and so the spread, may be off by a rounding.
    varies = spread > 1e-9 * np.abs(mean)
    scaled = np.empty(vectors.shape, np.float32)
    for start in range(0, len(vectors), _ROWS):
        rows = slice(start, start + _ROWS)
        scaled[rows] = np.where(varies, (vectors[rows] - mean) / np.where(varies, spread, 1), 0)
    return scaled


def standardise_by_laboratory(latents: Latents) -> Latents:
    """Every vector in units of its own laboratory (see `in_own_units`), over all its cells. No label is used."""
    vectors = np.empty_like(latents.vectors)
    for laboratory in np.unique(latents.laboratories):
        own = latents.laboratories == laboratory
        vectors[own] = in_own_units(latents.vectors[own], latents.vectors[own])
    return replace(latents, vectors=vectors)


def self_train(
    make: Callable[[], Any],
    vectors: Float[np.ndarray, "n d"],
    labels: Shaped[np.ndarray, " n"],
    unlabelled: Float[np.ndarray, "m d"],
    rounds: int,
    first: Any,
) -> Any:
    """A classifier fitted on labelled cells and, in every round anew, on the surest of the unlabelled ones.

    Class-balanced self-training (Zou et al., "Unsupervised domain adaptation for semantic segmentation via
    class-balanced self-training", ECCV 2018): of the cells called each class the same share, so that a rare class is
    not crowded out by a common, easy one; it grows evenly from round to round, to 0.8 in the last.

    Args:
      make: an unfitted classifier with `fit`, `predict_proba` and `classes_`.
      vectors, labels: of the source.
      unlabelled: vectors of the target.
      rounds: at least 1.
      first: the classifier fitted on the source alone.
    """
    classifier = first
    for number in range(1, rounds + 1):
        shares = classifier.predict_proba(unlabelled)
        chosen = _surest(shares, _LAST_SHARE * number / rounds)
        called = np.asarray(classifier.classes_)[shares[chosen].argmax(axis=1)]
        classifier = make().fit(np.concatenate([vectors, unlabelled[chosen]]), np.concatenate([labels, called]))
    return classifier


def _surest(shares: Float[np.ndarray, "m k"], share: float) -> Int[np.ndarray, " c"]:
    """Rows of the highest shares of each class called; at least one of each."""
    called, sure = shares.argmax(axis=1), shares.max(axis=1)
    chosen = []
    for number in np.unique(called):
        rows = np.flatnonzero(called == number)
        most = max(1, round(share * len(rows)))
        chosen.append(rows[np.argsort(-sure[rows], kind="stable")[:most]])
    return np.sort(np.concatenate(chosen))
