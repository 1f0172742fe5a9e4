"""Softmax attention with a gradient of its own, which never holds more scores than fit."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from dorl_jax.models.products import product, sums

_HEADS = ((0, 1), (0, 1))
# Scores of one head and image that are held at once: all of a window's or of a small grid's, 512 rows of 4096 tokens'.
MOST_SCORES = 2**21


@jax.custom_vjp
def attend(
    q: Float[Array, "b heads n e"], k: Float[Array, "b heads m e"], v: Float[Array, "b heads m d"]
) -> Float[Array, "b heads n d"]:
    """softmax(q k^T) v; scaling is the caller's. Scores and softmax are fp32 whatever the compute dtype.

    Up to `MOST_SCORES` the weights are kept for the backward pass. Beyond it both passes go through the queries part by
    part and the backward pass computes them again, so that an array of n x m never exists.
    """
    parts = parts_of(q.shape[2], k.shape[2])
    if parts == 1:
        return _attend(q, k, v)
    return _joined(lax.map(lambda rows: _attend(rows, k, v), _split(q, parts)))


def _attend(q: Array, k: Array, v: Array) -> Array:
    return _mixed(_powers(q, k), v)


def _mixed(powers: Float[Array, "b heads n m"], v: Array) -> Array:
    # Divided by the sums at last, where there are fewer numbers: on CPUs a third less time than with a whole softmax.
    mixed = sums(powers.astype(v.dtype), v, ((3,), (2,)), _HEADS)
    return (mixed / jnp.sum(powers, axis=-1, keepdims=True)).astype(v.dtype)


def _powers(q: Array, k: Array) -> Float[Array, "b heads n m"]:
    """exp(scores), each row up to a factor that makes its largest 1."""
    scores = sums(q, k, ((3,), (3,)), _HEADS)
    return jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))


def _attend_forward(q: Array, k: Array, v: Array) -> tuple[Array, tuple[Array, Array, Array, Array | None]]:
    if parts_of(q.shape[2], k.shape[2]) > 1:
        return attend(q, k, v), (q, k, v, None)
    powers = _powers(q, k)
    return _mixed(powers, v), (q, k, v, powers)


def _attend_backward(saved: tuple[Array, Array, Array, Array | None], grad: Array) -> tuple[Array, Array, Array]:
    q, k, v, powers = saved
    if powers is not None:
        return _gradients(q, k, v, powers, grad)
    # Behind the barrier nothing is recognised as what the forward pass had computed, and kept after all.
    (q, k, v), grad = lax.optimization_barrier(((q, k, v), grad))
    parts = parts_of(q.shape[2], k.shape[2])

    def add(total: tuple[Array, Array], rows: tuple[Array, Array]) -> tuple[tuple[Array, Array], Array]:
        of_q, of_k, of_v = _gradients(rows[0], k, v, _powers(rows[0], k), rows[1])
        return (total[0] + of_k, total[1] + of_v), of_q

    start = jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
    (of_k, of_v), of_q = lax.scan(add, start, (_split(q, parts), _split(grad, parts)))
    return _joined(of_q), of_k.astype(k.dtype), of_v.astype(v.dtype)


def _gradients(q: Array, k: Array, v: Array, powers: Array, grad: Array) -> tuple[Array, Array, Array]:
    weights = powers / jnp.sum(powers, axis=-1, keepdims=True)
    of_weights = sums(grad, v, ((3,), (3,)), _HEADS)
    # They follow from the output and its gradient too, which are smaller; but CPUs are slow at summing what was bf16.
    along_rows = jnp.sum(weights * of_weights, axis=-1, keepdims=True)
    of_scores = (weights * (of_weights - along_rows)).astype(q.dtype)
    return (
        product(of_scores, k, ((3,), (2,)), _HEADS),
        product(of_scores, q, ((2,), (2,)), _HEADS),
        product(weights.astype(v.dtype), grad, ((2,), (2,)), _HEADS),
    )


attend.defvjp(_attend_forward, _attend_backward)


def parts_of(queries: int, keys: int) -> int:
    """The fewest parts of equal size that the queries divide into, with at most `MOST_SCORES` scores each."""
    parts = range(1, queries + 1)
    fitting = (some for some in parts if queries % some == 0 and queries // some * keys <= MOST_SCORES)
    return next(fitting, queries)


def _split(x: Float[Array, "b heads n e"], parts: int) -> Float[Array, "p b heads np e"]:
    batch, heads, rows, size = x.shape
    return x.reshape(batch, heads, parts, rows // parts, size).transpose(2, 0, 1, 3, 4)


def _joined(x: Float[Array, "p b heads np e"]) -> Float[Array, "b heads n e"]:
    parts, batch, heads, rows, size = x.shape
    return x.transpose(1, 2, 0, 3, 4).reshape(batch, heads, parts * rows, size)
