"""How many unlabelled cells a new laboratory must give for its own mean and sd to be worth having."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dorl_jax.evaluation import metrics
from dorl_jax.evaluation.adaptation import in_own_units, standardise_by_laboratory
from dorl_jax.evaluation.classifiers import make_classifier
from dorl_jax.evaluation.latents import Latents
from dorl_jax.evaluation.methods import Run
from dorl_jax.evaluation.protocol import tested_rows
from dorl_jax.evaluation.threads import fitting_threads

DRAWS = 5


@dataclass(frozen=True)
class FewCells:
    """One draw of `cells` from `target`: how a classifier trained on all others does on its cells that were not drawn.

    With `cells` 0 nothing is standardised by laboratory, neither in the sources nor in the target.
    """

    method: str
    seed: int
    target: str
    cells: int
    draw: int
    accuracy: float
    macro_f1: float


def few_cells(
    cells: Latents,
    runs: Sequence[Run],
    classifier: str,
    sizes: Sequence[int],
    seed: int = 0,
    tested: Literal["all", "unseen"] = "all",
) -> list[FewCells]:
    """Five draws of each size from each laboratory, of those that leave as many cells again to be tested.

    Args:
      cells: laboratories and classes.
      runs: the vectors; those that serve one source alone are left out.
      classifier: fitted on all cells of all other laboratories, each in its own units.
      sizes: numbers of unlabelled target cells, at least 2 each.
      seed: of the draws, which all runs share, and of the classifier.
      tested: as `ProtocolSettings.tested`. Cells are drawn from all of the laboratory, whatever a run has seen of it,
        or runs would not share the draws; of the others those are tested that the protocol tests.
    """
    classes = np.unique(cells.labels)
    numbers = np.searchsorted(classes, cells.labels)
    found = []
    for run in runs:
        if run.latents.serves:
            continue
        plain, own = run.latents.vectors, standardise_by_laboratory(run.latents).vectors
        for target in run.targets:
            inside = np.flatnonzero(cells.laboratories == target)
            outside = np.flatnonzero(cells.laboratories != target)
            testable = tested_rows(run, inside, tested)
            possible = [size for size in sizes if 2 * size <= len(testable)]
            with fitting_threads(plain[outside].size):
                fitted = {
                    which: make_classifier(classifier, seed).fit(vectors[outside], cells.labels[outside])
                    for which, vectors in (("plain", plain), ("own", own))
                }
                for size in [0, *possible]:
                    for draw in range(DRAWS if size else 1):
                        shuffled = np.random.default_rng([seed, size, draw]).permutation(inside)
                        drawn, rest = shuffled[:size], shuffled[size:]
                        rest = rest[np.isin(rest, testable)]
                        vectors = in_own_units(plain[rest], plain[drawn]) if size else plain[rest]
                        called = np.searchsorted(classes, fitted["own" if size else "plain"].predict(vectors))
                        counts = metrics.confusion(numbers[rest], called, len(classes))
                        scores = metrics.accuracy(counts), metrics.macro_f1(counts)
                        found.append(FewCells(run.method, run.seed, target, size, draw, *scores))
    return found
