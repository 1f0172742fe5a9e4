"""Trainings that are killed at any moment, on disks that are full, in folders that cannot be written."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from small_training import leaves, run

from dorl_jax.errors import InputError

# A checkpoint behind every step, so that most moments lie within the writing of one; a rate at which every step counts.
SCRIPT = """
import sys
from pathlib import Path
import numpy as np
import optax
from small_training import leaves, run

folder, steps = Path(sys.argv[1]), int(sys.argv[2])
settings = {"checkpoint_every": 1, "log_every": 7}
model = run(folder, steps=steps, settings=settings, schedule=optax.constant_schedule(1e-2))
np.savez(folder / "end.npz", *leaves(model))
"""


def begin(folder: Path, cache: Path, script: str, arguments: tuple[str, ...], **more) -> subprocess.Popen:
    tests = Path(__file__).parents[1]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tests), os.environ.get("PYTHONPATH", "")]),
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return subprocess.Popen([sys.executable, "-c", script, str(folder), *arguments], env=environment, text=True, **more)


def names(folder: Path) -> set[str]:
    return set(os.listdir(folder)) if folder.is_dir() else set()


def parameters(folder: Path) -> list[np.ndarray]:
    with np.load(folder / "end.npz") as arrays:
        return [arrays[name] for name in arrays.files]


@pytest.mark.slow
def test_twenty_kills_change_no_bit(tmp_path: Path) -> None:
    cache, killed = tmp_path / "cache", tmp_path / "killed"
    checkpoints = killed / "checkpoints"
    chance, writing = random.Random(0), 0
    for _ in range(20):
        # No processor reaches the end between two kills.
        process = begin(killed, cache, SCRIPT, ("1000000",))
        # It has begun when something is being written; then a random moment of the next few steps.
        seen = names(checkpoints)
        while process.poll() is None and names(checkpoints) <= seen:
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.5))
        assert process.poll() is None, "the training ended by itself"
        process.send_signal(signal.SIGKILL)
        process.wait()
        writing += any("tmp" in name for name in names(checkpoints))
    assert writing > 0, "no kill fell into the writing of a checkpoint"
    end = str(max(int(name) for name in names(checkpoints) if name.isdigit()) + 5)
    assert begin(killed, cache, SCRIPT, (end,)).wait(240) == 0
    assert begin(tmp_path / "unbroken", cache, SCRIPT, (end,)).wait(240) == 0
    for ours, expected in zip(parameters(killed), parameters(tmp_path / "unbroken"), strict=True):
        np.testing.assert_array_equal(ours, expected)
    assert not [name for name in names(checkpoints) if "tmp" in name]


# Files over a size cannot be written, as on a disk that is full; the signal that comes with it is not taken.
FULL = """
import resource, signal, sys
from pathlib import Path
import small_training
from dorl_jax.data.loader import array_batches
from dorl_jax.errors import InputError

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
folder = Path(sys.argv[1])
first = small_training.run(folder, steps=6)

class Filling:
    def __init__(self):
        self.batches, self.taken = array_batches({"x": small_training.X, "y": small_training.Y}, 8, seed=3), 0

    def __next__(self):
        self.taken += 1
        if self.taken == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (64, resource.RLIM_INFINITY))
        return next(self.batches)

    def get_state(self):
        return self.batches.get_state()

    def set_state(self, state):
        self.batches.set_state(state)

try:
    small_training.run(folder, steps=24, batches=Filling(), settings={"log_every": int(sys.argv[2])})
except InputError as error:
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print(error)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("log_every", "said"),
    [("24", "a checkpoint cannot be written to"), ("1", "what the training measures cannot be written")],
)
def test_a_full_disk_stops_with_the_last_good_checkpoint_intact(tmp_path: Path, log_every: str, said: str) -> None:
    process = begin(
        tmp_path / "full", tmp_path / "cache", FULL, (log_every,), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    message = process.communicate(timeout=120)[0]
    assert said in message
    assert "File too large" in message
    checkpoints = tmp_path / "full" / "checkpoints"
    if log_every != "1":
        assert f"the last good one is {checkpoints / '6'}" in message
    unbroken = run(tmp_path / "unbroken", steps=24)
    for ours, expected in zip(leaves(run(tmp_path / "full", steps=24)), leaves(unbroken), strict=True):
        np.testing.assert_array_equal(ours, expected)


@pytest.mark.usefixtures("others_left_unread")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("lost", ["progress/metadata", "state", "state/manifest.ocdbt"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_goes_on(tmp_path: Path, lost: str) -> None:
    unbroken = run(tmp_path)
    newest = tmp_path / "checkpoints" / "12"
    damaged = newest / lost
    shutil.rmtree(damaged) if damaged.is_dir() else damaged.write_bytes(damaged.read_bytes()[:20])
    with pytest.raises(InputError, match=rf"the checkpoint {newest} is damaged \(.*: remove it, and the same command"):
        run(tmp_path)
    shutil.rmtree(newest)
    for ours, expected in zip(leaves(run(tmp_path)), leaves(unbroken), strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file in the way")
    with pytest.raises(
        InputError, match=r"checkpoints cannot be written to .*checkpoints: (File exists|Not a directory)"
    ):
        run(tmp_path)
