"""A DuckDB database, ready for its distance functions."""

import json
from pathlib import Path

import pyarrow as pa

from dorl_jax.errors import InputError
from dorl_jax.exports.names import distinct_names
from dorl_jax.files import replacing
from dorl_jax.vectors import Vectors


def write_duckdb(vectors: Vectors, path: Path) -> None:
    """The table `cells`, `vector` as FLOAT[d], and the table `provenance` of one row, `json`.

    DuckDB reads the Parquet file itself, but Parquet knows no lists of fixed length: what it reads are FLOAT[], which
    `array_distance` and its vector index refuse. Here the cast is done, once. DuckDB does not tell `ID` from `id`: of
    columns that differ in case alone the later ones get a number behind their names.

    Raises:
      InputError: the package duckdb is not installed.
    """
    try:
        import duckdb
    except ImportError as error:
        raise InputError(
            "writing .duckdb needs a package that is not installed: pip install 'dorl-jax[duckdb]'"
        ) from error
    width = vectors.values.shape[1]
    arrays = pa.FixedSizeListArray.from_arrays(pa.array(vectors.values.reshape(-1)), width)
    names = distinct_names(vectors.columns.column_names, ("vector",))
    rows = vectors.columns.rename_columns(names)
    for place, field in enumerate(rows.schema):
        if pa.types.is_float16(field.type):  # which DuckDB does not read
            rows = rows.set_column(place, field.name, rows[place].cast(pa.float32()))
    rows = rows.append_column("vector", arrays)
    with replacing(path) as partial:
        partial.unlink(missing_ok=True)
        with duckdb.connect(str(partial)) as database:
            database.register("rows_to_store", rows)
            chosen = ", ".join(_quoted(name) for name in names)
            database.execute(
                f"CREATE TABLE cells AS SELECT {chosen}, vector::FLOAT[{width}] AS vector FROM rows_to_store"
            )
            database.execute("CREATE TABLE provenance AS SELECT ?::JSON AS json", [json.dumps(vectors.provenance)])


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
