"""What has been seen of a laboratory before its cells are tested: the setting in which a figure was found."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Int, Shaped

Setting = Literal["held_out", "unlabelled_target", "transductive", "labelled"]

TITLES: dict[str, str] = {
    "held_out": "held-out laboratory",
    "unlabelled_target": "unlabelled target",
    "transductive": "transductive",
    "labelled": "labels of the target seen",
}
MEANINGS: dict[str, str] = {
    "held_out": "nothing of the tested laboratory was seen before the test",
    "unlabelled_target": "cells of the tested laboratory were seen without their class, none of them is tested",
    "transductive": "the tested cells themselves were seen, without their class (the method's own protocol)",
    "labelled": "classes of the tested laboratory were seen: no test across laboratories",
}
SETTINGS = tuple(TITLES)
"""From the strictest down."""


def what_was_seen(
    laboratories: Shaped[np.ndarray, " n"], unseen: Sequence[str], labels_seen: bool
) -> Shaped[np.ndarray, " n"]:
    """For each cell, what the trainings have seen of it (see `latents.SEEN`).

    Args:
      laboratories: of the cells.
      unseen: those of which no training saw anything.
      labels_seen: whether a training saw the classes of the others.
    """
    return np.where(np.isin(laboratories, unseen), "no", "labelled" if labels_seen else "unlabelled")


def setting_of(
    seen: Shaped[np.ndarray, " n"] | None,
    laboratory: Int[np.ndarray, " m"],
    tested: Int[np.ndarray, " t"],
    adapts: bool,
    adapts_to_tested: bool,
    in_domain: bool = False,
) -> Setting:
    """The setting of a test.

    Args:
      seen: what the making of the vectors has seen of each cell (`latents.SEEN`); None, nothing known, is taken for
        the worst that is usual: everything, without classes.
      laboratory: rows of the tested laboratory.
      tested: those of them that are tested.
      adapts: whether unlabelled cells of the laboratory change vectors or classifier.
      adapts_to_tested: whether the tested cells are among these.
      in_domain: the classifier is trained on other cells of the laboratory: their classes are no secret.
    """
    if seen is None:
        return "transductive"
    if (seen[tested if in_domain else laboratory] == "labelled").any():
        return "labelled"
    if adapts_to_tested or (seen[tested] != "no").any():
        return "transductive"
    if adapts or (seen[laboratory] != "no").any():
        return "unlabelled_target"
    return "held_out"
