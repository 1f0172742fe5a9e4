"""Work on images beside the device: in processes, or in threads where there are too few cores."""

import gc
import multiprocessing
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from typing import TypeVar

import cv2

from dorl_jax.allocator import keep_freed_memory

T = TypeVar("T")


def worker_count(workers: int) -> int:
    """The number of worker processes for a setting: itself, or for -1 half the cores, at most 8, none below 4 cores.

    With fewer cores the computation needs them all, and starting processes only costs time.
    """
    if workers >= 0:
        return workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, cores // 2) if cores >= 4 else 0


def worker_pool(workers: int) -> Executor:
    """An executor for functions of modules that do not import JAX.

    Args:
      workers: processes; 0 for threads of this one (OpenCV and NumPy work beside each other there), -1 see
        `worker_count`.
    """
    count = worker_count(workers)
    if not count:
        return ThreadPoolExecutor(2)
    # Forking a process that runs JAX's threads may hang.
    return ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), start_worker)


def start_worker(index: int = 0, count: int = 1) -> None:
    """What a worker process does first. Grain tells its number, which has no use here."""
    cv2.setNumThreads(1)  # a core each
    keep_freed_memory()
    gc.freeze()  # what has been imported stays: it need not be searched for garbage again and again


def buffered(items: Iterable[T], ahead: int) -> Iterator[T]:
    """The items in order, each handed on when `ahead` more have been drawn: what was begun has time to finish."""
    waiting: deque[T] = deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > ahead:
            yield waiting.popleft()
    yield from waiting
