"""Laboratories without a common class are named."""

import numpy as np

from dorl_jax.evaluation.common_classes import note_no_common_class
from dorl_jax.evaluation.latents import Latents


def cells(**classes: list[str]) -> Latents:
    laboratories = np.concatenate([[name] * len(labels) for name, labels in classes.items()])
    labels = np.concatenate(list(classes.values()))
    ids = np.array([f"cell {place}" for place in range(len(labels))])
    return Latents(ids, laboratories, labels, np.zeros((len(labels), 2), np.float32))


def test_pairs_are_named() -> None:
    (note,) = note_no_common_class(cells(x=["MO", "LY", "MO"], y=["monocyte", "LY"], z=["monocyte"]))
    assert "wrong in the other: x (LY, MO) and z (monocyte); give" in note
    assert "laboratory.toml" in note
    assert "taxonomy" in note


def test_one_common_class_is_enough() -> None:
    assert note_no_common_class(cells(x=["MO", "LY"], y=["MO"])) == []
