"""The baselines of a run, made where they are missing, and their figures across laboratories.

    python scripts/baseline_figures.py runs/real_cells baselines.names='["colour_texture","resnet"]'

RUN is the folder of a run that is extracted. Vectors go to RUN/baselines. For every ordered pair of laboratories a
balanced logistic regression (C = 0.05) is trained on all cells of the first and tested on all of the second; "own"
first standardises each laboratory by its own mean and sd, otherwise the source's serve both. In-domain figures are
those of five stratified folds (seed 1234). Prints Markdown, accuracy / macro-F1 in %.
"""

import argparse
import logging
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from sklearn.metrics import accuracy_score, f1_score
from sklearn.model_selection import StratifiedKFold

from dorl_jax import config
from dorl_jax.baselines import BaselineSettings, baselines, read_baseline
from dorl_jax.data.manifest import load_cells
from dorl_jax.evaluation.adaptation import standardise_by_laboratory
from dorl_jax.evaluation.classifiers import make_classifier
from dorl_jax.evaluation.latents import Latents

_CLASSIFIER = "logistic_regression_balanced"
# Of what class frequencies give: a balanced one would forget them.
_UNWEIGHTED = "logistic_regression"


@dataclass(frozen=True)
class Settings:
    """Of this script."""

    baselines: BaselineSettings = field(default_factory=BaselineSettings)


def main() -> None:
    """Make and judge."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("settings", nargs="*", help="baselines.KEY=VALUE")
    options = parser.parse_args()
    overrides = dict(text.partition("=")[::2] for text in options.settings)
    settings = config.build(Settings, {}, overrides).baselines
    manifest = load_cells(options.run / "data" / "cells.parquet")
    out = options.run / "baselines"
    print("| baseline | numbers | across, source's units | across, own | in-domain | seconds |")
    print("|---|---|---|---|---|---|")
    for name in settings.names:
        begun = time.perf_counter()
        baselines(manifest, options.run / "extract" / "store", out, one(settings, name))
        seconds = time.perf_counter() - begun
        vectors = read_baseline(out, name)
        width = next(iter(vectors.values())).vectors.shape[1]
        kind = _UNWEIGHTED if name == "majority" else _CLASSIFIER
        found = " | ".join(f"{100 * accuracy:.1f} / {100 * f1:.1f}" for accuracy, f1 in figures(vectors, kind))
        print(f"| {name} | {width} | {found} | {seconds:.0f} |", flush=True)


def one(settings: BaselineSettings, name: str) -> BaselineSettings:
    """The settings with a single name."""
    return config.build(BaselineSettings, {**config.as_tree(settings), "names": [name]})


def figures(vectors: dict[str, Latents], kind: str) -> list[np.ndarray]:
    """Accuracy and macro-F1: across in the source's units, across in own units, in-domain."""
    laboratories = np.unique(next(iter(vectors.values())).laboratories)
    across: dict[str, list[tuple[float, float]]] = {"source": [], "own": []}
    inside = []
    for source in laboratories:
        latents = vectors.get(source) or vectors[""]
        for units, ones in (("source", latents), ("own", standardise_by_laboratory(latents))):
            of_source = ones.laboratories == source
            classifier = make_classifier(kind, 0).fit(ones.vectors[of_source], ones.labels[of_source])
            for target in laboratories[laboratories != source]:
                tested = ones.laboratories == target
                across[units].append(scores(ones.labels[tested], classifier.predict(ones.vectors[tested])))
        own = latents.laboratories == source
        inside += folds(latents.vectors[own], latents.labels[own], kind)
    return [np.mean(found, axis=0) for found in (across["source"], across["own"], inside)]


def folds(vectors: np.ndarray, labels: np.ndarray, kind: str) -> list[tuple[float, float]]:
    """Scores of each fold of one laboratory."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        parts = list(StratifiedKFold(5, shuffle=True, random_state=1234).split(vectors, labels))
    found = []
    for fitted, tested in parts:
        classifier = make_classifier(kind, 0).fit(vectors[fitted], labels[fitted])
        found.append(scores(labels[tested], classifier.predict(vectors[tested])))
    return found


def scores(labels: np.ndarray, called: np.ndarray) -> tuple[float, float]:
    """Accuracy, and F1 averaged over the classes that are there or were called."""
    return accuracy_score(labels, called), f1_score(labels, called, average="macro", zero_division=0)


if __name__ == "__main__":
    main()
