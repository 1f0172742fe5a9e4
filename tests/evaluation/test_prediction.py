"""What is predicted stands on the right rows, and is refused for vectors of another model."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from test_fitted import CLASSES, make_vectors

from dorl_jax.errors import InputError
from dorl_jax.evaluation.adaptation import Adaptation
from dorl_jax.evaluation.fitted import (
    FittedClassifier,
    fit_classifier,
    in_laboratory_units,
    load_classifier,
    save_classifier,
)
from dorl_jax.evaluation.origins import describe_origins
from dorl_jax.evaluation.prediction import predict, prediction_table, refuse_vectors_of
from dorl_jax.vectors import PROVENANCE, Vectors


def as_table(vectors: Vectors, failed: tuple[int, ...] = ()) -> pa.Table:
    rows = [None if row in failed else values.tolist() for row, values in enumerate(vectors.values)]
    table = vectors.columns.append_column("vector", pa.array(rows, pa.list_(pa.float32(), 6)))
    return table.replace_schema_metadata({PROVENANCE: json.dumps(vectors.provenance)})


def test_rows_in_order_with_gaps() -> None:
    vectors = make_vectors()
    fitted = fit_classifier(vectors, "random_forest")
    table, prediction = prediction_table(fitted, as_table(vectors, failed=(0, 7)))
    there = np.setdiff1d(np.arange(120), [0, 7])
    assert table["id"].to_pylist() == vectors.ids.tolist()
    assert table["class"].is_null().to_numpy().nonzero()[0].tolist() == [0, 7]
    expected = fitted.classifier.predict_proba(vectors.values[there])
    for column, label in enumerate(CLASSES):
        found = table[f"probability_{label}"].drop_null().to_numpy()
        np.testing.assert_array_equal(found, expected[:, column].astype(np.float32))
    assert table["class"].drop_null().to_pylist() == CLASSES[expected.argmax(axis=1)].tolist()
    np.testing.assert_allclose(table["probability"].drop_null().to_numpy(), expected.max(axis=1), rtol=1e-6)
    # the south lies apart from the north
    nearest = np.array(table["nearest_laboratory"].drop_null().to_pylist())
    assert (nearest == vectors.texts("laboratory")[there]).mean() > 0.95
    np.testing.assert_allclose(table["familiarity_north"].drop_null().to_numpy(), prediction.p_values[:, 0], rtol=1e-6)
    about = json.loads(table.schema.metadata[PROVENANCE])
    assert about["classifier"]["name"] == "random_forest"
    assert about["vectors"] == vectors.provenance


def test_a_known_and_an_unknown_laboratory() -> None:
    vectors = make_vectors(400)
    fitted = fit_classifier(vectors.take(np.arange(0, 400, 2)), "logistic_regression")
    south = np.arange(201, 400, 2)
    known = predict(fitted, vectors.take(south))
    (origin,) = known.origins
    assert origin.known[0].laboratory == "south"
    assert "The cells of south are like those of south. Cells" in describe_origins(known.origins)
    far = Vectors(vectors.columns, vectors.values + np.float32(12), vectors.provenance, {})
    for line in describe_origins(predict(fitted, far).origins).splitlines():
        assert "are from no laboratory the classifier was trained in" in line


@pytest.mark.parametrize("adaptation", ["none", "own", "co_training"])
def test_a_classifier_of_some_parts(adaptation: Adaptation, tmp_path: Path) -> None:
    whole = make_vectors()
    sizes = {"shape": 2, "colour": 3, "size": 1}
    whole = replace(whole, provenance={**whole.provenance, "vector": list(sizes), "parts": sizes})
    places = [0, 1, 5]
    alone = replace(whole, values=whole.values[:, places])
    chosen = {"vector": ["shape", "size"], "parts": {"shape": 2, "size": 1}}
    alone = replace(alone, provenance={**whole.provenance, **chosen})
    north, south = (whole.texts("laboratory") == name for name in ("north", "south"))

    def fit(vectors: Vectors, parts: Sequence[str] = ()) -> FittedClassifier:
        unlabelled = vectors.take(south) if adaptation == "co_training" else None
        known = vectors.take(north) if adaptation == "co_training" else vectors
        return fit_classifier(known, "logistic_regression", adaptation=adaptation, unlabelled=unlabelled, parts=parts)

    fitted, expected = fit(whole, ["size", "shape"]), fit(alone)
    assert fitted.header == expected.header
    save_classifier(fitted, tmp_path / "one.skops")
    found = predict(load_classifier(tmp_path / "one.skops"), whole)
    np.testing.assert_array_equal(found.probabilities, predict(expected, alone).probabilities)
    np.testing.assert_array_equal(found.p_values, predict(expected, alone).p_values)
    refuse_vectors_of(fitted, whole.provenance)
    with pytest.raises(InputError, match=r"zoom \(1.25, now 0.0\)"):
        refuse_vectors_of(fitted, {**whole.provenance, "zoom": 0.0})
    with pytest.raises(InputError, match="no part 'area'; the parts are: shape, colour, size"):
        fit_classifier(whole, "logistic_regression", parts=["area"])
    with pytest.raises(InputError, match="no part 'shape'; the parts are: none"):
        fit_classifier(make_vectors(), "logistic_regression", parts=["shape"])


def test_own_units_are_those_of_the_new_laboratory() -> None:
    vectors = make_vectors()
    fitted = fit_classifier(vectors, "logistic_regression", adaptation="own")
    # a third laboratory: the south in another stain
    south = vectors.take(vectors.texts("laboratory") == "south")
    stained = Vectors(south.columns, south.values * 2 - np.float32(20), south.provenance, {})
    here, there = predict(fitted, south), predict(fitted, stained)
    np.testing.assert_allclose(there.probabilities, here.probabilities, atol=1e-5)
    assert here.origins[0].known[0].verdict == "known"
    assert there.origins[0].known[0].verdict == "unknown"
    assert "60 cells only" in there.notes[0]
    without = Vectors(south.columns.select(["id"]), south.values, south.provenance, {})
    np.testing.assert_array_equal(predict(fitted, without).probabilities, here.probabilities)
    scaled = in_laboratory_units("own", south.values, np.full(len(south), "x"), {})
    np.testing.assert_array_equal(fitted.probabilities(scaled), here.probabilities)


def test_vectors_of_another_model() -> None:
    vectors = make_vectors()
    fitted = fit_classifier(vectors, "logistic_regression")
    predict(fitted, Vectors(vectors.columns, vectors.values, {**vectors.provenance, "batch_size": 4}, {}))
    for changed, message in (
        ({"zoom": 0.0}, r"of another model .* zoom \(1.25, now 0.0\)"),
        ({"weights": {"segmenter": "a", "autoencoder": "c"}}, r"of another model .*weights"),
    ):
        other = Vectors(vectors.columns, vectors.values, {**vectors.provenance, **changed}, {})
        with pytest.raises(InputError, match=message):
            predict(fitted, other)
    with pytest.raises(InputError, match="these are vectors of which nobody knows the model"):
        predict(fitted, Vectors(vectors.columns, vectors.values, {}, {}))
    with pytest.raises(InputError, match="takes vectors of 6 numbers, not of 5"):
        predict(fitted, Vectors(vectors.columns, vectors.values[:, :5], vectors.provenance, {}))


def test_true_classes_of_the_table_are_kept() -> None:
    vectors = make_vectors()
    fitted = fit_classifier(vectors, "logistic_regression")
    truth = ["something else"] * len(vectors)
    table = as_table(vectors).append_column("class", pa.array(truth))
    found, _ = prediction_table(fitted, table)
    assert found["given_class"].to_pylist() == truth
    assert set(found["class"].to_pylist()) <= set(CLASSES.tolist())
    with pytest.raises(InputError, match="has the columns 'class' and 'given_class': rename or drop one"):
        prediction_table(fitted, table.append_column("given_class", pa.array(truth)))
