"""Memory that is let go of goes back to the system."""

import platform
import subprocess
import sys

import pytest

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


def held_after(argument: str) -> int:
    done = subprocess.run([sys.executable, "-c", PROGRAM, argument], check=True, capture_output=True, text=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps freed blocks and can be told not to")
def test_freed_blocks_go_back_to_the_system() -> None:
    block = 8 << 18
    assert held_after("keep") > 60 * block
    assert held_after("return") < 4 * block
