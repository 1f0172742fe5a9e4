"""Laboratories without a common class are named, and given one by a taxonomy."""

import numpy as np
import pytest

from dorl_jax.data.taxonomy import load_taxonomy
from dorl_jax.errors import InputError
from dorl_jax.evaluation.common_classes import in_common_classes, note_no_common_class
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


def test_a_taxonomy_gives_common_words_and_leaves_cells_out() -> None:
    taxonomy = load_taxonomy("five_classes")
    own = cells(x=["MO", "smudge cell", "Lymphocyte"], y=["monocyte"])
    found = in_common_classes(own, taxonomy)
    expected = [taxonomy.resolve(label) for label in own.labels.tolist()]
    assert expected[1] is None
    assert found.labels.tolist() == [name for name in expected if name]
    assert found.ids.tolist() == ["cell 0", "cell 2", "cell 3"]
    assert found.laboratories.tolist() == ["x", "x", "y"]
    with pytest.raises(InputError, match="unknown label 'neutrofil'"):
        in_common_classes(cells(x=["neutrofil"]), taxonomy)
