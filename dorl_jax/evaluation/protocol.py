"""The protocol: fit on four fifths of one laboratory, test on its last fifth and on the whole of every other.

Section "Experiments" of DoRL (arXiv 2408.07467); the fold splits, seeds and classifier settings are those of
the authors' released notebook.
"""

import logging
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from jaxtyping import Bool, Int
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import StratifiedKFold
from tqdm import tqdm

from dorl_jax.errors import InputError, name_some
from dorl_jax.evaluation import metrics
from dorl_jax.evaluation.classifiers import CLASSIFIERS, make_classifier
from dorl_jax.evaluation.latents import Latents
from dorl_jax.evaluation.results import (
    ClassifierSummary,
    Confusion,
    Evaluation,
    Mean,
    Row,
    in_and_cross_domain,
)

__all__ = ["Evaluation", "Fit", "evaluate_latents"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fit:
    """One classifier fitted on one fold of `source`: what it called the cells of every laboratory.

    Attributes:
      confusions: target -> counts[true class][predicted class], classes in sorted order.
      notes: what was special about the fit.
    """

    source: str
    classifier: str
    fold: int
    confusions: dict[str, list[list[int]]]
    notes: list[str] = field(default_factory=list)

    @property
    def key(self) -> tuple[str, str, int]:
        return self.source, self.classifier, self.fold


def evaluate_latents(
    latents: Latents,
    classifiers: Sequence[str] = CLASSIFIERS,
    folds: int = 5,
    seed: int = 1234,
    progress: bool = True,
    finished: Iterable[Fit] = (),
    on_fit: Callable[[Fit], None] | None = None,
) -> Evaluation:
    """Test how well classes learned in one laboratory are found in every other.

    For every source laboratory: stratified folds (shuffled with `seed`); each classifier is fitted on all
    folds but one and tested on that one (target = source) and on the whole of every other laboratory. The
    same latents, settings and package versions give the same figures bit for bit.

    Args:
      latents: cells of at least two laboratories.
      classifiers: names out of `CLASSIFIERS`, each once.
      folds: at least 2.
      seed: of the fold splits and of the classifiers.
      progress: show a bar over the fits.
      finished: fits of an earlier run over the same latents, folds and seed; they are not repeated.
      on_fit: called after every new fit.

    Raises:
      InputError: an unknown or repeated classifier, fewer than two folds, a single laboratory, or a
        laboratory too small for the folds: fewer cells than folds, no class with as many cells as there are
        folds, or fewer than two classes with three cells (so that every training part holds two cells of two
        classes).
    """
    _check_settings(classifiers, folds, seed)
    splits = {name: _split(latents, name, folds, seed) for name in _laboratories(latents)}
    classes = np.unique(latents.labels)
    done = {fit.key: fit for fit in finished}
    tasks = [(source, name, fold) for source in splits for name in classifiers for fold in range(folds)]
    with tqdm(total=len(tasks), desc="evaluate", unit="fit", disable=not progress) as bar:
        bar.update(sum(task in done for task in tasks))
        for source, name, fold in tasks:
            if (source, name, fold) in done:
                continue
            bar.set_postfix_str(f"{name} on {source}", refresh=False)
            fit = _fit(latents, classes, splits, source, name, fold, seed)
            done[fit.key] = fit
            if on_fit is not None:
                on_fit(fit)
            bar.update()
    numbers = np.searchsorted(classes, latents.labels)
    laboratories = {name: np.bincount(numbers[split.rows], minlength=len(classes)) for name, split in splits.items()}
    settings = {
        "classifiers": list(classifiers),
        "folds": folds,
        "seed": seed,
        "versions": package_versions(),
    }
    return _summarise([done[task] for task in tasks], laboratories, classes.tolist(), settings)


def package_versions() -> dict[str, str]:
    """Versions of what the figures depend on."""
    versions = {}
    for name in ("numpy", "scikit-learn", "xgboost", "xgboost-cpu"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue  # xgboost is optional, and comes under either name
    return versions


@dataclass(frozen=True)
class _Split:
    """Rows of one laboratory, and for each fold which of them are fitted on and which are tested."""

    rows: Int[np.ndarray, " m"]
    folds: list[tuple[Int[np.ndarray, " _"], Int[np.ndarray, " _"]]]


def _check_settings(classifiers: Sequence[str], folds: int, seed: int) -> None:
    if not classifiers:
        raise InputError(f"no classifier named; the classifiers are {', '.join(CLASSIFIERS)}")
    repeated = [name for name in dict.fromkeys(classifiers) if list(classifiers).count(name) > 1]
    if repeated:
        raise InputError(f"classifier {name_some(repeated)} named more than once")
    if folds < 2:
        raise InputError(f"folds = {folds}: at least 2 are needed")
    for name in classifiers:
        make_classifier(name, seed)  # an unknown or missing one is named before the first fit


def _laboratories(latents: Latents) -> list[str]:
    names = np.unique(latents.laboratories).tolist()
    if len(names) < 2:
        raise InputError(
            f"all {len(latents)} cells are from one laboratory, {name_some(names)!r}: testing across "
            "laboratories needs at least two"
        )
    return names


def _split(latents: Latents, laboratory: str, folds: int, seed: int) -> _Split:
    rows = np.flatnonzero(latents.laboratories == laboratory)
    labels = latents.labels[rows]
    names, counts = np.unique(labels, return_counts=True)
    listed = ", ".join(f"{count} {name}" for name, count in zip(names, counts, strict=True))
    if len(rows) < folds or counts.max() < folds:
        raise InputError(
            f"laboratory {laboratory!r} has too few cells for {folds} folds ({listed}): at least one class "
            f"needs {folds}; add cells, set fewer folds, or leave the laboratory out"
        )
    if (counts >= 3).sum() < 2:
        raise InputError(
            f"laboratory {laboratory!r} ({listed}) needs two classes with at least 3 cells to train a "
            "classifier; add cells or leave the laboratory out"
        )
    with warnings.catch_warnings():
        # Known, and said in the notes.
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        parts = list(StratifiedKFold(folds, shuffle=True, random_state=seed).split(rows, labels))
    return _Split(rows, [(rows[fitted], rows[tested]) for fitted, tested in parts])


def _fit(
    latents: Latents,
    classes: np.ndarray,
    splits: dict[str, _Split],
    source: str,
    name: str,
    fold: int,
    seed: int,
) -> Fit:
    fitted, tested = splits[source].folds[fold]
    rows = {target: tested if target == source else split.rows for target, split in splits.items()}
    classifier = make_classifier(name, seed)
    with _counted_convergence() as notes:
        classifier.fit(latents.vectors[fitted], latents.labels[fitted])
    if name == "mlp":
        notes.extend(classifier[-1].notes_)
    numbers = np.searchsorted(classes, latents.labels)
    confusions = {}
    for target, tested in rows.items():
        predicted = np.searchsorted(classes, classifier.predict(latents.vectors[tested]))
        confusions[target] = metrics.confusion(numbers[tested], predicted, len(classes)).tolist()
    return Fit(source, name, fold, confusions, notes)


@contextmanager
def _counted_convergence() -> Iterator[list[str]]:
    """A list that gets a note where an optimiser stopped too early; other warnings pass through."""
    notes: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        yield notes
    for warning in caught:
        if issubclass(warning.category, ConvergenceWarning):
            notes.append("stopped before it converged")
            logger.info("%s", warning.message)
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def _summarise(
    fits: Sequence[Fit],
    laboratories: dict[str, Int[np.ndarray, " k"]],
    classes: list[str],
    settings: dict[str, Any],
) -> Evaluation:
    rows = []
    confusions = []
    for fit in fits:
        for target, counts in fit.confusions.items():
            confusions.append(Confusion(fit.source, target, fit.classifier, fit.fold, counts))
            rows.append(_row(fit, target, np.array(counts), classes))
    means = []
    for classifier in settings["classifiers"]:
        for source in laboratories:
            for target, cells in laboratories.items():
                of_pair = [r for r in rows if (r.classifier, r.source, r.target) == (classifier, source, target)]
                means.append(_mean(of_pair, cells, laboratories[source] > 0))
    return Evaluation(
        rows=rows,
        means=means,
        classifiers=[_classifier(name, means) for name in settings["classifiers"]],
        laboratories={name: _counted(classes, cells) for name, cells in laboratories.items()},
        classes=classes,
        notes=_notes(fits, laboratories, classes, settings["folds"]),
        settings=settings,
        confusions=confusions,
    )


def _row(fit: Fit, target: str, counts: Int[np.ndarray, "k k"], classes: list[str]) -> Row:
    recall = metrics.recall(counts)
    return Row(
        source=fit.source,
        target=target,
        classifier=fit.classifier,
        fold=fit.fold,
        cells=int(counts.sum()),
        accuracy=metrics.accuracy(counts),
        macro_f1=metrics.macro_f1(counts),
        balanced_accuracy=metrics.balanced_accuracy(counts),
        recall={name: float(r) for name, r in zip(classes, recall, strict=True) if np.isfinite(r)},
    )


def _mean(rows: Sequence[Row], cells: Int[np.ndarray, " k"], shown: Bool[np.ndarray, " k"]) -> Mean:
    def mean_and_sd(score: str) -> tuple[float, float]:
        values = [getattr(row, score) for row in rows]
        return float(np.mean(values)), float(np.std(values))

    accuracy, accuracy_sd = mean_and_sd("accuracy")
    macro_f1, macro_f1_sd = mean_and_sd("macro_f1")
    balanced_accuracy, balanced_accuracy_sd = mean_and_sd("balanced_accuracy")
    recall: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        for name, value in row.recall.items():
            recall[name].append(value)
    floor, floor_macro_f1 = metrics.majority_floor(cells)
    return Mean(
        source=rows[0].source,
        target=rows[0].target,
        classifier=rows[0].classifier,
        accuracy=accuracy,
        accuracy_sd=accuracy_sd,
        macro_f1=macro_f1,
        macro_f1_sd=macro_f1_sd,
        balanced_accuracy=balanced_accuracy,
        balanced_accuracy_sd=balanced_accuracy_sd,
        recall={name: float(np.mean(recall[name])) for name in sorted(recall)},
        majority_floor=floor,
        majority_floor_macro_f1=floor_macro_f1,
        ceiling=metrics.ceiling(cells, shown),
    )


def _classifier(name: str, means: Sequence[Mean]) -> ClassifierSummary:
    own = [m for m in means if m.classifier == name]
    across = [m for m in own if m.source != m.target]
    scores = {}
    for score in ("accuracy", "macro_f1", "balanced_accuracy"):
        scores[f"in_domain_{score}"], scores[f"cross_domain_{score}"] = in_and_cross_domain(own, score)
    above = sum(m.accuracy > m.majority_floor for m in across)
    return ClassifierSummary(classifier=name, pairs_above_floor=above, pairs=len(across), **scores)


def _counted(classes: list[str], cells: Int[np.ndarray, " k"]) -> dict[str, int]:
    return {name: int(count) for name, count in zip(classes, cells, strict=True) if count}


def _notes(
    fits: Sequence[Fit], laboratories: dict[str, Int[np.ndarray, " k"]], classes: list[str], folds: int
) -> list[str]:
    notes = [
        f"{laboratory}: {count} {name}, fewer than the {folds} folds: some folds test or train without this class"
        for laboratory, cells in laboratories.items()
        for name, count in _counted(classes, cells).items()
        if count < folds
    ]
    of_folds: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for fit in fits:
        for text in fit.notes:
            of_folds[fit.source, fit.classifier, text].append(fit.fold)
    for (source, classifier, text), which in of_folds.items():
        notes.append(f"{classifier} on {source}, {len(which)} of {folds} folds: {text}")
    return notes
