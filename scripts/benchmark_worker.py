"""One contestant of the benchmark, in a process of its own: asleep until it is told to run.

    python benchmark_worker.py {jax,torch,inputs} TASK BATCH VARIANT DTYPE FOLDER

With `inputs` it writes what all contestants read, and ends. Else it reads lines from its input,
"step COUNT", "memory COUNT" or "matmul SIDE", and answers each with a line of JSON.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dorl_jax.allocator import keep_working_memory, return_free_memory, use_one_heap

MATMULS = 5


def main() -> None:
    """Prepare, say "ready" with the first number, and serve."""
    package, name, batch, variant, dtype, folder = sys.argv[1:]
    if package == "jax" and not name.startswith("forward"):
        # As the commands that train do, before anything that starts threads is imported.
        use_one_heap()
        keep_working_memory()
    from benchmark_tasks import task_of, write_inputs

    # What libraries print must not be taken for an answer.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    task = task_of(name, int(batch), variant)
    if package == "inputs":
        write_inputs(task, Path(folder))
        return
    if package == "jax":
        import benchmark_jax as contestant
        import jax

        version = f"jax {jax.__version__}"
    else:
        import benchmark_torch as contestant  # type: ignore[no-redef]
        import torch

        torch.set_num_threads(len(os.sched_getaffinity(0)))
        version = f"torch {torch.__version__}"
    run = contestant.prepare(task, dtype, Path(folder))
    started = time.perf_counter()
    first = run()
    began = {"first": first, "first_seconds": time.perf_counter() - started, "version": version}
    run()
    print(json.dumps(began), file=answers, flush=True)
    for line in sys.stdin:
        order, number = line.split()
        answer: dict[str, Any]
        if order == "step":
            answer = {"seconds": _seconds(run, int(number))}
        elif order == "memory":
            answer = {"peak_bytes": _peak(run, int(number))}
        else:
            side = int(number)
            answer = {"flops": 2 * side**3 / min(_seconds(contestant.matmul(side), MATMULS, first=1))}
        print(json.dumps(answer), file=answers, flush=True)


def _seconds(run: Callable[[], object], count: int, first: int = 0) -> list[float]:
    """Of `count` calls, behind some that are not counted."""
    seconds = []
    for _ in range(first + count):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return seconds[first:]


def _peak(run: Callable[[], object], count: int) -> int:
    """Bytes, of `count` calls. Not of those that are timed: what is given back to the system here, and asked for again,
    costs time that a training does not spend."""
    forget_peak()
    for _ in range(count):
        run()
    return status("VmHWM")


def forget_peak() -> None:
    """The peak of the resident memory starts anew, and what was freed is given back first (Linux)."""
    return_free_memory()
    Path("/proc/self/clear_refs").write_text("5")


def status(name: str) -> int:
    """Bytes that Linux tells of this process, such as VmHWM, the peak of the resident memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    main()
