"""Is this a laboratory we know? How far vectors are from the cells of each laboratory that was trained on.

The distance of a cell to a laboratory is that to its k-th nearest cell there (Sun et al., "Out-of-Distribution
Detection with Deep Nearest Neighbors", arXiv 2204.06507), which asks for no shape of the cloud, one of several classes.
It is read off against the laboratory's own cells, each left out in turn: a conformal p-value (Vovk et al., "Algorithmic
Learning in a Random World", 2005), evenly spread over 0..1 for new cells of the same laboratory, whatever the vectors.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Float32, Shaped
from scipy.stats import binom
from sklearn.neighbors import NearestNeighbors

# A cell is outside of a laboratory where fewer of its own cells than this are as far out.
OUTSIDE = 0.05
# The least with which a p-value can be below that.
FEWEST = 20
# Cells of a laboratory that are kept for comparison: more change little, and every one is stored.
MOST = 2000
_NEIGHBOUR = 5
# How seldom a set from a laboratory that is known may be called shifted.
_FALSE_ALARM = 0.01


@dataclass(frozen=True)
class Reference:
    """Cells of one laboratory that was trained on, with labels or without.

    Attributes:
      name: of the laboratory.
      vectors: in the units of `Familiarity`.
      distances: of each to its k-th nearest among the others, ascending.
    """

    name: str
    vectors: Float32[np.ndarray, "m d"]
    distances: Float32[np.ndarray, " m"]


@dataclass(frozen=True)
class Familiarity:
    """Distances to the laboratories that were trained on.

    Attributes:
      mean, scale: of every component over all training cells; distances are taken in these units.
      references: one a laboratory.
    """

    mean: Float32[np.ndarray, " d"]
    scale: Float32[np.ndarray, " d"]
    references: tuple[Reference, ...]

    def of_cells(self, vectors: Float32[np.ndarray, "n d"]) -> Float[np.ndarray, "n l"]:
        """p-value of every cell in every laboratory: the share of the laboratory's own cells that are as far out."""
        scaled = (vectors - self.mean) / self.scale
        columns = [np.empty((len(vectors), 0))]
        for reference in self.references:
            distances = _neighbour_distances(reference.vectors, scaled)
            closer = np.searchsorted(reference.distances, distances, side="left")
            count = len(reference.distances)
            columns.append(((1 + count - closer) / (1 + count))[:, None])
        return np.concatenate(columns, axis=1)


@dataclass(frozen=True)
class SetFamiliarity:
    """How a set of cells lies to one laboratory that is known.

    Attributes:
      laboratory: its name.
      outside: share of the set's cells whose p-value is below `OUTSIDE`; about that share for the laboratory's own.
      limit: what the share stays within in 99 of 100 sets of that size of the laboratory's own.
      verdict: "known": within the limit; "shifted": above it, but under a half; "unknown": half the cells or more.
    """

    laboratory: str
    outside: float
    limit: float
    verdict: Literal["known", "shifted", "unknown"]


def fit_familiarity(
    vectors: Float32[np.ndarray, "n d"], laboratories: Shaped[np.ndarray, " n"], seed: int
) -> tuple[Familiarity, list[str]]:
    """Learn what laboratories look like; no label is needed.

    Args:
      vectors: of the cells that were trained on.
      laboratories: of each cell.
      seed: of the draw where a laboratory has more than `MOST` cells.

    Returns:
      What was learned, and notes: which laboratories are left out, for they have fewer than `FEWEST` cells.
    """
    mean, spread = vectors.mean(axis=0), vectors.std(axis=0)
    scale = np.where(spread > 0, spread, 1).astype(np.float32)
    references, notes = [], []
    rng = np.random.default_rng(seed)
    for name in np.unique(laboratories).tolist():
        rows = np.flatnonzero(laboratories == name)
        if len(rows) < FEWEST:
            notes.append(f"{name}: {len(rows)} cells are too few to tell what is like them; at least {FEWEST}")
            continue
        if len(rows) > MOST:
            rows = np.sort(rng.choice(rows, MOST, replace=False))
        own = (vectors[rows] - mean) / scale
        # The nearest of all is the cell itself.
        references.append(Reference(name, own, np.sort(_neighbour_distances(own, own, skip=1))))
    return Familiarity(mean, scale, tuple(references)), notes


def of_set(names: list[str], p_values: Float[np.ndarray, "n l"]) -> list[SetFamiliarity]:
    """What `Familiarity.of_cells` says of a set as a whole, laboratories in order, the nearest first."""
    count = len(p_values)
    limit = float(binom.ppf(1 - _FALSE_ALARM, count, OUTSIDE) / count)
    found = []
    for name, own in zip(names, p_values.T, strict=True):
        outside = float((own < OUTSIDE).mean())
        verdict: Literal["known", "shifted", "unknown"] = "known" if outside <= limit else "shifted"
        found.append(SetFamiliarity(name, outside, limit, "unknown" if outside >= 0.5 else verdict))
    return sorted(found, key=lambda one: one.outside)


def _neighbour_distances(
    reference: Float32[np.ndarray, "m d"], vectors: Float32[np.ndarray, "n d"], skip: int = 0
) -> Float32[np.ndarray, " n"]:
    """Distance to the k-th nearest, the first `skip` not counted."""
    nearest = NearestNeighbors(n_neighbors=_NEIGHBOUR + skip, algorithm="brute").fit(reference)
    return nearest.kneighbors(vectors)[0][:, -1].astype(np.float32)
