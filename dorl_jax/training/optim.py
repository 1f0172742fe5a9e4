"""Optimiser and learning-rate schedule of both trainings."""

import optax


def warmup_cosine(peak: float, warmup_steps: int, total_steps: int) -> optax.Schedule:
    """Linear from 0 to `peak` over the warm-up, then cosine to 0 at `total_steps`."""
    warmup_steps = min(warmup_steps, max(1, total_steps // 2))  # a short run still reaches its peak
    return optax.warmup_cosine_decay_schedule(0.0, peak, warmup_steps, total_steps)


def adamw(schedule: optax.Schedule, weight_decay: float) -> optax.GradientTransformation:
    """AdamW (betas 0.9, 0.999, eps 1e-8) with decay on every tensor, as PyTorch's."""
    return optax.adamw(schedule, b1=0.9, b2=0.999, eps=1e-8, weight_decay=weight_decay)
