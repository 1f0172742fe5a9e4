"""The products of queries and decomposed relative positions.

On CPUs all offsets are multiplied at once, twice the arithmetic, and every token's own are read from that: the batched
product of the own offsets alone copies the queries into another order first, which takes longer. Elsewhere it does not.
"""

from functools import partial

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from dorl_jax.models.products import matmul

Grid = tuple[int, int]


def position_columns(
    q: Float[Array, "b heads n d"], of_rows: Float[Array, "r d"], of_columns: Float[Array, "c d"], grid: Grid
) -> Float[Array, "b heads n _"]:
    """q . R[i - j] for every row j of the grid (height, width), and then for every column; all of one type.

    Tables hold the offsets from 1 - height to height - 1, and likewise of the width. Source: what
    `add_decomposed_rel_pos` adds to the scores (segment_anything/modeling/image_encoder.py), one token's at a time.
    """
    skewed, batched = partial(_skewed, grid=grid), partial(_batched, grid=grid)
    return lax.platform_dependent(q, of_rows, of_columns, cpu=skewed, default=batched)


def _batched(q: Array, of_rows: Array, of_columns: Array, grid: Grid) -> Array:
    height, width = grid
    tokens = q.reshape(*q.shape[:2], height, width, q.shape[-1])
    by_row = jnp.einsum("bnhwd,hkd->bnhwk", tokens, of_rows[_offsets(height)])
    by_column = jnp.einsum("bnhwd,wkd->bnhwk", tokens, of_columns[_offsets(width)])
    return _side_by_side(by_row, by_column)


def _side_by_side(by_row: Float[Array, "b n h w k"], by_column: Float[Array, "b n h w l"]) -> Array:
    tokens = (part.reshape(*part.shape[:2], -1, part.shape[-1]) for part in (by_row, by_column))
    return jnp.concatenate(list(tokens), axis=-1)


def _offsets(side: int) -> Array:
    """Index of the offset i - j in a table of 2 * side - 1 entries."""
    return jnp.arange(side)[:, None] - jnp.arange(side)[None, :] + side - 1


def _skewed(q: Array, of_rows: Array, of_columns: Array, grid: Grid) -> Array:
    def all_offsets(table: Array) -> Array:
        return matmul(q, table[::-1].T).reshape(*q.shape[:2], *grid, -1)

    by_row = _own(all_offsets(of_rows).swapaxes(2, 3)).swapaxes(2, 3)
    return _side_by_side(by_row, _own(all_offsets(of_columns)))


def _own(x: Float[Array, "*b n offsets"]) -> Float[Array, "*b n n"]:
    """x[i, n - 1 - i + j], of 2 n - 1 offsets: each row shifted by one against the row before."""
    *batch, side, offsets = x.shape
    if side == 1:
        return x
    # No gather: the same numbers one behind the other, read in rows that are one shorter.
    rows = x.reshape(*batch, side * offsets)[..., side - 1 : side - 1 + side * (offsets - 1)]
    return rows.reshape(*batch, side, offsets - 1)[..., :side]
