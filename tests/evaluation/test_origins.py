"""Each laboratory that cells name is judged alone, and said in words."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_fitted import make_vectors
from test_prediction import as_table

from dorl_jax.cli import main
from dorl_jax.evaluation.fitted import FittedClassifier, fit_classifier
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


def apart(vectors: Vectors, name: str, distance: float) -> Vectors:
    """The cells of the north as another laboratory's."""
    north = vectors.take(vectors.texts("laboratory") == "north")
    return named(replace(north, values=north.values + np.float32(distance)), [name] * len(north))


def adapted(vectors: Vectors, to: Vectors) -> FittedClassifier:
    return fit_classifier(vectors, "logistic_regression", adaptation="self_training", unlabelled=to, rounds=1)


def test_laboratories_adapted_to_are_what_it_is_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vectors = make_vectors(400)
    foreign, other = apart(vectors, "foreign", -40), apart(vectors, "other", 90)
    for name, given in (("known", vectors), ("foreign", foreign), ("other", other)):
        pq.write_table(as_table(given), tmp_path / f"{name}.parquet")
    classifier = str(tmp_path / "one.skops")
    train = ["train-classifier", str(tmp_path / "known.parquet"), "--out", classifier, "--rounds", "1"]
    assert main([*train, "--adaptation", "self_training", "--adapt-to", str(tmp_path / "foreign.parquet")]) == 0
    remark = "note: {}: the classifier was adapted to the cells of foreign and no others"
    for name, sentences in {
        "foreign": ["The cells of foreign are like those of foreign, which the classifier was adapted to. Cells"],
        "other": [remark.format("other"), "The cells of other are from no laboratory the classifier was trained in or"],
        "known": [remark.format("north"), remark.format("south"), "The cells of north are like those of north. Cells"],
    }.items():
        capsys.readouterr()
        given = ["--vectors", str(tmp_path / f"{name}.parquet"), "--classifier", classifier]
        assert main(["predict", *given, "--out", str(tmp_path / "out.parquet")]) == 0
        printed = capsys.readouterr().out
        assert all(sentence in printed for sentence in sentences), printed
        assert printed.count("adapted to the cells of") == len(sentences) - 1
    assert "familiarity_foreign" in pq.read_table(tmp_path / "out.parquet").column_names


def test_cells_like_two_laboratories_are_said_to_be_the_adapted_one() -> None:
    vectors = make_vectors(400)
    near = apart(vectors, "z_near", 0)
    fitted = adapted(vectors, near)
    (origin,) = predict(fitted, near).origins
    assert origin.nearest is not None
    assert origin.nearest.laboratory == "z_near"


def test_laboratories_adapted_to_that_are_not_kept() -> None:
    vectors = make_vectors(400)
    foreign = apart(vectors, "foreign", -40)
    few = adapted(vectors, foreign.take(np.arange(15)))
    assert "foreign: 15 cells are too few" in few.header.notes[0]
    fitted = adapted(vectors, foreign)
    kept = tuple(one for one in fitted.familiarity.references if one.name != "foreign")
    # as files say that were written before these cells were kept
    old = replace(fitted, familiarity=replace(fitted.familiarity, references=kept))
    for classifier in (few, old):
        prediction = predict(classifier, foreign)
        assert describe_origins(prediction.origins).startswith(
            "The cells of foreign bear the name of one that the classifier was adapted to"
        )
        assert not any("no others" in note for note in prediction.notes)
        other = predict(classifier, apart(vectors, "other", 90))
        assert "from no laboratory the classifier was trained in: check" in describe_origins(other.origins)
        assert "adapted to the cells of foreign and no others" in other.notes[-1]
