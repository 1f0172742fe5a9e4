"""What is done with memory that is let go of."""

import platform
import resource
import subprocess
import sys
from importlib.util import find_spec

import pytest

from dorl_jax import __main__

# One large block lets glibc raise its bound; the last of the small ones then holds the end of the heap.
PROGRAM = """
import sys
import numpy as np
from dorl_jax.allocator import return_freed_memory

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

if sys.argv[1] == "return":
    return_freed_memory()
del (large := [np.ones(1 << 21)])[0]
before = resident()
blocks = [np.ones(1 << 18) for _ in range(64)]
del blocks[:-1]
print(resident() - before)
"""

# A thread asks for the same memory three times over, as XLA does in every step.
STEPS = """
import os
import sys
from dorl_jax.allocator import keep_working_memory, return_free_memory, return_freed_memory, use_one_heap

if sys.argv[1] != "leave":
    use_one_heap()
if sys.argv[1] == "later":
    return_freed_memory()
if sys.argv[1] != "leave":
    keep_working_memory()
os.environ["NUMPY_MADVISE_HUGEPAGE"] = "0"

import resource
import threading
import numpy as np

def new_pages():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def step():
    np.ones(1 << 25)

def told():
    before = new_pages()
    thread = threading.Thread(target=step)
    thread.start()
    thread.join()
    return new_pages() - before

first, second = told(), told()
return_free_memory()
print(first, second, told())
"""
only_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc alone it can be told")


def printed_by(program: str, argument: str) -> list[int]:
    done = subprocess.run([sys.executable, "-c", program, argument], check=True, capture_output=True, text=True)
    return [int(number) for number in done.stdout.split()]


def held_after(argument: str) -> int:
    return printed_by(PROGRAM, argument)[0]


@only_glibc
@pytest.mark.skipif(
    bool(find_spec("jax_plugins") or find_spec("libtpu")), reason="beside an accelerator nothing is kept"
)
def test_what_a_step_worked_in_is_kept_for_the_next() -> None:
    pages = (8 << 25) // resource.getpagesize()
    almost = 0.99 * pages  # some lie on pages that have been used before
    for when in ("keep", "later"):  # behind the other setting, too
        first, second, behind = printed_by(STEPS, when)
        assert first > almost
        assert second < pages // 100
        assert behind > almost  # for it was given back between them
    assert printed_by(STEPS, "leave")[1] > almost


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("train-cae", ["one heap", "kept"]),
        ("baselines", ["one heap", "kept"]),
        ("run", ["one heap", "kept"]),
        ("embed", []),
        ("evaluate", []),
        ("", []),
    ],
)
def test_what_commands_do_with_memory(monkeypatch: pytest.MonkeyPatch, command: str, expected: list[str]) -> None:
    done: list[str] = []
    monkeypatch.setattr(sys, "argv", ["dorl-jax", command] if command else ["dorl-jax"])
    monkeypatch.setattr(__main__, "keep_working_memory", lambda: done.append("kept"))
    monkeypatch.setattr(__main__, "use_one_heap", lambda: done.append("one heap"))
    monkeypatch.setattr("dorl_jax.cli.main", lambda: 7)
    assert __main__.main() == 7
    assert done == expected


@only_glibc
def test_freed_blocks_go_back_to_the_system() -> None:
    block = 8 << 18
    assert held_after("keep") > 60 * block
    assert held_after("return") < 4 * block
