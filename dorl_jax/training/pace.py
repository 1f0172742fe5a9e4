"""Steps on CPUs one behind the other."""

import time
from typing import Any

import jax

_MOMENT = 0.005  # seconds
_SHARE = 0.01


def settle(results: Any, started: float) -> None:
    """Wait until a step on CPUs is done, and has let go of what it worked in; on accelerators return at once.

    XLA for CPUs gives every step that is under way memory of its own, as much as all activations take: steps that are
    dispatched ahead hold it two or three times. Its threads let go of it a moment after the results are there, later
    where the machine is busy; hence a pause, of a hundredth of the step at most.

    Args:
      results: arrays that the step gave.
      started: what `time.perf_counter` told before it was dispatched.
    """
    if jax.default_backend() != "cpu":
        return
    jax.block_until_ready(results)
    time.sleep(min(_MOMENT, _SHARE * (time.perf_counter() - started)))
