"""The loop both trainings share: compiled steps, metrics, checkpoints, and going on where a killed run stopped."""

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array
from tqdm.auto import tqdm

from dorl_jax.errors import InputError
from dorl_jax.parallel import make_mesh, on_every_device, parameter_shardings, place, shard_batch
from dorl_jax.training.checkpoints import TrainingCheckpoints
from dorl_jax.training.metrics import MetricsFile
from dorl_jax.training.step import LossFunction, init_state, make_step

logger = logging.getLogger(__name__)


@runtime_checkable
class BatchIterator(Protocol):
    """An endless iterator of batches whose position can be saved (Grain's)."""

    def __next__(self) -> Mapping[str, np.ndarray]: ...

    def get_state(self) -> Any: ...

    def set_state(self, state: Any) -> None: ...


@dataclass(frozen=True)
class LoopSettings:
    """Length and bookkeeping of a training.

    Attributes:
      steps: optimiser steps in all.
      log_every: steps between rows of `metrics.csv`.
      checkpoint_every: steps between checkpoints.
      seed: of what is drawn inside the step.
    """

    steps: int
    log_every: int = 20
    checkpoint_every: int = 200
    seed: int = 0


def train(
    model: nnx.Module,
    trainable: nnx.filterlib.Filter,
    loss_function: LossFunction,
    optimiser: optax.GradientTransformation,
    schedule: optax.Schedule,
    batches: BatchIterator,
    settings: LoopSettings,
    folder: Path,
    *,
    name: str,
    progress: bool = True,
) -> None:
    """Train the model in place.

    State goes to `folder/checkpoints`, metrics to `folder/metrics.csv`. If there is a checkpoint, the training goes on
    from it and ends with the same parameters as one that was not interrupted.

    Args:
      model: its parameters are replaced by the trained ones at the end.
      trainable: NNX filter of what trains; no gradient is computed for the rest.
      loss_function: (model, batch, key) -> scalars, of which "loss" is minimised.
      optimiser: the optimiser.
      schedule: its learning rate, for the metrics.
      batches: endless.
      settings: see there.
      folder: of this training.
      name: shown beside the progress bar.
      progress: show one.

    Raises:
      InputError: the loss is not finite, or there are several processes.
    """
    if jax.process_count() > 1:
        raise InputError("training runs in one process, over all its devices; several processes are not supported")
    mesh = make_mesh()
    graph, *(trained, rest) = nnx.split(model, trainable, ...)
    initial = partial(init_state, optimiser=optimiser, seed=settings.seed)
    shardings = parameter_shardings(jax.eval_shape(initial, trained), mesh)
    # Copies: what the step is given it uses up, and the model keeps its own until the end.
    state = jax.jit(initial, out_shardings=shardings)(place(jax.tree.map(jnp.copy, trained), mesh))
    rest = place(rest, mesh)
    step = make_step(graph, loss_function, optimiser)
    compiled = jax.jit(step, donate_argnums=0, out_shardings=(shardings, on_every_device(mesh)))
    checkpoints = TrainingCheckpoints(folder / "checkpoints")
    first = 0
    restored = checkpoints.restore(_plain(state))
    if restored is not None:
        state = _typed(restored[0], state)
        batches.set_state(restored[1])
        first = int(state["step"])
        logger.info("%s: going on after step %d", name, first)
    metrics = MetricsFile(folder / "metrics.csv", first)
    waiting: list[dict[str, Array]] = []
    images, since = 0, time.perf_counter()
    bar = tqdm(range(first, settings.steps), name, settings.steps, initial=first, unit="step", disable=not progress)
    for index in bar:
        batch = shard_batch(next(batches), mesh)
        state, losses = compiled(state, rest, batch)
        waiting.append(losses)
        images += len(next(iter(batch.values())))
        done = index + 1
        if done % settings.log_every == 0 or done == settings.steps:
            row = _mean(waiting)  # the only place that waits for the device
            _check_finite(row, done, name)
            speed = images / (time.perf_counter() - since)
            metrics.append(done, {**row, "learning_rate": float(schedule(index)), "images_per_second": speed})
            bar.set_postfix({key: f"{value:.3f}" for key, value in row.items()}, refresh=False)
            waiting, images, since = [], 0, time.perf_counter()
        if done % settings.checkpoint_every == 0 and done < settings.steps:
            if waiting:  # never keep what comes of a broken step
                _check_finite(_mean(waiting), done, name)
            checkpoints.save(done, _plain(state), batches.get_state())
    if first < settings.steps:
        checkpoints.save(settings.steps, _plain(state), batches.get_state())
    checkpoints.close()
    nnx.update(model, state["trained"])


def _plain(state: dict[str, Any]) -> dict[str, Any]:
    """The state's arrays under numbers: Orbax keeps plain trees only."""
    return {"leaves": {f"{index:05d}": leaf for index, leaf in enumerate(jax.tree.leaves(state))}}


def _typed(plain: dict[str, Any], like: dict[str, Any]) -> dict[str, Any]:
    leaves = [plain["leaves"][name] for name in sorted(plain["leaves"])]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _mean(rows: list[dict[str, Array]]) -> dict[str, float]:
    return {name: float(np.mean([np.asarray(row[name]) for row in rows])) for name in rows[0]}


def _check_finite(row: Mapping[str, float], step: int, name: str) -> None:
    bad = [key for key, value in row.items() if not math.isfinite(value)]
    if bad:
        raise InputError(
            f"{name}: {', '.join(bad)} is not finite before step {step}: "
            "lower the learning rate and do the stage again (--redo); the checkpoints before it are kept until then"
        )
