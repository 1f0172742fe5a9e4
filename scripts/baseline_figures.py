"""The baselines of a run, made where they are missing, and their figures across laboratories.

    python scripts/baseline_figures.py runs/seed_0 runs/seed_1 --set baselines.names='["colour_texture","resnet"]'
    python scripts/baseline_figures.py runs/held_out_* --held-out

Runs that are extracted; vectors go to RUN/baselines. Classifier, scalings and what is asked are those of
`recipe_figures.py`; of a baseline of one part co-training is self-training. Prints Markdown, accuracy / macro-F1
in %; with several runs, seeds of the same settings, mean and sd over them, and baselines that are trained take one
seed after the other from `baselines.seed` on. With --held-out each run is one that left laboratories unseen, and only
these are tested, from all others, with nothing known of them (`baselines.resnet.sources=others` is enough).
"""

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from recipe_figures import Score, across, in_domain, left_unseen, score

from dorl_jax import config
from dorl_jax.baselines.settings import BASELINES, BaselineSettings
from dorl_jax.data.manifest import load_cells
from dorl_jax.errors import InputError
from dorl_jax.evaluation.latents import Latents
from dorl_jax.evaluation.sources import all_but, laboratories_of
from dorl_jax.stages.baselines import baselines, read_baseline

_SCALINGS = ("source", "own", "self-training", "co-training")


@dataclass(frozen=True)
class Settings:
    """Of this script."""

    baselines: BaselineSettings = field(default_factory=BaselineSettings)


def main() -> None:
    """Make and judge."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs")
    parser.add_argument("--held-out", action="store_true", help="test the laboratories that a run has not seen")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="settings of the baselines"
    )
    options = parser.parse_args()
    bare = [text for text in options.set if "=" not in text]
    if bare:
        raise InputError(f"--set {bare[0]}: expected KEY=VALUE")
    settings = config.build(Settings, {}, dict(text.partition("=")[::2] for text in options.set)).baselines
    settings = replace(settings, names=settings.names or tuple(BASELINES))
    if options.held_out:
        held_out(options.runs, settings)
    else:
        seen(options.runs, settings)


def seen(runs: Sequence[Path], settings: BaselineSettings) -> None:
    """The table of runs that have seen all laboratories."""
    asked = [f"{what}, {scaling}" for what in ("pairs", "others to each") for scaling in _SCALINGS]
    print(f"| baseline | numbers | in-domain | {' | '.join(asked)} | seconds |")
    print("|---|---:|" + "---:|" * (len(asked) + 2))
    for name in settings.names:
        begun = time.perf_counter()
        of_runs = [made(run, replace(settings, seed=settings.seed + place), name) for place, run in enumerate(runs)]
        seconds = (time.perf_counter() - begun) / len(runs)
        width = next(iter(of_runs[0].values())).vectors.shape[1]
        ask = floors if name == "majority" else figures
        found = [spread(scores) for scores in zip(*map(ask, of_runs), strict=True)]
        print(f"| {name} | {width} | {' | '.join(found)} | {seconds:.0f} |", flush=True)


def held_out(runs: Sequence[Path], settings: BaselineSettings) -> None:
    """A row a baseline, a column a laboratory that a run has not seen."""
    unseen = {run: left_unseen(run) for run in runs}
    print(f"| baseline | {' | '.join(name for names in unseen.values() for name in names)} | mean |")
    print("|---|" + "---:|" * (1 + sum(map(len, unseen.values()))))
    for name in settings.names:
        scores = []
        for run, targets in unseen.items():
            vectors = made(run, settings, name, targets)
            ask = from_most if name == "majority" else partial(across, scaling="source")
            names = np.unique(next(iter(vectors.values())).laboratories).tolist()
            rest = [one for one in names if one not in targets]
            of_rest = serving(vectors, rest)
            if of_rest is None:
                raise InputError(
                    f"{name} of {run} has no vectors that have learned from {', '.join(rest)} alone: leave it out, or "
                    f"set baselines.{name}.sources to 'both'"
                )
            scores += [ask(of_rest, rest, target) for target in targets]
        print(f"| {name} | {' | '.join(spread([[score]]) for score in scores)} | {spread([scores])} |", flush=True)


def serving(vectors: dict[str, Latents], sources: Sequence[str]) -> Latents | None:
    """Those that know the labels of no laboratory, or of just these; None where there are none."""
    for source, latents in vectors.items():
        names = np.unique(latents.laboratories).tolist()
        if not source or set(laboratories_of(source, names)) == set(sources):
            return latents
    return None


def made(run: Path, settings: BaselineSettings, name: str, unseen: Sequence[str] = ()) -> dict[str, Latents]:
    """The baseline's vectors, made where they are missing."""
    manifest, out = load_cells(run / "data" / "cells.parquet"), run / "baselines"
    baselines(manifest, run / "extract" / "store", out, replace(settings, names=(name,)), unseen=unseen)
    return read_baseline(out, name)


def figures(vectors: dict[str, Latents]) -> list[list[Score]]:
    """In-domain; every pair by every scaling; all others to each by every scaling; none of sources without vectors."""
    names = np.unique(next(iter(vectors.values())).laboratories).tolist()
    of = {
        source: vectors[kind] for source in [*names, *map(all_but, names)] for kind in ("", source) if kind in vectors
    }
    found = [[score for name in names if name in of for score in in_domain(of[name], name)]]
    for scaling in _SCALINGS:
        found.append([across(of[a], [a], b, scaling) for a in names if a in of for b in names if a != b])
    for scaling in _SCALINGS:
        rest = [b for b in names if all_but(b) in of]
        found.append([across(of[all_but(b)], [a for a in names if a != b], b, scaling) for b in rest])
    return found


def floors(vectors: dict[str, Latents]) -> list[list[Score]]:
    """As `figures`, by `from_most`."""
    latents = vectors[""]
    names = np.unique(latents.laboratories).tolist()
    pairs = [from_most(latents, [a], b) for a in names for b in names if a != b]
    rest = [from_most(latents, [a for a in names if a != b], b) for b in names]
    own = [from_most(latents, [name], name) for name in names]
    return [own, *[pairs] * len(_SCALINGS), *[rest] * len(_SCALINGS)]


def from_most(latents: Latents, sources: Sequence[str], target: str) -> Score:
    """What the most frequent class of the labelled cells gives."""
    classes, counts = np.unique(latents.labels[np.isin(latents.laboratories, sources)], return_counts=True)
    truth = latents.labels[latents.laboratories == target]
    return score(truth, np.full(len(truth), classes[counts.argmax()]))


def spread(of_runs: Sequence[Sequence[Score]]) -> str:
    """Accuracy / macro-F1, means over the scores; of several runs mean and sd over them. Empty without scores."""
    if not of_runs[0]:
        return ""
    means = np.array([[(one.accuracy, one.macro_f1) for one in scores] for scores in of_runs]).mean(axis=1)
    if len(means) == 1:
        return " / ".join(f"{value:.1f}" for value in means[0])
    return " / ".join(f"{values.mean():.1f} ± {values.std():.1f}" for values in means.T)


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
