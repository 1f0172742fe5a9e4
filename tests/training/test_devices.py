"""The same training on one device and on four."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = """
import sys
from pathlib import Path
import jax
import numpy as np
sys.path.insert(0, sys.argv[2])
import test_loop
model = test_loop.run(Path(sys.argv[1]))
np.savez(Path(sys.argv[1]) / "out.npz", *test_loop.leaves(model), devices=jax.device_count())
"""


@pytest.mark.slow
def test_the_number_of_devices_does_not_matter(tmp_path):
    results = []
    for devices in (1, 4):
        folder = tmp_path / str(devices)
        folder.mkdir()
        environment = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
        subprocess.run(
            [sys.executable, "-c", SCRIPT, str(folder), str(Path(__file__).parent)], env=environment, check=True
        )
        with np.load(folder / "out.npz") as out:
            assert out["devices"] == devices
            results.append([out[name] for name in out.files if name != "devices"])
    for one, four in zip(*results, strict=True):
        np.testing.assert_allclose(four, one, rtol=1e-5, atol=1e-6)
