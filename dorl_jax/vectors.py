"""The vectors of cells with what is known of them, as `dorl-jax embed` writes them."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Bool, Float32, Int, Shaped

from dorl_jax.errors import InputError, name_some

# Key of the schema's metadata under which the provenance stands, as JSON.
PROVENANCE = b"dorl_jax"
# Of the provenance, what makes vectors of two models incomparable. The images, the machine and the type of the
# arithmetic do not.
_DECIDES = ("weights", "vector", "side", "resize", "light", "zoom", "parity")
# What older files do not tell, for there was no choice.
_USUAL = {"light": "as_is"}


@dataclass(frozen=True)
class Vectors:
    """One row a cell that has a vector.

    Attributes:
      columns: what is known of the cells, the vector left out; "id" is always there.
      values: float32, finite, row i belongs to row i of `columns`.
      provenance: of the model that made the vectors, plain values; empty where the file does not tell.
      left_out: id -> reason, of the cells that have no vector.
    """

    columns: pa.Table
    values: Float32[np.ndarray, "n d"]
    provenance: dict[str, Any]
    left_out: dict[str, str]

    def __len__(self) -> int:
        return len(self.values)

    @property
    def parts(self) -> dict[str, int]:
        """Numbers of each part of the vector, in order (see `CaeConfig.vector`); one whole where that is unknown."""
        sizes = self.provenance.get("parts")
        if not sizes:
            return {"": self.values.shape[1]}
        return {name: int(sizes[name]) for name in self.provenance["vector"]}

    @property
    def laboratories(self) -> Shaped[np.ndarray, " n"]:
        """Of each cell; where there is no such column, all cells are of one, "all cells"."""
        if "laboratory" not in self.columns.column_names:
            return np.full(len(self), "all cells")
        return self.texts("laboratory")

    @property
    def ids(self) -> Shaped[np.ndarray, " n"]:
        """What names each cell."""
        return self.texts("id")

    def texts(self, name: str) -> Shaped[np.ndarray, " n"]:
        """A column as strings.

        Raises:
          InputError: no such column, or a cell without a value in it.
        """
        if name not in self.columns.column_names:
            raise InputError(
                f"the vectors have no column {name!r}, only {name_some(self.columns.column_names, 10)}: embed a table "
                "of images that has it"
            )
        column = self.columns.column(name)
        if column.null_count:
            rows = np.flatnonzero(column.is_null().to_numpy())
            some = name_some(self.columns.column("id")[int(row)].as_py() for row in rows)
            raise InputError(f"column {name!r} of the vectors has no value for {some}")
        return np.array([str(value) for value in column.to_pylist()], dtype=np.str_)

    def take(self, rows: Int[np.ndarray, " m"] | Bool[np.ndarray, " n"]) -> "Vectors":
        """The rows of these places, or where it is True."""
        places = np.flatnonzero(rows) if rows.dtype == bool else rows
        return Vectors(self.columns.take(pa.array(places)), self.values[places], self.provenance, self.left_out)

    def only(self, parts: Collection[str]) -> "Vectors":
        """The same cells with some parts of the vector alone; the provenance tells of no others.

        Raises:
          InputError: a part that the vectors do not have.
        """
        values, kept = choose_parts(self.values, self.parts, parts)
        return replace(self, values=values, provenance={**self.provenance, "vector": list(kept), "parts": kept})


def choose_parts(
    values: Float32[np.ndarray, "n d"], sizes: Mapping[str, int], parts: Collection[str]
) -> tuple[Float32[np.ndarray, "n p"], dict[str, int]]:
    """Some parts of vectors, in the order they have there, and their sizes.

    Args:
      values: the vectors.
      sizes: of all their parts, in order: name -> numbers.
      parts: names of those that are wanted.

    Raises:
      InputError: a part that the vectors do not have.
    """
    unknown = [repr(name) for name in parts if name not in sizes]
    if unknown:
        known = ", ".join(name for name in sizes if name) or "none"
        raise InputError(f"the vectors have no part {name_some(unknown)}; the parts are: {known}")
    wanted = np.repeat([name in parts for name in sizes], list(sizes.values()))
    return np.ascontiguousarray(values[:, wanted]), {name: size for name, size in sizes.items() if name in parts}


def read_vectors(path: Path) -> Vectors:
    """Read what `dorl-jax embed`, or the stage `embed` of a run, wrote.

    Cells without a vector are left out and named in `left_out`.

    Raises:
      InputError: no such file, no Parquet, two columns of one name, no column `id` of strings or `vector` of lists of
        one length, a repeated id, a vector that is not finite, or no vector at all.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no vectors at {path}: `dorl-jax embed IMAGES --model RUN --out {path}` writes them")
    try:
        # The file alone: a folder named `laboratory=...` above it is no column.
        table = pq.ParquetFile(path).read()
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path} is not a readable Parquet file: {error}") from error
    return from_table(table, str(path))


def from_table(table: pa.Table, name: str) -> Vectors:
    """See `read_vectors`; `name` is what messages call the table."""
    missing = [column for column in ("id", "vector") if column not in table.column_names]
    if missing:
        raise InputError(f"{name} lacks the column {name_some(missing)}: it is no file of vectors")
    if len(set(table.column_names)) < len(table.column_names):
        twice = dict.fromkeys(column for column in table.column_names if table.column_names.count(column) > 1)
        raise InputError(f"{name} has more than one column {name_some(map(repr, twice))}: rename or drop one")
    vectors = _of_one_length(table.column("vector"), name)
    there = ~vectors.is_null().to_numpy()
    columns = table.drop_columns(["vector"])
    for place, field in enumerate(columns.schema):
        if field.type == pa.string_view():  # of which Arrow cannot take some rows
            columns = columns.set_column(place, field.name, columns[place].cast(pa.large_string()))
    if not there.all():
        vectors = vectors.filter(pa.array(there))
    if len(vectors) == 0:
        raise InputError(f"{name}: not one of {table.num_rows} cells has a vector")
    parts = [chunk.flatten() for chunk in vectors.chunks]
    values = (
        pa.concat_arrays(parts).to_numpy(zero_copy_only=False).astype(np.float32).reshape(-1, vectors.type.list_size)
    )
    ids = columns.column("id").to_pylist()
    _check(ids, values, there, name)
    reasons = columns.column("reason").to_pylist() if "reason" in columns.column_names else [None] * len(ids)
    left_out = {ids[row]: reasons[row] or "no vector" for row in np.flatnonzero(~there)}
    return Vectors(columns.filter(pa.array(there)), values, _provenance(table.schema, name), left_out)


def _of_one_length(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    """The vectors as lists of a fixed size, which other writers of Parquet do not know."""
    kind = column.type
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not (lists and pa.types.is_floating(kind.value_type)):
        raise InputError(f"{name}: column 'vector' must hold lists of numbers (float32), not {kind}")
    if pa.types.is_fixed_size_list(kind) and kind.list_size:
        return column
    lengths = pc.unique(pc.drop_null(pc.list_value_length(column))).to_pylist()
    if lengths == [0]:
        raise InputError(f"{name}: column 'vector' holds empty lists")
    if len(lengths) > 1:
        raise InputError(f"{name}: column 'vector' must hold lists of one length, not of {name_some(sorted(lengths))}")
    return column.cast(pa.list_(kind.value_type, lengths[0] if lengths else 1))


def _check(ids: list[Any], values: np.ndarray, there: np.ndarray, name: str) -> None:
    wrong = [row for row, text in enumerate(ids) if not isinstance(text, str) or not text]
    if wrong:
        raise InputError(f"{name}: column 'id' must hold texts, but does not on row {name_some(wrong)}")
    if len(set(ids)) < len(ids):
        seen: set[str] = set()
        repeated = [repr(text) for text in ids if text in seen or seen.add(text)]  # type: ignore[func-returns-value]
        raise InputError(f"{name}: the id {name_some(dict.fromkeys(repeated))} stands on more than one row")
    bad = ~np.isfinite(values).all(axis=1)
    if bad.any():
        some = name_some(repr(ids[row]) for row in np.flatnonzero(there)[bad])
        raise InputError(f"{name}: {bad.sum()} vectors hold NaN or infinity: {some}; embed these cells again")


def _provenance(schema: pa.Schema, name: str) -> dict[str, Any]:
    text = (schema.metadata or {}).get(PROVENANCE)
    if text is None:
        return {}
    try:
        found = json.loads(text)
    except ValueError as error:
        raise InputError(f"{name}: its provenance is not valid JSON: {error}") from error
    if not isinstance(found, dict):
        raise InputError(f"{name}: its provenance is no table of values")
    return found


def refuse_other_model(fitted: dict[str, Any], given: dict[str, Any]) -> None:
    """Refuse vectors that a classifier cannot take.

    Args:
      fitted: provenance of the vectors that it was fitted on.
      given: provenance of those it is given.

    Raises:
      InputError: they are of two models, or of one that is not known.
    """
    for what, provenance in (("the classifier was fitted on", fitted), ("these are", given)):
        if "weights" not in provenance:
            raise InputError(f"{what} vectors of which nobody knows the model: embed the images with `dorl-jax embed`")
    differing = [
        f"{name} ({before}, now {now})"
        for name in _DECIDES
        if (before := fitted.get(name, _USUAL.get(name))) != (now := given.get(name, _USUAL.get(name)))
    ]
    if differing:
        raise InputError(
            "these vectors are of another model than those the classifier was fitted on: "
            f"{name_some(differing)}. Take the model of the classifier, or train a classifier on vectors of this one"
        )
