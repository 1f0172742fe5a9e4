"""Layers shared by the models, with PyTorch's defaults where the original code relied on them."""

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dorl_jax.models.products import add_bias, matmul

Initializer = Callable[..., Array]
AnyArray = Array | np.ndarray  # what a public entry takes: on the device or on the host


class Buffer(nnx.Variable):
    """A tensor that belongs to a model but is never trained."""


@jax.custom_vjp
def exact_gelu(x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
    """x * Phi(x) with the error function, not its tanh approximation; computed in fp32."""
    wide = x.astype(jnp.float32)
    # With erf, as in PyTorch: erfc, which JAX's own takes, costs CPUs more than twice as much.
    return (0.5 * wide * (1 + lax.erf(wide * math.sqrt(0.5)))).astype(x.dtype)


def _gelu_forward(x: Array) -> tuple[Array, Array]:
    return exact_gelu(x), x


def _gelu_backward(x: Array, grad: Array) -> tuple[Array]:
    """Phi(x) + x phi(x), from x alone: nothing else is kept for it."""
    wide = x.astype(jnp.float32)
    density = jnp.exp(-0.5 * wide**2) / math.sqrt(2 * math.pi)
    slope = 0.5 * (1 + lax.erf(wide * math.sqrt(0.5))) + wide * density
    return ((grad.astype(jnp.float32) * slope).astype(x.dtype),)


exact_gelu.defvjp(_gelu_forward, _gelu_backward)


def torch_uniform(fan_in: int) -> Initializer:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)): what PyTorch gives weights and biases of linear and convolution layers."""
    bound = 1 / math.sqrt(fan_in)

    def init(key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
        # Drawn flat: the same numbers, but on CPUs XLA compiles a draw of several axes ten times slower.
        return jax.random.uniform(key, (math.prod(shape),), dtype, -bound, bound).reshape(shape)

    return init


class Linear(nnx.Linear):
    """`nnx.Linear` by `products.matmul`."""

    def __call__(self, inputs: Float[Array, "*b i"], out_sharding: Any = None) -> Float[Array, "*b o"]:
        dtype = self.dtype or inputs.dtype
        y = matmul(inputs.astype(dtype), self.kernel[...].astype(dtype))
        return y if self.bias is None else add_bias(y, self.bias[...].astype(dtype))


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
