"""Settings that both trainings share, and a training by them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from flax import nnx

from dorl_jax.config import Settings, as_tree, setting
from dorl_jax.errors import InputError
from dorl_jax.models.compute import set_compute
from dorl_jax.training.loop import BatchIterator, LoopSettings, Observation, train
from dorl_jax.training.optim import adamw, make_schedule
from dorl_jax.training.selection import freeze, show_trained
from dorl_jax.training.step import LossFunction, StepSettings

# Whatever these are, the same parameters are trained: a training may go on with others.
INDIFFERENT = ("workers", "wandb", "keep", "log_every")


@dataclass(frozen=True)
class TrainingSettings(Settings):
    """Optimiser, schedule, precision and bookkeeping of a training."""

    steps: int = setting(300, "optimiser steps", least=1)
    batch_size: int = setting(16, "cells a step, over all devices and processes", least=1)
    learning_rate: float = setting(1e-4, "peak learning rate", least=0)
    weight_decay: float = setting(0.05, "AdamW's weight decay", least=0)
    decayed: Literal["all", "matrices"] = setting(
        "all", "what decays: all parameters, as the original; or not norms and biases"
    )
    warmup_steps: int = setting(50, "steps of linear warm-up (at most half of all), before the cosine to 0", least=0)
    schedule: Literal["step", "epoch"] = setting(
        "step", "the learning rate changes at every step, or once an epoch, as the original's for SAM"
    )
    average: float = setting(
        0.0, "decay of a moving average of the parameters, which is then the result; 0 for none", least=0, most=1
    )
    accumulate: int = setting(
        1, "parts in which a batch is computed, one after the other, where it does not fit", least=1
    )
    dtype: Literal["float32", "bfloat16"] = setting(
        "float32", "type of the arithmetic; parameters and optimiser are float32"
    )
    remat: bool = setting(False, "compute the inside of blocks again in the backward pass instead of keeping it")
    freeze: tuple[str, ...] = setting((), "names of parameters that do not train, * for anything: ['*.pos_embed']")
    model_axis: int = setting(1, "devices that share one copy of the parameters, each holding a part (FSDP)", least=1)
    validation: float = setting(
        0.0, "share of the cells of each laboratory that is kept from training, to select by", least=0, most=1
    )
    select: str = setting("", "number of validation.csv that tells the best checkpoint; empty for the last one")
    patience: int = setting(
        0, "looks at the model without a better `select` after which training ends; 0 for never", least=0
    )
    divergence: float = setting(
        10.0, "a mean loss above this many times the least one so far ends the training; 0 for never", least=0
    )
    log_every: int = setting(20, "steps between rows of metrics.csv", least=1)
    checkpoint_every: int = setting(200, "steps between checkpoints, and between looks at the model", least=1)
    keep: int = setting(2, "newest checkpoints that are kept, beside the best", least=1)
    wandb: str = setting("", "project of Weights & Biases to report to; empty for none")
    workers: int = setting(-1, "processes that prepare batches ahead; 0 for threads, -1 for half the cores", least=-1)
    seed: int = setting(0, "seed of weights, order and everything that is drawn", least=0, most=2**32 - 1)


def train_as_set(
    model: nnx.Module,
    trainable: nnx.filterlib.Filter,
    objective: LossFunction,
    batches: BatchIterator,
    settings: TrainingSettings,
    out: Path,
    *,
    name: str,
    ids: Sequence[str],
    data: str,
    mode: Literal["max", "min"],
    observe: Callable[[Any], Observation] | None,
    progress: bool,
) -> None:
    """Train the model in place as the settings say (see `loop.train`), and leave it computing in float32.

    Args:
      model, trainable, objective, batches, name, observe, progress: as for `loop.train`; of what trains
        `settings.freeze` is taken away.
      settings: see there.
      out: folder of the training; the table of what trains goes there, too.
      ids: of the cells it learns from.
      data: fingerprint of all that it learns from.
      mode: whether the greatest or the least of `settings.select` is best.

    Raises:
      InputError, Interrupted: see `loop.train`; a pattern of `settings.freeze` that matches nothing, or parts of a
        batch that are not equal.
    """
    if settings.batch_size % settings.accumulate:
        raise InputError(
            f"a batch of batch_size = {settings.batch_size} cells cannot be computed in accumulate = "
            f"{settings.accumulate} equal parts: take a divisor"
        )
    left = freeze(model, trainable, settings.freeze)
    show_trained(model, left, out)
    epoch_steps = -(-len(ids) // settings.batch_size)
    schedule = make_schedule(
        settings.schedule, settings.learning_rate, settings.warmup_steps, settings.steps, epoch_steps
    )
    loop = LoopSettings(
        steps=settings.steps,
        log_every=settings.log_every,
        checkpoint_every=settings.checkpoint_every,
        seed=settings.seed,
        keep=settings.keep,
        select=settings.select,
        mode=mode,
        patience=settings.patience,
        divergence=settings.divergence,
        model_axis=settings.model_axis,
        step=StepSettings(settings.accumulate, settings.average),
    )
    signature = {key: value for key, value in as_tree(settings).items() if key not in INDIFFERENT}
    set_compute(model, dtype=settings.dtype, remat=settings.remat)
    train(
        model,
        left,
        objective,
        adamw(schedule, settings.weight_decay, settings.decayed),
        schedule,
        batches,
        loop,
        out,
        name=name,
        signature=signature | {"data": data},
        ids=ids,
        observe=observe,
        wandb=settings.wandb,
        progress=progress,
    )
    set_compute(model, dtype="float32", remat=False)
