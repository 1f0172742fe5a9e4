"""One optimiser step as a pure function: the same program on one device, on eight, and on many hosts."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array

# (model, batch, key) -> scalars, of which "loss" is minimised.
LossFunction = Callable[[Any, Mapping[str, Array], Array], dict[str, Array]]
# Arrays only, in dictionaries: "trained", "optimiser", "step", "key", and "average" where a mean is kept.
TrainState = dict[str, Any]
Step = Callable[[TrainState, nnx.State, Mapping[str, Array]], tuple[TrainState, dict[str, Array]]]


@dataclass(frozen=True)
class StepSettings:
    """What an optimiser step does beside the optimiser.

    Attributes:
      accumulate: parts that a batch is computed in, one after the other, for batches that do not fit; the gradient is
        the mean of theirs. What the loss sums over a batch (Dice, the means of laboratories), it sums over a part.
      average: decay of the exponential moving average of the parameters that is kept beside them; 0 for none. It
        begins lower, (1 + t) / (10 + t) at step t, so that it is soon of trained parameters.
    """

    accumulate: int = 1
    average: float = 0.0


def init_state(
    trained: nnx.State, optimiser: optax.GradientTransformation, seed: int, settings: StepSettings = StepSettings()
) -> TrainState:
    """The state before the first step.

    Args:
      trained: the parameters that train.
      optimiser: of the steps.
      seed: of what is drawn inside the steps.
      settings: of the steps.
    """
    state = {
        "trained": trained,
        "optimiser": optimiser.init(trained),
        "step": jnp.zeros((), jnp.int32),
        "key": jax.random.key_data(jax.random.key(seed)),
    }
    # A copy: the step gives the buffers of its state away, and one cannot be given away twice.
    return state | {"average": jax.tree.map(jnp.copy, trained)} if settings.average else state


def make_step(
    graph: nnx.GraphDef[Any],
    loss_function: LossFunction,
    optimiser: optax.GradientTransformation,
    settings: StepSettings = StepSettings(),
) -> Step:
    """(state, rest, batch) -> (state, losses), to be jit-compiled with the state donated.

    Gradients are computed for `state["trained"]` alone. `rest`, what of the model does not train, is an argument of its
    own, so that it is neither copied nor given back.

    Args:
      graph: of the model, from `nnx.split(model, trained, ...)`.
      loss_function: gives the scalars of a batch; its key is another one at every step.
      optimiser: applied to the gradients.
      settings: see there.
    """

    def losses_and_gradients(
        trained: nnx.State, rest: nnx.State, batch: Mapping[str, Array], key: Array
    ) -> tuple[dict[str, Array], nnx.State]:
        def loss_of(trained: nnx.State) -> tuple[Array, dict[str, Array]]:
            losses = loss_function(nnx.merge(graph, trained, rest), batch, key)
            return losses["loss"], losses

        (_, losses), gradients = jax.value_and_grad(loss_of, has_aux=True)(trained)
        return losses, gradients

    def accumulated(
        trained: nnx.State, rest: nnx.State, batch: Mapping[str, Array], key: Array
    ) -> tuple[dict[str, Array], nnx.State]:
        keys = jax.random.split(key, settings.accumulate)
        parts = {name: _parts(array, settings.accumulate) for name, array in batch.items()}

        def add(total: Any, part: tuple[Mapping[str, Array], Array]) -> tuple[Any, None]:
            found = losses_and_gradients(trained, rest, *part)
            return jax.tree.map(jnp.add, total, found), None

        like = jax.eval_shape(losses_and_gradients, trained, rest, {k: v[0] for k, v in parts.items()}, keys[0])
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
        total, _ = jax.lax.scan(add, zeros, (parts, keys))
        return jax.tree.map(lambda x: x / settings.accumulate, total)

    def step(state: TrainState, rest: nnx.State, batch: Mapping[str, Array]) -> tuple[TrainState, dict[str, Array]]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state["key"]), state["step"])
        compute = losses_and_gradients if settings.accumulate == 1 else accumulated
        losses, gradients = compute(state["trained"], rest, batch, key)
        losses = {**losses, "gradient_norm": optax.tree.norm(gradients)}
        updates, optimiser_state = optimiser.update(gradients, state["optimiser"], state["trained"])
        trained = optax.apply_updates(state["trained"], updates)
        done = state["step"] + 1
        new = {**state, "trained": trained, "optimiser": optimiser_state, "step": done}
        if settings.average:
            decay = jnp.minimum(settings.average, (1.0 + done) / (10.0 + done))
            new["average"] = jax.tree.map(lambda mean, x: decay * mean + (1 - decay) * x, state["average"], trained)
        return new, losses

    return step


def _parts(array: Array, count: int) -> Array:
    """(B, ...) -> (count, B / count, ...): every `count`-th row, so that each device keeps to the rows it has."""
    return jnp.swapaxes(array.reshape(array.shape[0] // count, count, *array.shape[1:]), 0, 1)
