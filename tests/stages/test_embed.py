"""What is written beside the vectors."""

from pathlib import Path

import pytest

from dorl_jax.data.manifest import Cell, Manifest
from dorl_jax.stages.embed import what_was_seen


@pytest.mark.parametrize(
    ("labels_seen", "expected"),
    [(False, ["unlabelled", "no", "no", "unlabelled"]), (True, ["labelled", "no", "no", "labelled"])],
)
def test_what_trainings_saw_is_told_of_each_cell(labels_seen, expected):
    places = ("north", "south", "south", "west")
    cells = tuple(Cell(f"{where}/{i}", where, Path("x.png"), None, "monocyte") for i, where in enumerate(places))
    manifest = Manifest(cells, ("north", "south", "west"), ("monocyte",), {})
    assert what_was_seen(manifest, ("south",), labels_seen).tolist() == expected
