import json
import re
import warnings

import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, f1_score
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from dorl_jax.errors import InputError
from dorl_jax.evaluation import protocol
from dorl_jax.evaluation.classifier_names import CLASSIFIERS, ORIGINAL
from dorl_jax.evaluation.latents import Latents
from dorl_jax.evaluation.methods import Method
from dorl_jax.evaluation.protocol import judge
from dorl_jax.evaluation.settings import ProtocolSettings

THREE = {
    "north": {"basophil": 12, "monocyte": 30, "neutrophil": 41},
    "south": {"basophil": 9, "monocyte": 22, "neutrophil": 14},
    "west": {"monocyte": 17, "neutrophil": 8},
}
FAST = ("svm_linear", "logistic_regression")


def evaluate(latents, classifiers=FAST, **more):
    """Pairs of laboratories, without adaptation."""
    settings = ProtocolSettings(
        classifiers=tuple(classifiers), adaptations=("none",), leave_one_out=False, resamples=100, **more
    )
    return judge([Method("vectors", (latents,))], settings, progress=False).evaluation


def test_agrees_with_the_protocol_written_plainly(make_latents):
    latents = make_latents(THREE, distance=1.5, shift=1.0)
    plain = {
        "svm_linear": lambda: make_pipeline(StandardScaler(), SVC(kernel="linear")),
        "logistic_regression": lambda: make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)),
        "random_forest": lambda: RandomForestClassifier(200, max_depth=16, random_state=1234),
    }
    found = evaluate(latents, tuple(plain))
    rows = {(r.source, r.target, r.classifier, r.fold): r for r in found.rows}
    counts = {(c.source, c.target, c.classifier): np.array(c.counts) for c in found.confusions}
    assert len(rows) == len(found.rows) == 3 * 3 * 3 * 5 == 5 * len(counts)
    frequent = {
        "north": ["basophil", "monocyte", "neutrophil"],
        "south": ["monocyte", "neutrophil"],
        "west": ["monocyte"],
    }
    accuracies = {}
    for source in THREE:
        x, y = latents.vectors[latents.laboratories == source], latents.labels[latents.laboratories == source]
        for fold, (fitted, tested) in enumerate(StratifiedKFold(5, shuffle=True, random_state=1234).split(x, y)):
            for name, make in plain.items():
                model = make().fit(x[fitted], y[fitted])
                for target in THREE:
                    of_target = latents.laboratories == target
                    a, b = (x[tested], y[tested]) if target == source else (
                        latents.vectors[of_target], latents.labels[of_target]
                    )  # fmt: skip
                    called = model.predict(a)
                    row = rows[source, target, name, fold]
                    assert row.cells == len(b)
                    assert row.accuracy == pytest.approx(accuracy_score(b, called))
                    few = f1_score(b, called, labels=frequent[target], average="macro", zero_division=0)
                    assert row.macro_f1_frequent == pytest.approx(few)
                    macro_f1 = f1_score(b, called, labels=np.unique(b), average="macro", zero_division=0)
                    assert row.macro_f1 == pytest.approx(macro_f1)
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")  # scikit-learn's, on classes that are predicted only
                        assert row.balanced_accuracy == pytest.approx(balanced_accuracy_score(b, called))
                    assert row.recall == {c: pytest.approx(np.mean(called[b == c] == c)) for c in np.unique(b)}
                    matrix = confusion_matrix(b, called, labels=["basophil", "monocyte", "neutrophil"])
                    counts[source, target, name] -= matrix
                    accuracies.setdefault((name, source, target), []).append(accuracy_score(b, called))
    # All folds of all matrices are found again, and nothing else.
    assert not any(matrix.any() for matrix in counts.values())
    # Not so easy that everything is 1.
    assert 0.4 < np.mean([np.mean(v) for v in accuracies.values()]) < 0.95
    means = {(m.classifier, m.source, m.target): m for m in found.means}
    assert set(means) == set(accuracies)
    for key, values in accuracies.items():
        assert means[key].accuracy.mean == pytest.approx(np.mean(values))
        assert means[key].accuracy.sd == pytest.approx(np.std(values))
    floors = {"north": 41 / 83, "south": 22 / 45, "west": 17 / 25}
    assert [c.classifier for c in found.summaries] == list(plain)
    for summary in found.summaries:
        across = {k[1:]: np.mean(v) for k, v in accuracies.items() if k[0] == summary.classifier and k[1] != k[2]}
        inside = [np.mean(v) for k, v in accuracies.items() if k[0] == summary.classifier and k[1] == k[2]]
        assert summary.pairs.accuracy.mean == pytest.approx(np.mean(list(across.values())))
        assert summary.in_domain.accuracy.mean == pytest.approx(np.mean(inside))
        assert summary.pairs.tests == 6
        assert summary.leave_one_out is None
        assert summary.pairs.above_floor == sum(value > floors[pair[1]] for pair, value in across.items())
    assert found.headline == "svm_linear"


def test_fitted_and_tested_cells_never_meet(make_latents, monkeypatch):
    latents = make_latents(THREE)
    numbers = {vector.tobytes(): i for i, vector in enumerate(latents.vectors)}
    fits = []

    class Recorder:
        def fit(self, vectors, labels):
            rows = {numbers[v.tobytes()] for v in vectors}
            np.testing.assert_array_equal(labels, latents.labels[[numbers[v.tobytes()] for v in vectors]])
            fits.append((rows, []))
            return self

        def predict(self, vectors):
            fits[-1][1].append({numbers[v.tobytes()] for v in vectors})
            return np.full(len(vectors), "monocyte")

    monkeypatch.setattr(protocol, "make_classifier", lambda name, seed: Recorder())
    evaluate(latents, ("svm_linear",))
    of = {name: set(np.flatnonzero(latents.laboratories == name)) for name in THREE}
    assert len(fits) == 15
    for index, source in enumerate(THREE):
        tested_inside = []
        for fitted, tested in fits[5 * index : 5 * index + 5]:
            inside = tested[index]
            assert fitted | inside == of[source]
            assert not fitted & inside
            tested_inside += inside
            for other, name in enumerate(THREE):
                if name != source:
                    assert tested[other] == of[name]
            # Stratified: a fifth of every class, to the nearest cell or two.
            for label, count in THREE[source].items():
                assert abs(sum(latents.labels[i] == label for i in inside) - count / 5) < 1
        assert sorted(tested_inside) == sorted(of[source])


def test_clear_blobs_are_told_apart_perfectly(make_latents):
    found = evaluate(make_latents(THREE, distance=30.0), ORIGINAL)
    for row in found.rows:
        # The cubic kernel, boosting's smallest leaves and the MLP's early stop need more cells than these.
        if row.source != "west" and row.classifier not in ("svm_poly", "mlp", "xgboost"):
            assert (row.accuracy, row.macro_f1, row.balanced_accuracy) == (1.0, 1.0, 1.0), row
    for summary in found.summaries:
        assert summary.classifier == "mlp" or summary.pairs.accuracy.mean > 0.8
    assert found.notes == []


def test_shuffled_labels_stay_near_the_floor(make_latents):
    latents = make_latents({name: {"a": 60, "b": 60, "c": 60} for name in ("x", "y")}, distance=30.0)
    labels = np.random.default_rng(0).permutation(latents.labels)
    shuffled = Latents(latents.ids, latents.laboratories, labels, latents.vectors)
    found = evaluate(shuffled, ("logistic_regression",))
    assert found.summaries[0].pairs.accuracy.mean == pytest.approx(1 / 3, abs=0.07)
    assert evaluate(latents, ("logistic_regression",)).summaries[0].pairs.accuracy.mean > 0.99


def test_ceiling_and_floor_of_a_source_without_a_class(make_latents):
    found = evaluate(make_latents(THREE, distance=30.0))
    means = {(m.source, m.target): m for m in found.means if m.classifier == "svm_linear"}
    assert means["west", "north"].ceiling == pytest.approx(71 / 83)
    assert means["west", "north"].accuracy.mean == pytest.approx(71 / 83)  # it reaches the ceiling
    assert means["north", "west"].ceiling == means["west", "west"].ceiling == 1.0
    assert means["west", "south"].majority_floor == pytest.approx(22 / 45)
    assert means["west", "south"].majority_floor_macro_f1 == pytest.approx(2 * 22 / (22 + 45) / 3)
    assert means["west", "south"].recall == {"basophil": 0.0, "monocyte": 1.0, "neutrophil": 1.0}
    assert found.laboratories["west"] == {"monocyte": 17, "neutrophil": 8}
    assert found.classes == ["basophil", "monocyte", "neutrophil"]


def test_rare_classes_are_noted(make_latents):
    cells = {
        "north": {"basophil": 1, "monocyte": 20, "neutrophil": 20},
        "south": {"monocyte": 20, "neutrophil": 4},
    }
    found = evaluate(make_latents(cells), ("mlp", "svm_linear", "xgboost"))
    assert found.notes == [
        "north: 1 basophil, fewer than the 5 folds: some folds test or train without this class",
        "south: 4 neutrophil, fewer than the 5 folds: some folds test or train without this class",
        "mlp on north, 4 of 5 folds: fitted without basophil: one training cell, none left to hold back",
    ]
    inside = [r for r in found.rows if r.source == r.target == "north" and r.classifier == "svm_linear"]
    assert sum("basophil" in r.recall for r in inside) == 1
    mean = next(m for m in found.means if m.source == m.target == "north" and m.classifier == "svm_linear")
    assert mean.recall["basophil"] == 0.0


def test_fits_that_do_not_converge_are_counted(make_latents, monkeypatch):
    stop_early = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1))
    monkeypatch.setattr(protocol, "make_classifier", lambda name, seed: stop_early)
    found = evaluate(make_latents(THREE), ("logistic_regression",))
    assert found.notes == [
        f"logistic_regression on {name}, 5 of 5 folds: stopped before it converged" for name in THREE
    ]


def test_other_warnings_pass_through(make_latents, monkeypatch):
    class Warner(LogisticRegression):
        def fit(self, vectors, labels):
            warnings.warn("something else", UserWarning, stacklevel=1)
            return super().fit(vectors, labels)

    monkeypatch.setattr(protocol, "make_classifier", lambda name, seed: Warner())
    with pytest.warns(UserWarning, match="something else"):
        evaluate(make_latents(THREE), ("logistic_regression",))


def test_same_input_same_figures(make_latents):
    latents = make_latents({name: THREE[name] for name in ("north", "south")}, distance=1.0)
    seeded = ("random_forest", "xgboost", "mlp")
    once, twice = (json.dumps(evaluate(latents, seeded, folds=2).to_summary()) for _ in range(2))
    assert once == twice
    other = json.dumps(evaluate(latents, seeded[:1], folds=2, seed=7).to_summary()["rows"])
    assert other != json.dumps([row for row in json.loads(once)["rows"] if row["classifier"] == "random_forest"])


def test_summary_is_plain_json(make_latents):
    summary = evaluate(make_latents(THREE)).to_summary()
    assert "confusions" not in summary
    assert set(summary["rows"][0]) >= {"source", "target", "classifier", "fold", "accuracy", "macro_f1", "setting"}
    assert summary["settings"]["folds"] == 5
    json.dumps(summary, allow_nan=False)


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (THREE | {"tiny": {"monocyte": 2, "basophil": 2}}, "'tiny' has too few cells for 5 folds (2 ba"),
        (THREE | {"even": {"a": 4, "b": 4, "c": 4}}, "laboratory 'even' has too few cells for 5 folds"),
        (THREE | {"one": {"monocyte": 30}}, "'one' (30 monocyte) needs two classes with at least 3"),
        (THREE | {"lone": {"monocyte": 30, "basophil": 2}}, "'lone' (2 basophil, 30 monocyte) needs two"),
    ],
)  # fmt: skip
def test_laboratories_that_cannot_be_judged_are_named(make_latents, cells, message):
    with pytest.raises(InputError, match=re.escape(message)):
        evaluate(make_latents(cells))


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_the_smallest_laboratory_allowed(make_latents, name):
    """Three cells of the second class, two in a training part: every classifier takes it."""
    found = evaluate(make_latents({"north": {"a": 5, "b": 3}, "south": {"a": 5, "b": 3}}), (name,))
    assert len(found.rows) == 20


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classifiers": ("svm",)}, "unknown classifier 'svm'"),
        ({"classifiers": ()}, "no classifier named"),
        ({"classifiers": ("mlp", "mlp")}, "classifier mlp named more than once"),
        ({"folds": 1}, "folds = 1: at least 2"),
    ],
)
def test_bad_settings_are_named_before_any_fit(make_latents, settings, message):
    with pytest.raises(InputError, match=message):
        evaluate(make_latents(THREE), **settings)
