"""The training loop against the same steps written out, and a killed training against an unbroken one."""

import csv
import os
import signal
import threading

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from small_training import SCHEDULE, Killed, Net, X, Y, leaves, loss, run

from dorl_jax.data.loader import array_batches
from dorl_jax.errors import InputError
from dorl_jax.training.loop import Observation
from dorl_jax.training.step import StepSettings
from dorl_jax.training.stopping import Interrupted


def rows(folder, name="metrics"):
    with (folder / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_same_steps_written_out(tmp_path):
    model = Net()
    graph, params = nnx.split(model)
    optimiser = optax.adamw(SCHEDULE, weight_decay=0.1)
    state, batches = optimiser.init(params), array_batches({"x": X, "y": Y}, 8, seed=3)
    for step in range(12):
        batch, key = next(batches), jax.random.fold_in(jax.random.key(5), step)
        grads = jax.grad(lambda p: loss(nnx.merge(graph, p), batch, key)["loss"])(params)  # noqa: B023
        updates, state = optimiser.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    for ours, expected in zip(leaves(run(tmp_path)), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("after", [2, 5, 11])
def test_a_killed_training_ends_bit_for_bit_as_an_unbroken_one(tmp_path, after):
    unbroken = run(tmp_path / "a")
    with pytest.raises(Killed):
        run(tmp_path / "b", die_after=after)
    for ours, expected in zip(leaves(run(tmp_path / "b")), leaves(unbroken), strict=True):
        np.testing.assert_array_equal(ours, expected)
    first, second = rows(tmp_path / "a"), rows(tmp_path / "b")
    assert [row["step"] for row in second] == ["2", "4", "6", "8", "10", "12"]
    assert second[-1]["loss"] == first[-1]["loss"]


def test_a_finished_training_is_not_trained_further(tmp_path):
    first = run(tmp_path)
    for ours, expected in zip(leaves(run(tmp_path, die_after=0)), leaves(first), strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_what_is_frozen_stays(tmp_path):
    model, before = run(tmp_path, trainable=lambda path, value: path[0] == "last"), Net()
    np.testing.assert_array_equal(model.first.kernel[...], before.first.kernel[...])
    assert np.abs(model.last.kernel[...] - before.last.kernel[...]).max() > 1e-3


def test_a_loss_that_is_not_finite_stops_the_training(tmp_path):
    def broken(model, batch, key):
        # The third step's batch is the first that holds this row, in the order that follows from the seed.
        return {
            "loss": loss(model, batch, key)["loss"],
            "shaken": jnp.where((batch["x"][:, 0] == X[BAD, 0]).any(), jnp.nan, 1),
        }

    batches = array_batches({"place": np.arange(len(X))}, 8, seed=3)
    order = [next(batches)["place"].tolist() for _ in range(5)]
    BAD = order[4][2]
    assert not any(BAD in batch for batch in order[:4])
    ids = [f"cell {row}" for row in range(len(X))]
    with pytest.raises(InputError, match=r"test: shaken not finite at step 5") as caught:
        run(tmp_path, loss=broken, ids=ids)
    named = [f"cell {row}" for row in order[4]]
    assert f"(batch of {', '.join(named)})" in str(caught.value)
    assert f"The last good checkpoint is {tmp_path / 'checkpoints' / '3'}." in str(caught.value)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()) == ["3"]


def test_a_loss_that_diverges_stops_the_training(tmp_path):
    def growing(model, batch, key):
        # 30 where a row comes that of the first six batches only the fifth has, else 1.
        return {
            "loss": 0 * loss(model, batch, key)["loss"] + jnp.where((batch["x"][:, 0] == X[LATE, 0]).any(), 30.0, 1.0)
        }

    batches = array_batches({"place": np.arange(len(X))}, 8, seed=3)
    order = [next(batches)["place"].tolist() for _ in range(6)]
    LATE = next(row for row in order[4] if row not in order[5])
    run(tmp_path / "a", loss=growing, settings={"divergence": 16.0})  # a mean over two steps is 15.5
    with pytest.raises(InputError, match=r"test: the loss, 15.5, is over 15 times its least, 1, at step 6 \(batch of"):
        run(tmp_path / "b", loss=growing, settings={"divergence": 15.0})


def scripted(scores):
    """Looks at the model that give these numbers in turn, and the parameters they saw."""
    seen = []

    def observe(model):
        seen.append(leaves(model))
        return Observation({"score": scores[len(seen) - 1]}, {})

    return observe, seen


def test_the_best_look_is_what_the_training_ends_with(tmp_path):
    observe, seen = scripted([0.2, 0.9, 0.3, 0.4])
    model = run(tmp_path, observe=observe, settings={"select": "score", "keep": 1})
    for ours, expected in zip(leaves(model), seen[1], strict=True):
        np.testing.assert_array_equal(ours, expected)
    kept = {path.name for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()}
    assert kept == {"6", "12"}
    assert [row["score"] for row in rows(tmp_path, "validation")] == ["0.2", "0.9", "0.3", "0.4"]
    observe, seen = scripted([0.2, 0.9, 0.3, 0.1])
    least = run(tmp_path / "least", observe=observe, settings={"select": "score", "mode": "min"})
    np.testing.assert_array_equal(leaves(least)[0], seen[3][0])


def test_training_ends_when_nothing_becomes_better(tmp_path):
    observe, seen = scripted([0.5, 0.4, 0.5, 0.9])
    model = run(tmp_path, observe=observe, settings={"select": "score", "patience": 2})
    assert len(seen) == 3
    np.testing.assert_array_equal(leaves(model)[0], seen[0][0])
    # Asked again, it has ended, and gives the same.
    again = run(tmp_path, observe=observe, settings={"select": "score", "patience": 2}, die_after=0)
    np.testing.assert_array_equal(leaves(again)[0], seen[0][0])


@pytest.mark.parametrize("after", [4, 8])
def test_patience_counts_on_behind_a_kill(tmp_path, after):
    scores = [0.5, 0.4, 0.45, 0.9]
    observe, _ = scripted(scores)
    with pytest.raises(Killed):
        run(tmp_path, observe=observe, settings={"select": "score", "patience": 2}, die_after=after)
    observe, seen = scripted(scores[after // 3 :])
    run(tmp_path, observe=observe, settings={"select": "score", "patience": 2})
    assert len(seen) == 3 - after // 3


def test_a_number_that_is_not_observed(tmp_path):
    observe, _ = scripted([1.0])
    with pytest.raises(InputError, match="no number 'iou' is observed; score are"):
        run(tmp_path, observe=observe, settings={"select": "iou"})


def test_the_average_is_what_the_training_ends_with(tmp_path):
    settings = {"step": StepSettings(average=0.5)}
    plain, averaged = run(tmp_path / "a"), run(tmp_path / "b", settings=settings)
    assert np.abs(leaves(plain)[1] - leaves(averaged)[1]).max() > 1e-4
    with pytest.raises(Killed):
        run(tmp_path / "c", settings=settings, die_after=7)
    for ours, expected in zip(leaves(run(tmp_path / "c", settings=settings)), leaves(averaged), strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_a_checkpoint_of_another_training_is_refused(tmp_path):
    run(tmp_path, steps=6, signature={"rate": 1, "data": "a"})
    with pytest.raises(InputError, match=r"other settings or data: data \(a, now b\), rate \(1, now 2\)"):
        run(tmp_path, signature={"rate": 2, "data": "b"})


class Asking:
    """Batches that ask the process to stop when so many were taken."""

    def __init__(self, after):
        self.batches, self.left = array_batches({"x": X, "y": Y}, 8, seed=3), after

    def __next__(self):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return next(self.batches)

    def get_state(self):
        return self.batches.get_state()

    def set_state(self, state):
        self.batches.set_state(state)


@pytest.mark.parametrize("after", [4, 6, 12])
def test_sigterm_saves_first(tmp_path, after):
    unbroken = run(tmp_path / "a")
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match=f"stopped behind step {after}, which was saved"):
        run(tmp_path / "b", batches=Asking(after))
    assert signal.getsignal(signal.SIGTERM) is before
    assert (tmp_path / "b" / "checkpoints" / str(after)).is_dir()
    for ours, expected in zip(leaves(run(tmp_path / "b")), leaves(unbroken), strict=True):
        np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("looks", [3, 4])
def test_sigterm_in_the_last_look_is_not_lost(tmp_path, looks):
    """The stages that follow would take hours."""
    scores = [0.5, 0.4, 0.3, 0.6]
    settings = {"select": "score", "patience": 2 if looks == 3 else 0}
    observe, seen = scripted(scores)

    def asking(model):
        shown = observe(model)
        if len(seen) == looks:
            os.kill(os.getpid(), signal.SIGTERM)
        return shown

    with pytest.raises(Interrupted, match=f"stopped behind step {3 * looks}, which was saved"):
        run(tmp_path, observe=asking, settings=settings)
    model = run(tmp_path, observe=asking, settings=settings, die_after=0)
    np.testing.assert_array_equal(leaves(model)[0], seen[0 if looks == 3 else 3][0])


def test_a_step_that_broke_the_model_is_not_saved(tmp_path):
    """Its loss was finite; what it made of the parameters shows in the look behind it."""
    observe, _ = scripted([0.5, float("nan")])
    with pytest.raises(InputError, match=r"test: score of validation not finite behind step 6. The last good .*/3\."):
        run(tmp_path, observe=observe)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()) == ["3"]


def test_a_killed_training_knows_its_least_loss(tmp_path):
    def growing(model, batch, key):
        return {"loss": 0 * loss(model, batch, key)["loss"] + scale[0]}

    scale = [1.0]
    with pytest.raises(Killed):
        run(tmp_path, loss=growing, die_after=3)
    scale[0] = 20.0
    with pytest.raises(InputError, match=r"the loss, 20, is over 15 times its least, 1, at step 4"):
        run(tmp_path, loss=growing, settings={"divergence": 15.0})


def test_a_training_in_another_thread(tmp_path):
    thread = threading.Thread(target=run, args=(tmp_path,))
    thread.start()
    thread.join()
    assert rows(tmp_path)[-1]["step"] == "12"


class Guarded:
    """Batches from the first of which on the device is given nothing, and gives nothing, but when it is asked to."""

    def __init__(self):
        self.batches = array_batches({"x": X, "y": Y}, 8, seed=3)

    def __next__(self):
        jax.config.update("jax_transfer_guard", "disallow")
        return next(self.batches)

    def get_state(self):
        return self.batches.get_state()

    def set_state(self, state):
        self.batches.set_state(state)


def test_one_compilation_and_no_transfer(tmp_path):
    chex.clear_trace_counter()
    counted = chex.assert_max_traces(loss, n=1)
    try:
        run(tmp_path, batches=Guarded(), loss=counted, settings={"step": StepSettings(average=0.9)})
    finally:
        jax.config.update("jax_transfer_guard", "allow")
    assert rows(tmp_path)[-1]["step"] == "12"


def test_what_is_measured(tmp_path):
    run(tmp_path)
    for row in rows(tmp_path):
        assert float(row["learning_rate"]) == pytest.approx(float(SCHEDULE(int(row["step"]) - 1)), abs=1e-8)
        assert float(row["images_per_second"]) > 0
        assert float(row["memory_mb"]) > 1
        assert float(row["gradient_norm"]) > 0
