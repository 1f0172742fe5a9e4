"""The loop both trainings share: compiled steps on a mesh, what is seen of them, and going on where a run stopped."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tqdm.auto import tqdm

from dorl_jax.allocator import return_free_memory
from dorl_jax.compiling import compiler_options
from dorl_jax.errors import InputError
from dorl_jax.models.compute import with_rounded_kernels
from dorl_jax.parallel import (
    is_main,
    local_copy,
    make_mesh,
    memory_in_use,
    on_every_device,
    parameter_shardings,
    place,
    shard_batch,
)
from dorl_jax.training.pace import settle
from dorl_jax.training.resume import TrainingCheckpoints
from dorl_jax.training.step import LossFunction, StepSettings, TrainState, init_state, make_step
from dorl_jax.training.stopping import Interrupted, StopRequest
from dorl_jax.training.tracking import Trackers, open_trackers
from dorl_jax.training.watch import LossWatch

logger = logging.getLogger(__name__)


@runtime_checkable
class BatchIterator(Protocol):
    """An endless iterator of batches whose position can be saved (Grain's).

    An array "place", the number of each row's cell, stays on the host: it names the cells of a step that breaks.
    """

    def __next__(self) -> Mapping[str, np.ndarray]: ...

    def get_state(self) -> Any: ...

    def set_state(self, state: Any) -> None: ...


class Observation(NamedTuple):
    """What a look at the model gave.

    Attributes:
      numbers: for `validation.csv`.
      pictures: uint8 (h, w, 3) by name.
    """

    numbers: Mapping[str, float]
    pictures: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class LoopSettings:
    """Length and bookkeeping of a training.

    Attributes:
      steps: optimiser steps in all.
      log_every: steps between rows of `metrics.csv`.
      checkpoint_every: steps between checkpoints, and between looks at the model.
      seed: of what is drawn inside the step.
      keep: number of newest checkpoints that are kept.
      select: the number of the observation that tells the best checkpoint, which is kept, too, and is what the training
        ends with; "" to end with the last step.
      mode: whether the greatest or the least is best.
      patience: looks without a better number after which the training ends; 0 for never.
      divergence: see `LossWatch`.
      model_axis: devices over which parameters are split (see `parallel.make_mesh`).
      step: see there.
    """

    steps: int
    log_every: int = 20
    checkpoint_every: int = 200
    seed: int = 0
    keep: int = 2
    select: str = ""
    mode: Literal["max", "min"] = "max"
    patience: int = 0
    divergence: float = 0.0
    model_axis: int = 1
    step: StepSettings = field(default_factory=StepSettings)


@dataclass
class _Progress:
    """What a training knows beside its arrays; plain values."""

    data: Any
    best: float | None = None
    stale: int = 0
    ended: bool = False
    least: float | None = None

    def judge(self, numbers: Mapping[str, float], settings: LoopSettings) -> bool:
        """Take the numbers of a look at the model; whether they are the best so far."""
        if not settings.select:
            return False
        if settings.select not in numbers:
            raise InputError(f"select: no number {settings.select!r} is observed; {', '.join(numbers)} are")
        score = float(numbers[settings.select])
        sign = 1 if settings.mode == "max" else -1
        if self.best is None or sign * score > sign * self.best:
            self.best, self.stale = score, 0
            return True
        self.stale += 1
        self.ended = bool(settings.patience) and self.stale >= settings.patience
        return False


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
    signature: Mapping[str, Any] | None = None,
    ids: Sequence[str] | None = None,
    observe: Callable[[Any], Observation] | None = None,
    wandb: str = "",
    progress: bool = True,
) -> None:
    """Train the model in place.

    State goes to `folder/checkpoints`, what is measured to `folder/metrics.csv`, `validation.csv`, `tensorboard` and
    `pictures`. If there is a checkpoint, the training goes on from it and ends with the same parameters, bit for bit on
    the same number of devices, as one that was not interrupted. Every process of a run calls this alike.

    Args:
      model: its parameters are replaced by the trained ones at the end; they lie on one device then.
      trainable: NNX filter of what trains; no gradient is computed for the rest.
      loss_function: (model, batch, key) -> scalars, of which "loss" is minimised.
      optimiser: the optimiser.
      schedule: its learning rate, for the metrics.
      batches: endless; this process's share of each.
      settings: see there.
      folder: of this training.
      name: shown beside the progress bar.
      signature: plain values that say what is trained on what; a checkpoint of another signature is refused.
      ids: of the rows that "place" in a batch counts.
      observe: looks at the model every `checkpoint_every` steps, at the averaged parameters if there are such.
      wandb: project of Weights & Biases to report to; "" for none.
      progress: show a bar.

    Raises:
      InputError: a loss that is not finite or diverges; a checkpoint of another training, or one that cannot be
        written.
      Interrupted: SIGTERM; the state was saved.
    """
    mesh = make_mesh(settings.model_axis)
    graph, *(trained, rest) = nnx.split(model, trainable, ...)
    initial = partial(init_state, optimiser=optimiser, seed=settings.seed, settings=settings.step)
    shardings = parameter_shardings(jax.eval_shape(initial, trained), mesh)
    # Copies: what the step is given it uses up, and the model keeps its own until the end.
    state: TrainState = jax.jit(initial, out_shardings=shardings)(place(jax.tree.map(jnp.copy, trained), mesh))
    # What does not train is converted once rather than in every step, and on an accelerator takes half the memory.
    rest = place(with_rounded_kernels(model, rest), mesh)
    step = make_step(graph, loss_function, optimiser, settings.step)
    compiled = jax.jit(
        step,
        donate_argnums=0,
        out_shardings=(shardings, on_every_device(mesh)),
        compiler_options=compiler_options(),
    )

    checkpoints = TrainingCheckpoints(
        folder / "checkpoints", signature or {}, keep=settings.keep, keep_best=bool(settings.select)
    )
    with checkpoints:
        known = _Progress(batches.get_state())
        restored = checkpoints.restore(state)
        if restored is not None:
            state, known = restored[0], _Progress(**restored[1])
            batches.set_state(known.data)
        first = int(jax.device_get(state["step"]))
        if first:
            logger.info("%s: going on behind step %d", name, first)
        trackers = Trackers([])
        if is_main():
            trackers = open_trackers(folder, first, name=name, settings=signature or {}, wandb=wandb)
        rates = np.asarray(jax.vmap(schedule)(jnp.arange(settings.steps)))
        watch = LossWatch(name, settings.divergence, ids, known.least)

        def look(done: int) -> bool:
            """Observe the model, and judge it; whether it is the best so far."""
            if observe is None:
                return False
            shown = observe(nnx.merge(graph, _result(state), rest))
            watch.look(done, shown.numbers, checkpoints.newest())
            trackers.validated(done, shown.numbers)
            for title, picture in shown.pictures.items():
                trackers.picture(done, title, picture)
            return known.judge(shown.numbers, settings)

        def save(done: int, best: bool) -> None:
            known.data, known.least = batches.get_state(), watch.least
            checkpoints.save(done, state, vars(known), best=best)

        return_free_memory()  # what reading the models took for a moment
        images, since = 0, time.perf_counter()
        todo = range(first, first if known.ended else settings.steps)
        bar = tqdm(todo, name, settings.steps, initial=first, unit="step", disable=not progress or not is_main())
        with StopRequest() as stop, trackers, bar:
            for index in bar:
                batch = dict(next(batches))
                places = batch.pop("place", None)
                images += len(next(iter(batch.values()))) * jax.process_count()
                started = time.perf_counter()
                state, losses = compiled(state, rest, shard_batch(batch, mesh))
                settle(state, started)
                done = index + 1
                last = done == settings.steps
                watch.add(done, losses, places)
                if last or done % settings.log_every == 0:
                    row = watch.means(done, checkpoints.newest())  # waits for the device
                    row["images_per_second"] = images / (time.perf_counter() - since)
                    trackers.log(done, {**row, "learning_rate": float(rates[index]), **memory_in_use()})
                    bar.set_postfix(loss=f"{row['loss']:.3f}", refresh=False)
                    images, since = 0, time.perf_counter()
                asked = stop.reached(done)
                due = last or done % settings.checkpoint_every == 0
                if due or asked:
                    watch.check(checkpoints.newest())  # never keep what comes of a broken step
                    save(done, best=due and look(done))
                    images, since = 0, time.perf_counter()
                if known.ended:
                    logger.info("%s: ends behind step %d: no better %s since", name, done, settings.select)
                # Also while the last look and checkpoint took their time: no step follows to be stopped behind.
                if asked or ((last or known.ended) and stop.asked):
                    checkpoints.wait()
                    raise Interrupted(f"{name}: stopped behind step {done}, which was saved; the same command goes on")
                if known.ended:
                    break
        checkpoints.wait()
        chosen = checkpoints.best_step()
        if chosen is not None:
            logger.info("%s: the best %s was behind step %d", name, settings.select, chosen)
            best_state = checkpoints.restore(state, chosen)
            assert best_state is not None, "the best state is kept"
            state = best_state[0]
    nnx.update(model, local_copy(_result(state), mesh))


def _result(state: TrainState) -> nnx.State:
    """The parameters that count: the average, if one is kept."""
    return state["average"] if "average" in state else state["trained"]
