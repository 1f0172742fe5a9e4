"""The step beside what it says it is: parts of a batch, the moving average, what is drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from small_training import Net, X, Y, loss

from dorl_jax.training.step import StepSettings, init_state, make_step

SGD = optax.sgd(0.1)


def steps_of(settings, batches, optimiser=SGD, loss=loss, seed=5):
    graph, trained, rest = nnx.split(Net(), nnx.Param, ...)
    step = jax.jit(make_step(graph, loss, optimiser, settings))
    state = init_state(trained, optimiser, seed, settings)
    for batch in batches:
        state, losses = step(state, rest, batch)
        yield state, losses


def silent(model, batch, key):
    """Additive over rows, so that a mean over parts is the mean over all."""
    error = jnp.mean((model(batch["x"]) - batch["y"]) ** 2)
    return {"loss": error, "error": error}


def batch(start=0):
    return {"x": jnp.asarray(X[start : start + 8]), "y": jnp.asarray(Y[start : start + 8])}


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_parts_of_a_batch_are_the_batch(parts):
    ((whole, losses),) = steps_of(StepSettings(), [batch()], loss=silent)
    ((part, part_losses),) = steps_of(StepSettings(accumulate=parts), [batch()], loss=silent)
    for name in losses:
        np.testing.assert_allclose(part_losses[name], losses[name], rtol=1e-5)
    for ours, expected in zip(jax.tree.leaves(part["trained"]), jax.tree.leaves(whole["trained"]), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-7)


def test_each_part_has_chance_of_its_own_and_its_own_rows():
    def shown(model, batch, key):
        return {"loss": silent(model, batch, key)["loss"], "drawn": jax.random.uniform(key), "x": batch["x"][0, 0]}

    ((_, losses),) = steps_of(StepSettings(accumulate=2), [batch()], loss=shown)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(5), 0))
    np.testing.assert_allclose(losses["drawn"], np.mean([jax.random.uniform(key) for key in keys]), rtol=1e-6)
    np.testing.assert_allclose(losses["x"], (X[0, 0] + X[1, 0]) / 2, rtol=1e-6)  # every second row


def test_the_moving_average_by_hand():
    states = [state for state, _ in steps_of(StepSettings(average=0.3), [batch(0), batch(8), batch(16)])]
    expected = jax.tree.map(np.asarray, jax.tree.leaves(nnx.state(Net(), nnx.Param)))
    for done, state in enumerate(states, 1):
        decay = min(0.3, (1 + done) / (10 + done))
        trained = jax.tree.leaves(state["trained"])
        expected = [decay * mean + (1 - decay) * np.asarray(x) for mean, x in zip(expected, trained, strict=True)]
        for ours, mean in zip(jax.tree.leaves(state["average"]), expected, strict=True):
            np.testing.assert_allclose(ours, mean, rtol=1e-5, atol=1e-7)
    assert decay == pytest.approx(0.3)  # the last one is the decay asked for


def test_the_gradient_norm_is_that_of_the_gradient():
    ((_, losses),) = steps_of(StepSettings(), [batch()], loss=silent)
    graph, trained = nnx.split(Net())
    gradients = jax.grad(lambda p: silent(nnx.merge(graph, p), batch(), None)["loss"])(trained)
    norm = np.sqrt(sum(float((leaf**2).sum()) for leaf in jax.tree.leaves(gradients)))
    np.testing.assert_allclose(losses["gradient_norm"], norm, rtol=1e-5)
