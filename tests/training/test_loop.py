"""The training loop against the same steps written out, and a killed training against an unbroken one."""

import csv

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from dorl_jax.data.loader import array_batches
from dorl_jax.errors import InputError
from dorl_jax.training.loop import LoopSettings, train
from dorl_jax.training.optim import adamw, warmup_cosine

X = np.random.RandomState(0).standard_normal((40, 6)).astype(np.float32)
Y = (X @ np.random.RandomState(1).standard_normal((6, 2))).astype(np.float32)
SCHEDULE = warmup_cosine(1e-2, 3, 12)


class Net(nnx.Module):
    def __init__(self):
        self.first, self.last = (nnx.Linear(a, b, rngs=nnx.Rngs(a)) for a, b in ((6, 8), (8, 2)))

    def __call__(self, x):
        return self.last(jnp.tanh(self.first(x)))


def loss(model, batch, key):
    noise = 0.01 * jax.random.normal(key, batch["x"].shape)
    return {"loss": jnp.mean((model(batch["x"] + noise) - batch["y"]) ** 2)}


class Killed(Exception):
    pass


class DyingAfter:
    """Batches that end in a crash, as a killed process does."""

    def __init__(self, batches, left):
        self.batches, self.left = batches, left

    def __next__(self):
        if not self.left:
            raise Killed
        self.left -= 1
        return next(self.batches)

    def get_state(self):
        return self.batches.get_state()

    def set_state(self, state):
        self.batches.set_state(state)


def run(folder, trainable=nnx.Param, die_after=None, loss=loss, steps=12):
    model = Net()
    batches = array_batches({"x": X, "y": Y}, 8, seed=3)
    if die_after is not None:
        batches = DyingAfter(batches, die_after)
    settings = LoopSettings(steps, log_every=2, checkpoint_every=3, seed=5)
    train(
        model, trainable, loss, adamw(SCHEDULE, 0.1), SCHEDULE, batches, settings, folder, name="test", progress=False
    )
    return model


def leaves(model):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(model))]


def rows(folder):
    with (folder / "metrics.csv").open(newline="") as file:
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
        return {"loss": loss(model, batch, key)["loss"] * jnp.where(batch["x"].sum() < 1e9, jnp.nan, 1)}

    with pytest.raises(InputError, match="loss is not finite before step 2"):
        run(tmp_path, loss=broken)


def test_schedule():
    at = [float(SCHEDULE(step)) for step in (0, 3, 12)]
    np.testing.assert_allclose(at, [0, 1e-2, 0], atol=1e-9)
    np.testing.assert_allclose(SCHEDULE(7.5), 0.5e-2, rtol=1e-5)
    np.testing.assert_allclose(warmup_cosine(1.0, 500, 10)(5), 1.0)  # a short run still reaches its peak
