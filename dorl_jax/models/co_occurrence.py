"""Grey-level co-occurrence of a region (Haralick et al. 1973), computed on the device."""

from collections.abc import Sequence
from functools import reduce

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

_LEVELS = 16
_DISTANCES = (1, 2, 4, 8)
# Right, down, and both diagonals: the other four directions give the same pairs the other way round.
_DIRECTIONS = ((0, 1), (1, 0), (1, 1), (1, -1))

CO_OCCURRENCE_NUMBERS = 5 * len(_DISTANCES)
"""Of `co_occurrence`, for each region."""


def grey_levels(grey: Float[Array, "b s s"], counts: Float[Array, "b 256"]) -> Float[Array, "b s s"]:
    """Sixteen equal steps, 0..15, between the darkest and the brightest hundredth.

    Args:
      grey: whole numbers 0..255.
      counts: of the pixels of each value, of those between whose hundredths the steps lie.
    """
    low, high = (_percentile(counts, share)[:, None, None] for share in (0.01, 0.99))
    return jnp.clip(jnp.floor((grey - low) / jnp.maximum(high - low, 1) * _LEVELS), 0, _LEVELS - 1)


def _percentile(counts: Float[Array, "b 256"], share: float) -> Float[Array, " b"]:
    """Linear between the two values next to the rank."""
    below = jnp.cumsum(counts, axis=1)
    rank = share * jnp.maximum(below[:, -1] - 1, 0)
    first, second = (
        jnp.minimum((below <= one[:, None]).sum(axis=1), 255).astype(jnp.float32)
        for one in (jnp.floor(rank), jnp.ceil(rank))
    )
    return first + (rank - jnp.floor(rank)) * (second - first)


def co_occurrence(levels: Float[Array, "b s s"], regions: Sequence[Bool[Array, "b s s"]]) -> list[Float[Array, "b 20"]]:
    """For each region, of how often two levels are 1, 2, 4 and 8 pixels apart, along rows, columns and diagonals alike.

    For each distance contrast, homogeneity, energy, correlation and entropy (bits) of the symmetric table of shares;
    of no pair zeros.

    Args:
      levels: see `grey_levels`.
      regions: pairs count whose pixels both lie in it.
    """
    is_level = levels[..., None] == jnp.arange(_LEVELS)
    found = []
    for region in regions:
        here = (is_level & region[..., None]).astype(jnp.float32)
        # A table is a matrix product, for accelerators count badly; one for all distances and directions.
        there = jnp.concatenate([_around(here, far) for far in _DISTANCES], axis=-1)
        tables = jnp.einsum("bhwi,bhwj->bij", here, there)
        found.append(jnp.concatenate([_numbers(one) for one in jnp.split(tables, len(_DISTANCES), axis=-1)], axis=-1))
    return found


def _around(here: Float[Array, "b s s n"], far: int) -> Float[Array, "b s s n"]:
    """Of each pixel how many of its neighbours so far away have each level; beyond the image there are none."""
    size = here.shape[1]
    wide = jnp.pad(here, ((0, 0), (far, far), (far, far), (0, 0)))
    at = [(far + down * far, far + across * far) for down, across in _DIRECTIONS]
    return reduce(jnp.add, (wide[:, y : y + size, x : x + size] for y, x in at))


def _numbers(table: Float[Array, "b n n"]) -> Float[Array, "b 5"]:
    table = table + table.transpose(0, 2, 1)
    table = table / jnp.maximum(table.sum(axis=(1, 2), keepdims=True), 1)
    i, j = (jnp.asarray(one, jnp.float32) for one in np.indices(table.shape[1:]))

    def mean(values: Array) -> Array:
        return (table * values).sum(axis=(1, 2))

    middle = mean(i)[:, None, None]
    variance = mean((i - middle) ** 2)
    together = mean((i - middle) * (j - middle))
    contrast, homogeneity = mean((i - j) ** 2), mean(1 / (1 + (i - j) ** 2))
    correlation = jnp.where(variance > 1e-6, together / jnp.maximum(variance, 1e-6), 0)
    entropy = -mean(jnp.log2(jnp.where(table > 0, table, 1)))
    return jnp.stack([contrast, homogeneity, jnp.sqrt((table**2).sum(axis=(1, 2))), correlation, entropy], axis=-1)
