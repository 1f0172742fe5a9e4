"""What an evaluation found: every fold, means with intervals, and comparisons of methods."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec
import numpy as np
from jaxtyping import Float

from dorl_jax.errors import InputError
from dorl_jax.evaluation.bootstrap import Difference
from dorl_jax.evaluation.exposure import Setting

T = TypeVar("T")

Kind = Literal["in_domain", "pair", "leave_one_out"]
SCORES = ("accuracy", "macro_f1", "macro_f1_frequent", "balanced_accuracy")


@dataclass(frozen=True)
class Row:
    """One fold of a classifier trained on `source`, tested on `target`. All scores are fractions, 0..1.

    `cells` were tested; `recall` holds the classes among them; `macro_f1` and `balanced_accuracy` are means over these
    classes, `macro_f1_frequent` over those of which all folds together test 10 cells (None where this fold tests none).
    `kind` tells whether source and target are one laboratory, two, or the source is all laboratories but the target.
    """

    method: str
    seed: int
    adaptation: str
    setting: Setting
    kind: Kind
    source: str
    target: str
    classifier: str
    fold: int
    cells: int
    accuracy: float
    macro_f1: float
    macro_f1_frequent: float | None
    balanced_accuracy: float
    recall: dict[str, float]


@dataclass(frozen=True)
class Score:
    """A score over folds and seeds.

    Attributes:
      mean: over the folds of every seed.
      sd: of the folds, as a population; the mean over seeds.
      sd_seeds: of the seeds' means, as a sample; None with one seed.
      low, high: bootstrap interval, 95 %; None where there is none.
    """

    mean: float | None
    sd: float | None = None
    sd_seeds: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Mean:
    """A classifier from `source` to `target`, over folds and seeds.

    `majority_floor` and `majority_floor_macro_f1` are what calling every cell the commonest class among the tested ones
    gives; `ceiling` is the share of the tested cells whose class the source has.
    """

    method: str
    adaptation: str
    setting: Setting
    kind: Kind
    source: str
    target: str
    classifier: str
    seeds: int
    accuracy: Score
    macro_f1: Score
    macro_f1_frequent: Score
    balanced_accuracy: Score
    recall: dict[str, float]
    majority_floor: float
    majority_floor_macro_f1: float
    ceiling: float


@dataclass(frozen=True)
class Part:
    """Means over tests of one kind: over laboratories, over ordered pairs, or over laboratories left out.

    Attributes:
      tests: how many there are.
      above_floor: how many of them have a mean accuracy above their majority floor.
    """

    tests: int
    accuracy: Score
    macro_f1: Score
    macro_f1_frequent: Score
    balanced_accuracy: Score
    majority_floor: float
    majority_floor_macro_f1: float
    ceiling: float
    above_floor: int


@dataclass(frozen=True)
class Summary:
    """A method with an adaptation and a classifier, in one setting.

    `in_domain` is over tests of the same setting, or, where there is none, over all of the method and adaptation.
    """

    method: str
    adaptation: str
    setting: Setting
    classifier: str
    seeds: int
    in_domain: Part | None
    pairs: Part | None
    leave_one_out: Part | None


@dataclass(frozen=True)
class OnLaboratory:
    """All sources together, tested on `cells` of one laboratory: the mean over them."""

    method: str
    adaptation: str
    setting: Setting
    classifier: str
    kind: Kind
    target: str
    cells: int
    part: Part


@dataclass(frozen=True)
class Comparison:
    """Two methods (each a method and an adaptation) by the same classifier, on the same tests, in the same setting."""

    first: tuple[str, str]
    second: tuple[str, str]
    setting: Setting
    classifier: str
    kind: Kind
    accuracy: Difference
    macro_f1: Difference


@dataclass(frozen=True)
class Confusion:
    """`counts[i][j]` cells of class i were called j, over all folds and seeds; classes as in `Evaluation.classes`."""

    method: str
    adaptation: str
    setting: Setting
    kind: Kind
    source: str
    target: str
    classifier: str
    counts: list[list[int]]


@dataclass(frozen=True)
class Evaluation:
    """The outcome of `dorl_jax.evaluation.protocol.judge`."""

    rows: list[Row]
    means: list[Mean]
    summaries: list[Summary]
    on_laboratories: list[OnLaboratory]
    comparisons: list[Comparison]
    laboratories: dict[str, dict[str, int]]
    """laboratory -> class -> cells."""
    classes: list[str]
    headline: str
    """The classifier that ranks methods, chosen before anything was tested."""
    notes: list[str]
    settings: dict[str, Any]
    confusions: list[Confusion] = field(default_factory=list)

    @property
    def alone(self) -> bool:
        """Whether there is a single laboratory, tested within itself."""
        return len(self.laboratories) == 1

    def to_summary(self) -> dict[str, Any]:
        """Plain values, as `summary.json` holds them: everything but the confusion matrices."""
        tree = msgspec.to_builtins(self)
        del tree["confusions"]
        return tree

    def to_confusions(self) -> dict[str, Any]:
        """Plain values, as `confusion.json` holds them."""
        return {"classes": self.classes, "confusions": msgspec.to_builtins(self.confusions)}

    def floors(self) -> Float[np.ndarray, " t"]:
        """Accuracy on each laboratory of calling every tested cell the commonest class among them.

        The highest where methods are tested on different cells: what is above it is above all. Where nothing is tested,
        that of all cells.
        """
        floors = {name: max(cells.values()) / sum(cells.values()) for name, cells in self.laboratories.items()}
        tested: dict[str, list[float]] = {}
        for mean in self.means:
            tested.setdefault(mean.target, []).append(mean.majority_floor)
        return np.array([max(tested.get(name, [floor])) for name, floor in floors.items()])

    def ranking(self) -> list[Summary]:
        """The headline classifier's summaries, best first within a setting: by macro-F1 and accuracy added up.

        Over the laboratories left out where all summaries of the setting have such tests, else over the pairs: the two
        are not equally hard, and some methods have pairs alone. What lacks even these comes last. Of a single
        laboratory, within it.
        """
        chosen = [one for one in self.summaries if one.classifier == self.headline]
        order = list(dict.fromkeys(one.setting for one in self.summaries))
        by_pairs = {one.setting for one in chosen if one.leave_one_out is None}

        def place(one: Summary) -> tuple[int, bool, float]:
            if self.alone:
                part = one.in_domain
            else:
                part = one.pairs if one.setting in by_pairs else one.leave_one_out
            score = (part.accuracy.mean or 0.0) + (part.macro_f1.mean or 0.0) if part else 0.0
            return order.index(one.setting), part is None, -score

        return sorted(chosen, key=place)

    def means_of(self, summary: Summary, kinds: Iterable[Kind] = ("in_domain", "pair")) -> list[Mean]:
        """The means that a summary is over."""
        chosen = set(kinds)
        own = [
            mean
            for mean in self.means
            if (mean.method, mean.adaptation, mean.classifier)
            == (summary.method, summary.adaptation, summary.classifier)
            and mean.kind in chosen
        ]
        inside = [mean for mean in own if mean.kind == "in_domain"]
        same = [mean for mean in inside if mean.setting == summary.setting]
        across = [mean for mean in own if mean.kind != "in_domain" and mean.setting == summary.setting]
        return (same or inside) + across


def read_evaluation(folder: Path) -> Evaluation:
    """Read `summary.json`, and `confusion.json` where there is one.

    Raises:
      InputError: no summary, or a file that is not laid out as `Evaluation` is.
    """
    summary = folder / "summary.json"
    if not summary.is_file():
        raise InputError(f"no evaluation at {summary}: run `dorl-jax evaluate` first")
    evaluation = _decode(summary, Evaluation)
    if not evaluation.summaries or not evaluation.ranking():
        raise InputError(f"{summary} lacks the summary of {evaluation.headline!r}; run `evaluate` again")
    for one in evaluation.summaries:
        pairs = evaluation.means_of(one, ("pair",))
        if one.pairs is not None and one.pairs.tests != len(pairs):
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
