"""Layers shared by the models, with PyTorch's defaults where the original code relied on them."""

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dorl_jax.models.gelu import exact_gelu
from dorl_jax.models.products import affine, matmul

Initializer = Callable[..., Array]
AnyArray = Array | np.ndarray  # what a public entry takes: on the device or on the host


class Buffer(nnx.Variable):
    """A tensor that belongs to a model but is never trained."""


def torch_uniform(fan_in: int) -> Initializer:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)): what PyTorch gives weights and biases of linear and convolution layers."""
    bound = 1 / math.sqrt(fan_in)

    def init(key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
        # Drawn flat: the same numbers, but on CPUs XLA compiles a draw of several axes ten times slower.
        return jax.random.uniform(key, (math.prod(shape),), dtype, -bound, bound).reshape(shape)

    return init


class Linear(nnx.Linear):
    """`nnx.Linear` by the products of `products.py`."""

    def __call__(self, inputs: Float[Array, "*b i"], out_sharding: Any = None) -> Float[Array, "*b o"]:
        dtype = self.dtype or inputs.dtype
        x, kernel = inputs.astype(dtype), self.kernel[...].astype(dtype)
        return matmul(x, kernel) if self.bias is None else affine(x, kernel, self.bias[...])


def linear(
    in_features: int,
    out_features: int,
    *,
    rngs: nnx.Rngs,
    use_bias: bool = True,
    dtype: DTypeLike = jnp.float32,
) -> Linear:
    """A linear layer with PyTorch's initialisation; parameters fp32, arithmetic in `dtype`."""
    init = torch_uniform(in_features)
    return Linear(
        in_features, out_features, use_bias=use_bias, dtype=dtype, kernel_init=init, bias_init=init, rngs=rngs
    )


class Mlp(nnx.Module):
    """Two linear layers with an activation between them."""

    def __init__(
        self,
        width: int,
        hidden: int,
        *,
        activation: Callable[[Array], Array] = exact_gelu,
        make_linear: Callable[..., Linear] = linear,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ) -> None:
        self.lin1 = make_linear(width, hidden, rngs=rngs, dtype=dtype)
        self.lin2 = make_linear(hidden, width, rngs=rngs, dtype=dtype)
        self.activation = activation

    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
        return self.lin2(self.activation(self.lin1(x)))


def split_heads(x: Float[Array, "b n c"], heads: int) -> Float[Array, "b heads n d"]:
    """Channels into heads of equal size."""
    batch, tokens, channels = x.shape
    return x.reshape(batch, tokens, heads, channels // heads).transpose(0, 2, 1, 3)


def merge_heads(x: Float[Array, "b heads n d"]) -> Float[Array, "b n c"]:
    """The inverse of `split_heads`."""
    batch, heads, tokens, size = x.shape
    return x.transpose(0, 2, 1, 3).reshape(batch, tokens, heads * size)


def run_blocks(blocks: Iterable[nnx.Module], x: Array, remat: bool) -> Array:
    """One block behind the other; with `remat` their inside is computed again in the backward pass, not kept."""
    run = jax.checkpoint(_run_block, static_argnums=0) if remat else _run_block
    for block in blocks:
        graph, state = nnx.split(block)
        x = run(graph, state, x)
    return x


# Blocks of one structure are traced and lowered once. Not nnx.jit or nnx.remat: they write the parameters back into the
# block, which is refused where these are of another trace than it, as those that do not train are in a gradient.
@partial(jax.jit, static_argnums=0)
def _run_block(graph: nnx.GraphDef[nnx.Module], state: nnx.State, x: Array) -> Array:
    return nnx.merge(graph, state)(x)
