"""What a command line imports before it knows what it is to do."""

import subprocess
import sys


def test_nothing_heavy_is_imported_for_a_command_that_does_not_use_it() -> None:
    """Each of these takes a second or more, and memory for as long as the command runs."""
    program = "import dorl_jax.cli, sys; print(*{name.partition('.')[0] for name in sys.modules})"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert "jax" in found
    heavy = {"sklearn", "matplotlib", "pandas", "torch", "tensorflow", "xgboost", "umap", "skops"}
    assert not heavy & set(found)
