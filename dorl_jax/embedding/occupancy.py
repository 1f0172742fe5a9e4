"""Whether the device always had something to do."""

import threading
import time
from collections import deque


class Occupancy:
    """Counts the seconds that the device computed and waited, between the first program handed to it and the last.

    Programs are handed over and come to their end in one order. It is told of both; what it cannot see is a device that
    is slow for other reasons.
    """

    def __init__(self) -> None:
        self.busy = self.idle = 0.0
        self._begun: deque[float] = deque()
        self._free_since: float | None = None
        self._lock = threading.Lock()

    def begin(self, now: float | None = None) -> None:
        """A program is handed to the device (now, or at a time of `time.perf_counter`)."""
        with self._lock:
            self._begun.append(time.perf_counter() if now is None else now)

    def end(self, now: float | None = None) -> None:
        """The oldest of the programs that have begun is done."""
        with self._lock:
            now = time.perf_counter() if now is None else now
            begun = self._begun.popleft()
            # Handed over while another was computed, it began when that one was done.
            start = begun if self._free_since is None else max(begun, self._free_since)
            if self._free_since is not None:
                self.idle += start - self._free_since
            self.busy += now - start
            self._free_since = now

    @property
    def idle_share(self) -> float:
        """Of the time between the first program and the last, 0..1."""
        return self.idle / (self.busy + self.idle) if self.busy else 0.0
