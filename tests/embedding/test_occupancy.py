"""What the device waited, by a schedule done by hand."""

import pytest

from dorl_jax.embedding.occupancy import Occupancy


def test_waiting_is_what_lies_between_an_end_and_the_next_beginning():
    counted = Occupancy()
    assert counted.idle_share == 0
    counted.begin(10.0)
    counted.begin(11.0)  # while the first is computed: no wait
    counted.end(14.0)
    counted.end(16.0)
    counted.begin(19.0)  # three seconds late
    counted.begin(20.0)
    counted.end(21.0)
    counted.end(21.5)
    assert (counted.busy, counted.idle) == (4 + 2 + 2 + 0.5, 3)
    assert counted.idle_share == pytest.approx(3 / 11.5)
