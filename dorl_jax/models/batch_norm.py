"""Batch normalisation as PyTorch does it."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

EPSILON = 1e-5
MOMENTUM = 0.1  # the share of the new batch, as PyTorch counts it; Flax counts the share of the past


class BatchNorm(nnx.Module):
    """Normalises every channel (the last axis) by its statistics over all other axes, then scales and shifts.

    In training mode (`model.train()`, the state of a new module) the statistics are the batch's, and the running ones
    are updated in place; in evaluation mode (`model.eval()`) they are the running ones. As in PyTorch, and unlike in
    `nnx.BatchNorm`, the running variance gathers the unbiased variance of the batches, while the batch itself is
    divided by the root of the biased one.

    Parameters and statistics are fp32; `dtype` is that of the output.
    """

    def __init__(self, channels: int, *, dtype: DTypeLike = jnp.float32) -> None:
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))
        self.mean = nnx.BatchStat(jnp.zeros(channels))
        self.var = nnx.BatchStat(jnp.ones(channels))
        self.batches = nnx.BatchStat(jnp.zeros((), jnp.int32))  # unused, as in PyTorch unless its momentum is None
        self.use_running_average = False  # the name that `nnx.Module.train` and `nnx.Module.eval` set
        self.dtype = dtype

    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
        x = x.astype(jnp.float32)
        mean, var = (self.mean[...], self.var[...]) if self.use_running_average else self._batch_statistics(x)
        normal = (x - mean) * jax.lax.rsqrt(var + EPSILON)
        return (normal * self.scale[...] + self.bias[...]).astype(self.dtype)

    def _batch_statistics(self, x: Float[Array, "*b c"]) -> tuple[Float[Array, " c"], Float[Array, " c"]]:
        """Mean and biased variance of the batch, which also move the running statistics."""
        count = x.size // x.shape[-1]
        if count < 2:
            raise ValueError(f"training needs more than one value in each channel, got an input of shape {x.shape}")
        others = tuple(range(x.ndim - 1))
        mean, var = x.mean(others), x.var(others)
        self.mean[...] = (1 - MOMENTUM) * self.mean[...] + MOMENTUM * mean
        self.var[...] = (1 - MOMENTUM) * self.var[...] + MOMENTUM * var * (count / (count - 1))
        self.batches[...] += 1
        return mean, var
