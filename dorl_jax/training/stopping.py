"""SIGTERM as a request: a machine that is taken away asks first, and there is time to save."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import jax
from jax.experimental import multihost_utils


class Interrupted(Exception):
    """A training was asked to stop, and saved its state first."""


class StopRequest:
    """Takes note of SIGTERM while the block lasts.

    With several processes they agree on the step behind which all of them stop (JAX's preemption service, which
    `jax.distributed` starts, listens then).

    Attributes:
      asked: whether the signal came; with several processes only `reached` tells.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: Any = None

    def __enter__(self) -> "StopRequest":
        # Only the main thread may set handlers; elsewhere SIGTERM keeps its usual meaning.
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def reached(self, step: int) -> bool:
        """Whether to stop behind this step; to be asked at every step by every process."""
        if jax.process_count() > 1:
            return bool(multihost_utils.reached_preemption_sync_point(step))
        return self.asked

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
