"""`dorl-jax run` in two processes: what one process computes, also where one of them is told to stop."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dorl_jax.cli import main
from dorl_jax.evaluation.latents import read_latents

SETTINGS = """
[data]
synthetic_cells = 5

[finetune_sam]
image_size = 64
steps = 9
batch_size = 4
warmup_steps = 1
checkpoint_every = 2
validation = 0.0
select = ""
workers = 0

[extract]
workers = 0

[train_cae]
steps = 9
batch_size = 4
checkpoint_every = 2

[evaluate]
classifiers = ["logistic_regression"]
"""
LIMIT = 900
"""Seconds after which a pair has hung, and is not just slow."""


@pytest.fixture
def start(tmp_path):
    settings = tmp_path / "settings.toml"
    settings.write_text(SETTINGS)
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}
    started = []

    def begin(run: str, *more: str, stage: str = "run") -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "dorl_jax", stage, "--run", str(tmp_path / run), "--quiet"]
        started.append(
            subprocess.Popen(
                [*command, "--config", str(settings), *more],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
        return started[-1]

    yield begin
    for process in started:
        with process:
            process.kill()


def pair(start, run: str, **more: str) -> list[subprocess.Popen[str]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    return [
        start(run, "--coordinator", address, "--processes", "2", "--process", str(process), **more)
        for process in (0, 1)
    ]


def end(processes: list[subprocess.Popen[str]]) -> tuple[list[int], list[str]]:
    texts = [process.communicate(timeout=LIMIT)[0] for process in processes]
    return [process.returncode for process in processes], texts


def vectors(run: Path) -> np.ndarray:
    return read_latents(run / "embed" / "latents.parquet").vectors


@pytest.mark.slow
def test_two_processes_run_as_one(tmp_path, start):
    first, texts = pair(start, "two"), []
    checkpoints = tmp_path / "two" / "finetune_sam" / "checkpoints"
    while not (checkpoints / "2").is_dir():
        assert all(process.poll() is None for process in first), end(first)
        time.sleep(0.05)
    # One machine is taken away: both stop behind the same step, and have saved it.
    first[1].send_signal(signal.SIGTERM)
    codes, texts = end(first)
    assert codes == [143, 143], texts
    assert all("which was saved; the same command goes on" in text for text in texts)
    assert not (tmp_path / "two" / "finetune_sam" / "model").exists()

    codes, texts = end(pair(start, "two"))
    assert codes == [0, 0], texts
    assert "report.html" in texts[0]
    assert "report.html" not in texts[1]
    assert "going on behind step" in (tmp_path / "two" / "log.txt").read_text()
    assert "train-cae: Train" in (tmp_path / "two" / "log.txt").read_text()
    assert "train-cae: Train" not in (tmp_path / "two" / "log_1.txt").read_text()

    settings = ["--config", str(tmp_path / "settings.toml"), "--run", str(tmp_path / "one"), "--quiet"]
    for stage in ("prepare", "finetune-sam", "extract", "train-cae", "embed"):
        assert main([stage, *settings]) == 0
    one, two = vectors(tmp_path / "one"), vectors(tmp_path / "two")
    print("largest difference", np.abs(one - two).max(), "of", np.abs(one).max())
    np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-4 * np.abs(one).max())


@pytest.mark.slow
def test_both_end_where_process_0_fails(tmp_path, start):
    codes, texts = end(pair(start, "failed", stage="embed"))
    assert codes == [2, 2], texts
    assert "embed needs what prepare writes" in texts[0]
    assert "process 0 failed; its log says why" in texts[1]
