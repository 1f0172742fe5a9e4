"""How much of the laboratory is left in a vector, and how much of the class.

A vector that holds nothing is invariant, too: these figures stand beside accuracy, never alone.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int, Shaped
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.neighbors import NearestNeighbors

from dorl_jax.evaluation.adaptation import TRAINING_ON, in_own_units, standardise_by_laboratory
from dorl_jax.evaluation.classifiers import make_classifier
from dorl_jax.evaluation.latents import Latents
from dorl_jax.evaluation.methods import Run
from dorl_jax.evaluation.splits import whole_groups
from dorl_jax.evaluation.threads import fitting_threads

MISSING = (
    "kBET, iLISI and silhouettes were not measured: they need scib-metrics (pip install 'dorl-jax[invariance]'); the "
    "probes and the robustness index do not"
)
_FOLDS = 5
LEAST_CELLS = 10
"""Cells of a class in a laboratory, for the class to be looked at there."""
_MOST = 5000
"""Cells that the neighbourhoods of scib-metrics are taken of."""


@dataclass(frozen=True)
class Invariance:
    """Of the vectors of one run, adapted or not. None: cannot be measured on these cells, or scib-metrics is missing.

    Attributes:
      probe: balanced accuracy of a logistic regression that tells the laboratory from the vector, in 5 folds, or as
        many as the laboratory of the fewest groups has; 1 over the number of laboratories is chance.
      probe_forest: the same of a random forest, which sees more than means: vectors in their laboratory's own units
        have equal means, and a linear probe is blind to the rest.
      probe_of_class: the same of a linear probe that is told the true class instead: what the laboratories' different
        shares of classes alone give away, and so what a vector of nothing but the class would reach.
      robustness: share, 0..1, see `robustness_index`.
      kbet: of neighbourhoods within a class, the share in which laboratories are mixed as in the whole class.
      ilisi: laboratories in a neighbourhood, effectively, scaled from 0 (one) to 1 (all alike).
      silhouette_batch: 1 where laboratories lie over each other within the classes, down to 0.
      silhouette_class: 1 where classes lie apart, 0.5 where they lie over each other.
    """

    method: str
    seed: int
    adaptation: str
    laboratories: int
    probe: float | None
    probe_forest: float | None
    probe_of_class: float | None
    robustness: float | None
    kbet: float | None = None
    ilisi: float | None = None
    silhouette_batch: float | None = None
    silhouette_class: float | None = None


def measure_invariance(
    cells: Latents, runs: Sequence[Run], adaptations: Sequence[str], seed: int = 0
) -> tuple[list[Invariance], bool]:
    """Measure the vectors of every run as they are ("none") and in their laboratories' units ("own").

    Training on unlabelled cells changes no vector and has no line of its own.

    Returns:
      The figures; whether scib-metrics is there.
    """
    scib = _scib()
    groups = whole_groups(cells.groups, len(cells))
    found = []
    for run in runs:
        for adaptation in ("none", "own"):
            if adaptation in adaptations or (adaptation == "own" and set(TRAINING_ON) & set(adaptations)):
                vectors = (
                    in_own_units(run.latents.vectors, run.latents.vectors)
                    if adaptation == "none"
                    else standardise_by_laboratory(run.latents).vectors
                )
                with fitting_threads(vectors.size):
                    found.append(_measure(run, adaptation, vectors, cells, groups, scib, seed))
    return found, scib is not None


def _measure(
    run: Run,
    adaptation: str,
    vectors: Float32[np.ndarray, "n d"],
    cells: Latents,
    groups: Int[np.ndarray, " n"],
    scib: Any,
    seed: int,
) -> Invariance:
    laboratories, labels = cells.laboratories, cells.labels
    of_class = (labels[:, None] == np.unique(labels)).astype(np.float32)

    def linear() -> Any:
        return make_classifier("logistic_regression_balanced", seed)

    def forest() -> Any:
        return RandomForestClassifier(100, class_weight="balanced", min_samples_leaf=3, random_state=seed)

    return Invariance(
        run.method,
        run.seed,
        adaptation,
        len(np.unique(laboratories)),
        probe(linear, vectors, laboratories, groups, seed),
        probe(forest, vectors, laboratories, groups, seed),
        probe(linear, of_class, laboratories, groups, seed),
        robustness_index(vectors, laboratories, labels, seed=seed),
        **({} if scib is None else _neighbourhoods(scib, vectors, laboratories, labels, seed)),
    )


def probe(
    make: Callable[[], Any],
    vectors: Float[np.ndarray, "n d"],
    laboratories: Shaped[np.ndarray, " n"],
    groups: Int[np.ndarray, " n"],
    seed: int = 0,
) -> float | None:
    """Balanced accuracy of telling the laboratory from the vector, over all cells, each in the fold that tests it.

    None where a laboratory is a single group: it cannot be both learned and tested.
    """
    folds = min(_FOLDS, *(len(np.unique(groups[laboratories == name])) for name in np.unique(laboratories)))
    if folds < 2:
        return None
    called = np.empty_like(laboratories)
    for fitted, tested in StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(
        vectors, laboratories, groups
    ):
        called[tested] = make().fit(vectors[fitted], laboratories[fitted]).predict(vectors[tested])
    return float(balanced_accuracy_score(laboratories, called))


def robustness_index(
    vectors: Float[np.ndarray, "n d"],
    laboratories: Shaped[np.ndarray, " n"],
    labels: Shaped[np.ndarray, " n"],
    neighbours: int = 10,
    most: int = 100,
    seed: int = 0,
) -> float | None:
    """Whether what is near is alike in class or in laboratory: SO / (SO + OS), 0..1.

    Of the nearest neighbours of each cell, SO are of the same class and another laboratory, OS of another class and the
    same laboratory; 0.5 is what a vector without structure gives. Counted, as sizes decide who is near, in every two
    laboratories and two classes of equal shares, drawn from those with 10 cells in all four. Kömen et al., "Towards
    robust foundation models for digital pathology", arXiv 2507.17845; the idea is de Jong et al.'s, arXiv 2501.18055.

    Args:
      vectors, laboratories, labels: the cells.
      neighbours: looked at; fewer where a share is smaller.
      most: cells of a class in a laboratory that are drawn.
      seed: of the draw.

    Returns:
      The index, or None where no two laboratories share two classes, or no such neighbour is found.
    """
    random = np.random.default_rng(seed)
    same_class = same_laboratory = 0
    for two_laboratories in combinations(np.unique(laboratories).tolist(), 2):
        for two_classes in combinations(np.unique(labels).tolist(), 2):
            blocks = [
                np.flatnonzero((laboratories == laboratory) & (labels == label))
                for laboratory in two_laboratories
                for label in two_classes
            ]
            size = min(most, *(len(block) for block in blocks))
            if size < LEAST_CELLS:
                continue
            rows = np.concatenate([random.permutation(block)[:size] for block in blocks])
            near = NearestNeighbors(n_neighbors=min(neighbours, size - 1)).fit(vectors[rows]).kneighbors()[1]
            alike = labels[rows][near] == labels[rows][:, None]
            home = laboratories[rows][near] == laboratories[rows][:, None]
            same_class += int((alike & ~home).sum())
            same_laboratory += int((~alike & home).sum())
    total = same_class + same_laboratory
    return same_class / total if total else None


def _scib() -> Any:
    """The module, or None."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its many imports
        try:
            import scib_metrics
            from scib_metrics import nearest_neighbors  # noqa: F401
        except ImportError:
            return None
    return scib_metrics


def _neighbourhoods(
    scib: Any,
    vectors: Float32[np.ndarray, "n d"],
    laboratories: Shaped[np.ndarray, " n"],
    labels: Shaped[np.ndarray, " n"],
    seed: int,
) -> dict[str, float | None]:
    if len(vectors) > _MOST:
        rows = np.sort(np.random.default_rng(seed).permutation(len(vectors))[:_MOST])
        vectors, laboratories, labels = vectors[rows], laboratories[rows], labels[rows]
    of_laboratory = np.unique(laboratories, return_inverse=True)[1]
    of_class = np.unique(labels, return_inverse=True)[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it deprecates of its own
        accepted = []
        for label in np.unique(of_class):
            rows = np.flatnonzero(of_class == label)
            counts = np.bincount(of_laboratory[rows])
            rows = rows[np.isin(of_laboratory[rows], np.flatnonzero(counts >= LEAST_CELLS))]
            own = np.unique(of_laboratory[rows], return_inverse=True)[1]
            if len(np.unique(own)) < 2:
                continue
            near = _nearest(scib, vectors[rows], min(50, len(rows) // 2))
            accepted.append(float(scib.kbet(near, own)[0]))
        near = _nearest(scib, vectors, min(90, len(vectors)))
        return {
            "kbet": float(np.mean(accepted)) if accepted else None,
            "ilisi": float(scib.ilisi_knn(near, of_laboratory)),
            "silhouette_batch": float(scib.silhouette_batch(vectors, of_class, of_laboratory)),
            "silhouette_class": float(scib.silhouette_label(vectors, of_class)),
        }


def _nearest(scib: Any, vectors: Float32[np.ndarray, "n d"], number: int) -> Any:
    """The `number` nearest of each, itself included, exactly."""
    distances, indices = NearestNeighbors(n_neighbors=number).fit(vectors).kneighbors(vectors)
    return scib.nearest_neighbors.NeighborsResults(indices=indices, distances=distances)
