"""How a model computes: in which type, and what it keeps for the backward pass. Its weights are the same."""

from typing import TypeVar

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

M = TypeVar("M", bound=nnx.Module)


def set_compute(model: M, *, dtype: DTypeLike | None = None, remat: bool | None = None) -> M:
    """Set, in place, how the model and all inside it compute; what is None stays as it is.

    Args:
      model: any of the package's.
      dtype: of the arithmetic, float32 or bfloat16. Parameters stay float32, and so do the scores of attention, the
        masks' logits and the losses.
      remat: compute the inside of every transformer block again in the backward pass (`jax.checkpoint`) instead of
        keeping it: about a third more arithmetic for memory that no longer grows with what a block holds.

    Returns:
      The model.
    """
    for _, module in nnx.iter_modules(model):
        known = vars(module)
        if dtype is not None and "dtype" in known:
            module.dtype = jnp.dtype(dtype)  # type: ignore[attr-defined]
        if remat is not None and "remat" in known:
            module.remat = remat  # type: ignore[attr-defined]
    return model


def round_kernels(model: M) -> M:
    """Hold, in place, the kernels of all maps in the type in which they are multiplied: not a bit of an output changes.

    In bf16 it spares every call the conversion of all weights and
    halves their memory. For inference: what was rounded away is gone, so that the model neither trains nor is saved.
    Merge LoRA updates before, not behind it.
    """
    for _, module in nnx.iter_modules(model):
        known = vars(module)
        if "kernel" in known and known.get("dtype") is not None:
            module.kernel.set_value(module.kernel[...].astype(module.dtype))  # type: ignore[attr-defined]
    return model
