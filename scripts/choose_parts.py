"""Are the parts of the vector chosen well for a laboratory that had no say in it?

    python scripts/choose_parts.py runs/seed_0 runs/seed_1 runs/seed_2

For each laboratory in turn, the parts (out of all combinations of those the runs' vectors have) that do best by
co-training over pairs of the *other* laboratories, by accuracy and macro-F1 added up and averaged over the runs; and
what these parts give on the laboratory itself: from each other (mean), and from all others together. Beside them all
parts. No label of a laboratory decides what it is tested with. Figures are percent, means over the runs, seeds of the
same settings; classifier and scalings are those of `recipe_figures.py`.
"""

import argparse
import sys
from collections import defaultdict
from itertools import combinations, permutations
from pathlib import Path

import numpy as np
from recipe_figures import Score, across, parts_of
from tqdm import tqdm

from dorl_jax.errors import InputError
from dorl_jax.evaluation.latents import read_latents

# (parts, sources, target) -> of each run
Found = dict[tuple[str, tuple[str, ...], str], list[Score]]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs, seeds of the same settings")
    found, names, laboratories = score_all(parser.parse_args().runs)
    print("| laboratory | parts chosen on the others | pairs to it | others to it | all parts: pairs | others |")
    print("|---|---|---:|---:|---:|---:|")
    together = defaultdict(list)
    for target in laboratories:
        others = tuple(name for name in laboratories if name != target)
        chosen = best(found, names, others)
        cells: list[str] = []
        for parts in (chosen, names[-1]):
            for sources in ([(name,) for name in others], [others]):
                value = np.mean([percent(found[parts, one, target]) for one in sources], axis=0)
                together[len(cells)].append(value)
                cells.append(shown(value))
        print(f"| {target} | {chosen} | {' | '.join(cells)} |")
    print(f"| mean | | {' | '.join(shown(np.mean(values, axis=0)) for values in together.values())} |")


def score_all(runs: list[Path]) -> tuple[Found, list[str], list[str]]:
    """Co-training by every combination of parts, the whole vector last: pairs, and all others to each."""
    found: Found = defaultdict(list)
    names: list[str] = []
    laboratories: list[str] = []
    for run in runs:
        latents = read_latents(run / "embed" / "latents.parquet")
        own = list(latents.parts or {})
        combined = ["+".join(some) for size in range(1, len(own) + 1) for some in combinations(own, size)]
        here = np.unique(latents.laboratories).tolist()
        if not own:
            raise InputError(f"the vectors of {run} have no parts to choose from")
        if len(here) < 3:
            raise InputError(f"{run} has {len(here)} laboratories: to choose on the others takes at least three")
        if names and (names, laboratories) != (combined, here):
            raise InputError(f"{run} has other parts or laboratories than {runs[0]}: give seeds of one run")
        names, laboratories = combined, here
        tests: list[tuple[tuple[str, ...], str]] = [
            ((source,), target) for source, target in permutations(laboratories, 2)
        ]
        tests += [(tuple(name for name in laboratories if name != target), target) for target in laboratories]
        of_parts = parts_of(latents, names)
        for parts in tqdm(names, desc=run.name, unit="combination"):
            for sources, target in tests:
                found[parts, sources, target].append(across(of_parts[parts], sources, target, "co-training"))
    return found, names, laboratories


def best(found: Found, names: list[str], laboratories: tuple[str, ...]) -> str:
    """The parts that do best over pairs of these laboratories."""
    pairs = list(permutations(laboratories, 2))
    return max(names, key=lambda parts: sum(percent(found[parts, (a,), b]).sum() for a, b in pairs))


def percent(scores: list[Score]) -> np.ndarray:
    """Accuracy and macro-F1, means over the runs."""
    return np.mean([(one.accuracy, one.macro_f1) for one in scores], axis=0)


def shown(value: np.ndarray) -> str:
    """Accuracy / macro-F1."""
    return " / ".join(f"{number:.1f}" for number in value)


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
