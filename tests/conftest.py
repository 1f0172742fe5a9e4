"""Fixtures shared by all tests."""

import gc
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

# What one test compiles serves the next, and the processes that tests start. Each worker has a cache of its own, for
# JAX does not write its files in one piece.
_compiled = tempfile.TemporaryDirectory(prefix="dorl_jax_compiled_", ignore_cleanup_errors=True)
os.environ["JAX_COMPILATION_CACHE_DIR"] = _compiled.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

import jax  # noqa: E402
import pytest  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

# Shapes and types of public functions are checked at run time, in tests only.
install_import_hook(["dorl_jax", "weights_conversion"], "beartype.beartype")


def _folder(variable: str, what: str) -> Path:
    value = os.environ.get(variable)
    if not value:
        pytest.skip(f"needs {what}: set {variable} to its folder")
    folder = Path(value)
    if not folder.is_dir():
        pytest.fail(f"{variable} names {value}, which is no folder")
    return folder


@pytest.fixture(scope="module", autouse=True)
def programs_are_dropped() -> Iterator[None]:
    """Compiled programs of a file of tests are of no use to the next, and there are gigabytes of them in all."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture
def others_left_unread() -> Iterator[None]:
    """Where a piece of a checkpoint cannot be read, reads of others end unasked: Python warns of it here, not later.

    With `filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")`.
    """
    yield
    gc.collect()


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of recorded outputs of the original code."""
    return _folder("DORL_JAX_GOLDEN", "recorded outputs of the original code")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real cells of four laboratories."""
    return _folder("DORL_JAX_DATA", "real cells")
