"""Work on images beside the device: in processes, or in threads where there are too few cores."""

import multiprocessing
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor

import cv2

from dorl_jax.data.loader import worker_count


def worker_pool(workers: int) -> Executor:
    """An executor for functions of modules that do not import JAX.

    Args:
      workers: processes; 0 for threads of this one (OpenCV and NumPy work beside each other there), -1 see
        `loader.worker_count`.
    """
    count = worker_count(workers)
    if not count:
        return ThreadPoolExecutor(2)
    # Forking a process that runs JAX's threads may hang.
    return ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), _start)


def _start() -> None:
    cv2.setNumThreads(1)  # a core each
