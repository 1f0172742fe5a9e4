"""Print what a run's vectors are worth across laboratories, part by part, as a Markdown table.

    python scripts/recipe_figures.py runs/unlabelled_target
    python scripts/recipe_figures.py runs/held_out_* --held-out

For every part of the vector (see `CaeConfig.vector`) and for all together: accuracy / macro-F1 in percent of logistic
regression (classes balanced, C = 0.05) in the laboratory it was trained in (five folds), from one laboratory to another
(mean over pairs) and from all others to each. Vectors are scaled by

  source         mean and sd of the training cells: nothing of the target is needed
  own            mean and sd of each laboratory over its own unlabelled cells
  self-training  own, then eight rounds of training on confident pseudo-labels of the target's unlabelled cells
  co-training    the same, by a classifier for each part of the vector, which name cells together; the parts
                 `pixels` and `relations` stay in the source's units

With several runs, seeds of the same settings, mean and sd over them. With --held-out each run is one that left
laboratories unseen (`data.unseen`), and only these are tested, from all others.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from dorl_jax import config
from dorl_jax.errors import InputError
from dorl_jax.evaluation.adaptation import ROUNDS, TRAINING_ON, Adaptation, self_train
from dorl_jax.evaluation.experts import unfitted
from dorl_jax.evaluation.fitted import in_laboratory_units
from dorl_jax.evaluation.latents import Latents, read_latents, take_parts
from dorl_jax.evaluation.settings import parts_in
from dorl_jax.evaluation.splits import split_laboratories
from dorl_jax.evaluation.threads import fitting_threads
from dorl_jax.stages.run import RunSettings

# The source's units are the classifier's own.
SCALINGS: dict[str, Adaptation] = {
    "source": "none",
    "own": "own",
    "self-training": "self_training",
    "co-training": "co_training",
}
# macro-F1 a second time over the classes of which the target has as many cells
ENOUGH = 10


@dataclass(frozen=True)
class Score:
    """Percent; `common` is macro-F1 over the classes with enough cells, `above` whether above the majority's share."""

    accuracy: float
    macro_f1: float
    common: float
    above: bool


def score(truth: np.ndarray, predicted: np.ndarray) -> Score:
    names, counts = np.unique(truth, return_counts=True)
    f1 = f1_score(truth, predicted, labels=names, average=None, zero_division=0)
    accuracy = float(np.mean(truth == predicted))
    above = accuracy > counts.max() / len(truth)
    common = float(f1[counts >= ENOUGH].mean()) if (counts >= ENOUGH).any() else float("nan")
    return Score(100 * accuracy, 100 * float(f1.mean()), 100 * common, above)


def classifier() -> Pipeline:
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.05, class_weight="balanced", max_iter=1000, tol=1e-3))


def across(latents: Latents, sources: Sequence[str], target: str, scaling: str) -> Score:
    parts = latents.parts or {"": latents.vectors.shape[1]}
    train, test = np.isin(latents.laboratories, sources), latents.laboratories == target
    adaptation = SCALINGS[scaling]
    known = in_laboratory_units(adaptation, latents.vectors[train], latents.laboratories[train], parts)
    asked = in_laboratory_units(adaptation, latents.vectors[test], latents.laboratories[test], parts)
    labels = latents.labels[train]

    def make() -> Any:
        return unfitted(adaptation, classifier, parts)

    with fitting_threads(known.size):
        model = make().fit(known, labels)
        if adaptation in TRAINING_ON:
            model = self_train(make, known, labels, asked, ROUNDS, model)
        return score(latents.labels[test], model.predict(asked))


def in_domain(latents: Latents, laboratory: str) -> Iterator[Score]:
    vectors = latents.vectors
    for train, test in split_laboratories(latents, 5, 1234)[laboratory].folds:
        with fitting_threads(vectors[train].size):
            predicted = classifier().fit(vectors[train], latents.labels[train]).predict(vectors[test])
        yield score(latents.labels[test], predicted)


def parts_of(latents: Latents, wanted: Sequence[str]) -> dict[str, Latents]:
    """The vectors of each part that is wanted, several joined by +; by default each, and all."""
    own = list(latents.parts or {})
    names = list(wanted) or list(dict.fromkeys([*own, "+".join(own)]))
    return {name: take_parts(latents, parts_in(name)) for name in names}


def left_unseen(run: Path) -> tuple[str, ...]:
    """Laboratories that the run has not seen.

    Raises:
      InputError: there is none.
    """
    unseen = config.load(RunSettings, run / config.SETTINGS_FILE).data.unseen
    if not unseen:
        raise InputError(f"{run} has seen all laboratories (data.unseen is empty): leave --held-out out")
    return unseen


def rows(run: Path, wanted: Sequence[str], held_out: bool) -> Iterator[tuple[str, str, list[Score]]]:
    """(part, what is asked, scores)."""
    latents = read_latents(run / "embed" / "latents.parquet")
    names = list(dict.fromkeys(latents.laboratories.tolist()))
    unseen = left_unseen(run) if held_out else ()
    for part, one in parts_of(latents, wanted).items():
        if held_out:
            seen = [name for name in names if name not in unseen]
            for scaling in SCALINGS:
                scores = [across(one, seen, target, scaling) for target in unseen]
                yield part, f"others to the unseen, {scaling}", scores
            continue
        yield part, "in-domain", [found for name in names for found in in_domain(one, name)]
        for scaling in SCALINGS:
            pairs = [(a, b) for a in names for b in names if a != b]
            yield part, f"pairs, {scaling}", [across(one, [a], b, scaling) for a, b in pairs]
            others = [([a for a in names if a != b], b) for b in names]
            yield part, f"others to each, {scaling}", [across(one, a, b, scaling) for a, b in others]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs")
    parser.add_argument("--held-out", action="store_true", help="test the laboratories that a run has not seen")
    parser.add_argument("--parts", nargs="+", default=[], help="parts of the vector, some joined: pixels pixels+cls")
    options = parser.parse_args()
    found: dict[tuple[str, str], list[list[Score]]] = defaultdict(list)
    for run in options.runs:
        for part, asked, scores in rows(run, options.parts, options.held_out):
            found[part, asked].append(scores)
    print(f"| vector | asked | accuracy | macro-F1 | of classes with {ENOUGH} cells | above the floor |")
    print("|---|---|---:|---:|---:|---:|")
    for (part, asked), of_runs in found.items():
        if options.held_out:  # every run has its own laboratory: one mean
            of_runs = [[one for scores in of_runs for one in scores]]
        cells = []
        for name in ("accuracy", "macro_f1", "common"):
            means = [np.mean([getattr(one, name) for one in scores]) for scores in of_runs]
            if np.isnan(means).any():  # a fold may hold no class with enough cells
                cells.append("")
                continue
            spread = f" ± {np.std(means):.1f}" if len(means) > 1 else ""
            cells.append(f"{np.mean(means):.1f}{spread}")
        above = " ".join(str(sum(one.above for one in scores)) for scores in of_runs)
        print(f"| {part} | {asked} | {' | '.join(cells)} | {above} of {len(of_runs[0])} |")


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
