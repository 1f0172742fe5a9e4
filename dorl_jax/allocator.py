"""What the C library does with memory that is let go of."""

import ctypes

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def return_freed_memory(at_least: int = 1 << 20) -> None:
    """From now on, give blocks of `at_least` bytes back to the system as soon as they are let go of.

    glibc raises that bound, from 128 KiB up to 32 MiB, with the size of what is freed; smaller blocks then lie on a
    heap that shrinks only from its end. What reading the models takes for a moment so stays with the process to its
    end: 400 MB for a ViT-B. It is set for the whole process, so a command calls this and the library does not. Other C
    libraries have no such bound, and nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, at_least)
        mallopt(_M_TRIM_THRESHOLD, at_least)
