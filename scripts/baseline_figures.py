"""The baselines of a run, made where they are missing, and their figures across laboratories.

    python scripts/baseline_figures.py runs/real_cells baselines.names='["colour_texture","resnet"]'

RUN is the folder of a run that is extracted. Vectors go to RUN/baselines. Classifier, scalings and what is asked are
those of `recipe_figures.py`; a baseline is one part, so that co-training is self-training. Prints Markdown, accuracy /
macro-F1 in %. Those trained on one laboratory's labels have no figure from three laboratories to the fourth.
"""

import argparse
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from recipe_figures import Score, across, in_domain, score

from dorl_jax import config
from dorl_jax.baselines import BaselineSettings, baselines, read_baseline
from dorl_jax.data.manifest import load_cells
from dorl_jax.evaluation.latents import Latents

_SCALINGS = ("source", "own", "self-training")


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
    asked = [f"{what}, {scaling}" for what in ("pairs", "others to each") for scaling in _SCALINGS]
    print(f"| baseline | numbers | in-domain | {' | '.join(asked)} | seconds |")
    print("|---|---:|" + "---:|" * (len(asked) + 2))
    for name in settings.names:
        begun = time.perf_counter()
        baselines(manifest, options.run / "extract" / "store", out, one(settings, name))
        seconds = time.perf_counter() - begun
        vectors = read_baseline(out, name)
        width = next(iter(vectors.values())).vectors.shape[1]
        found = floors(vectors[""]) if name == "majority" else figures(vectors)
        print(f"| {name} | {width} | {' | '.join(found)} | {seconds:.0f} |", flush=True)


def one(settings: BaselineSettings, name: str) -> BaselineSettings:
    """The settings with a single name."""
    return config.build(BaselineSettings, {**config.as_tree(settings), "names": [name]})


def figures(vectors: dict[str, Latents]) -> list[str]:
    """In-domain; every pair by every scaling; all others to each by every scaling, of vectors that serve any source."""
    whole = vectors.get("")
    names = np.unique(next(iter(vectors.values())).laboratories).tolist()
    of = {name: whole if whole is not None else vectors[name] for name in names}
    found = [mean([score for name in names for score in in_domain(of[name], name)])]
    for scaling in _SCALINGS:
        found.append(mean([across(of[a], [a], b, scaling) for a in names for b in names if a != b]))
    for scaling in _SCALINGS:
        rest = [([a for a in names if a != b], b) for b in names]
        found.append("" if whole is None else mean([across(whole, a, b, scaling) for a, b in rest]))
    return found


def floors(latents: Latents) -> list[str]:
    """As `figures`: what the most frequent class of the labelled cells gives."""
    names = np.unique(latents.laboratories).tolist()

    def most(sources: Sequence[str], target: str) -> Score:
        classes, counts = np.unique(latents.labels[np.isin(latents.laboratories, sources)], return_counts=True)
        truth = latents.labels[latents.laboratories == target]
        return score(truth, np.full(len(truth), classes[counts.argmax()]))

    pairs = mean([most([a], b) for a in names for b in names if a != b])
    rest = mean([most([a for a in names if a != b], b) for b in names])
    return [mean([most([name], name) for name in names]), *[pairs] * len(_SCALINGS), *[rest] * len(_SCALINGS)]


def mean(scores: Sequence[Score]) -> str:
    """Accuracy / macro-F1."""
    return f"{np.mean([one.accuracy for one in scores]):.1f} / {np.mean([one.macro_f1 for one in scores]):.1f}"


if __name__ == "__main__":
    main()
