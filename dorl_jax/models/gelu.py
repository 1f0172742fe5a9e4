"""The GELU of PyTorch, with a gradient of its own."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Float32
from numpy.polynomial import Chebyshev, Polynomial

from dorl_jax.models.rounding import rounded


@jax.custom_vjp
def exact_gelu(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """x * Phi(x) with the error function, not its tanh approximation; computed in fp32, the type of `x`.

    In bf16 CPUs take a polynomial that is within 2e-4 of Phi(x), far below what bf16 rounds away.
    """
    return rounded(_wide(x), x.dtype)


def _wide(x: Array) -> Float32[Array, "*s"]:
    return x.astype(jnp.float32) * _wide_of(x, _distribution, _DISTRIBUTION)


def _forward(x: Array) -> tuple[Array, Array]:
    return _wide(x).astype(x.dtype), x


def _backward(x: Array, grad: Array) -> tuple[Array]:
    """Phi(x) + x phi(x), from x alone: nothing else is kept for it."""
    slope = _wide_of(x, _slope, _SLOPE)
    return ((grad.astype(jnp.float32) * slope).astype(x.dtype),)


exact_gelu.defvjp(_forward, _backward)


def _distribution(x: Array) -> Array:
    # With erf, as in PyTorch: erfc, which JAX's own takes, costs CPUs more than twice as much.
    return 0.5 * (1 + lax.erf(x * math.sqrt(0.5)))


def _slope(x: Array) -> Array:
    return _distribution(x) + x * jnp.exp(-0.5 * x**2) / math.sqrt(2 * math.pi)


def _wide_of(x: Array, exact: Callable[[Array], Array], odd: "_OddPart") -> Float32[Array, "*s"]:
    wide = x.astype(jnp.float32)
    return lax.platform_dependent(wide, cpu=odd, default=exact) if x.dtype == jnp.bfloat16 else exact(wide)


class _OddPart:
    """1/2 + an odd polynomial that is 1/2 at `end`, where it stays: no erf and no exp, and 0 or 1 far out."""

    def __init__(self, function: Callable[[float], float], end: float, degree: int) -> None:
        """Approximate `function` - 1/2, which is odd and tends to 1/2, up to `end`, with `degree` powers of x^2."""

        def rest(square: float) -> float:
            x = math.sqrt(square)
            return ((function(x) - 0.5) / x - 0.5 / end) / (square - end**2)

        inner = Chebyshev.interpolate(np.vectorize(rest), degree - 1, [0, end**2]).convert(kind=Polynomial)
        of_square = Polynomial([0.5 / end]) + Polynomial([-(end**2), 1]) * inner
        self._end, self._coefficients = end, [float(number) for number in of_square.coef]

    def __call__(self, x: Array) -> Array:
        x = jnp.clip(x, -self._end, self._end)
        square, *powers = x * x, *reversed(self._coefficients)
        total = jnp.full_like(x, powers[0])
        for coefficient in powers[1:]:
            total = total * square + coefficient
        return 0.5 + x * total


def _normal_distribution(x: float) -> float:
    return 0.5 * (1 + math.erf(x / math.sqrt(2)))


_DISTRIBUTION = _OddPart(_normal_distribution, end=4.0, degree=7)
_SLOPE = _OddPart(
    lambda x: _normal_distribution(x) + x * math.exp(-0.5 * x**2) / math.sqrt(2 * math.pi), end=4.4, degree=9
)
