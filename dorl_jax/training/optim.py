"""Optimiser and learning-rate schedules of both trainings."""

from typing import Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array


def warmup_cosine(peak: float, warmup_steps: int, total_steps: int) -> optax.Schedule:
    """Linear from 0 to `peak` over the warm-up, then cosine to 0 at `total_steps`; a single step is at the peak."""
    # A short run still reaches its peak.
    warmup_steps = min(warmup_steps, max(1, total_steps // 2), total_steps - 1)
    return optax.warmup_cosine_decay_schedule(0.0, peak, warmup_steps, total_steps)


def warmup_cosine_by_epoch(peak: float, warmup_steps: int, total_steps: int, epoch_steps: int) -> optax.Schedule:
    """The same shape, but the rate changes between epochs only, as the original's does for LoRA-SAM.

    In warm-up epoch e of w, counted from 0, it is `peak * (e + 1) / w`, so that the first epoch trains; then it falls
    with the cosine of the share of the other epochs that have passed, and is not 0 in the last.

    Args:
      peak: highest rate.
      warmup_steps, total_steps: rounded to whole epochs, at least 1.
      epoch_steps: steps an epoch.
    """
    warmup = max(1, round(min(warmup_steps, total_steps // 2) / epoch_steps))
    total = max(warmup + 1, round(total_steps / epoch_steps))

    def rate(step: Array | int) -> Array:
        epoch = jnp.asarray(step) // epoch_steps
        rising = (epoch + 1) / warmup
        falling = 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip((epoch - warmup) / (total - warmup), 0, 1)))
        return peak * jnp.where(epoch < warmup, rising, falling)

    return rate


def make_schedule(
    kind: Literal["step", "epoch"], peak: float, warmup_steps: int, total_steps: int, epoch_steps: int
) -> optax.Schedule:
    """`warmup_cosine`, or `warmup_cosine_by_epoch`."""
    if kind == "epoch":
        return warmup_cosine_by_epoch(peak, warmup_steps, total_steps, epoch_steps)
    return warmup_cosine(peak, warmup_steps, total_steps)


def adamw(
    schedule: optax.Schedule, weight_decay: float, decayed: Literal["all", "matrices"] = "all"
) -> optax.GradientTransformation:
    """AdamW (betas 0.9, 0.999, eps 1e-8).

    Args:
      schedule: its learning rate.
      weight_decay: times the learning rate.
      decayed: "all" parameters, as PyTorch's default and the original; or "matrices" alone, so that norms and biases
        are left to the loss.
    """

    def matrices(parameters: optax.Params) -> optax.Params:
        return jax.tree.map(lambda x: x.ndim >= 2, parameters)

    mask = matrices if decayed == "matrices" else None
    return optax.adamw(schedule, b1=0.9, b2=0.999, eps=1e-8, weight_decay=weight_decay, mask=mask)
