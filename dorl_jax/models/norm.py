"""Layer normalisation with a gradient of its own."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def normalise(
    x: Float[Array, "*b c"], scale: Float[Array, " c"], bias: Float[Array, " c"], epsilon: float
) -> Float[Array, "*b c"]:
    """(x - mean) / sqrt(variance + epsilon) * scale + bias over the last axis, in fp32; the type of `x`.

    Variance in a second pass, because E[x^2] - E[x]^2 loses digits that the original keeps.
    """
    return _forward(x, scale, bias, epsilon)[0]


def _forward(
    x: Array, scale: Array, bias: Array, epsilon: float
) -> tuple[Array, tuple[Array, Array, Array, Array, Array]]:
    wide = x.astype(jnp.float32)
    mean = jnp.mean(wide, axis=-1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.mean((wide - mean) ** 2, axis=-1, keepdims=True) + epsilon)
    y = (wide - mean) * (inverse * scale.astype(jnp.float32)) + bias.astype(jnp.float32)
    return y.astype(x.dtype), (x, mean, inverse, scale, bias)


def _backward(
    epsilon: float, saved: tuple[Array, Array, Array, Array, Array], grad: Array
) -> tuple[Array, Array, Array]:
    x, mean, inverse, scale, bias = saved
    rows = tuple(range(x.ndim - 1))
    standard, wide = (x.astype(jnp.float32) - mean) * inverse, grad.astype(jnp.float32)
    scaled = wide * scale.astype(jnp.float32)
    along = jnp.mean(scaled * standard, axis=-1, keepdims=True)
    of_x = inverse * (scaled - jnp.mean(scaled, axis=-1, keepdims=True) - standard * along)
    of_scale, of_bias = jnp.sum(wide * standard, axis=rows), jnp.sum(wide, axis=rows)
    return of_x.astype(x.dtype), of_scale.astype(scale.dtype), of_bias.astype(bias.dtype)


normalise.defvjp(_forward, _backward)


class LayerNorm(nnx.LayerNorm):
    """`nnx.LayerNorm` over the last axis, by `normalise`."""

    def __call__(self, x: Float[Array, "*b c"], *, mask: Any = None) -> Float[Array, "*b c"]:
        assert self.scale is not None
        assert self.bias is not None
        return normalise(x.astype(self.dtype), self.scale[...], self.bias[...], self.epsilon)


def layer_norm(features: int, epsilon: float, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32) -> LayerNorm:
    """LayerNorm over the last axis; parameters fp32, result in `dtype`."""
    return LayerNorm(features, epsilon=epsilon, dtype=dtype, rngs=rngs)
