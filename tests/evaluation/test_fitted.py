"""Classifiers in files: the same after as before, with no code in them."""

import io
import json
import pickletools
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import skops.io

from dorl_jax.data.taxonomy import Taxonomy
from dorl_jax.errors import InputError
from dorl_jax.evaluation import fitted as fitted_file
from dorl_jax.evaluation.adaptation import self_train
from dorl_jax.evaluation.classifier_names import CLASSIFIERS
from dorl_jax.evaluation.classifiers import make_classifier
from dorl_jax.evaluation.experts import Experts
from dorl_jax.evaluation.fitted import (
    fit_classifier,
    in_laboratory_units,
    load_classifier,
    read_header,
    save_classifier,
)
from dorl_jax.evaluation.prediction import predict
from dorl_jax.vectors import Vectors

CLASSES = np.array(["basophil", "lymphocyte", "monocyte"])


def make_vectors(count: int = 120, **columns: list) -> Vectors:
    rng = np.random.default_rng(4)
    labels = rng.integers(0, 3, count)
    laboratories = np.repeat(["north", "south"], [count // 2, count - count // 2])
    values = rng.standard_normal((count, 6)).astype(np.float32)
    values[:, 0] += 2 * labels
    values += np.where(laboratories == "south", 3, 0)[:, None]
    table = pa.table(
        {
            "id": [f"cell-{place}" for place in range(count)],
            "laboratory": laboratories.tolist(),
            "label": CLASSES[labels].tolist(),
            **columns,
        }
    )
    provenance = {"weights": {"segmenter": "a", "autoencoder": "b"}, "zoom": 1.25, "batch_size": 16}
    return Vectors(table, values, provenance, {})


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_file_gives_the_same_classifier(name: str, tmp_path: Path) -> None:
    if name == "xgboost":
        pytest.importorskip("xgboost", reason="needs xgboost: pip install 'dorl-jax[xgboost-cpu]'")
    vectors = make_vectors()
    fitted = fit_classifier(vectors, name, seed=3)
    save_classifier(fitted, tmp_path / "one.skops")
    again = load_classifier(tmp_path / "one.skops")
    assert again.header == fitted.header == read_header(tmp_path / "one.skops")
    new = np.random.default_rng(5).standard_normal((50, 6)).astype(np.float32) * 3
    np.testing.assert_array_equal(again.probabilities(new), fitted.probabilities(new))
    np.testing.assert_array_equal(again.familiarity.of_cells(new), fitted.familiarity.of_cells(new))
    assert again.header.classes == tuple(CLASSES)
    np.testing.assert_allclose(again.probabilities(new).sum(axis=1), 1, atol=1e-5)
    called = np.array(again.header.classes)[again.probabilities(new).argmax(axis=1)]
    plain = make_classifier(name, 3).fit(vectors.values, vectors.texts("label")).predict(new)
    # Platt's scaling may turn the nearest calls of a support vector machine
    assert (called == plain).mean() >= (0.85 if name.startswith("svm_") else 1)


def test_the_header_tells(tmp_path: Path) -> None:
    save_classifier(fit_classifier(make_vectors(), "logistic_regression"), tmp_path / "one.skops")
    with zipfile.ZipFile(tmp_path / "one.skops") as file:
        header = json.loads(file.read("dorl_jax.json"))
        for name in file.namelist():
            # a pickle is one that pickletools can read to its end
            if not name.endswith((".json", ".npy")):
                with pytest.raises(ValueError, match=r"."):
                    list(pickletools.genops(file.read(name)))
    labels, laboratories = make_vectors().texts("label"), make_vectors().texts("laboratory")
    for laboratory in ("north", "south"):
        for label in CLASSES:
            expected = int(((labels == label) & (laboratories == laboratory)).sum())
            assert header["cells"][laboratory][label] == expected
    assert header["vectors"]["weights"] == {"segmenter": "a", "autoencoder": "b"}
    assert {"scikit-learn", "numpy", "skops", "dorl_jax"} <= header["versions"].keys()
    assert header["width"] == 6


def test_own_units() -> None:
    vectors = make_vectors()
    fitted = fit_classifier(vectors, "logistic_regression", adaptation="own")
    laboratories = vectors.texts("laboratory")
    scaled = in_laboratory_units("own", vectors.values, laboratories, {})
    for laboratory in ("north", "south"):
        own = scaled[laboratories == laboratory].astype(np.float64)
        np.testing.assert_allclose(own.mean(axis=0), 0, atol=1e-6)
        np.testing.assert_allclose(own.std(axis=0), 1, atol=1e-5)
    plain = make_classifier("logistic_regression", 1234).fit(scaled, vectors.texts("label"))
    np.testing.assert_array_equal(fitted.probabilities(scaled), plain.predict_proba(scaled))
    constant = in_laboratory_units("own", np.full((4, 2), 0.1, np.float32), np.array(["a"] * 4), {})
    np.testing.assert_array_equal(constant, 0)


@pytest.mark.parametrize("adaptation", ["self_training", "co_training"])
def test_unlabelled_cells_of_the_laboratory_it_is_for(adaptation: Any, tmp_path: Path) -> None:
    """Against the adaptation written out; and a file gives the same."""
    known = make_vectors()
    provenance = {**known.provenance, "vector": ["pixels", "regions"], "parts": {"regions": 4, "pixels": 2}}
    known = replace(known, provenance=provenance)
    third = replace(known, values=known.values[::-1] * 2 - np.float32(1), columns=known.columns.select(["id"]))
    name = "logistic_regression_balanced"
    fitted = fit_classifier(known, name, adaptation=adaptation, unlabelled=third, rounds=2)

    def make() -> Any:
        def one() -> Any:
            return make_classifier(name, 1234)

        return Experts(one, {"pixels": 2, "regions": 4}) if adaptation == "co_training" else one()

    values = in_laboratory_units("own", known.values, known.texts("laboratory"), {})
    asked = in_laboratory_units("own", third.values, np.full(120, "x"), {})
    if adaptation == "co_training":
        values[:, :2], asked[:, :2] = known.values[:, :2], third.values[:, :2]
    labels = known.texts("label")
    expected = self_train(make, values, labels, asked, 2, make().fit(values, labels)).predict_proba(asked)
    np.testing.assert_array_equal(predict(fitted, third).probabilities, expected)
    assert fitted.header.adapted_to == {"unlabelled": 120}
    assert [one.name for one in fitted.familiarity.references] == ["north", "south", "unlabelled"]
    save_classifier(fitted, tmp_path / "one.skops")
    again = load_classifier(tmp_path / "one.skops")
    assert again.header == fitted.header
    np.testing.assert_array_equal(predict(again, third).probabilities, expected)


def test_a_cell_that_is_given_twice_is_compared_with_once() -> None:
    vectors = make_vectors()
    again = fit_classifier(vectors, "logistic_regression", adaptation="self_training", unlabelled=vectors, rounds=1)
    once = fit_classifier(vectors, "logistic_regression")
    for reference, expected in zip(again.familiarity.references, once.familiarity.references, strict=True):
        np.testing.assert_array_equal(reference.distances, expected.distances)
    # the same names in another laboratory are other cells
    columns = vectors.columns.set_column(1, "laboratory", pa.array(["third"] * 120))
    third = replace(vectors, columns=columns)
    other = fit_classifier(vectors, "logistic_regression", adaptation="self_training", unlabelled=third, rounds=1)
    assert [len(one.vectors) for one in other.familiarity.references] == [60, 60, 120]


def test_adaptations_that_do_not_fit() -> None:
    vectors = make_vectors()
    with pytest.raises(InputError, match="'co_training' needs unlabelled cells .* --adapt-to"):
        fit_classifier(vectors, "mlp", adaptation="co_training")
    with pytest.raises(InputError, match="'own' takes no unlabelled cells .* self_training and co_training do"):
        fit_classifier(vectors, "mlp", adaptation="own", unlabelled=vectors)
    with pytest.raises(InputError, match="svm_linear gives no probabilities"):
        fit_classifier(vectors, "svm_linear", adaptation="self_training", unlabelled=vectors)
    other = replace(vectors, provenance={**vectors.provenance, "zoom": 0.0})
    with pytest.raises(InputError, match=r"another model .*: zoom \(1.25, now 0.0\)"):
        fit_classifier(vectors, "mlp", adaptation="self_training", unlabelled=other)
    for rounds in (0, -1):
        with pytest.raises(InputError, match=f"rounds = {rounds}: at least 1 is needed"):
            fit_classifier(vectors, "mlp", adaptation="self_training", unlabelled=vectors, rounds=rounds)


def test_cells_without_a_label_are_left_out() -> None:
    vectors = make_vectors()
    kinds = [None if place % 3 == 0 else label for place, label in enumerate(vectors.texts("label").tolist())]
    fitted = fit_classifier(make_vectors(kind=kinds), "random_forest", label="kind")
    assert sum(sum(cells.values()) for cells in fitted.header.cells.values()) == 80
    assert "40 cells without a kind are left out" in fitted.header.notes


def test_labels_go_by_a_taxonomy() -> None:
    taxonomy = Taxonomy(
        "own", ("neutrophil", "monocyte"), {"SNE": "neutrophil", "MO": "monocyte"}, frozenset({"smudge"})
    )
    kinds = (["SNE", "MO", "neutrophil", "smudge", "sne", None] * 20)[:120]
    vectors = make_vectors(kind=kinds)
    fitted = fit_classifier(vectors, "logistic_regression", label="kind", taxonomy=taxonomy)
    assert fitted.header.classes == ("monocyte", "neutrophil")
    assert {label: sum(cells[label] for cells in fitted.header.cells.values()) for label in taxonomy.classes} == {
        "neutrophil": 60,
        "monocyte": 20,
    }
    assert fitted.header.notes[:2] == (
        "20 cells without a kind are left out",
        "20 cells that the taxonomy drops are left out: smudge",
    )
    with pytest.raises(InputError, match="unknown label 'basophil'"):
        fit_classifier(vectors, "logistic_regression", taxonomy=taxonomy)


def test_what_cannot_be_fitted() -> None:
    for kinds, name, message in (
        (["a"] * 120, "logistic_regression", "all 120 cells are of one class, 'a'"),
        ([None] * 120, "logistic_regression", "no cell has a class in column 'kind'"),
        (["a"] * 119 + ["b"], "svm_linear", "and there is one b"),
        (["a"] * 60 + ["b"] * 60, "svm", "unknown classifier 'svm'"),
    ):
        with pytest.raises(InputError, match=message):
            fit_classifier(make_vectors(kind=pa.array(kinds, pa.string())), name, label="kind")
    with pytest.raises(InputError, match="no column 'kind'.*if a laboratory.toml, even an empty one, lies in it"):
        fit_classifier(make_vectors(), "svm_linear", label="kind")


def test_what_is_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "one.skops"
    save_classifier(fit_classifier(make_vectors(), "logistic_regression"), path)
    with pytest.raises(InputError, match="no classifier at"):
        load_classifier(tmp_path / "none.skops")
    (tmp_path / "text.skops").write_text("no zip")
    with pytest.raises(InputError, match="is no classifier that"):
        load_classifier(tmp_path / "text.skops")
    (tmp_path / "bare.skops").write_bytes(skops.io.dumps({"a": 1}))
    with pytest.raises(InputError, match="is no classifier that"):
        load_classifier(tmp_path / "bare.skops")
    spoilt = bytearray(path.read_bytes())
    spoilt[len(spoilt) // 3] ^= 1
    (tmp_path / "spoilt.skops").write_bytes(spoilt)
    with pytest.raises(InputError, match="spoilt.skops is damaged"):
        load_classifier(tmp_path / "spoilt.skops")
    versions = fitted_file._versions()
    monkeypatch.setattr(fitted_file, "_versions", lambda: {**versions, "scikit-learn": "0.1.2"})
    with pytest.raises(InputError, match=r"was fitted with scikit-learn .*, here is 0.1.2"):
        load_classifier(path)
    monkeypatch.undo()
    # a type that is none of ours, in place of the classifier
    content = skops.io.dumps({"classifier": io.StringIO, "familiarity": {}})
    with zipfile.ZipFile(path) as file:
        header = file.read("dorl_jax.json")
    path.write_bytes(content)
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("dorl_jax.json", header)
    with pytest.raises(InputError, match="is not loaded"):
        load_classifier(path)
