"""Softmax attention with a gradient of its own."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from dorl_jax.models.products import product

_HEADS = ((0, 1), (0, 1))


@jax.custom_vjp
def attend(
    q: Float[Array, "b heads n e"], k: Float[Array, "b heads m e"], v: Float[Array, "b heads m d"]
) -> Float[Array, "b heads n d"]:
    """softmax(q k^T) v; scaling is the caller's. Scores and softmax are fp32 whatever the compute dtype.

    The weights, an array of n x m for every head, are computed again in the backward pass: they are not kept, and the
    forward pass of a training can be as fused as that of inference.
    """
    return product(_weights(q, k).astype(v.dtype), v, ((3,), (2,)), _HEADS)


def _weights(q: Array, k: Array) -> Float[Array, "b heads n m"]:
    scores = lax.dot_general(q, k, (((3,), (3,)), _HEADS), preferred_element_type=jnp.float32)
    return jax.nn.softmax(scores, axis=-1)


def _attend_forward(q: Array, k: Array, v: Array) -> tuple[Array, tuple[Array, Array, Array]]:
    return attend(q, k, v), (q, k, v)


def _attend_backward(saved: tuple[Array, Array, Array], grad: Array) -> tuple[Array, Array, Array]:
    # Behind the barrier nothing is recognised as what the forward pass had computed, and kept after all.
    (q, k, v), grad = lax.optimization_barrier((saved, grad))
    weights = _weights(q, k)
    of_weights = lax.dot_general(grad, v, (((3,), (3,)), _HEADS), preferred_element_type=jnp.float32)
    # They follow from the output and its gradient too, which are smaller; but CPUs are slow at summing what was bf16.
    along_rows = jnp.sum(weights * of_weights, axis=-1, keepdims=True)
    of_scores = (weights * (of_weights - along_rows)).astype(q.dtype)
    return (
        product(of_scores, k, ((3,), (2,)), _HEADS),
        product(of_scores, q, ((2,), (2,)), _HEADS),
        product(weights.astype(v.dtype), grad, ((2,), (2,)), _HEADS),
    )


attend.defvjp(_attend_forward, _attend_backward)
