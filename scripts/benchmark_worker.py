"""One contestant of the benchmark, in a process of its own: asleep until it is told to run.

    python benchmark_worker.py {jax,torch,inputs} TASK BATCH VARIANT DTYPE FOLDER

With `inputs` it writes what all contestants read, and ends. Else it reads lines from its input,
"step COUNT" or "matmul SIDE", and answers each with a line of JSON.
"""

import ctypes
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from benchmark_tasks import task_of, write_inputs

MATMULS = 5


def main() -> None:
    """Prepare, say "ready" with the first number, and serve."""
    package, name, batch, variant, dtype, folder = sys.argv[1:]
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
        if order == "step":
            answer = _step(run, int(number))
        else:
            answer = _matmul(contestant.matmul(int(number)), int(number))
        print(json.dumps(answer), file=answers, flush=True)


def _step(run: Any, count: int) -> dict[str, Any]:
    forget_peak()
    seconds = []
    for _ in range(count):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return {"seconds": seconds, "peak_bytes": status("VmHWM")}


def _matmul(product: Any, side: int) -> dict[str, float]:
    product()
    seconds = []
    for _ in range(MATMULS):
        start = time.perf_counter()
        product()
        seconds.append(time.perf_counter() - start)
    return {"flops": 2 * side**3 / min(seconds)}


def forget_peak() -> None:
    """The peak of the resident memory starts anew, and what was freed is given back first (Linux)."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def status(name: str) -> int:
    """Bytes that Linux tells of this process, such as VmHWM, the peak of the resident memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    main()
