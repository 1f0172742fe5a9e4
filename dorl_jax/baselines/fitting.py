"""A short training on one device: minutes long, so that it is not continued but done again."""

import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, UInt8
from tqdm.auto import tqdm

from dorl_jax.baselines.cells import Cells
from dorl_jax.compiling import compiler_options
from dorl_jax.data.loader import Batches, array_batches
from dorl_jax.errors import InputError
from dorl_jax.models.layers import AnyArray
from dorl_jax.store import Places
from dorl_jax.training.pace import settle
from dorl_jax.training.step import LossFunction, Step, init_state, make_step


def compiled_step(model: nnx.Module, objective: LossFunction, optimiser: optax.GradientTransformation) -> Step:
    """A step for `fit`; it serves every model of the same shape.

    Args:
      model: in training mode.
      objective: (model, batch, key) -> scalars, of which "loss" is minimised.
      optimiser: with its schedule.
    """
    graph = nnx.split(model, nnx.Param, ...)[0]
    return jax.jit(make_step(graph, objective, optimiser), donate_argnums=0, compiler_options=compiler_options())


def fit(
    model: nnx.Module,
    step: Step,
    batches: Iterator[Mapping[str, np.ndarray]],
    optimiser: optax.GradientTransformation,
    steps: int,
    *,
    seed: int,
    name: str,
    progress: bool = True,
) -> dict[str, float]:
    """Train all parameters of the model in place.

    Statistics of batch normalisation are not gathered on the way: see `gather_statistics`.

    Args:
      model: in training mode.
      step: see `compiled_step`.
      batches: endless, of one shape.
      optimiser: that of the step.
      steps: of the optimiser.
      seed: of what is drawn inside the steps.
      name: beside the progress bar.
      progress: show it.

    Returns:
      The means of the objective's scalars over the last tenth of the steps.

    Raises:
      InputError: a loss that is not finite.
    """
    _, *(trained, rest) = nnx.split(model, nnx.Param, ...)
    # Copies: the step uses up what it is given, and the model keeps its own until the end.
    state = init_state(jax.tree.map(jnp.copy, trained), optimiser, seed)
    last: list[dict[str, Any]] = []
    with tqdm(range(steps), name, unit="step", disable=not progress) as bar:
        for _ in bar:
            batch = {key: jnp.asarray(array) for key, array in next(batches).items()}
            jax.block_until_ready(last[-1:])  # no more than two steps are under way
            started = time.perf_counter()
            state, losses = step(state, rest, batch)
            settle(state, started)
            last = [*last, losses][-max(1, steps // 10) :]
    means = {key: float(np.mean([float(losses[key]) for losses in last])) for key in last[0]}
    if not np.isfinite(means["loss"]):
        raise InputError(f"{name}: the loss is {means['loss']} after {steps} steps: lower the learning rate")
    nnx.update(model, state["trained"])
    return means


def autoencoder_batches(cells: Cells, batch_size: int, seed: int) -> Batches:
    """Endless batches of "feature", "crop" and "domain", every laboratory in equal shares in each.

    So that no laboratory is missing where their means are compared.
    """
    domains = cells.domains
    arrays = {
        "feature": Places(cells.features, cells.training),
        "crop": Places(cells.crops, cells.training),
        "domain": domains,
    }
    return array_batches(arrays, batch_size, seed, domains.tolist())


def image_target(crops: UInt8[AnyArray, "b s s 3"], size: int) -> Float[Array, "b t t 3"]:
    """Crops of 0..255 as images of 0..1, at a side that theirs is a multiple of."""
    batch, side, _, channels = crops.shape
    parts = side // size
    images = jnp.asarray(crops, jnp.float32) / 255
    return images.reshape(batch, size, parts, size, parts, channels).mean(axis=(2, 4))


def gather_statistics(model: nnx.Module, batches: Iterator[Mapping[str, np.ndarray]], name: str, count: int) -> None:
    """Running statistics of a trained encoder's batch normalisation, then evaluation mode.

    Args:
      model: in training mode; its `encode` is called with the batches' array `name`.
      batches: as in the training.
      name: of the model's input.
      count: of batches; with a momentum of 0.1 some fifty.
    """

    @nnx.jit
    def see(model: Any, x: jax.Array) -> None:
        model.encode(x)

    for _ in range(count):
        see(model, jnp.asarray(next(batches)[name], jnp.float32))
    model.eval()


def encode_all(encode: Any, model: nnx.Module, rows: Any, batch_size: int) -> np.ndarray:
    """`encode(model, batch)` of all rows, fp32, in batches of one shape.

    Args:
      encode: a jitted function of a model and a batch in float32.
      model: its model.
      rows: anything with a length and arrays by whole number.
      batch_size: rows a step.
    """
    parts = []
    for start in range(0, len(rows), batch_size):
        batch = [rows[place] for place in range(start, min(start + batch_size, len(rows)))]
        padded = np.stack(batch + batch[-1:] * (batch_size - len(batch))).astype(np.float32)
        parts.append(np.asarray(encode(model, padded))[: len(batch)])
    return np.concatenate(parts)
