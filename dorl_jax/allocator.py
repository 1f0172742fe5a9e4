"""What the C library does with freed memory. Set for a whole process: by commands and workers, not by the library."""

import ctypes
import platform
from importlib.util import find_spec

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -3, -4, -8


def return_freed_memory() -> None:
    """From now on, give blocks of 1 MiB and more back to the system as soon as they are let go of.

    glibc raises that bound, from 128 KiB up to 32 MiB, with the size of what is freed; smaller blocks then lie on a
    heap that shrinks only from its end. What reading the models takes for a moment so stays with the process to its
    end: 400 MB for a ViT-B. Other C libraries are left alone.
    """
    _set_bounds(own_pages=1 << 20, trim=1 << 20)


def keep_freed_memory() -> None:
    """Let glibc hand freed pictures out again, in place of giving them back to the system and asking for new pages.

    The pages of new memory are filled by zeros one by one, which costs a quarter of the time of decoding.
    """
    _set_bounds(own_pages=32 << 20, trim=256 << 20)  # the first is the most it takes


def use_one_heap() -> None:
    """Let all threads share one heap, where JAX computes on CPUs.

    To be called before there is any thread, and so before JAX or NumPy is imported. On heaps of their own threads leave
    more behind, and give back what is large whatever is asked for. Where JAX has a plugin for an accelerator nothing is
    done, here and in `keep_working_memory`: there is little on the heap then, and many threads wait for each other.
    """
    libc = _glibc()
    if libc and _on_cpus():
        libc.mallopt(_M_ARENA_MAX, 1)


def keep_working_memory() -> None:
    """From now on, let glibc keep what a step on a CPU works in, for the next step; what is free now goes back first.

    XLA asks for that memory, which is of the size of all activations, anew in every step. New pages are filled by zeros
    one by one: half as long again as a step of a training itself takes, on some virtual machines. The process then
    holds the most that it ever needs; see `return_free_memory`. It needs `use_one_heap`.
    """
    return_free_memory()
    libc = _glibc()
    if libc and _on_cpus():
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, -1)  # never


def return_free_memory() -> None:
    """Give back to the system, once, what of the heap is free now, whatever bounds are set."""
    libc = _glibc()
    if libc:
        libc.malloc_trim(0)


def _set_bounds(own_pages: int, trim: int) -> None:
    """Bytes from which a block gets pages of its own, and from which the free end of the heap is given back."""
    libc = _glibc()
    if libc:
        libc.mallopt(_M_MMAP_THRESHOLD, own_pages)
        libc.mallopt(_M_TRIM_THRESHOLD, trim)


def _on_cpus() -> bool:
    return not (find_spec("jax_plugins") or find_spec("libtpu"))


def _glibc() -> ctypes.CDLL | None:
    """The C library, where it is glibc."""
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
