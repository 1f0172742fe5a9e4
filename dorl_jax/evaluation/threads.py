"""How many threads a small fit takes."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

_LARGE = 1_000_000


def fitting_threads(numbers: int) -> AbstractContextManager[Any]:
    """One thread for a fit of so many numbers, if they are few; for larger ones all, as they were.

    On a busy machine the threads of a small fit wait for each other longer than they work.
    """
    return threadpool_limits(1) if numbers < _LARGE else nullcontext()
