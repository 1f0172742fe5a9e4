"""Locks between processes that write to one folder; the system lets go of those of a process that dies."""

import errno
import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dorl_jax.errors import InputError

logger = logging.getLogger(__name__)

# What Lustre and network file systems say that are mounted without locks.
_WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)


@contextmanager
def locked(path: Path, *, shared: bool = False, wait: bool = False) -> Iterator[None]:
    """Hold the lock of that name (an empty file, made where it is missing).

    On a file system without locks a warning says that nothing keeps processes apart.

    Args:
      path: of the lock.
      shared: together with others that share it.
      wait: for others to let go of it, rather than to fail.

    Raises:
      InputError: another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        try:
            fcntl.flock(file, kind if wait else kind | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"another process is writing into {path.parent}: wait for it, write elsewhere, or share the work by "
                "starting every process with --processes and --process"
            ) from error
        except OSError as error:
            if error.errno not in _WITHOUT_LOCKS:
                raise
            logger.warning("%s: its file system has no locks (%s): see that no other process writes there", path, error)
        yield
    finally:
        os.close(file)
