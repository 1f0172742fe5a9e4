"""NumPy: one `.npz`, or a `.npy` matrix with a CSV beside it."""

import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv

from dorl_jax.errors import InputError
from dorl_jax.files import replacing
from dorl_jax.vectors import Vectors


def write_npz(vectors: Vectors, path: Path) -> None:
    """One file with the arrays `vector` (n, d), `id`, and every other column that holds texts, numbers or truth values.

    Texts are NumPy strings, not objects, so that nothing needs unpickling; a missing text is "", a missing number NaN.

    Raises:
      InputError: a column that is missing numbers and has some that are too large to stand beside NaN.
    """
    arrays = {"vector": vectors.values}
    for name in vectors.columns.column_names:
        array = _array(name, vectors.columns.column(name))
        if array is not None and name not in arrays:
            arrays[name] = array
    # Not np.savez: it takes a column "file" for its own argument.
    with replacing(path) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.ascontiguousarray(array), allow_pickle=False)


def write_npy(vectors: Vectors, path: Path) -> None:
    """The matrix (n, d) as `.npy`, float32 row by row, as FAISS takes it; the columns beside it as `.csv`, row by row.

    The matrix comes last, so that whoever waits for it finds the table.

    Raises:
      InputError: a table of that name is there, and no matrix that it would belong to.
    """
    table = path.with_suffix(".csv")
    if table.exists() and not path.exists():
        raise InputError(
            f"{table}, where the columns would go, is there already and belongs to no {path.name}: name another"
        )
    kinds = {name: vectors.columns[name].type for name in vectors.columns.column_names}
    plain = [name for name, kind in kinds.items() if not (pa.types.is_nested(kind) or _is_binary(kind))]
    with replacing(table) as partial:
        pa.csv.write_csv(vectors.columns.select(plain), partial)
    with replacing(path) as partial, partial.open("wb") as file:
        np.save(file, np.ascontiguousarray(vectors.values), allow_pickle=False)


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)


def _array(name: str, column: pa.ChunkedArray) -> np.ndarray | None:
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return np.array([value or "" for value in column.to_pylist()], np.str_)
    if pa.types.is_boolean(kind) and not column.null_count:
        return np.array(column.to_pylist(), bool)
    if pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind):
        try:
            return column.cast(pa.float64()).to_numpy() if column.null_count else column.to_numpy()
        except pa.ArrowInvalid as error:
            raise InputError(
                f"column {name!r} lacks some values, and beside NaN its others would be rounded: {error}"
            ) from error
    return None
