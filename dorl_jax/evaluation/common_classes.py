"""Laboratories that have no class in common, between which nothing can be right."""

from itertools import combinations

import numpy as np

from dorl_jax.errors import name_some
from dorl_jax.evaluation.latents import Latents


def note_no_common_class(cells: Latents) -> list[str]:
    """A note that names the pairs, if there are any."""
    names = np.unique(cells.laboratories).tolist()
    classes = {name: set(cells.labels[cells.laboratories == name].tolist()) for name in names}
    pairs = [
        f"{one} ({name_some(sorted(classes[one]), 3)}) and {other} ({name_some(sorted(classes[other]), 3)})"
        for one, other in combinations(names, 2)
        if not classes[one] & classes[other]
    ]
    if not pairs:
        return []
    return [
        f"no class in common, so that what is learned in one is always wrong in the other: {name_some(pairs, 3)}; give "
        "all laboratories the words of one taxonomy in the column `label`, as a run does by `data.taxonomy` and the "
        "[labels] of laboratory.toml"
    ]
