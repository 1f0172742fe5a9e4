"""How a model computes: in which type, and what it keeps for the backward pass. Its weights are the same."""

from collections.abc import Iterator
from typing import Any, TypeVar

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
    for _, module, dtype in _maps(model):
        module.kernel.set_value(module.kernel[...].astype(dtype))
    return model


def with_rounded_kernels(model: nnx.Module, state: nnx.State) -> nnx.State:
    """The state, some of the model's, with kernels as `round_kernels` holds them; model and state stay as they are."""
    kernels = {(*path, "kernel"): dtype for path, _, dtype in _maps(model)}
    return nnx.from_flat_state(
        (path, leaf.replace(leaf[...].astype(kernels[path])) if path in kernels else leaf)
        for path, leaf in nnx.to_flat_state(state)
    )


def _maps(model: nnx.Module) -> Iterator[tuple[tuple[Any, ...], Any, Any]]:
    """Path, module and type of all that multiply by a kernel in a type of their own."""
    for path, module in nnx.iter_modules(model):
        known = vars(module)
        if "kernel" in known and known.get("dtype") is not None:
            yield path, module, known["dtype"]
