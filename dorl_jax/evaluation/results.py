"""What an evaluation found: every fold, the means, and the table that is printed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from dorl_jax.errors import InputError

T = TypeVar("T")


@dataclass(frozen=True)
class Row:
    """One fold of a classifier trained on `source`, tested on `target`. All scores are fractions, 0..1.

    `cells` were tested; `recall` holds the classes among them; `macro_f1` and `balanced_accuracy` are means
    over these classes.
    """

    source: str
    target: str
    classifier: str
    fold: int
    cells: int
    accuracy: float
    macro_f1: float
    balanced_accuracy: float
    recall: dict[str, float]


@dataclass(frozen=True)
class Mean:
    """Mean and standard deviation (of the folds as a population) of a classifier from `source` to `target`.

    `majority_floor` and `majority_floor_macro_f1` are what calling every cell the target's commonest class
    gives; `ceiling` is the share of the target's cells whose class the source has.
    """

    source: str
    target: str
    classifier: str
    accuracy: float
    accuracy_sd: float
    macro_f1: float
    macro_f1_sd: float
    balanced_accuracy: float
    balanced_accuracy_sd: float
    recall: dict[str, float]
    majority_floor: float
    majority_floor_macro_f1: float
    ceiling: float


@dataclass(frozen=True)
class ClassifierSummary:
    """Means of a classifier over the laboratories (in-domain) and over all ordered pairs (cross-domain)."""

    classifier: str
    in_domain_accuracy: float
    cross_domain_accuracy: float
    in_domain_macro_f1: float
    cross_domain_macro_f1: float
    in_domain_balanced_accuracy: float
    cross_domain_balanced_accuracy: float
    pairs_above_floor: int
    """Cross-domain pairs whose mean accuracy is above the target's majority floor."""
    pairs: int


@dataclass(frozen=True)
class Confusion:
    """`counts[i][j]` cells of class i were called j in one fold; classes as in `Evaluation.classes`."""

    source: str
    target: str
    classifier: str
    fold: int
    counts: list[list[int]]


@dataclass(frozen=True)
class Evaluation:
    """The outcome of `dorl_jax.evaluation.protocol.evaluate_latents`."""

    rows: list[Row]
    means: list[Mean]
    classifiers: list[ClassifierSummary]
    laboratories: dict[str, dict[str, int]]
    """laboratory -> class -> cells."""
    classes: list[str]
    notes: list[str]
    settings: dict[str, Any]
    confusions: list[Confusion] = field(default_factory=list)

    def to_summary(self) -> dict[str, Any]:
        """Plain values, as `summary.json` holds them: everything but the confusion matrices."""
        tree = msgspec.to_builtins(self)
        del tree["confusions"]
        return tree

    def to_confusions(self) -> dict[str, Any]:
        """Plain values, as `confusion.json` holds them."""
        return {"classes": self.classes, "confusions": msgspec.to_builtins(self.confusions)}

    def best(self) -> ClassifierSummary:
        """The classifier with the highest cross-domain accuracy (macro-F1 where equal).

        The choice looks at the targets, so its figures flatter it a little.
        """
        return max(self.classifiers, key=lambda c: (c.cross_domain_accuracy, c.cross_domain_macro_f1))

    def markdown_table(self) -> str:
        """Accuracy % and macro-F1 % of every classifier from every source to every target."""
        names = short_names(list(self.laboratories))
        legend = ", ".join(f"{name} = {laboratory}" for laboratory, name in names.items())
        scaled = self.settings.get("standardise") == "laboratory"
        return (
            ("Vectors of each laboratory scaled by their own mean and sd.\n\n" if scaled else "")
            + f"Trained on → tested on; {legend}. Mean of {self.settings['folds']} folds.\n\n"
            f"Accuracy %\n\n{self._table('accuracy', 'majority_floor', names)}\n"
            f"Macro-F1 %\n\n{self._table('macro_f1', 'majority_floor_macro_f1', names)}"
        )

    def _table(self, score: str, floor: str, names: dict[str, str]) -> str:
        pairs = [(m.source, m.target) for m in self.means if m.classifier == self.classifiers[0].classifier]
        lines = [["", *(f"{names[s]}→{names[t]}" for s, t in pairs), "in-domain", "cross-domain"]]
        for summary in self.classifiers:
            lines.append(
                self._line(summary.classifier, [m for m in self.means if m.classifier == summary.classifier], score)
            )
        first = [m for m in self.means if m.classifier == self.classifiers[0].classifier]
        lines.append(self._line("majority floor", first, floor))
        if score == "accuracy":
            lines.append(self._line("ceiling", first, "ceiling"))
        return _markdown(lines)

    @staticmethod
    def _line(title: str, means: Sequence[Mean], score: str) -> list[str]:
        values = [getattr(m, score) for m in means] + list(in_and_cross_domain(means, score))
        return [title, *(f"{100 * value:.1f}" for value in values)]


def in_and_cross_domain(means: Sequence[Mean], score: str) -> tuple[float, float]:
    """Mean of the field `score` over the pairs with target == source, and over all others."""
    inside = [getattr(m, score) for m in means if m.source == m.target]
    across = [getattr(m, score) for m in means if m.source != m.target]
    return math.fsum(inside) / len(inside), math.fsum(across) / len(across)


def short_names(laboratories: Sequence[str]) -> dict[str, str]:
    """A column's name for each laboratory: its initial, or 1, 2, 3 ... where two share one."""
    initials = [name[0].upper() for name in laboratories]
    if len(set(initials)) < len(laboratories):
        initials = [str(i + 1) for i in range(len(laboratories))]
    return dict(zip(laboratories, initials, strict=True))


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    padded = [
        [
            line[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)),
        ]
        for line in (lines[0], rule, *lines[1:])
    ]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in padded)


def read_evaluation(folder: Path) -> Evaluation:
    """Read `summary.json`, and `confusion.json` where there is one.

    Raises:
      InputError: no summary, or a file that is not laid out as `Evaluation` is.
    """
    summary = folder / "summary.json"
    if not summary.is_file():
        raise InputError(f"no evaluation at {summary}: run the stage `evaluate` first")
    evaluation = _decode(summary, Evaluation)
    wanted = {
        (c.classifier, source, target)
        for c in evaluation.classifiers
        for source in evaluation.laboratories
        for target in evaluation.laboratories
    }
    if not wanted or {(m.classifier, m.source, m.target) for m in evaluation.means} != wanted:
        raise InputError(f"{summary} lacks the mean of some classifier, source and target; run `evaluate` again")
    confusions = folder / "confusion.json"
    if confusions.is_file():
        evaluation = replace(evaluation, confusions=_decode(confusions, _Confusions).confusions)
    return evaluation


@dataclass(frozen=True)
class _Confusions:
    classes: list[str]
    confusions: list[Confusion]


def _decode(path: Path, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except msgspec.DecodeError as error:
        raise InputError(f"{path} cannot be read: {error}; run the stage `evaluate` again") from error
