"""Settings that both trainings share."""

from dataclasses import dataclass
from typing import Any, Literal

from dorl_jax.config import as_tree, setting
from dorl_jax.training.loop import LoopSettings
from dorl_jax.training.step import StepSettings

# Whatever these are, the same parameters are trained: a training may go on with others.
INDIFFERENT = ("workers", "wandb", "keep", "log_every")


@dataclass(frozen=True)
class TrainingSettings:
    """Optimiser, schedule, precision and bookkeeping of a training."""

    steps: int = setting(300, "optimiser steps")
    batch_size: int = setting(16, "cells a step, over all devices and processes")
    learning_rate: float = setting(1e-4, "peak learning rate")
    weight_decay: float = setting(0.05, "AdamW's weight decay")
    decayed: Literal["all", "matrices"] = setting(
        "all", "what decays: all parameters, as the original; or not norms and biases"
    )
    warmup_steps: int = setting(50, "steps of linear warm-up (at most half of all), before the cosine to 0")
    schedule: Literal["step", "epoch"] = setting(
        "step", "the learning rate changes at every step, or once an epoch, as the original's for SAM"
    )
    average: float = setting(0.0, "decay of a moving average of the parameters, which is then the result; 0 for none")
    accumulate: int = setting(1, "parts in which a batch is computed, one after the other, where it does not fit")
    dtype: Literal["float32", "bfloat16"] = setting(
        "float32", "type of the arithmetic; parameters and optimiser are float32"
    )
    remat: bool = setting(False, "compute the inside of blocks again in the backward pass instead of keeping it")
    freeze: tuple[str, ...] = setting((), "names of parameters that do not train, * for anything: ['*.pos_embed']")
    model_axis: int = setting(1, "devices that share one copy of the parameters, each holding a part (FSDP)")
    validation: float = setting(0.0, "share of the cells of each laboratory that is kept from training, to select by")
    select: str = setting("", "number of validation.csv that tells the best checkpoint; empty for the last one")
    patience: int = setting(0, "looks at the model without a better `select` after which training ends; 0 for never")
    divergence: float = setting(
        10.0, "a mean loss above this many times the least one so far ends the training; 0 for never"
    )
    log_every: int = setting(20, "steps between rows of metrics.csv")
    checkpoint_every: int = setting(200, "steps between checkpoints, and between looks at the model")
    keep: int = setting(2, "newest checkpoints that are kept, beside the best")
    wandb: str = setting("", "project of Weights & Biases to report to; empty for none")
    workers: int = setting(-1, "processes that prepare batches ahead; 0 for threads, -1 for half the cores")
    seed: int = setting(0, "seed of weights, order and everything that is drawn")

    def loop(self, mode: Literal["max", "min"]) -> LoopSettings:
        """Those of the loop.

        Args:
          mode: whether the greatest or the least of `select` is best.
        """
        return LoopSettings(
            steps=self.steps,
            log_every=self.log_every,
            checkpoint_every=self.checkpoint_every,
            seed=self.seed,
            keep=self.keep,
            select=self.select,
            mode=mode,
            patience=self.patience,
            divergence=self.divergence,
            model_axis=self.model_axis,
            step=StepSettings(self.accumulate, self.average),
        )

    def signature(self, data: str) -> dict[str, Any]:
        """What a training shares with the checkpoints it goes on from.

        Args:
          data: fingerprint of the cells it learns from.
        """
        tree = {name: value for name, value in as_tree(self).items() if name not in INDIFFERENT}
        return tree | {"data": data}
