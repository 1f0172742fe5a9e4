"""What is written beside the vectors."""

import numpy as np
import pytest

from dorl_jax.evaluation.exposure import what_was_seen


@pytest.mark.parametrize(
    ("labels_seen", "expected"),
    [(False, ["unlabelled", "no", "no", "unlabelled"]), (True, ["labelled", "no", "no", "labelled"])],
)
def test_what_trainings_saw_is_told_of_each_cell(labels_seen, expected):
    places = np.array(["north", "south", "south", "west"])
    assert what_was_seen(places, ("south",), labels_seen).tolist() == expected
