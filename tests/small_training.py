"""A training of a second: a small net, and batches that may end in a crash."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dorl_jax.data.loader import array_batches
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


def run(
    folder,
    trainable=nnx.Param,
    die_after=None,
    loss=loss,
    steps=12,
    batches=None,
    settings=None,
    schedule=SCHEDULE,
    **more,
):
    """Train a `Net`; `settings` beside the usual ones of the loop, `more` of `train`."""
    model = Net()
    batches = batches or array_batches({"x": X, "y": Y, "place": np.arange(len(X))}, 8, seed=3)
    if die_after is not None:
        batches = DyingAfter(batches, die_after)
    chosen = {"log_every": 2, "checkpoint_every": 3, "seed": 5, **(settings or {})}
    train(
        model,
        trainable,
        loss,
        adamw(schedule, 0.1),
        schedule,
        batches,
        LoopSettings(steps, **chosen),
        folder,
        name="test",
        progress=False,
        **more,
    )
    return model


def leaves(model):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(model))]
