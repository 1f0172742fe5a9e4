"""Classes of cells by a fitted classifier, and whether their laboratory is one it knows."""

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from jaxtyping import Float, Shaped

from dorl_jax.errors import InputError
from dorl_jax.evaluation.fitted import FittedClassifier, in_laboratory_units, notes_on_few
from dorl_jax.evaluation.origins import Origin, find_origins, other_than_adapted
from dorl_jax.vectors import PROVENANCE, Vectors, from_table, refuse_other_model


@dataclass(frozen=True)
class Prediction:
    """Of every cell that has a vector.

    Attributes:
      classes: in the order of the columns of `probabilities`.
      labels: the most probable class of each cell.
      probabilities: (n, k); rows sum to 1.
      laboratories: that it trained on, in the order of the columns of `p_values`.
      p_values: (n, l): share of the laboratory's own cells that are as far out (see `familiarity`).
      origins: the same for the cells of each laboratory together.
      notes: what to keep in mind.
    """

    classes: tuple[str, ...]
    labels: Shaped[np.ndarray, " n"]
    probabilities: Float[np.ndarray, "n k"]
    laboratories: tuple[str, ...]
    p_values: Float[np.ndarray, "n l"]
    origins: tuple[Origin, ...]
    notes: tuple[str, ...]


def predict(fitted: FittedClassifier, vectors: Vectors) -> Prediction:
    """Name the class of every cell.

    Where the classifier was fitted with an adaptation, vectors are scaled by the mean and sd of their laboratory: that
    of the column `laboratory`, or all cells together where there is none.

    Raises:
      InputError: vectors of another model than those it was fitted on, or of one that is not known.
    """
    header = fitted.header
    looked_at = parts_looked_at(fitted, vectors.parts)
    if looked_at:
        vectors = vectors.only(looked_at)
    refuse_other_model(header.vectors, vectors.provenance)
    if vectors.values.shape[1] != header.width:
        raise InputError(f"the classifier takes vectors of {header.width} numbers, not of {vectors.values.shape[1]}")
    values, notes = vectors.values, []
    if header.adaptation != "none":
        laboratories = vectors.laboratories
        notes = notes_on_few(laboratories)
        values = in_laboratory_units(header.adaptation, values, laboratories, header.parts)
    probabilities = fitted.probabilities(values)
    # Of the laboratory as it is: in its own units every one looks alike.
    p_values = fitted.familiarity.of_cells(vectors.values)
    known = tuple(reference.name for reference in fitted.familiarity.references)
    origins = find_origins(vectors, known, p_values, tuple(header.adapted_to))
    return Prediction(
        classes=header.classes,
        labels=np.array(header.classes)[probabilities.argmax(axis=1)],
        probabilities=probabilities,
        laboratories=known,
        p_values=p_values,
        origins=origins,
        notes=(*notes, *other_than_adapted(origins)),
    )


def parts_looked_at(fitted: FittedClassifier, parts: Collection[str]) -> list[str]:
    """Those of the vectors' parts that the classifier was fitted on, where it was not on all; else none."""
    looked_at = fitted.header.vectors.get("vector", [])
    return looked_at if set(looked_at) < set(parts) else []


def refuse_vectors_of(fitted: FittedClassifier, provenance: Mapping[str, Any]) -> None:
    """Refuse a model before it embeds anything.

    Args:
      fitted: the classifier.
      provenance: of the vectors that the model makes.

    Raises:
      InputError: it is another model than the one whose vectors the classifier was fitted on.
    """
    looked_at = parts_looked_at(fitted, provenance["vector"])
    refuse_other_model(fitted.header.vectors, {**provenance, **({"vector": looked_at} if looked_at else {})})


def prediction_table(
    fitted: FittedClassifier, table: pa.Table, name: str = "the vectors"
) -> tuple[pa.Table, Prediction]:
    """A table of vectors with, in place of these, what is predicted.

    Args:
      fitted: the classifier.
      table: as `dorl-jax embed` makes it.
      name: what messages call it.

    Returns:
      The table, its rows in order and complete, with the columns `class`, `probability` (of that class),
      `probability_CLASS` of every class, `nearest_laboratory`, `familiarity` (its p-value), and
      `familiarity_LABORATORY` of every laboratory it trained on; null where a cell has no vector. What the table has
      under one of these names, as true classes, becomes `given_NAME`. Its metadata tells, as JSON under "dorl_jax", of
      the vectors, the classifier, and the origins. And the prediction itself.

    Raises:
      InputError: see `predict` and `vectors.from_table`; a table that has the column `given_NAME`, too.
    """
    vectors = from_table(table, name)
    prediction = predict(fitted, vectors)
    columns: dict[str, np.ndarray] = {
        "class": prediction.labels,
        "probability": prediction.probabilities.max(axis=1),
    }
    for index, label in enumerate(prediction.classes):
        columns[f"probability_{label}"] = prediction.probabilities[:, index]
    if prediction.laboratories:
        nearest = prediction.p_values.argmax(axis=1)
        columns["nearest_laboratory"] = np.array(prediction.laboratories)[nearest]
        columns["familiarity"] = prediction.p_values.max(axis=1)
    for index, laboratory in enumerate(prediction.laboratories):
        columns[f"familiarity_{laboratory}"] = prediction.p_values[:, index]
    there = ~table.column("vector").is_null().to_numpy()
    result = table.drop_columns(["vector"])
    given = {column: f"given_{column}" if column in columns else column for column in result.column_names}
    twice = [column for column in result.column_names if given[column] != column and given[column] in given]
    if twice:
        raise InputError(f"{name} has the columns {twice[0]!r} and 'given_{twice[0]}': rename or drop one")
    result = result.rename_columns([given[column] for column in result.column_names])
    for column, values in columns.items():
        result = result.append_column(column, _spread(values, there))
    about = {
        "vectors": vectors.provenance,
        "classifier": msgspec.to_builtins(fitted.header),
        "origins": [asdict(one) for one in prediction.origins],
        "notes": prediction.notes,
    }
    return result.replace_schema_metadata({PROVENANCE: json.dumps(about)}), prediction


def _spread(values: np.ndarray, there: np.ndarray) -> pa.Array:
    """The values on the rows that are there, null on the others."""
    rows = np.zeros(len(there), object if values.dtype.kind == "U" else np.float32)
    rows[there] = values
    return pa.array(rows, pa.string() if rows.dtype == object else pa.float32(), mask=~there)
