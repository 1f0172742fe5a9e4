"""Tokens of a cell to one vector: their mean and spread over the cell, without what lies around it."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from dorl_jax.models.layers import AnyArray

_EPSILON = 1e-6


def foreground_statistics(
    tokens: Float[AnyArray, "b t c"], foreground: Float[AnyArray, "b h w"] | None
) -> Float[Array, "b c2"]:
    """Mean of every channel over the tokens, then the sd, each token weighted by how much of it is cell.

    Args:
      tokens: of a grid, row by row.
      foreground: share of each token that is cell, 0..1; None for 1 everywhere, also taken where a cell has none.

    Returns:
      (B, 2C): means, then sds.
    """
    batch, count, _ = tokens.shape
    weights = jnp.ones((batch, count)) if foreground is None else jnp.asarray(foreground).reshape(batch, count)
    total = weights.sum(axis=1, keepdims=True)
    weights = jnp.where(total > _EPSILON, weights / jnp.maximum(total, _EPSILON), 1 / count)[..., None]
    mean = jnp.sum(weights * tokens, axis=1)
    variance = jnp.sum(weights * (tokens - mean[:, None]) ** 2, axis=1)
    return jnp.concatenate([mean, jnp.sqrt(variance + _EPSILON)], axis=-1)
