"""Matrix products that sum in fp32, forward and in their gradients, whatever their operands are.

XLA for CPUs multiplies bf16 quickly only where the sums are asked for in fp32; accelerators sum so anyway. JAX's own
gradient of such a product would multiply the fp32 gradient with the other, bf16 operand, which is slow everywhere:
hence the gradients that are written out here.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32

from dorl_jax.models.rounding import rounded

Axes = tuple[int, ...]


def sums(a: Array, b: Array, contract: tuple[Axes, Axes], batch: tuple[Axes, Axes] = ((), ())) -> Array:
    """`lax.dot_general` with its sums as they are, in fp32."""
    return lax.dot_general(a, b, (contract, batch), preferred_element_type=jnp.float32)


def product(a: Array, b: Array, contract: tuple[Axes, Axes], batch: tuple[Axes, Axes] = ((), ())) -> Array:
    """`sums` of operands of one type, in their type."""
    return sums(a, b, contract, batch).astype(a.dtype)


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
def affine(x: Float[Array, "*b i"], kernel: Float[Array, "i o"], bias: Float32[Array, " o"]) -> Float[Array, "*b o"]:
    """x @ kernel + bias, rounded once to the type of `x` and `kernel`; each gradient of its argument's type."""
    return rounded(_affine_sums(x, kernel, bias), x.dtype)


def _affine_sums(x: Array, kernel: Array, bias: Array) -> Float32[Array, "*b o"]:
    return sums(x, kernel, ((x.ndim - 1,), (0,))) + bias


def _affine_forward(x: Array, kernel: Array, bias: Array) -> tuple[Array, tuple[Array, Array]]:
    return _affine_sums(x, kernel, bias).astype(x.dtype), (x, kernel)


def _affine_backward(saved: tuple[Array, Array], grad: Array) -> tuple[Array, Array, Array]:
    return *_matmul_backward(saved, grad), sum_of_rows(grad)


affine.defvjp(_affine_forward, _affine_backward)


@jax.custom_vjp
def add_bias(x: Float[Array, "*b c"], bias: Float[Array, " c"]) -> Float[Array, "*b c"]:
    """x + bias, both of one type; so are the gradients."""
    return x + bias


def _add_bias_forward(x: Array, bias: Array) -> tuple[Array, None]:
    return add_bias(x, bias), None


def _add_bias_backward(saved: None, grad: Array) -> tuple[Array, Array]:
    return grad, sum_of_rows(grad).astype(grad.dtype)


add_bias.defvjp(_add_bias_forward, _add_bias_backward)


def sum_of_rows(x: Float[Array, "*b c"]) -> Float32[Array, " c"]:
    """The sum over all axes but the last, in fp32."""
    rows = tuple(range(x.ndim - 1))
    if x.dtype == jnp.float32:
        return jnp.sum(x, axis=rows)
    # XLA for CPUs sums bf16 one by one; as a product it does not.
    return sums(jnp.ones(x.shape[:-1], x.dtype), x, (rows, rows))
