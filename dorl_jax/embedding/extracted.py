"""The cells of what `dorl-jax extract IMAGES` wrote, for an autoencoder to learn from."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from dorl_jax.data.manifest import Cell, Manifest
from dorl_jax.data.sources import parse_source
from dorl_jax.embedding.job import IMAGES
from dorl_jax.errors import InputError, name_some


def extracted_cells(folder: Path) -> Manifest:
    """The manifest of a store, which goes with it into `train_cae`; labels are taken as they are.

    Args:
      folder: the store.

    Raises:
      InputError: no such store, images of no laboratory, or images of which nothing could be extracted.
    """
    path = folder / IMAGES
    if not path.is_file():
        raise InputError(f"no {path}: `dorl-jax extract IMAGES --model RUN --out {folder}` writes it when it is done")
    table = pq.ParquetFile(path).read()
    failed = table.filter(pa.compute.is_valid(table["reason"]))["id"].to_pylist()
    if failed:
        raise InputError(f"nothing was extracted of {name_some(failed)} ({path}, column 'reason'): leave them out")
    if "laboratory" not in table.column_names:
        raise InputError(
            f"{path} has no column 'laboratory', and laboratories are the autoencoder's domains: extract a table of "
            "images with that column, or the folders of laboratories"
        )
    cells = []
    for row in table.to_pylist():
        if not row["laboratory"]:
            raise InputError(f"{path}: {row['id']!r} has no laboratory")
        label = str(row.get("label") or "")
        cells.append(Cell(row["id"], str(row["laboratory"]), parse_source(row["source"]), None, label))
    laboratories = tuple(dict.fromkeys(cell.laboratory for cell in cells))
    classes = tuple(sorted({cell.label for cell in cells} - {""}))
    return Manifest(tuple(cells), laboratories, classes, {})
