"""The protocol: fit on four fifths of a laboratory, test on its last fifth and on the whole of every other.

Section "Experiments" of DoRL (arXiv 2408.07467); the fold splits, seeds and classifier settings are those of
the authors' released notebook. Beyond it: training on all laboratories but the one that is tested, adaptation to
unlabelled cells, folds that respect groups, several seeds and several methods.
"""

import hashlib
import json
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32, Int
from sklearn.exceptions import ConvergenceWarning
from tqdm import tqdm

from dorl_jax.errors import InputError, name_some
from dorl_jax.evaluation.adaptation import TRAINING_ON, self_train
from dorl_jax.evaluation.classifier_names import ORIGINAL
from dorl_jax.evaluation.classifiers import make_classifier
from dorl_jax.evaluation.common_classes import note_no_common_class
from dorl_jax.evaluation.experts import Experts, in_units, unfitted
from dorl_jax.evaluation.exposure import TITLES, setting_of
from dorl_jax.evaluation.latents import Latents
from dorl_jax.evaluation.methods import Method, Run, align
from dorl_jax.evaluation.results import Evaluation, Kind
from dorl_jax.evaluation.settings import ProtocolSettings
from dorl_jax.evaluation.sources import all_but, laboratories_of
from dorl_jax.evaluation.splits import Split, fold_numbers, groups_across, split_laboratories
from dorl_jax.evaluation.summary import Tested, summarise
from dorl_jax.evaluation.threads import fitting_threads

__all__ = ["Evaluation", "Fit", "Judged", "as_original", "judge"]

logger = logging.getLogger(__name__)

NOT_TESTED = 255
"""In `Fit.predicted`."""


def as_original(settings: ProtocolSettings) -> ProtocolSettings:
    """The original's protocol to the letter (see `ProtocolSettings.parity`)."""
    return replace(
        settings,
        parity=True,
        classifiers=ORIGINAL,
        headline="svm_linear",
        folds=5,
        seed=1234,
        grouped=False,
        adaptations=("none",),
        leave_one_out=False,
        tested="all",
        require="",
    )


@dataclass(frozen=True)
class Fit:
    """One classifier, fitted on one fold of `source`: what it called the cells that it was tested on.

    Attributes:
      source: a laboratory, or "all but" one.
      predicted: a byte for each cell: the number of the class called, or `NOT_TESTED`.
      notes: what was special about the fit.
    """

    source: str
    classifier: str
    adaptation: str
    fold: int
    predicted: bytes
    notes: list[str] = field(default_factory=list)

    @property
    def key(self) -> tuple[str, str, str, int]:
        return self.source, self.classifier, self.adaptation, self.fold


@dataclass(frozen=True)
class Judged:
    """Fits of one run of a method."""

    run: Run
    fits: list[Fit]


@dataclass(frozen=True)
class Judgement:
    """All that came of it: the figures, and what they were counted from."""

    evaluation: Evaluation
    cells: Latents
    judged: list[Judged]


def judge(
    methods: Sequence[Method],
    settings: ProtocolSettings,
    progress: bool = True,
    finished: Mapping[str, Iterable[Fit]] | None = None,
    on_fit: Callable[[str, Fit], None] | None = None,
) -> Judgement:
    """Test how well classes learned in some laboratories are found in every other.

    For every source laboratory: stratified folds (shuffled with `seed`); each classifier is fitted on all folds but one
    and tested on that one (target = source) and on the whole of every other laboratory. With `leave_one_out` it is also
    fitted on those folds of all laboratories but one, and tested on that. The same vectors, settings and package
    versions give the same figures bit for bit.

    Args:
      methods: vectors of the same cells, of two laboratories or more; without `leave_one_out`, of one or more.
      settings: see `ProtocolSettings`.
      progress: show a bar over the fits.
      finished: fits of an earlier run under their mark (see `mark_of`); they are not repeated.
      on_fit: called after every new fit, with its mark.

    Raises:
      InputError: see `plan`.
    """
    if settings.parity:
        settings = as_original(settings)
    cells, runs, splits = plan(methods, settings)
    classes = np.unique(cells.labels)
    tasks = [_tasks(run, splits, settings) for run in runs]
    judged = []
    with tqdm(total=sum(map(len, tasks)), desc="evaluate", unit="fit", disable=not progress) as bar:
        for run, own in zip(runs, tasks, strict=True):
            mark = mark_of(cells, run, settings)
            done = {fit.key: fit for fit in (finished or {}).get(mark, ())}
            bar.update(sum(task.key in done for task in own))
            for task in own:
                if task.key in done:
                    continue
                bar.set_postfix_str(f"{run.method}: {task.classifier} on {task.source}", refresh=False)
                fit = _fit(cells, classes, splits, run, task, settings)
                done[fit.key] = fit
                if on_fit is not None:
                    on_fit(mark, fit)
                bar.update()
            judged.append(Judged(run, [done[task.key] for task in own]))

    def tested() -> Iterator[Tested]:
        for found in judged:
            yield from _tests(cells, classes, splits, found, settings)

    notes = _notes(cells, judged, splits, settings)
    evaluation = summarise(tested, cells, splits, settings, settings.ranking_classifier, notes, package_versions())
    return Judgement(evaluation, cells, judged)


def plan(methods: Sequence[Method], settings: ProtocolSettings) -> tuple[Latents, list[Run], dict[str, Split]]:
    """What `judge` tests: the cells, the runs of the methods on them, and the folds of each laboratory.

    Raises:
      InputError: a classifier whose package is missing, vectors that do not belong together or serve no classifier that
        is fitted, a single laboratory with `leave_one_out` or `parity`, laboratories too small for the folds (see
        `split_laboratories`), or a test in a looser setting than `require` allows.
    """
    if settings.parity:
        settings = as_original(settings)
    for name in settings.classifiers:
        make_classifier(name, settings.seed)  # a missing package is named before the first fit
    cells, runs = align(methods)
    names = np.unique(cells.laboratories).tolist()
    if len(names) < settings.least_laboratories:
        raise InputError(
            f"all {len(cells)} cells are from one laboratory, {names[0]!r}: testing across laboratories needs at least "
            "two; leave_one_out = false, without parity, tests within the one"
        )
    splits = split_laboratories(cells, settings.folds, settings.seed, settings.grouped)
    classes = len(np.unique(cells.labels))
    if classes > NOT_TESTED:
        raise InputError(f"{classes} classes: at most {NOT_TESTED} can be told apart; merge some by a taxonomy")
    for run in runs:
        if not _tasks(run, splits, settings):
            raise InputError(
                f"{run.method}: vectors for classifiers trained on {run.latents.serves!r}, which none is: that takes "
                "leave_one_out = true and three laboratories; give vectors for others, or leave the method out"
            )
    _refuse_loose(runs, splits, settings)
    return cells, runs, splits


def package_versions() -> dict[str, str]:
    """Versions of what the figures depend on."""
    versions = {}
    # SciPy's optimiser fits every logistic regression.
    for name in ("dorl-jax", "numpy", "scipy", "scikit-learn", "xgboost", "xgboost-cpu"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue  # xgboost is optional, and comes under either name
    return versions


def mark_of(cells: Latents, run: Run, settings: ProtocolSettings) -> str:
    """Hash of all that decides a fit but its source, classifier, adaptation and fold."""
    facts = {
        "vectors": run.mark,
        "parts": None if run.latents.parts is None else list(run.latents.parts.items()),
        "targets": run.targets,
        "folds": settings.folds,
        "seed": settings.seed,
        "grouped": settings.grouped,
        "adapt_from": settings.adapt_from,
        "rounds": settings.rounds,
        "tested": settings.tested,
        "versions": package_versions(),
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    groups = cells.groups if settings.grouped else None
    seen = run.latents.seen if settings.tested == "unseen" else None
    for texts in (cells.ids, cells.laboratories, cells.labels, groups, seen):
        digest.update(json.dumps(None if texts is None else texts.tolist()).encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class _Task:
    """A fit to be done: laboratories of the source, laboratories it is tested on."""

    source: str
    laboratories: tuple[str, ...]
    targets: tuple[str, ...]
    classifier: str
    adaptation: str
    fold: int

    @property
    def key(self) -> tuple[str, str, str, int]:
        return self.source, self.classifier, self.adaptation, self.fold


def _refuse_loose(runs: Sequence[Run], splits: Mapping[str, Split], settings: ProtocolSettings) -> None:
    order = tuple(TITLES)
    for run in runs:
        for target in run.targets:
            if target in laboratories_of(run.latents.serves, list(splits)):
                continue  # nothing is tested there but the source itself
            tested = tested_rows(run, splits[target].rows, settings.tested)
            if not len(tested):
                raise InputError(
                    f"{run.method}: the making of the vectors has seen all cells of {target}, so that "
                    "tested = 'unseen' leaves none; keep some cells from training, or test all"
                )
            if not settings.require:
                continue
            for adaptation in settings.adaptations:
                found = _setting(run, splits[target], tested, adaptation, settings)
                if order.index(found) > order.index(settings.require):
                    raise InputError(
                        f"{run.method} on {target} with adaptation {adaptation!r} is no test of the setting "
                        f"{TITLES[settings.require]!r} but {TITLES[found]!r}: "
                        + (
                            "the file of vectors does not say which cells were seen (column `seen`)"
                            if run.latents.seen is None
                            else "give vectors made without these cells, or other adaptations"
                        )
                    )


def _setting(run: Run, split: Split, tested: Int[np.ndarray, " t"], adaptation: str, settings: ProtocolSettings) -> Any:
    adapts = adaptation != "none"
    return setting_of(run.latents.seen, split.rows, tested, adapts, adapts and settings.adapt_from == "all")


def tested_rows(run: Run, rows: Int[np.ndarray, " m"], which: Literal["all", "unseen"]) -> Int[np.ndarray, " t"]:
    """Those of the rows that are tested (see `ProtocolSettings.tested`)."""
    if which == "all" or run.latents.seen is None:
        return rows
    return rows[run.latents.seen[rows] == "no"]


def _tasks(run: Run, splits: Mapping[str, Split], settings: ProtocolSettings) -> list[_Task]:
    names = list(splits)
    sources = dict.fromkeys(names, run.targets)
    if settings.leave_one_out and len(names) > 2:
        sources |= {all_but(target): (target,) for target in run.targets}
    return [
        _Task(source, laboratories_of(source, names), targets, classifier, adaptation, fold)
        for source, targets in sources.items()
        if run.latents.serves in ("", source)
        for classifier in settings.classifiers
        for adaptation in settings.adaptations
        for fold in range(settings.folds)
    ]


def _fit(
    cells: Latents,
    classes: np.ndarray,
    splits: Mapping[str, Split],
    run: Run,
    task: _Task,
    settings: ProtocolSettings,
) -> Fit:
    def basis(rows: Int[np.ndarray, " a"], others: Int[np.ndarray, " b"]) -> Int[np.ndarray, " c"]:
        return rows if settings.adapt_from == "all" else others

    vectors = run.latents.vectors
    parts = run.latents.parts or {"": vectors.shape[1]}

    def make() -> Any:
        return unfitted(task.adaptation, lambda: make_classifier(task.classifier, settings.seed), parts)

    def scaled(rows: Int[np.ndarray, " m"], basis: Int[np.ndarray, " b"]) -> Float32[np.ndarray, "m d"]:
        return in_units(task.adaptation, vectors[rows], vectors[basis], parts)

    fitted = [splits[name].folds[task.fold][0] for name in task.laboratories]
    of_laboratories = [
        scaled(rows, basis(splits[name].rows, rows)) for name, rows in zip(task.laboratories, fitted, strict=True)
    ]
    known, labels = np.concatenate(of_laboratories), cells.labels[np.concatenate(fitted)]
    predicted = np.full(len(cells), NOT_TESTED, np.uint8)
    with fitting_threads(known.size), _counted_convergence() as notes:
        classifier = make().fit(known, labels)
        for target in task.targets:
            split = splits[target]
            if target in task.laboratories:
                rest, tested = split.folds[task.fold]
                pieces = [(tested, basis(split.rows, rest))]
            elif settings.adapt_from == "all" or task.adaptation == "none":
                pieces = [(split.rows, basis(split.rows, split.rows))]
            else:
                pieces = [(tested, rest) for rest, tested in split.folds]
            for rows, seen in pieces:
                tested = tested_rows(run, rows, settings.tested)
                if not len(tested):
                    continue
                used = classifier
                # In its own laboratory a classifier has nothing to adapt to.
                if task.adaptation in TRAINING_ON and target not in task.laboratories:
                    unlabelled = scaled(seen, seen)
                    used = self_train(make, known, labels, unlabelled, settings.rounds, classifier)
                predicted[tested] = np.searchsorted(classes, used.predict(scaled(tested, seen)))
    if task.classifier == "mlp":
        fitted_ones = classifier.fitted_ if isinstance(classifier, Experts) else [classifier]
        notes.extend(dict.fromkeys(note for one in fitted_ones for note in one[-1].notes_))
    return Fit(task.source, task.classifier, task.adaptation, task.fold, predicted.tobytes(), notes)


@contextmanager
def _counted_convergence() -> Iterator[list[str]]:
    """A list that gets a note where an optimiser stopped too early; other warnings pass through."""
    notes: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        yield notes
    for warning in caught:
        if issubclass(warning.category, ConvergenceWarning):
            if "stopped before it converged" not in notes:
                notes.append("stopped before it converged")
            logger.info("%s", warning.message)
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def _tests(
    cells: Latents, classes: np.ndarray, splits: Mapping[str, Split], judged: Judged, settings: ProtocolSettings
) -> Iterator[Tested]:
    """What each fit called the cells of each laboratory."""
    numbers = np.searchsorted(classes, cells.labels)
    for fit in judged.fits:
        predicted = np.frombuffer(fit.predicted, np.uint8)
        for target in judged.run.targets:
            rows = splits[target].rows
            tested = rows[predicted[rows] != NOT_TESTED]
            if not len(tested):
                continue
            kind: Kind = (
                "leave_one_out" if fit.source not in splits else "in_domain" if target == fit.source else "pair"
            )
            adapts = fit.adaptation != "none"
            yield Tested(
                method=judged.run.method,
                seed=judged.run.seed,
                adaptation=fit.adaptation,
                setting=setting_of(
                    judged.run.latents.seen,
                    rows,
                    tested,
                    adapts and kind != "in_domain",
                    adapts and settings.adapt_from == "all",
                    kind == "in_domain",
                ),
                kind=kind,
                source=fit.source,
                target=target,
                classifier=fit.classifier,
                fold=fit.fold,
                rows=tested,
                true=numbers[tested],
                predicted=predicted[tested].astype(int),
            )


def _notes(
    cells: Latents, judged: Sequence[Judged], splits: Mapping[str, Split], settings: ProtocolSettings
) -> list[str]:
    folds = fold_numbers(splits, len(cells))
    notes = note_no_common_class(cells)
    for laboratory, split in splits.items():
        for name, count in zip(*np.unique(cells.labels[split.rows], return_counts=True), strict=True):
            own = split.rows[cells.labels[split.rows] == name]
            if count < settings.folds:
                notes.append(
                    f"{laboratory}: {count} {name}, fewer than the {settings.folds} folds: some folds test or train "
                    "without this class"
                )
            elif len(np.unique(folds[own])) < settings.folds:
                notes.append(f"{laboratory}: the groups of its {name} cells lie in fewer folds than {settings.folds}")
    across = groups_across(cells)
    if across:
        shown = name_some((f"{group} ({', '.join(names)})" for group, names in sorted(across.items())), 3)
        notes.append(f"{len(across)} groups have cells in several laboratories, which are no strangers then: {shown}")
    unknown = dict.fromkeys(one.run.method for one in judged if one.run.latents.seen is None)
    if unknown:
        notes.append(
            f"{name_some(unknown)}: the vectors do not say which cells their making has seen; all are taken as seen"
        )
    of_folds: dict[tuple[str, str, str, str, str], list[int]] = {}
    for one in judged:
        for fit in one.fits:
            for text in fit.notes:
                key = (one.run.method, fit.classifier, fit.source, fit.adaptation, text)
                of_folds.setdefault(key, []).append(fit.fold)
    several = len({one.run.method for one in judged}) > 1
    for (method, classifier, source, adaptation, text), which in of_folds.items():
        start = f"{method}: " if several else ""
        adapted = f" ({adaptation})" if adaptation != "none" else ""
        notes.append(f"{start}{classifier} on {source}{adapted}, {len(which)} of {settings.folds} folds: {text}")
    return notes
