"""The benchmark's contestants and their processes."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmark_tasks import Task

from dorl_jax.errors import InputError

# MKL asks this of itself before it takes its fast paths; what a preloaded library answers comes first.
SWITCH = "int mkl_serv_intel_cpu_true(void) { return 1; }\n"


@dataclass(frozen=True)
class Contestant:
    """Who takes part.

    Attributes:
      name: in the tables.
      package: "jax" or "torch".
      dtype: of the arithmetic.
      python: interpreter.
      variables: of its environment.
    """

    name: str
    package: str
    dtype: str
    python: str
    variables: Mapping[str, str] = field(default_factory=dict)


class Process:
    """A contestant's process, warm and asleep between orders."""

    def __init__(self, contestant: Contestant, command: Sequence[str], threads: int) -> None:
        self.contestant, self.name = contestant, contestant.name
        cores = sorted(os.sched_getaffinity(0))[:threads]
        self.process = subprocess.Popen(
            [contestant.python, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**environment(), "OMP_NUM_THREADS": str(threads), **contestant.variables},
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )
        self.began: dict[str, Any] = {}

    def wait(self) -> None:
        """Until it is warm."""
        self.began = self._answer()

    def ask(self, order: str) -> dict[str, Any]:
        """Send an order, and wait for its answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(order + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise InputError(f"{self.name} ended with exit code {self.process.wait()}; the reason is above")
        return json.loads(line)

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait()


def make_inputs(name: str, task: Task, folder: Path) -> None:
    """`write_inputs` in a process of its own, of which nothing stays in memory."""
    command = [sys.executable, *worker("inputs", name, task, "float32", folder)]
    subprocess.run(command, check=True, env=environment())


def worker(package: str, name: str, task: Task, dtype: str, folder: Path) -> list[str]:
    """Arguments of an interpreter that runs a contestant."""
    script = Path(__file__).with_name("benchmark_worker.py")
    return [str(script), package, name, str(task.batch), task.variant, dtype, str(folder)]


def environment() -> dict[str, str]:
    """Variables of a contestant's process."""
    root = str(Path(__file__).parents[1])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    return {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": path}


def switched_library(folder: Path) -> Path | None:
    """The library that is preloaded to switch MKL's slow path off, compiled now; None without a compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        print("torch_switched is left out: there is no C compiler (cc)", file=sys.stderr)
        return None
    source, library = folder / "switch.c", folder / "switch.so"
    source.write_text(SWITCH)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    return library


@contextmanager
def hold(command: str | None) -> Iterator[None]:
    """While this lasts the command runs; it has printed a line before, and its input is closed afterwards."""
    if command is None:
        yield
        return
    with subprocess.Popen(shlex.split(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        if not process.stdout.readline():
            raise InputError(f"--hold {command!r} ended with exit code {process.wait()}")
        yield
        assert process.stdin is not None
        process.stdin.close()
