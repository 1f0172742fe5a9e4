"""What the C library does with freed memory. Set for a whole process: by commands and workers, not by the library."""

import ctypes
import platform

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


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


def _set_bounds(own_pages: int, trim: int) -> None:
    """Bytes from which a block gets pages of its own, and from which the free end of the heap is given back."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, own_pages)
        libc.mallopt(_M_TRIM_THRESHOLD, trim)
