"""Classes that laboratories have in common: by a taxonomy, or not at all, when nothing can be right between them."""

from dataclasses import replace
from itertools import combinations

import numpy as np

from dorl_jax.data.taxonomy import Taxonomy
from dorl_jax.errors import name_some
from dorl_jax.evaluation.latents import Latents


def in_common_classes(latents: Latents, taxonomy: Taxonomy) -> Latents:
    """The cells with their labels as the taxonomy's classes; those that it leaves out are gone.

    Raises:
      InputError: a label that the taxonomy does not know.
    """
    words, of_cell = np.unique(latents.labels, return_inverse=True)
    classes = np.array([taxonomy.resolve(word) or "" for word in words.tolist()])[of_cell]
    kept = classes != ""
    return replace(
        latents,
        ids=latents.ids[kept],
        laboratories=latents.laboratories[kept],
        labels=classes[kept],
        vectors=latents.vectors[kept],
        groups=None if latents.groups is None else latents.groups[kept],
        seen=None if latents.seen is None else latents.seen[kept],
    )


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
        "all laboratories the words of one taxonomy in the column `label`, by `judge --taxonomy`, or as a run does by "
        "`data.taxonomy` and the [labels] of laboratory.toml"
    ]
