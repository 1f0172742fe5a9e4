"""Matrix products that sum in fp32, forward and in their gradients, whatever their operands are.

XLA for CPUs multiplies bf16 quickly only where the sums are asked for in fp32; accelerators sum so anyway. JAX's own
gradient of such a product would multiply the fp32 gradient with the other, bf16 operand, which is slow everywhere:
hence the gradients that are written out here.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

Axes = tuple[int, ...]


def product(a: Array, b: Array, contract: tuple[Axes, Axes], batch: tuple[Axes, Axes] = ((), ())) -> Array:
    """`lax.dot_general` of operands of one type, with sums in fp32 and the result in the operands' type."""
    return lax.dot_general(a, b, (contract, batch), preferred_element_type=jnp.float32).astype(a.dtype)


@jax.custom_vjp
def matmul(x: Float[Array, "*b i"], kernel: Float[Array, "i o"]) -> Float[Array, "*b o"]:
    """x @ kernel, both of one type; so are the gradients."""
    return product(x, kernel, ((x.ndim - 1,), (0,)))


def _matmul_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return matmul(x, kernel), (x, kernel)


def _matmul_backward(saved: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    x, kernel = saved
    rows = tuple(range(x.ndim - 1))
    return product(grad, kernel, ((x.ndim - 1,), (1,))), product(x, grad, (rows, rows))


matmul.defvjp(_matmul_forward, _matmul_backward)


def dot_general(x: Array, kernel: Array, dimensions: Any, **options: Any) -> Array:
    """`matmul` in the form in which `nnx.Linear` calls for it; fp32 is left to `lax.dot_general`."""
    if x.dtype == jnp.float32:
        return lax.dot_general(x, kernel, dimensions, **options)
    return matmul(x, kernel)
