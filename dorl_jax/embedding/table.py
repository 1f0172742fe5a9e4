"""Vectors as a table, and as the Parquet file that everything behind them reads.

Columns: "id" (string), what came along with the images ("laboratory", "label", ..), "source" (string, where the image
is), "vector" (fixed-size list of float32, null where there is none), "empty" (bool, no mask was found and the whole
image was taken), "reason" (string, why there is no vector; null where there is one). What made them is in the file's
metadata under "dorl_jax", as JSON.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dorl_jax.data.image_lists import ImageList
from dorl_jax.errors import InputError
from dorl_jax.files import replacing
from dorl_jax.store import Store
from dorl_jax.vectors import PROVENANCE

_MADE = ("vector", "empty", "reason")
OWN = ("id", "source", *_MADE)


def vectors_table(images: ImageList, arrays: Mapping[str, np.ndarray], failed: Mapping[int, str]) -> pa.Table:
    """The rows of some images.

    Args:
      images: n of them.
      arrays: "vector" float32 (n, d) and "empty" bool (n,).
      failed: row -> why there is nothing of it.
    """
    count = len(images)
    fine = np.ones(count, bool)
    fine[list(failed)] = False
    vectors = np.ascontiguousarray(arrays["vector"], np.float32)
    flat = pa.array(vectors.reshape(-1))
    columns = {
        **_of_images(images),
        "vector": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1], mask=pa.array(~fine)),
        "empty": pa.array(arrays["empty"], mask=~fine),
        "reason": pa.array([failed.get(row) for row in range(count)], pa.string()),
    }
    return pa.table(columns)


def images_table(images: ImageList, failed: Mapping[int, str]) -> pa.Table:
    """What is known of images beside what was made of them: "id", what came along with them, "source", "reason"."""
    reasons = pa.array([failed.get(row) for row in range(len(images))], pa.string())
    return pa.table({**_of_images(images), "reason": reasons})


def _of_images(images: ImageList) -> dict[str, pa.Array]:
    return {
        "id": images.ids,
        **{name: images.columns[name] for name in images.columns.column_names if name not in OWN},
        "source": pa.array([images.source_text(place) for place in range(len(images))], pa.large_string()),
    }


def write_vectors(store: Store, images: ImageList, out: Path, provenance: Mapping[str, Any]) -> None:
    """A finished store of vectors as one Parquet file, shard by shard; it appears whole or not at all.

    Raises:
      InputError: a damaged store.
    """
    store.verify()
    metadata = {PROVENANCE: json.dumps(dict(provenance), sort_keys=True).encode()}
    _write_groups(_of_store(store, images), out, metadata)


def _of_store(store: Store, images: ImageList) -> Iterator[pa.Table]:
    first = 0
    for number in range(store.shards):
        arrays = {name: store[name].shard(number) for name in ("vector", "empty")}
        last = first + len(arrays["vector"])
        failed = {row: store.failed[first + row] for row in range(last - first) if first + row in store.failed}
        yield vectors_table(images[first:last], arrays, failed)
        first = last


def rewrite_columns(images: ImageList, out: Path) -> bool:
    """Write anew what came along with the images, beside the vectors as they are; whether that had changed.

    Args:
      images: those of the file.
      out: the file.
    """
    with pq.ParquetFile(out) as file:
        names = [name for name in file.schema_arrow.names if name not in _MADE]
        known, written = pa.table(_of_images(images)), file.read(columns=names)
        if known.schema.equals(written.schema, check_metadata=False) and all(map(_alike, known, written)):
            return False
        _write_groups(_beside_made(known, file), out, file.schema_arrow.metadata)
    return True


def _beside_made(known: pa.Table, file: pq.ParquetFile) -> Iterator[pa.Table]:
    first = 0
    for number in range(file.num_row_groups):
        made = file.read_row_group(number, columns=list(_MADE))
        table = known.slice(first, len(made))
        for name in _MADE:
            table = table.append_column(made.schema.field(name), made[name])
        yield table
        first += len(made)


def _write_groups(tables: Iterator[pa.Table], out: Path, metadata: Mapping[bytes, bytes]) -> None:
    """Tables of one kind as the row groups of one file, which appears whole or not at all."""
    with replacing(out) as partial, ExitStack() as stack:
        writer = None
        for table in tables:
            if writer is None:
                schema = table.schema.with_metadata(metadata)
                writer = stack.enter_context(pq.ParquetWriter(partial, schema, compression="zstd"))
            writer.write_table(table.cast(writer.schema))


def _alike(one: pa.ChunkedArray, other: pa.ChunkedArray) -> bool:
    """Equal, where NaN equals NaN."""
    if pa.types.is_floating(one.type):
        return bool(np.array_equal(one.to_numpy(), other.to_numpy(), equal_nan=True))
    return bool(one.equals(other))


def first_reason(path: Path) -> str:
    """Why the first image without a vector has none."""
    with pq.ParquetFile(path) as file:
        reasons = file.read(columns=["reason"])["reason"]
    return str(reasons.drop_null()[0])


def read_provenance(path: Path) -> dict[str, Any]:
    """What made a file of vectors.

    Raises:
      InputError: no Parquet, or one that does not say.
    """
    try:
        metadata = pq.read_schema(path).metadata or {}
        return json.loads(metadata[PROVENANCE])
    except (pa.ArrowInvalid, OSError, KeyError, json.JSONDecodeError) as error:
        raise InputError(f"{path} is no file of vectors that dorl_jax wrote ({error!r})") from error


def count_failed(path: Path) -> int:
    """How many images of a file of vectors have none; vectors are not read for it."""
    with pq.ParquetFile(path) as file:
        reasons = file.read(columns=["reason"])["reason"]
    return len(reasons) - reasons.null_count
