"""Lists of cells as Parquet files of a fixed schema, with what is not a row in their metadata."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dorl_jax.errors import InputError

_METADATA_KEY = b"dorl_jax"


def write_cell_table(path: Path, columns: Mapping[str, Any], schema: pa.Schema, rest: Mapping[str, Any]) -> None:
    """Write columns and plain values.

    Args:
      path: of the file.
      columns: by name, as the schema has them.
      schema: of the columns.
      rest: what goes into the metadata, as JSON.
    """
    metadata = {_METADATA_KEY: json.dumps(rest)}
    pq.write_table(pa.table(dict(columns), schema=schema.with_metadata(metadata)), path)


def read_cell_table(path: Path, schema: pa.Schema) -> tuple[pa.Table, dict[str, Any]]:
    """The columns and the rest that `write_cell_table` wrote.

    Raises:
      InputError: not a Parquet file, or one of another schema.
    """
    try:
        # The file alone: a folder named `split=...` above it is no column.
        table = pq.ParquetFile(path).read()
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path} is no Parquet file: {error}") from error
    if not table.schema.equals(schema) or _METADATA_KEY not in (table.schema.metadata or {}):
        raise InputError(f"{path} is no list of cells: it has the columns {', '.join(table.column_names)}")
    return table, json.loads(table.schema.metadata[_METADATA_KEY])
