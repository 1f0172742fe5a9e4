"""Cells that must not be parted by a split: of one patient or slide, or pictures of one cell."""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from dorl_jax.data.check.copies import find_copies
from dorl_jax.data.check.fingerprint import Fingerprint, digest_pixels, take_fingerprint
from dorl_jax.data.images import read_image
from dorl_jax.data.manifest import Cell, Manifest
from dorl_jax.files import replacing


def cell_groups(manifest: Manifest, *, progress: bool = True) -> dict[str, str]:
    """Id -> group of every cell; "" for a cell on its own.

    A group named in the table of a laboratory (patient, slide) is one of that laboratory alone; pictures that show one
    cell (see `find_copies`) join their groups, also across laboratories. A joined group has the name of its first
    cell's group, or the id of its first cell.

    Args:
      manifest: cells whose images can be read.
      progress: show a bar with rate and time left.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    cells = manifest.cells
    with ThreadPoolExecutor() as pool:
        work = pool.map(_fingerprint, cells)
        found = list(tqdm(work, "looking for copies", len(cells), unit="cell", disable=not progress))
    # Of pictures with the same pixels, which a class that was evened out has by the dozen, one is compared with the
    # others: comparing all of them takes minutes.
    twin_of: dict[bytes, int] = {}
    pairs = [(twin_of.setdefault(digest, place), place) for place, (one, digest) in enumerate(found) if one is not None]
    kept = list(twin_of.values())
    copies = find_copies([found[place][0] for place in kept])
    pairs += [(kept[pair.first], kept[pair.second]) for pair in copies]
    first_of: dict[tuple[str, str], int] = {}
    for place, cell in enumerate(cells):
        if cell.group:
            pairs.append((first_of.setdefault((cell.laboratory, cell.group), place), place))
    ties = np.array(pairs, int).reshape(-1, 2)
    graph = coo_array((np.ones(len(ties)), (ties[:, 0], ties[:, 1])), shape=(len(cells), len(cells)))
    component = connected_components(graph, directed=False)[1]
    _, first, sizes = np.unique(component, return_index=True, return_counts=True)
    names = [
        _name(cells[place]) if size > 1 else "" for place, size in zip(first.tolist(), sizes.tolist(), strict=True)
    ]
    return {cell.id: names[number] for cell, number in zip(cells, component.tolist(), strict=True)}


def draw_groups(cells: Sequence[Cell], wanted: int, rng: np.random.Generator) -> set[str]:
    """Groups (see `Cell.whole_group`), drawn until they hold at least `wanted` of these cells; never all of them."""
    sizes = Counter(cell.whole_group for cell in cells)
    names, drawn, held = list(sizes), set[str](), 0
    for place in rng.permutation(len(names))[:-1]:
        if held >= wanted:
            break
        drawn.add(names[place])
        held += sizes[names[place]]
    return drawn


def cached_groups(manifest: Manifest, path: Path, *, progress: bool = True) -> dict[str, str]:
    """`cell_groups`, kept in a Parquet file (id, group) and read from there where it is of these cells."""
    if path.is_file():
        table = pq.ParquetFile(path).read().to_pydict()
        if table["id"] == [cell.id for cell in manifest.cells]:
            return dict(zip(table["id"], table["group"], strict=True))
    groups = cell_groups(manifest, progress=progress)
    with replacing(path) as partial:
        pq.write_table(pa.table({"id": list(groups), "group": list(groups.values())}), partial)
    return groups


def _fingerprint(cell: Cell) -> tuple[Fingerprint | None, bytes]:
    """A picture's fingerprint, and a digest of its pixels."""
    image = read_image(cell.image)
    return take_fingerprint(image), digest_pixels(image)


def _name(cell: Cell) -> str:
    return cell.whole_group or cell.id
