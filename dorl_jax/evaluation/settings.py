"""How vectors are judged; nothing heavy is imported to read it."""

from dataclasses import dataclass
from typing import Literal

from dorl_jax.config import setting
from dorl_jax.evaluation.adaptation import ADAPTATIONS, ROUNDS
from dorl_jax.evaluation.classifier_names import CLASSIFIERS


@dataclass(frozen=True)
class ProtocolSettings:
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
    folds: int = setting(5, "stratified folds of each laboratory")
    seed: int = setting(1234, "seed of the fold splits and of the classifiers")
    grouped: bool = setting(True, "keep cells of a group (patient, slide, copies of a picture) in one fold")
    adaptations: tuple[str, ...] = setting(
        ("none", "own"), "; ".join(f"{name}: {meaning}" for name, meaning in ADAPTATIONS.items())
    )
    adapt_from: Literal["all", "others"] = setting(
        "all", "cells of the target that adaptation sees: all, or for each tested part the others"
    )
    rounds: int = setting(ROUNDS, "rounds of self-training and co-training")
    leave_one_out: bool = setting(True, "also train on all laboratories but the tested one, where there are three")
    tested: Literal["all", "unseen"] = setting(
        "all", "cells that are tested: all, or those that the making of the vectors has not seen"
    )
    require: Literal["", "held_out", "unlabelled_target", "transductive"] = setting(
        "", "refuse to test across laboratories in a setting looser than this"
    )
    resamples: int = setting(1000, "bootstrap resamples behind intervals and comparisons")


@dataclass(frozen=True)
class EvaluateSettings(ProtocolSettings):
    """How latent vectors are judged."""

    name: str = setting("this run", "of the run's own vectors in the tables")
    beside: tuple[str, ...] = setting(
        (),
        "vectors judged in the same run and folds: NAME=FILE, a file of Parquet for each seed; * in FILE stands for "
        "several, ${NAME} for an environment variable",
    )
    invariance: bool = setting(True, "measure how much of the laboratory is left in the vectors")
    few_cells: tuple[int, ...] = setting(
        (5, 10, 20, 50, 100, 200),
        "numbers of unlabelled target cells from which own statistics are tried; none for no such test",
    )
