"""Draw some of a run's methods and adaptations again: accuracy of every source and target, for a page or a paper.

    python scripts/heat_maps.py RUN --panel "as it is=this run, none" --panel "this run, co_training" --out across.png

RUN has been judged (`dorl-jax run`, `dorl-jax evaluate`). A panel is a method and an adaptation as they stand in
`evaluation/means.csv`, behind a title of your own if you like. The classifier is the one named, or the only one.
"""

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dorl_jax.errors import InputError, name_some
from dorl_jax.evaluation import plots
from dorl_jax.evaluation.classifier_names import CLASSIFIERS
from dorl_jax.files import replacing


def read(run: Path) -> list[dict[str, str]]:
    """Means of the pairs and within laboratories.

    Raises:
      InputError: the run has not been judged.
    """
    path = run / "evaluation" / "means.csv"
    if not path.is_file():
        raise InputError(f"no {path}: `dorl-jax run` or `dorl-jax evaluate` writes it")
    with path.open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["kind"] in ("in_domain", "pair")]


def panel(
    rows: Sequence[dict[str, str]], name: str, classifier: str, laboratories: Sequence[str], path: Path
) -> np.ndarray:
    """Accuracies, source down and target across.

    Raises:
      InputError: no such panel, several classifiers and none named, or pairs of several settings, which do not mix.
    """
    own = [row for row in rows if f"{row['method']}, {row['adaptation']}" == name]
    if not own:
        there = dict.fromkeys(f"'{row['method']}, {row['adaptation']}'" for row in rows)
        raise InputError(f"{path} has no panel {name!r}, only {name_some(there, 20)}")
    own = [row for row in own if classifier in ("", row["classifier"])]
    found = dict.fromkeys(row["classifier"] for row in own)
    if len(found) != 1:
        raise InputError(f"{name!r} has {len(found) or 'other'} classifiers: name one with --classifier")
    settings = dict.fromkeys(row["setting"] for row in own if row["kind"] == "pair")
    if len(settings) > 1:
        raise InputError(f"{name!r} was tested in several settings, {name_some(settings)}, which no picture may mix")
    values = np.full((len(laboratories), len(laboratories)), np.nan)
    for row in own:
        values[laboratories.index(row["source"]), laboratories.index(row["target"])] = float(row["accuracy_mean"])
    return values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument(
        "--panel", action="append", required=True, help="METHOD, ADAPTATION or TITLE=METHOD, ADAPTATION"
    )
    parser.add_argument("--classifier", default="", choices=("", *CLASSIFIERS))
    parser.add_argument("--out", type=Path, required=True, help="a PNG file")
    options = parser.parse_args()
    rows = read(options.run)
    laboratories = list(dict.fromkeys(row["target"] for row in rows))
    floors = {row["target"]: float(row["majority_floor"]) for row in rows}
    scores = {}
    for text in options.panel:
        title, _, name = text.rpartition("=")
        scores[title or name] = panel(rows, name, options.classifier, laboratories, options.run)
    drawn = plots.heat_maps(scores, laboratories, np.array([floors[name] for name in laboratories]), plots.LIGHT)
    with replacing(options.out) as partial:
        partial.write_bytes(plots.on_white(drawn))


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
