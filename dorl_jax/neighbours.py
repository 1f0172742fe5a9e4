"""Cells whose vectors are nearest to a cell's, also in other laboratories, and a sheet that shows them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int, Shaped, UInt8

from dorl_jax.data.images import read_image
from dorl_jax.data.sources import parse_source
from dorl_jax.errors import InputError, suggest
from dorl_jax.sheets import TILE, fit_square, lay_out
from dorl_jax.vectors import Vectors


@dataclass(frozen=True)
class Neighbours:
    """The nearest cells of some cells.

    Attributes:
      places: (q, k), of the nearest in the vectors, the nearest first.
      distances: (q, k): 1 minus the cosine, 0..2.
    """

    places: Int[np.ndarray, "q k"]
    distances: Float[np.ndarray, "q k"]


def nearest_cells(
    vectors: Vectors, cells: Sequence[str], count: int = 8, *, across: bool = False, centre: bool = True
) -> Neighbours:
    """The cells whose vectors point nearest to those of some cells, the cell itself left out.

    It compares with all vectors, which for a million of 768 numbers takes seconds; for many queries use an index
    (FAISS, DuckDB's vss).

    Args:
      vectors: to search in.
      cells: ids.
      count: how many for each.
      across: in other laboratories only, those of the column `laboratory`.
      centre: take the mean of each laboratory (of all cells, where there is no such column) off its vectors first, so
        that what counts is what is special about a cell, not its stain.

    Raises:
      InputError: an unknown id, fewer cells than asked for, or no column `laboratory`.
    """
    places = _places(vectors, cells)
    there = "laboratory" in vectors.columns.column_names
    if across and not there:
        raise InputError(
            "cells of other laboratories cannot be told: the vectors have no column 'laboratory': embed the "
            "folder of laboratories, or a table that has it"
        )
    laboratories = vectors.texts("laboratory") if there else np.full(len(vectors), "")
    values = _directions(vectors.values, laboratories, centre)
    found, distances = [], []
    for place in places:
        allowed = laboratories != laboratories[place] if across else np.ones(len(vectors), bool)
        allowed[place] = False
        if allowed.sum() < count:
            raise InputError(f"{count} nearest cells are asked for, but only {allowed.sum()} can be compared")
        away = np.where(allowed, 1 - values @ values[place], np.inf)
        few = np.argpartition(away, count - 1)[:count]
        few = few[np.lexsort((few, away[few]))]
        found.append(few)
        distances.append(away[few])
    return Neighbours(np.array(found), np.array(distances, np.float64))


def neighbour_sheet(vectors: Vectors, cells: Sequence[str], nearest: Neighbours) -> UInt8[np.ndarray, "tall wide 3"]:
    """A row of pictures a cell: itself, then its nearest with their laboratory and distance.

    Args:
      vectors: with the column `source`.
      cells: the ids that were asked for.
      nearest: what was found.

    Raises:
      InputError: no column `source`, or an image that cannot be read.
    """
    sources = vectors.texts("source")
    names = [name for name in ("label", "laboratory") if name in vectors.columns.column_names]
    tiles, captions = [], []
    for place, near, away in zip(_places(vectors, cells), nearest.places, nearest.distances, strict=True):
        for number, shown in enumerate([place, *near]):
            tiles.append(fit_square(read_image(parse_source(str(sources[shown]))), TILE))
            first, *second = [str(vectors.columns[name][int(shown)].as_py() or "?") for name in names] or [""]
            distance = f"{away[number - 1]:.2f}" if number else "(this)"
            # Label and laboratory on one line would be cut where two laboratories begin to differ.
            captions.append("\n".join([f"{first} {distance}".strip(), *second]))
    legend = [("the first of each row is asked for; number: 1 - cosine", None, 0)]
    return lay_out(tiles, captions, legend, columns=1 + nearest.places.shape[1])


def _places(vectors: Vectors, cells: Sequence[str]) -> list[int]:
    place_of = {name: place for place, name in enumerate(vectors.ids.tolist())}
    for cell in cells:
        if cell not in place_of:
            raise InputError(f"no cell {cell!r} among the vectors{suggest(cell, place_of)}")
    return [place_of[cell] for cell in cells]


def _directions(
    values: Float32[np.ndarray, "n d"], laboratories: Shaped[np.ndarray, " n"], centre: bool
) -> Float32[np.ndarray, "n d"]:
    """Vectors of length 1; one of length 0 stays, and is as far from all."""
    values = values.copy()
    if centre:
        for laboratory in np.unique(laboratories):
            own = laboratories == laboratory
            values[own] -= values[own].mean(axis=0, dtype=np.float64).astype(np.float32)
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    return values / np.where(lengths > 0, lengths, 1)
