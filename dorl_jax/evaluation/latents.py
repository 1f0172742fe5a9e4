"""Latent vectors of cells with their labels, kept as Parquet."""

import json
import logging
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float32, Shaped

from dorl_jax.errors import InputError, name_some
from dorl_jax.files import replacing
from dorl_jax.vectors import PROVENANCE, choose_parts, from_table

logger = logging.getLogger(__name__)

# In the file's metadata.
_PARTS = b"dorl_jax_parts"
_SERVES = b"dorl_jax_serves"
_COLUMNS = ("id", "laboratory", "label", "vector")

SEEN = ("no", "unlabelled", "labelled")
"""What the making of the vectors, training of the network included, saw of a cell: nothing, its image, its class."""


@dataclass(frozen=True)
class Latents:
    """One vector a cell.

    Attributes:
      ids: what names each cell, unique.
      laboratories: where each cell was prepared and photographed.
      labels: the class of each cell.
      vectors: float32, finite, row i belongs to `ids[i]`.
      groups: cells of one name (patient, slide, copies of one picture) never stand on both sides of a split; "" for a
        cell on its own. None where nothing is known.
      seen: of each cell, one of `SEEN`. None where nothing is known.
      parts: what the vector is made of, one behind the other (see `CaeConfig.vector`): name -> numbers. None for one
        whole.
      serves: the source (a laboratory, or `all_but` one) with whose classes the vectors were made, so that they are for
        classifiers that are trained on it alone: on another, a classifier would have been told the classes of both. ""
        for any source.
    """

    ids: Shaped[np.ndarray, " n"]
    laboratories: Shaped[np.ndarray, " n"]
    labels: Shaped[np.ndarray, " n"]
    vectors: Float32[np.ndarray, "n d"]
    groups: Shaped[np.ndarray, " n"] | None = None
    seen: Shaped[np.ndarray, " n"] | None = None
    parts: Mapping[str, int] | None = None
    serves: str = ""

    def __len__(self) -> int:
        return len(self.ids)


def take_rows(latents: Latents, rows: Shaped[np.ndarray, " m"]) -> Latents:
    """Some of the cells, or all in another order.

    Args:
      latents: the cells.
      rows: their numbers, or True for each that is taken.
    """
    return replace(
        latents,
        ids=latents.ids[rows],
        laboratories=latents.laboratories[rows],
        labels=latents.labels[rows],
        vectors=np.ascontiguousarray(latents.vectors[rows]),
        groups=None if latents.groups is None else latents.groups[rows],
        seen=None if latents.seen is None else latents.seen[rows],
    )


def take_parts(latents: Latents, parts: Collection[str]) -> Latents:
    """The same cells with some parts of their vectors alone, in the order they have there.

    Raises:
      InputError: a part that the vectors do not have.
    """
    sizes = latents.parts or {"": latents.vectors.shape[1]}
    vectors, kept = choose_parts(latents.vectors, sizes, parts)
    return replace(latents, vectors=vectors, parts=kept)


def write_latents(latents: Latents, path: Path, provenance: Mapping[str, Any] | None = None) -> None:
    """Write Parquet with the columns id, laboratory, label (string) and vector (fixed-size list of float32).

    Columns group and seen (string) are written where they are known. What made the vectors, plain values, goes into the
    file's metadata, as in what `dorl-jax embed IMAGES` writes; the parts of the vector and the source it serves,
    too. The file appears whole or not at all.

    Raises:
      InputError: a repeated id, an empty text, or a vector that is not finite.
    """
    _check(latents, path)
    values = pa.array(np.ascontiguousarray(latents.vectors, np.float32).reshape(-1))
    columns = {
        "id": pa.array(latents.ids.tolist(), pa.string()),
        "laboratory": pa.array(latents.laboratories.tolist(), pa.string()),
        "label": pa.array(latents.labels.tolist(), pa.string()),
        "vector": pa.FixedSizeListArray.from_arrays(values, latents.vectors.shape[1]),
    }
    for name, texts in (("group", latents.groups), ("seen", latents.seen)):
        if texts is not None:
            columns[name] = pa.array(texts.tolist(), pa.string())
    metadata = {PROVENANCE: json.dumps(dict(provenance), sort_keys=True)} if provenance else {}
    if latents.parts is not None:
        metadata[_PARTS] = json.dumps(dict(latents.parts))
    if latents.serves:
        metadata[_SERVES] = latents.serves
    table = pa.table(columns).replace_schema_metadata(metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        pq.write_table(table, partial)


def read_latents(path: Path) -> Latents:
    """Read what `write_latents` or `dorl-jax embed` wrote, or another with its columns; others are left alone.

    Cells without a vector are left out, and a warning names them.

    Raises:
      InputError: no such file, no Parquet, a missing column or one of another type, no rows, a missing text,
        a repeated id, or a vector that is not finite. The message names the file and the rows.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no latents at {path}: run the stage `embed` first")
    try:
        # The file alone: a folder named `laboratory=...` above it is no column.
        table = pq.ParquetFile(path).read()
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path} is not a readable Parquet file: {error}") from error
    missing = [name for name in _COLUMNS if name not in table.column_names]
    if missing:
        raise InputError(
            f"{path} lacks the column {name_some(missing)}; it has {name_some(table.column_names, 10)}, "
            f"and needs {', '.join(_COLUMNS)}"
        )
    if table.num_rows == 0:
        raise InputError(f"{path} has no rows: nothing was embedded")
    _texts(table, "id", path)
    vectors = from_table(table, str(path))
    if vectors.left_out:
        logger.warning("%s: %d cells have no vector: %s", path, len(vectors.left_out), name_some(vectors.left_out))
    table, ids = vectors.columns, vectors.ids
    latents = Latents(
        ids=ids,
        laboratories=_texts(table, "laboratory", path, ids),
        labels=_texts(table, "label", path, ids),
        vectors=vectors.values,
        groups=_texts(table, "group", path, ids) if "group" in table.column_names else None,
        seen=_texts(table, "seen", path, ids) if "seen" in table.column_names else None,
        parts=_parts(table, path) or (vectors.parts if vectors.provenance.get("parts") else None),
        serves=(table.schema.metadata or {}).get(_SERVES, b"").decode(),
    )
    _check(latents, path)
    return latents


def _parts(table: pa.Table, path: Path) -> dict[str, int] | None:
    text = (table.schema.metadata or {}).get(_PARTS)
    if text is None:
        return None
    try:
        return msgspec.json.decode(text, type=dict[str, int])
    except msgspec.DecodeError as error:
        name = _PARTS.decode()
        raise InputError(f"{path}: its metadata {name!r} does not tell parts of the vector: {error}") from error


def _texts(table: pa.Table, name: str, path: Path, ids: np.ndarray | None = None) -> np.ndarray:
    column = table.column(name)
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise InputError(f"{path}: column {name!r} must hold strings, not {column.type}")
    _refuse_missing(column, name, path, ids)
    return np.array(column.to_pylist(), dtype=np.str_)


def _refuse_missing(column: pa.ChunkedArray, name: str, path: Path, ids: np.ndarray | None) -> None:
    if column.null_count == 0:
        return
    rows = np.flatnonzero(column.is_null().to_numpy())
    where = [f"row {row}" for row in rows] if ids is None else [repr(str(ids[row])) for row in rows]
    raise InputError(f"{path}: column {name!r} has no value for {name_some(where)}")


def _check(latents: Latents, path: Path) -> None:
    lengths = {len(latents.ids), len(latents.laboratories), len(latents.labels), len(latents.vectors)}
    if len(lengths) > 1 or latents.vectors.ndim != 2 or latents.vectors.shape[1] == 0:
        raise InputError(
            f"{path}: {len(latents.ids)} ids, {len(latents.laboratories)} laboratories, "
            f"{len(latents.labels)} labels and vectors of shape {latents.vectors.shape}: "
            "each cell needs one row of each"
        )
    repeated = [repr(name) for name, count in Counter(latents.ids.tolist()).items() if count > 1]
    if repeated:
        raise InputError(f"{path}: the id {name_some(repeated)} stands on more than one row")
    for name, texts in (("laboratory", latents.laboratories), ("label", latents.labels)):
        empty = [repr(str(i)) for i in latents.ids[texts == ""]]
        if empty:
            raise InputError(f"{path}: column {name!r} is empty for {name_some(empty)}")
    for name, known in (("group", latents.groups), ("seen", latents.seen)):
        if known is not None and len(known) != len(latents.ids):
            raise InputError(f"{path}: {len(known)} values of {name!r} for {len(latents.ids)} cells")
    unknown = [] if latents.seen is None else sorted(set(latents.seen.tolist()) - set(SEEN))
    if unknown:
        raise InputError(f"{path}: column 'seen' holds {name_some(map(repr, unknown))}; it may hold {', '.join(SEEN)}")
    if latents.parts is not None and sum(latents.parts.values()) != latents.vectors.shape[1]:
        listed = ", ".join(f"{name} {size}" for name, size in latents.parts.items())
        raise InputError(f"{path}: vectors of {latents.vectors.shape[1]} numbers do not have the parts {listed}")
    bad = ~np.isfinite(latents.vectors).all(axis=1)
    if bad.any():
        some = name_some(repr(str(i)) for i in latents.ids[bad])
        raise InputError(f"{path}: {bad.sum()} vectors hold NaN or infinity: {some}; embed these cells again")
