"""From what each fit called each cell to scores, means, intervals and comparisons."""

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from dorl_jax.config import as_tree
from dorl_jax.errors import name_some
from dorl_jax.evaluation import metrics
from dorl_jax.evaluation.bootstrap import SCORES as DRAWN
from dorl_jax.evaluation.bootstrap import Draws, difference, draw_groups, interval, over_seeds, score_draws
from dorl_jax.evaluation.exposure import SETTINGS, Setting
from dorl_jax.evaluation.exposure import TITLES as SETTING_TITLES
from dorl_jax.evaluation.latents import Latents
from dorl_jax.evaluation.results import (
    SCORES,
    Comparison,
    Confusion,
    Evaluation,
    Kind,
    Mean,
    OnLaboratory,
    Part,
    Row,
    Score,
    Summary,
)
from dorl_jax.evaluation.splits import Split, whole_groups

FREQUENT = 10
"""Tested cells of a class from which on it counts as frequent."""


@dataclass(frozen=True)
class Tested:
    """What one fit called the cells of one laboratory: `true` and `predicted` class numbers of `rows`."""

    method: str
    seed: int
    adaptation: str
    setting: Setting
    kind: Kind
    source: str
    target: str
    classifier: str
    fold: int
    rows: Int[np.ndarray, " n"]
    true: Int[np.ndarray, " n"]
    predicted: Int[np.ndarray, " n"]

    @property
    def entry(self) -> tuple[str, str, Setting, str]:
        return self.method, self.adaptation, self.setting, self.classifier

    @property
    def test(self) -> "Test":
        return (*self.entry, self.kind, self.source, self.target)

    @property
    def cells(self) -> "Cells":
        return self.method, self.source, self.target


Test = tuple[str, str, Setting, str, Kind, str, str]
"""Method, adaptation, setting, classifier, kind, source, target."""

Cells = tuple[str, str, str]
"""Method, source, target: they decide which cells are tested, by all folds and seeds together."""


@dataclass(frozen=True)
class _Found:
    """Of one test.

    Attributes:
      rows, draws: of each seed; the resamples are averaged over folds.
      tested: cells of the target that some fold or seed tests.
      counts: of each class among them.
      shown: classes that the source has.
      single: all cells of the target are one group, so that nothing can be drawn again.
    """

    rows: dict[int, list[Row]]
    draws: dict[int, Draws]
    tested: Bool[np.ndarray, " m"]
    counts: Int[np.ndarray, " k"]
    shown: Bool[np.ndarray, " k"]
    single: bool

    @property
    def floor(self) -> tuple[float, float]:
        return metrics.majority_floor(self.counts)

    @property
    def ceiling(self) -> float:
        return metrics.ceiling(self.counts, self.shown)


def summarise(
    tested: Callable[[], Iterable[Tested]],
    cells: Latents,
    splits: Mapping[str, Split],
    settings: Any,
    headline: str,
    notes: list[str],
    versions: dict[str, str],
) -> Evaluation:
    """Everything that is said of the fits (see `Evaluation`).

    Args:
      tested: gives them in the order in which rows are to stand, one after the other: together they would take more
        memory than the vectors. It is called twice, for the cells have to be counted first.
      cells: all cells.
      splits: their laboratories.
      settings: those of the protocol; `seed` and `resamples` are read, all are kept in the outcome.
      headline: the classifier that ranks methods.
      notes: on the fits.
      versions: of packages.
    """
    classes = np.unique(cells.labels).tolist()
    numbers = np.searchsorted(classes, cells.labels)
    counts = {name: np.bincount(numbers[split.rows], minlength=len(classes)) for name, split in splits.items()}
    marked = _mark_tested(tested(), splits)
    counts_tested = {
        key: np.bincount(numbers[splits[key[2]].rows[own]], minlength=len(classes)) for key, own in marked.items()
    }
    groups = whole_groups(cells.groups, len(cells))
    of_cell = np.zeros(len(cells), int)  # its group, numbered within the laboratory
    draws = {}
    single = set()
    for number, (name, split) in enumerate(splits.items()):
        own, of_cell[split.rows] = np.unique(groups[split.rows], return_inverse=True)
        draws[name] = draw_groups(len(own), settings.resamples, settings.seed + number)
        if len(own) == 1:
            single.add(name)
            notes = [*notes, f"{name}: all cells are one group, so that how far its figures would move is not known"]
    rows: list[Row] = []
    confusions: dict[Test, Int[np.ndarray, "k k"]] = {}
    parts: dict[Test, dict[int, list[tuple[Row, Draws]]]] = defaultdict(lambda: defaultdict(list))
    for one in tested():
        frequent = counts_tested[one.cells] >= FREQUENT
        matrix = metrics.confusion(one.true, one.predicted, len(classes))
        rows.append(_row(one, matrix, frequent, classes))
        scores = score_draws(draws[one.target], of_cell[one.rows], one.true, one.predicted, frequent)
        parts[one.test][one.seed].append((rows[-1], scores))
        confusions[one.test] = confusions.get(one.test, 0) + matrix
    found = {
        test: _Found(
            {seed: [row for row, _ in folds] for seed, folds in of_seeds.items()},
            {seed: _mean_known([draws for _, draws in folds]) for seed, folds in of_seeds.items()},
            marked[_cells(test)],
            counts_tested[_cells(test)],
            _shown(test, counts),
            test[6] in single,
        )
        for test, of_seeds in parts.items()
    }
    seed = settings.seed
    means = [_mean(test, one, seed) for test, one in found.items()]
    by_entry: dict[tuple[str, str, Setting, str], list[Test]] = defaultdict(list)
    for test in found:
        by_entry[test[:4]].append(test)
    by_entry = dict(sorted(by_entry.items(), key=lambda item: SETTINGS.index(item[0][2])))  # stable: else as judged
    summaries = [_summary(entry, tests, found, seed) for entry, tests in by_entry.items()]
    return Evaluation(
        rows=rows,
        means=means,
        summaries=[one for one in summaries if one is not None],
        on_laboratories=_on_laboratories(found, seed),
        comparisons=_compare(found, headline, seed),
        laboratories={
            name: {c: int(n) for c, n in zip(classes, own, strict=True) if n} for name, own in counts.items()
        },
        classes=classes,
        headline=headline,
        notes=[*notes, *_notes_on_seeds(found)],
        settings={**as_tree(settings), "versions": versions},
        confusions=[
            Confusion(test[0], test[1], test[2], test[4], test[5], test[6], test[3], matrix.tolist())
            for test, matrix in confusions.items()
        ],
    )


def _mark_tested(tested: Iterable[Tested], splits: Mapping[str, Split]) -> dict[Cells, Bool[np.ndarray, " m"]]:
    """Which cells of the target are tested, be it all of it or those alone that were not seen."""
    marked: dict[Cells, Bool[np.ndarray, " m"]] = {}
    for one in tested:
        rows = splits[one.target].rows
        own = marked.setdefault(one.cells, np.zeros(len(rows), bool))
        own[np.searchsorted(rows, one.rows)] = True
    return marked


def _cells(test: Test) -> Cells:
    return test[0], test[5], test[6]


def _shown(test: Test, counts: Mapping[str, Int[np.ndarray, " k"]]) -> Bool[np.ndarray, " k"]:
    kind, source, target = test[4:]
    others = [own for name, own in counts.items() if name != target]
    return (np.sum(others, axis=0) if kind == "leave_one_out" else counts[source]) > 0


def _row(one: Tested, matrix: Int[np.ndarray, "k k"], frequent: Bool[np.ndarray, " k"], classes: list[str]) -> Row:
    recall = metrics.recall(matrix)
    return Row(
        method=one.method,
        seed=one.seed,
        adaptation=one.adaptation,
        setting=one.setting,
        kind=one.kind,
        source=one.source,
        target=one.target,
        classifier=one.classifier,
        fold=one.fold,
        cells=int(matrix.sum()),
        accuracy=metrics.accuracy(matrix),
        macro_f1=metrics.macro_f1(matrix),
        macro_f1_frequent=metrics.macro_f1(matrix, frequent),
        balanced_accuracy=metrics.balanced_accuracy(matrix),
        recall={name: float(r) for name, r in zip(classes, recall, strict=True) if np.isfinite(r)},
    )


def _mean_known(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """The mean over arrays without NaN; NaN where all are."""
    if len(arrays) == 1:
        return arrays[0]
    stacked = np.stack(arrays)
    known = np.isfinite(stacked)
    total, number = np.where(known, stacked, 0).sum(axis=0), known.sum(axis=0)
    return np.divide(total, number, out=np.full(total.shape, np.nan), where=number > 0)


def _known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _seeds(found: Sequence[_Found]) -> list[int]:
    """Those that all tests have."""
    return sorted(set.intersection(*(set(one.rows) for one in found)))


def _score(found: Sequence[_Found], score: str, seed: int) -> Score:
    of_tests = {
        number: [_known([getattr(row, score) for row in one.rows[number]]) for one in found] for number in _seeds(found)
    }
    of_seeds = [
        statistics.fmean(map(statistics.fmean, folds)) for t in of_tests.values() if (folds := [f for f in t if f])
    ]
    if not of_seeds:
        return Score(None)
    spreads = [float(np.std(folds)) for tests in of_tests.values() for folds in tests if folds]
    low = high = None
    if score in DRAWN:
        low, high = (None if math.isnan(end) else end for end in interval(_draws(found, seed)[:, DRAWN.index(score)]))
    return Score(
        mean=statistics.fmean(of_seeds),
        sd=statistics.fmean(spreads),
        sd_seeds=statistics.stdev(of_seeds) if len(of_seeds) > 1 else None,
        low=low,
        high=high,
    )


def _draws(found: Sequence[_Found], seed: int) -> Draws:
    if any(one.single for one in found):
        return np.full_like(next(iter(found[0].draws.values())), np.nan)
    return over_seeds([_mean_known([one.draws[number] for one in found]) for number in _seeds(found)], seed)


def _mean(test: Test, one: _Found, seed: int) -> Mean:
    method, adaptation, setting, classifier, kind, source, target = test
    recall: dict[str, list[float]] = defaultdict(list)
    for rows in one.rows.values():
        for row in rows:
            for name, value in row.recall.items():
                recall[name].append(value)
    floor, floor_macro_f1 = one.floor
    return Mean(
        method=method,
        adaptation=adaptation,
        setting=setting,
        kind=kind,
        source=source,
        target=target,
        classifier=classifier,
        seeds=len(one.rows),
        recall={name: statistics.fmean(recall[name]) for name in sorted(recall)},
        majority_floor=floor,
        majority_floor_macro_f1=floor_macro_f1,
        ceiling=one.ceiling,
        **{score: _score([one], score, seed) for score in SCORES},
    )


def _part(tests: Sequence[Test], found: Mapping[Test, _Found], seed: int) -> Part | None:
    own = [found[test] for test in tests]
    seeds = _seeds(own) if own else []
    if not seeds:
        return None
    floors = [one.floor for one in own]
    scores = {score: _score(own, score, seed) for score in SCORES}
    return Part(
        tests=len(tests),
        majority_floor=statistics.fmean(floor for floor, _ in floors),
        majority_floor_macro_f1=statistics.fmean(floor for _, floor in floors),
        ceiling=statistics.fmean(one.ceiling for one in own),
        above_floor=sum(_plain_accuracy(one, seeds) > floor for one, (floor, _) in zip(own, floors, strict=True)),
        **scores,
    )


def _plain_accuracy(one: _Found, seeds: Sequence[int]) -> float:
    return statistics.fmean(statistics.fmean(row.accuracy for row in one.rows[number]) for number in seeds)


def _notes_on_seeds(found: Mapping[Test, _Found]) -> list[str]:
    """Of every method whose laboratories are not all tested by equally many of its files."""
    lacking: dict[tuple[str, Setting, int], set[str]] = defaultdict(set)
    together: dict[tuple[str, str, Setting, str, Kind], list[Test]] = defaultdict(list)
    for test in found:
        together[test[:5]].append(test)
    for (method, _, setting, _, _), tests in together.items():
        for number in set().union(*(found[test].rows for test in tests)):
            lacking[method, setting, number] |= {test[6] for test in tests if number not in found[test].rows}
    return [
        f"{method}, {SETTING_TITLES[setting]}: seed {number} has no vectors to test {name_some(sorted(targets))} with, "
        "so that means over laboratories and comparisons are without it"
        for (method, setting, number), targets in sorted(lacking.items())
        if targets
    ]


def _summary(
    entry: tuple[str, str, Setting, str],
    tests: Sequence[Test],
    found: Mapping[Test, _Found],
    seed: int,
) -> Summary | None:
    """None where nothing was tested across laboratories in this setting, but something in another."""
    of_kind: dict[str, list[Test]] = defaultdict(list)
    for test in tests:
        of_kind[test[4]].append(test)
    inside = of_kind["in_domain"]
    if not inside:
        method, adaptation, _, classifier = entry
        inside = [t for t in found if (t[0], t[1], t[3], t[4]) == (method, adaptation, classifier, "in_domain")]
    if not of_kind["pair"] and not of_kind["leave_one_out"] and any(test[4] != "in_domain" for test in found):
        return None
    return Summary(
        *entry,
        seeds=len(_seeds([found[test] for test in tests])),
        in_domain=_part(inside, found, seed),
        pairs=_part(of_kind["pair"], found, seed),
        leave_one_out=_part(of_kind["leave_one_out"], found, seed),
    )


def _on_laboratories(found: Mapping[Test, _Found], seed: int) -> list[OnLaboratory]:
    together: dict[tuple[str, str, Setting, str, Kind, str], list[Test]] = defaultdict(list)
    for test in found:
        together[(*test[:5], test[6])].append(test)
    of_laboratories = []
    for (method, adaptation, setting, classifier, kind, target), tests in together.items():
        part = _part(tests, found, seed)
        if part is None:
            continue
        cells = int(np.any([found[test].tested for test in tests], axis=0).sum())
        of_laboratories.append(OnLaboratory(method, adaptation, setting, classifier, kind, target, cells, part))
    return of_laboratories


def _compare(found: Mapping[Test, _Found], headline: str, seed: int) -> list[Comparison]:
    """Every two methods and adaptations by the headline classifier, in each setting and kind of test."""
    together: dict[tuple[Setting, Kind], dict[tuple[str, str], dict[tuple[str, str], _Found]]] = defaultdict(dict)
    for (method, adaptation, setting, classifier, kind, source, target), one in found.items():
        if classifier == headline:
            of_method = together[setting, kind].setdefault((method, adaptation), {})
            of_method[source, target] = one
    comparisons = []
    for (setting, kind), entries in together.items():
        for first, second in combinations(entries, 2):
            common = [test for test in entries[first] if test in entries[second]]
            if not common:
                continue
            sides = [[entries[name][test] for test in common] for name in (first, second)]
            if not all(map(_seeds, sides)):
                continue
            # The seeds of two methods have nothing to do with each other: each draws its own.
            draws = [_draws(side, seed + number) for number, side in enumerate(sides)]
            differences = {}
            for score in ("accuracy", "macro_f1"):
                apart = [_score(side, score, seed).mean for side in sides]
                assert apart[0] is not None
                assert apart[1] is not None
                column = DRAWN.index(score)
                differences[score] = difference(apart[0] - apart[1], draws[0][:, column], draws[1][:, column])
            if any(math.isnan(one.p) for one in differences.values()):
                continue  # no resample has cells of both: nothing can be told of the difference
            comparisons.append(Comparison(first, second, setting, headline, kind, **differences))
    return comparisons
