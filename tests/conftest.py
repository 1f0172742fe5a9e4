"""Fixtures shared by all tests."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from jaxtyping import install_import_hook

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
