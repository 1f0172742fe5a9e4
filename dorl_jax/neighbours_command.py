"""`dorl-jax neighbours`: cells that are alike, as a table and as a sheet of pictures."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dorl_jax.errors import InputError
from dorl_jax.files import replacing
from dorl_jax.neighbours import nearest_cells, neighbour_sheet
from dorl_jax.vectors import read_vectors

_ABOUT = "Find the cells whose vectors are nearest to those of some cells, also in other laboratories only."


def add_parser(commands: Any) -> None:
    """Add the command to those of `dorl-jax`."""
    parser = commands.add_parser("neighbours", help=_ABOUT, description=_ABOUT)
    parser.add_argument("vectors", type=Path, metavar="VECTORS", help="what `dorl-jax embed` wrote")
    parser.add_argument("--cell", action="append", default=[], metavar="ID", help="of a cell; may be repeated")
    parser.add_argument("--random", type=int, default=0, metavar="N", help="of N cells, drawn at random")
    parser.add_argument("--count", type=int, default=8, metavar="K", help="nearest cells of each (default: 8)")
    parser.add_argument("--across", action="store_true", help="in other laboratories than the cell's own only")
    parser.add_argument(
        "--raw", action="store_true", help="compare vectors as they are, without taking off their laboratory's mean"
    )
    parser.add_argument("--sheet", type=Path, metavar="FILE.png", help="a sheet of pictures, a row a cell")


def run(options: argparse.Namespace) -> None:
    """Do what the command line says, and print what was found.

    Raises:
      InputError: see `neighbours.nearest_cells`; no cell asked for, or less than one neighbour.
    """
    vectors = read_vectors(options.vectors)
    if options.count < 1:
        raise InputError(f"--count {options.count}: at least 1")
    if options.random < 0:
        raise InputError(f"--random {options.random}: the number of cells to draw, 0 or more")
    if options.sheet and options.sheet.suffix.lower() != ".png":
        raise InputError(f"--sheet {options.sheet}: the sheet is a PNG, name it so")
    drawn = np.random.default_rng(0).permutation(len(vectors))[: options.random]
    cells = [*options.cell, *vectors.ids[np.sort(drawn)].tolist()]
    if not cells:
        raise InputError("name a cell with --cell ID, or take --random N")
    nearest = nearest_cells(vectors, cells, options.count, across=options.across, centre=not options.raw)
    for cell, places, distances in zip(cells, nearest.places, nearest.distances, strict=True):
        print(cell)
        for place, distance in zip(places.tolist(), distances.tolist(), strict=True):
            print(f"  {distance:.3f}  {vectors.columns['id'][place].as_py()}")
    if options.sheet:
        with replacing(options.sheet) as partial:
            Image.fromarray(neighbour_sheet(vectors, cells, nearest)).save(partial, "PNG")
        print(f"{options.sheet}: a row of pictures a cell")
