"""Matrix products that sum in fp32, forward and in their gradients, whatever their operands are.

XLA for CPUs multiplies bf16 quickly only where the sums are asked for in fp32; accelerators sum so anyway. JAX's own
gradient of such a product would multiply the fp32 gradient with the other, bf16 operand, which is slow everywhere:
hence the gradients that are written out here.
"""

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


@jax.custom_vjp
def add_bias(x: Float[Array, "*b c"], bias: Float[Array, " c"]) -> Float[Array, "*b c"]:
    """x + bias, both of one type; so are the gradients."""
    return x + bias


def _add_bias_forward(x: Array, bias: Array) -> tuple[Array, None]:
    return add_bias(x, bias), None


def _add_bias_backward(saved: None, grad: Array) -> tuple[Array, Array]:
    rows = tuple(range(grad.ndim - 1))
    if grad.dtype == jnp.float32:
        return grad, jnp.sum(grad, axis=rows)
    # XLA for CPUs sums bf16 one by one; as a product it does not.
    return grad, product(jnp.ones(grad.shape[:-1], grad.dtype), grad, (rows, rows))


add_bias.defvjp(_add_bias_forward, _add_bias_backward)
