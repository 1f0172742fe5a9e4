"""One classifier for each part of a vector, which name cells together."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Shaped

from dorl_jax.evaluation.adaptation import in_own_units

COMPARABLE = ("pixels", "relations")
"""Parts of a vector (see `CaeConfig.vector`) that mean the same in every laboratory: learned so, or measured so."""


class Experts:
    """One classifier for each part of the vector; what they give a class is multiplied.

    Each sees less than one classifier of all parts would, and errs elsewhere; a product follows the one that is sure.
    (Products of experts: Hinton, Neural Computation 2002.) Trained further on what they name together, they teach each
    other (co-training: Blum and Mitchell, COLT 1998).

    Attributes:
      classes_: in the order of the columns of `predict_proba`.
      fitted_: the classifiers, in the order of the parts.
    """

    classes_: Shaped[np.ndarray, " k"]
    fitted_: list[Any]

    def __init__(self, make: Callable[[], Any], parts: Mapping[str, int]) -> None:
        """Build.

        Args:
          make: an unfitted classifier with `fit`, `predict_proba` and `classes_`.
          parts: of the vectors, in order: name -> numbers.
        """
        self._make = make
        self._edges = np.cumsum(list(parts.values()))[:-1]

    def fit(self, vectors: Float[np.ndarray, "n d"], labels: Shaped[np.ndarray, " n"]) -> "Experts":
        self.fitted_ = [self._make().fit(part, labels) for part in np.split(vectors, self._edges, axis=1)]
        self.classes_ = np.asarray(self.fitted_[0].classes_)
        return self

    def __getstate__(self) -> dict[str, Any]:
        """What a file keeps: not how it was made."""
        return {name: value for name, value in vars(self).items() if name != "_make"}

    def predict_proba(self, vectors: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n k"]:
        """The geometric mean of what the experts give each class, scaled to rows that sum to 1."""
        least = np.finfo(np.float64).tiny  # a forest can be sure: its zero has no logarithm
        parts = zip(self.fitted_, np.split(vectors, self._edges, axis=1), strict=True)
        logs = [np.log(np.maximum(one.predict_proba(part).astype(np.float64), least)) for one, part in parts]
        mean = np.mean(logs, axis=0)
        shares = np.exp(mean - mean.max(axis=1, keepdims=True))
        return shares / shares.sum(axis=1, keepdims=True)

    def predict(self, vectors: Float[np.ndarray, "n d"]) -> Shaped[np.ndarray, " n"]:
        return self.classes_[self.predict_proba(vectors).argmax(axis=1)]


def unfitted(adaptation: str, make: Callable[[], Any], parts: Mapping[str, int]) -> Any:
    """What an adaptation fits: `Experts` for "co_training", for all others one classifier."""
    return Experts(make, parts) if adaptation == "co_training" else make()


def in_units(
    adaptation: str,
    vectors: Float32[np.ndarray, "n d"],
    basis: Float[np.ndarray, "m d"],
    parts: Mapping[str, int],
) -> Float32[np.ndarray, "n d"]:
    """Vectors as a classifier with this adaptation takes them: as they are, or by mean and sd over `basis`."""
    if adaptation == "none":
        return vectors
    return comparable_as_is(vectors, basis, parts) if adaptation == "co_training" else in_own_units(vectors, basis)


def comparable_as_is(
    vectors: Float32[np.ndarray, "n d"], basis: Float[np.ndarray, "m d"], parts: Mapping[str, int]
) -> Float32[np.ndarray, "n d"]:
    """Parts that are `COMPARABLE` as they are, the others by mean and sd over `basis` (see `in_own_units`)."""
    comparable = np.repeat([name in COMPARABLE for name in parts], list(parts.values()))
    return np.where(comparable, vectors, in_own_units(vectors, basis))
