"""Layers shared by the models, with PyTorch's defaults where the original code relied on them."""

import math
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

Initializer = Callable[..., Array]
AnyArray = Array | np.ndarray  # what a public entry takes: on the device or on the host


class Buffer(nnx.Variable):
    """A tensor that belongs to a model but is never trained."""


def exact_gelu(x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
    """x * Phi(x) with the error function, not its tanh approximation."""
    return jax.nn.gelu(x, approximate=False)


def torch_uniform(fan_in: int) -> Initializer:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)): what PyTorch gives weights and biases of linear and convolution layers."""
    bound = 1 / math.sqrt(fan_in)

    def init(key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
        # Drawn flat: the same numbers, but on CPUs XLA compiles a draw of several axes ten times slower.
        return jax.random.uniform(key, (math.prod(shape),), dtype, -bound, bound).reshape(shape)

    return init


def linear(
    in_features: int,
    out_features: int,
    *,
    rngs: nnx.Rngs,
    use_bias: bool = True,
    dtype: DTypeLike = jnp.float32,
) -> nnx.Linear:
    """A linear layer with PyTorch's initialisation; parameters fp32, arithmetic in `dtype`."""
    init = torch_uniform(in_features)
    return nnx.Linear(
        in_features, out_features, use_bias=use_bias, dtype=dtype, kernel_init=init, bias_init=init, rngs=rngs
    )


def layer_norm(features: int, epsilon: float, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32) -> nnx.LayerNorm:
    """LayerNorm over the last axis; two-pass variance, because E[x^2] - E[x]^2 loses digits the original keeps."""
    return nnx.LayerNorm(features, epsilon=epsilon, dtype=dtype, use_fast_variance=False, rngs=rngs)


class Mlp(nnx.Module):
    """Two linear layers with an activation between them."""

    def __init__(
        self,
        width: int,
        hidden: int,
        *,
        activation: Callable[[Array], Array] = exact_gelu,
        make_linear: Callable[..., nnx.Linear] = linear,
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


def attend(
    q: Float[Array, "b heads n e"], k: Float[Array, "b heads m e"], v: Float[Array, "b heads m d"]
) -> Float[Array, "b heads n d"]:
    """softmax(q k^T) v; scaling is the caller's. Scores and softmax are fp32 whatever the compute dtype."""
    scores = jnp.einsum("bhne,bhme->bhnm", q, k, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bhnm,bhmd->bhnd", weights, v)


def run_blocks(blocks: Iterable[nnx.Module], x: Array, remat: bool) -> Array:
    """One block behind the other; with `remat` their inside is computed again in the backward pass, not kept."""
    for block in blocks:
        x = _recomputed(block, x) if remat else block(x)
    return x


def _recomputed(block: nnx.Module, x: Array) -> Array:
    # Not nnx.remat: it writes the parameters back into the block, which is refused where they belong to another trace
    # than the block, as those that do not train do in a gradient.
    graph, state = nnx.split(block)
    return jax.checkpoint(lambda state, x: nnx.merge(graph, state)(x))(state, x)
