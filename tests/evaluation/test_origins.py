"""Each laboratory that cells name is judged alone, and said in words."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
from test_fitted import make_vectors

from dorl_jax.evaluation.fitted import fit_classifier
from dorl_jax.evaluation.origins import describe_origins
from dorl_jax.evaluation.prediction import predict
from dorl_jax.vectors import Vectors


def named(vectors: Vectors, laboratories: list[str | None]) -> Vectors:
    place = vectors.columns.column_names.index("laboratory")
    columns = vectors.columns.set_column(place, "laboratory", pa.array(laboratories, pa.string()))
    return replace(vectors, columns=columns)


def test_known_laboratories_are_known_together() -> None:
    vectors = make_vectors(400)
    vectors = replace(vectors, values=vectors.values + 20 * (np.arange(400) >= 200)[:, None].astype(np.float32))
    fitted = fit_classifier(vectors, "logistic_regression")
    # half of the cells are far from each of the two
    found = predict(fitted, vectors).origins
    assert [(one.laboratory, one.cells, one.known[0].laboratory) for one in found] == [
        ("north", 200, "north"),
        ("south", 200, "south"),
    ]
    assert [one.known[0].verdict for one in found] == ["known", "known"]
    north, south = describe_origins(found).splitlines()
    assert north.startswith("The cells of north are like those of north. ")
    assert south.startswith("The cells of south are like those of south. ")
    # a third one beside them is told from them
    laboratories = ["third" if place % 2 else "north" for place in range(200)] + ["south"] * 200
    moved = replace(vectors, values=vectors.values - np.float32(30) * (np.array(laboratories) == "third")[:, None])
    verdicts = {one.laboratory: one.known[0].verdict for one in predict(fitted, named(moved, laboratories)).origins}
    assert verdicts == {"north": "known", "south": "known", "third": "unknown"}


def test_cells_that_name_no_laboratory() -> None:
    vectors = make_vectors(400)
    fitted = fit_classifier(vectors, "logistic_regression")
    some = named(vectors, [None if place < 100 else "north" for place in range(200)] + ["south"] * 200)
    nameless, north, _ = describe_origins(predict(fitted, some).origins).splitlines()
    assert nameless.startswith("The cells without a laboratory are like those of north")
    assert north.startswith("The cells of north are like those of north")
    without = replace(vectors, columns=vectors.columns.drop_columns(["laboratory"]))
    (origin,) = predict(fitted, without).origins
    assert (origin.laboratory, origin.cells) == ("", 400)
    assert describe_origins([origin]).startswith("These cells are ")
    # too few of each to compare with
    few = fit_classifier(vectors.take(np.array([*range(15), *range(200, 215)])), "logistic_regression")
    assert "cannot be told" in describe_origins(predict(few, vectors).origins)
