"""A run killed in each training goes on and ends with the same vectors as one that was not."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dorl_jax.evaluation.latents import read_latents

SETTINGS = """
[data]
synthetic_cells = 5

[finetune_sam]
steps = 9
batch_size = 4
warmup_steps = 1
checkpoint_every = 2

[train_cae]
steps = 9
batch_size = 4
checkpoint_every = 2
"""


@pytest.mark.slow
def test_killed_runs(tmp_path):
    settings = tmp_path / "settings.toml"
    settings.write_text(SETTINGS)

    # Twelve processes compile the same programs; the first one is enough.
    cache = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    environment = os.environ | cache

    def begin(run: Path, stage: str) -> subprocess.Popen[bytes]:
        arguments = [stage, "--run", str(run), "--config", str(settings), "--quiet"]
        return subprocess.Popen([sys.executable, "-m", "dorl_jax", *arguments], env=environment)

    for name, kills in (("unbroken", ()), ("killed", ("finetune-sam", "train-cae"))):
        for stage in ("prepare", "finetune-sam", "extract", "train-cae", "embed"):
            run = tmp_path / name
            if stage in kills:
                process = begin(run, stage)
                checkpoints = run / stage.replace("-", "_") / "checkpoints"
                while not (checkpoints / "4").is_dir():
                    assert process.poll() is None, "the training ended before it could be killed"
                    time.sleep(0.05)
                process.send_signal(signal.SIGKILL)
                assert process.wait() == -signal.SIGKILL
            assert begin(run, stage).wait() == 0
    unbroken, killed = (read_latents(tmp_path / name / "embed" / "latents.parquet") for name in ("unbroken", "killed"))
    np.testing.assert_array_equal(killed.ids, unbroken.ids)
    np.testing.assert_array_equal(killed.vectors, unbroken.vectors)
