"""NumPy: one `.npz`, or a `.npy` matrix with a CSV beside it."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv

from dorl_jax.files import replacing
from dorl_jax.vectors import Vectors


def write_npz(vectors: Vectors, path: Path) -> None:
    """One file with the arrays `vector` (n, d), `id`, and every other column that holds texts, numbers or truth values.

    Texts are NumPy strings, not objects, so that nothing needs unpickling; a missing text is "", a missing number NaN.
    """
    arrays = {"vector": vectors.values}
    for name in vectors.columns.column_names:
        array = _array(vectors.columns.column(name))
        if array is not None and name not in arrays:
            arrays[name] = array
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def write_npy(vectors: Vectors, path: Path) -> None:
    """The matrix (n, d) as `.npy`, float32 row by row, as FAISS takes it; the columns beside it as `.csv`, row by row.

    The matrix comes last, so that whoever waits for it finds the table.
    """
    plain = [name for name in vectors.columns.column_names if not pa.types.is_nested(vectors.columns[name].type)]
    with replacing(path.with_suffix(".csv")) as partial:
        pa.csv.write_csv(vectors.columns.select(plain), partial)
    with replacing(path) as partial, partial.open("wb") as file:
        np.save(file, np.ascontiguousarray(vectors.values), allow_pickle=False)


def _array(column: pa.ChunkedArray) -> np.ndarray | None:
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return np.array([value or "" for value in column.to_pylist()], np.str_)
    if pa.types.is_boolean(kind) and not column.null_count:
        return np.array(column.to_pylist(), bool)
    if pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return column.cast(pa.float64()).to_numpy() if column.null_count else column.to_numpy()
    return None
