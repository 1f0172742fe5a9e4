"""Two processes on the loopback address train what one trains, each from its own part of the batches."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dorl_jax.errors import InputError
from dorl_jax.parallel import done_by_main, initialise, is_main

# A computation that hangs is a failure: two processes that wait for each other would do so for ever.
LIMIT = 600
STEPS, BATCH, DIES_BEHIND = 12, 8, 8

TRAINING = """
import os, signal, sys
from pathlib import Path
import jax
import numpy as np
from dorl_jax.data.loader import Share, array_batches
from dorl_jax.parallel import initialise
from small_training import X, Y, leaves, run

folder, coordinator, processes, process, devices, model_axis, dies = sys.argv[1:]
processes, process = int(processes), int(process)
jax.config.update("jax_num_cpu_devices", int(devices))
if processes > 1:
    initialise(coordinator, processes, process, 60)
    assert (jax.process_count(), jax.process_index()) == (processes, process)
assert jax.device_count() == processes * int(devices)
asked = []

class Rows:
    def __len__(self):
        return len(X)

    def __getitem__(self, row):
        asked.append(row)
        return X[row]

class Recorded:
    def __init__(self, batches):
        self.batches, self.places = batches, []

    def __next__(self):
        if len(self.places) == int(dies):
            os.kill(os.getpid(), signal.SIGKILL)
        batch = next(self.batches)
        self.places.append(batch["place"])
        return batch

    def get_state(self):
        return self.batches.get_state()

    def set_state(self, state):
        self.batches.set_state(state)

arrays = {"x": Rows(), "y": Y, "place": np.arange(len(X))}
batches = Recorded(array_batches(arrays, 8, seed=3, share=Share(process, processes)))
model = run(Path(folder), batches=batches, settings={"model_axis": int(model_axis)})
np.savez(f"{folder}/out_{process}.npz", *leaves(model), places=np.stack(batches.places), asked=asked)
"""

MODELS = """
import sys
from pathlib import Path
import jax
import numpy as np
from flax import nnx
from dorl_jax.errors import InputError
from dorl_jax.models import Cae, CaeConfig
from dorl_jax.parallel import barrier, done_by_main, initialise, make_mesh, place
from dorl_jax.training.checkpoints import load_model, save_model
from dorl_jax.training.resume import TrainingCheckpoints

folder, coordinator, process = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
jax.config.update("jax_num_cpu_devices", 1)
initialise(coordinator, 2, process, 60)
config = CaeConfig(width=16, grid=4, encoder_depth=1, decoder_depth=1, heads=2, projection=5,
                   head_channels=(8, 8, 8, 8))
model = Cae(config, rngs=nnx.Rngs(0))
expected = [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(model))]

def same(found):
    for ours, theirs in zip(map(np.asarray, jax.tree.leaves(found)), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)

state = place(nnx.state(model), make_mesh(2))
def together(step):
    with TrainingCheckpoints(folder / "checkpoints", {}) as checkpoints:
        checkpoints.save(step, state, {})
        checkpoints.wait()
        found = checkpoints.restore(jax.tree.map(jax.numpy.zeros_like, state))[0]
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(state), strict=True):
            np.testing.assert_array_equal(a.addressable_data(0), b.addressable_data(0))

# One process writes and reads while the other does not; before, between and behind what both do together.
together(1)
def alone():
    save_model(folder / "model", model)
    for _ in range(3):
        same(nnx.state(load_model(folder / "model", Cae)))
    return 7
assert done_by_main(alone) == 7
together(2)
same(nnx.state(load_model(folder / "model", Cae)))
together(3)
def refused(what):
    try:
        save_model(folder / "other", model)
    except ValueError as error:
        assert what in str(error)
    else:
        raise AssertionError("half a model was saved, or none")
if process == 1:
    refused("process 0 saves the model")
nnx.update(model, state)
if process == 0:
    refused("local_copy")

def fails():
    raise InputError("no more cells")
try:
    done_by_main(fails)
except InputError as error:
    assert str(error) == ("no more cells" if process == 0 else "process 0 failed; its log says why")
else:
    raise AssertionError("a failure went unseen")
barrier("end")
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def environment(tmp_path_factory) -> dict[str, str]:
    """With one cache of compiled programs, for most processes compile the same."""
    cache = tmp_path_factory.getbasetemp() / "compiled"
    tests = Path(__file__).parents[1]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tests), os.environ.get("PYTHONPATH", "")]),
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def start(commands: list[list[str]], environment: dict[str, str]) -> list[subprocess.Popen[str]]:
    return [
        subprocess.Popen(
            [sys.executable, *command], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for command in commands
    ]


def end(processes: list[subprocess.Popen[str]], status: int = 0) -> list[str]:
    """What they wrote; all must end with that status, and in time."""
    try:
        texts = [process.communicate(timeout=LIMIT)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, text in zip(processes, texts, strict=True):
        assert process.returncode == status, text
    return texts


def train(folder, environment, processes=1, devices=1, model_axis=1, dies=-1):
    """Parameters and the cells of every batch, of each process."""
    address = f"127.0.0.1:{free_port()}"
    numbers = [str(number) for number in (devices, model_axis, dies)]
    commands = [
        ["-c", TRAINING, str(folder), address, str(processes), str(process), *numbers] for process in range(processes)
    ]
    end(start(commands, environment), 0 if dies < 0 else -signal.SIGKILL)
    found = []
    for process in range(processes if dies < 0 else 0):
        with np.load(folder / f"out_{process}.npz") as out:
            arrays = [out[name] for name in out.files if name.startswith("arr_")]
            found.append((arrays, out["places"], out["asked"]))
    return found


def assert_same_parameters(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path, environment):
    [(expected, whole, _)] = train(tmp_path / "one", environment)
    for devices, model_axis in ((1, 1), (2, 2)):
        results = train(tmp_path / f"two_{devices}", environment, 2, devices, model_axis)
        for parameters, places, asked in results:
            assert_same_parameters(parameters, expected)
            assert places.shape == (STEPS, BATCH // 2)
            # What is prepared ahead is a part, too: less is asked for than all batches hold.
            assert len(asked) < STEPS * BATCH
        together = np.concatenate([places for _, places, _ in results], axis=1)
        np.testing.assert_array_equal(together, whole)

    # Both are killed, with the parameters split between them; one goes on.
    killed = tmp_path / "killed"
    train(killed, environment, 2, model_axis=2, dies=DIES_BEHIND)
    saved = max(int(path.name) for path in (killed / "checkpoints").iterdir() if path.name.isdigit())
    assert saved in (3, 6)
    [(parameters, places, _)] = train(killed, environment)
    np.testing.assert_array_equal(places, whole[saved:])
    assert_same_parameters(parameters, expected)


@pytest.mark.slow
def test_process_0_writes_and_reads_alone(tmp_path, environment):
    address = f"127.0.0.1:{free_port()}"
    end(start([["-c", MODELS, str(tmp_path), address, str(process)] for process in (0, 1)], environment))


def test_incomplete_arguments():
    with pytest.raises(InputError, match="processes and process missing: give coordinator, processes and process"):
        initialise("localhost:1234")
    with pytest.raises(InputError, match="process 2 of 2: expected a number from 0 to 1"):
        initialise("localhost:1234", 2, 2)
    for address in ("localhost", "localhost:", ":1234", "localhost:port", "localhost:70000"):
        with pytest.raises(InputError, match="expected HOST:PORT"):
            initialise(address, 2, 1)


def test_no_cluster(monkeypatch):
    for name in ("KUBERNETES_SERVICE_HOST", "SLURM_JOB_ID", "OMPI_MCA_orte_hnp_uri", "JAX_COORDINATOR_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    # Tests of one process have used JAX before; here only the cluster counts.
    monkeypatch.setattr("jax._src.xla_bridge.backends_are_initialized", lambda: False)
    with pytest.raises(InputError, match="no cluster tells which processes belong together"):
        initialise()


def test_nobody_there():
    with pytest.raises(InputError, match=r"process 1 found nobody at 127.0.0.1:\d+ within 1 s"):
        initialise(f"127.0.0.1:{free_port()}", 2, 1, timeout=1)


def test_a_port_that_is_taken():
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        with pytest.raises(InputError, match="take another port"):
            initialise(f"127.0.0.1:{taken.getsockname()[1]}", 2, 0)


def test_one_process_is_the_main_one():
    assert is_main()
    assert done_by_main(lambda: 3) == 3
    assert done_by_main(lambda: None) == 0
