"""Is a laboratory recognised, and a foreign one told? On the vectors of some laboratories, each left out in turn.

    python scripts/familiarity_check.py vectors.parquet

Half of the cells of every laboratory, drawn at random, are learned from. A row is a laboratory: how many of its other
cells are outside of the nearest training laboratory, and the verdict, once with the laboratory among those of training
and once without.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from dorl_jax.errors import InputError, name_some
from dorl_jax.evaluation.familiarity import FEWEST, fit_familiarity, of_set
from dorl_jax.vectors import Vectors, read_vectors


def check(vectors: Vectors, seed: int = 0) -> list[str]:
    """The lines of the table.

    Raises:
      InputError: one laboratory alone, or one of which half the cells are too few to learn from.
    """
    laboratories = vectors.texts("laboratory")
    names, counts = np.unique(laboratories, return_counts=True)
    if len(names) < 2 or counts.min() < 2 * FEWEST:
        found = name_some((f"{name} ({count} cells)" for name, count in zip(names, counts, strict=True)), 20)
        raise InputError(f"two laboratories or more are needed, each of {2 * FEWEST} cells or more; there is {found}")
    rng = np.random.default_rng(seed)
    learned = np.zeros(len(vectors), bool)
    for name in names:
        rows = rng.permutation(np.flatnonzero(laboratories == name))
        learned[rows[: len(rows) // 2]] = True
    lines = ["| laboratory | new cells | trained in | nearest | outside | verdict |", "|---|---:|---|---|---:|---|"]
    for name in names.tolist():
        new = ~learned & (laboratories == name)
        for there in (True, False):
            chosen = learned & (there | (laboratories != name))
            familiarity, _ = fit_familiarity(vectors.values[chosen], laboratories[chosen], seed)
            known = [reference.name for reference in familiarity.references]
            nearest = of_set(known, familiarity.of_cells(vectors.values[new]))[0]
            lines.append(
                f"| {name} | {new.sum()} | {'yes' if there else 'no'} | {nearest.laboratory} | {nearest.outside:.0%} "
                f"(limit {nearest.limit:.0%}) | {nearest.verdict} |"
            )
    return lines


def main() -> None:
    """Read the command line and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vectors", type=Path, help="what `dorl-jax embed` wrote, with the column `laboratory`")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print("\n".join(check(read_vectors(options.vectors), options.seed)))


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
