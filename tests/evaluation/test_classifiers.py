import sys

import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from xgboost import XGBClassifier

from dorl_jax.errors import InputError
from dorl_jax.evaluation.classifier_names import CLASSIFIERS, ORIGINAL, TITLES
from dorl_jax.evaluation.classifiers import EarlyStoppingMlp, ShrunkLda, make_classifier


@pytest.fixture
def cells():
    random = np.random.default_rng(0)
    labels = random.choice(["monocyte", "basophil", "neutrophil"], 150)
    centres = {"monocyte": 0.0, "basophil": 1.5, "neutrophil": 3.0}
    means = np.array([centres[name] for name in labels])[:, None] * np.array([1, 100, 0, 1])
    vectors = (means + random.normal(size=(150, 4)) * np.array([1, 100, 1, 1])).astype(np.float32)
    return vectors[:100], labels[:100], vectors[100:]


PLAIN = {
    "random_forest": lambda: RandomForestClassifier(n_estimators=200, max_depth=16, random_state=3),
    "svm_poly": lambda: make_pipeline(StandardScaler(), SVC(kernel="poly")),
    "svm_linear": lambda: make_pipeline(StandardScaler(), SVC(kernel="linear")),
    "logistic_regression": lambda: make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)),
    "logistic_regression_balanced": lambda: make_pipeline(
        StandardScaler(), LogisticRegression(C=0.05, class_weight="balanced", max_iter=500)
    ),
    "mlp": lambda: make_pipeline(StandardScaler(), MLPClassifier(early_stopping=True, max_iter=1000, random_state=3)),
}


@pytest.mark.parametrize("name", PLAIN)
def test_agrees_with_plain_scikit_learn(name, cells):
    fitted, labels, tested = cells
    ours = make_classifier(name, seed=3).fit(fitted, labels).predict(tested)
    np.testing.assert_array_equal(ours, PLAIN[name]().fit(fitted, labels).predict(tested))
    assert len(set(ours)) == 3


def test_lda_and_logistic_regression_average_what_each_says(cells):
    fitted, labels, tested = cells
    lda = make_pipeline(StandardScaler(), LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto"))
    both = (lda, PLAIN["logistic_regression_balanced"]())
    mean = sum(one.fit(fitted, labels).predict_proba(tested) for one in both) / 2
    ours = make_classifier("lda_logistic", seed=3).fit(fitted, labels)
    np.testing.assert_allclose(ours.predict_proba(tested), mean, atol=1e-6)
    np.testing.assert_array_equal(ours.predict(tested), ours.classes_[mean.argmax(axis=1)])


def test_lda_takes_a_class_of_one_cell_without_a_warning(cells):
    fitted, labels, tested = cells
    rare = labels.astype("<U20")
    rare[7] = "smudge_cell"
    fitted[7] = 30
    lda = ShrunkLda().fit(fitted, rare)
    assert lda.predict(fitted[7:8]) == "smudge_cell"
    # What is left out of the others is a cell of a hundred: they are called as without it.
    others = ShrunkLda().fit(np.delete(fitted, 7, axis=0), np.delete(labels, 7)).predict(tested)
    assert np.mean(lda.predict(tested) == others) > 0.95


def test_xgboost_agrees_with_its_own_interface(cells):
    fitted, labels, tested = cells
    names = np.array(["basophil", "monocyte", "neutrophil"])
    plain = XGBClassifier(tree_method="hist", random_state=3, n_jobs=1).fit(fitted, np.searchsorted(names, labels))
    ours = make_classifier("xgboost", seed=3).fit(fitted, labels).predict(tested)
    np.testing.assert_array_equal(ours, names[plain.predict(tested)])


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_labels_with_gaps_and_two_classes(name):
    vectors = np.repeat(np.array([[0.0, 0.0], [4.0, 4.0]], np.float32), 20, axis=0)
    vectors += np.random.default_rng(0).normal(size=vectors.shape).astype(np.float32) * 0.1
    labels = np.repeat([3, 11], 20)
    np.testing.assert_array_equal(make_classifier(name, seed=0).fit(vectors, labels).predict(vectors), labels)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_same_seed_same_predictions(name, cells):
    fitted, labels, tested = cells
    once, twice = (make_classifier(name, seed=5).fit(fitted, labels).predict(tested) for _ in range(2))
    np.testing.assert_array_equal(once, twice)


def test_forest_votes_alike_bit_for_bit(cells):
    fitted, labels, tested = cells
    forest = make_classifier("random_forest", seed=5).fit(fitted, labels)
    votes = forest.predict_proba(tested)
    for _ in range(5):
        np.testing.assert_array_equal(forest.predict_proba(tested), votes)
    serial = RandomForestClassifier(n_estimators=200, max_depth=16, random_state=5).fit(fitted, labels)
    np.testing.assert_array_equal(votes, serial.predict_proba(tested))


def test_mlp_leaves_out_classes_of_one_cell_and_says_so(cells):
    fitted, labels, tested = cells
    rare = labels.astype("<U20")
    rare[7] = "smudge_cell"
    mlp = EarlyStoppingMlp(seed=1).fit(fitted, rare)
    assert mlp.notes_ == ["fitted without smudge_cell: one training cell, none left to hold back"]
    without = EarlyStoppingMlp(seed=1).fit(np.delete(fitted, 7, axis=0), np.delete(labels, 7))
    assert without.notes_ == []
    np.testing.assert_array_equal(mlp.predict(tested), without.predict(tested))


@pytest.mark.parametrize("classes", [3, 4, 7])
@pytest.mark.parametrize("each", [2, 3])
def test_mlp_holds_back_a_cell_of_every_class(classes, each):
    labels = np.repeat(np.arange(classes), each)
    vectors = np.eye(classes, dtype=np.float32)[labels]
    mlp = EarlyStoppingMlp(seed=0).fit(vectors, labels)
    assert mlp.notes_ == [
        f"early stopping holds {1 / each:.0%} of the training cells back, to see all {classes} classes"
    ]
    assert mlp.mlp_.validation_fraction == pytest.approx(1 / each)


def test_mlp_needs_two_classes():
    with pytest.raises(InputError, match="two classes with at least two training cells"):
        EarlyStoppingMlp().fit(np.zeros((3, 2), np.float32), np.array(["a", "a", "b"]))


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(InputError, match=r"unknown classifier 'svm_lineal' \(did you mean 'svm_linear'\?\)"):
        make_classifier("svm_lineal", seed=0)


def test_xgboost_that_is_not_installed_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "xgboost", None)
    with pytest.raises(InputError, match=r"pip install 'dorl-jax\[xgboost-cpu\]'"):
        make_classifier("xgboost", seed=0)


def test_every_classifier_has_a_title():
    assert len(set(TITLES.values())) == len(CLASSIFIERS) == 8
    assert CLASSIFIERS[:6] == ORIGINAL
