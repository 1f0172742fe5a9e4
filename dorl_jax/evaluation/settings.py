"""How vectors are judged; nothing heavy is imported to read it."""

from dataclasses import dataclass
from typing import Literal

from dorl_jax.config import Settings, setting
from dorl_jax.errors import InputError, name_some, suggest
from dorl_jax.evaluation.adaptation import ADAPTATIONS, ROUNDS, TRAINING_ON
from dorl_jax.evaluation.classifier_names import CLASSIFIERS


@dataclass(frozen=True)
class ProtocolSettings(Settings):
    """How vectors are judged."""

    parity: bool = setting(
        False,
        "the original's protocol to the letter, whatever the other settings: its six classifiers, pairs of "
        "laboratories, five folds without groups, seed 1234, no adaptation",
    )
    classifiers: tuple[str, ...] = setting(CLASSIFIERS, f"classifiers to fit, out of {', '.join(CLASSIFIERS)}")
    headline: str = setting(
        "",
        "the classifier that ranks methods and is shown first; empty for logistic_regression_balanced, else the first",
    )
    folds: int = setting(5, "stratified folds of each laboratory", least=2)
    seed: int = setting(1234, "seed of the fold splits and of the classifiers", least=0, most=2**32 - 1)
    grouped: bool = setting(True, "keep cells of a group (patient, slide, copies of a picture) in one fold")
    adaptations: tuple[str, ...] = setting(
        ("none", "own"), "; ".join(f"{name}: {meaning}" for name, meaning in ADAPTATIONS.items())
    )
    adapt_from: Literal["all", "others"] = setting(
        "all", "cells of the target that adaptation sees: all, or for each tested part the others"
    )
    rounds: int = setting(ROUNDS, "rounds of self-training and co-training", least=1)
    leave_one_out: bool = setting(
        True,
        "also train on all laboratories but the tested one, where there are three; false takes a single one, too",
    )
    tested: Literal["all", "unseen"] = setting(
        "all", "cells that are tested: all, or those that the making of the vectors has not seen"
    )
    require: Literal["", "held_out", "unlabelled_target", "transductive"] = setting(
        "", "refuse to test across laboratories in a setting looser than this"
    )
    resamples: int = setting(1000, "bootstrap resamples behind intervals and comparisons", least=100)

    def __post_init__(self) -> None:
        """Refuse what cannot be done, before a run has trained for hours.

        Raises:
          InputError: names the setting and what to do. With `parity` the names of others do not matter.
        """
        super().__post_init__()
        if self.parity:
            if self.require:
                raise InputError(f"require = {self.require!r} is none of the original's protocol: set parity = false")
            return
        for what, names, known in (
            ("classifier", self.classifiers, CLASSIFIERS),
            ("adaptation", self.adaptations, ADAPTATIONS),
        ):
            if not names:
                raise InputError(f"no {what} named; there are {', '.join(known)}")
            for name in names:
                if name not in known:
                    raise InputError(f"unknown {what} {name!r}{suggest(name, known)}; there are {', '.join(known)}")
            repeated = [name for name in dict.fromkeys(names) if names.count(name) > 1]
            if repeated:
                raise InputError(f"{what} {name_some(repeated)} named more than once")
        for name in self.classifiers:
            without = [one for one in self.adaptations if one in TRAINING_ON and name.startswith("svm")]
            if without:
                raise InputError(f"{name} gives no probabilities to train itself by: leave it or {without[0]} out")
        if self.ranking_classifier not in self.classifiers:
            raise InputError(f"headline = {self.headline!r} is not among the classifiers {', '.join(self.classifiers)}")

    @property
    def least_laboratories(self) -> int:
        """Laboratories that have to be there to be tested; a single one can be tested within itself alone."""
        return 2 if self.leave_one_out or self.parity else 1

    @property
    def ranking_classifier(self) -> str:
        """The classifier that ranks methods, chosen before anything is tested."""
        balanced = "logistic_regression_balanced"
        return self.headline or (balanced if balanced in self.classifiers else self.classifiers[0])


def parts_in(joined: str) -> list[str]:
    """The names of parts that a text joins by +."""
    return [name.strip() for name in joined.split("+")]


@dataclass(frozen=True)
class EvaluateSettings(ProtocolSettings):
    """How latent vectors are judged."""

    name: str = setting("this run", "of the run's own vectors in the tables")
    beside: tuple[str, ...] = setting(
        (),
        "vectors judged in the same run and folds: NAME=FILE, a file of Parquet for each seed; * in FILE stands for "
        "several, ${NAME} for an environment variable",
    )
    parts: tuple[str, ...] = setting(
        (),
        "parts of the first method's vectors, several joined by +, that are judged beside it as methods of their own: "
        "regions+size",
    )
    invariance: bool = setting(True, "measure how much of the laboratory is left in the vectors")
    few_cells: tuple[int, ...] = setting(
        (5, 10, 20, 50, 100, 200),
        "numbers of unlabelled target cells from which own statistics are tried; none for no such test",
    )

    def __post_init__(self) -> None:
        """See `ProtocolSettings`."""
        super().__post_init__()
        if any(size < 2 for size in self.few_cells):
            raise InputError(f"few_cells = {list(self.few_cells)}: a mean and sd take at least 2 cells")
