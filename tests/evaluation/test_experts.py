"""Several classifiers that name cells together."""

import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression

from dorl_jax.evaluation.adaptation import self_train
from dorl_jax.evaluation.classifiers import make_classifier
from dorl_jax.evaluation.experts import Experts, comparable_as_is
from dorl_jax.evaluation.latents import Latents
from dorl_jax.evaluation.methods import Method
from dorl_jax.evaluation.protocol import judge
from dorl_jax.evaluation.settings import ProtocolSettings
from dorl_jax.evaluation.splits import split_laboratories

PARTS = {"pixels": 2, "regions": 3}


@pytest.fixture
def cells():
    rng = np.random.RandomState(0)
    labels = np.repeat(["a", "b", "c"], 20)
    return rng.standard_normal((60, 5)).astype(np.float32) + (labels == "b")[:, None], labels


def test_the_product_of_its_parts(cells):
    vectors, labels = cells
    experts = Experts(LogisticRegression, PARTS).fit(vectors, labels)
    first = LogisticRegression().fit(vectors[:, :2], labels).predict_proba(vectors[:, :2])
    second = LogisticRegression().fit(vectors[:, 2:], labels).predict_proba(vectors[:, 2:])
    product = np.sqrt(first * second)
    expected = product / product.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(experts.predict_proba(vectors), expected, rtol=1e-6)
    np.testing.assert_array_equal(experts.predict(vectors), np.array(["a", "b", "c"])[expected.argmax(axis=1)])
    np.testing.assert_array_equal(experts.classes_, ["a", "b", "c"])


def test_one_part_is_the_classifier_itself(cells):
    vectors, labels = cells
    alone = LogisticRegression().fit(vectors, labels)
    experts = Experts(LogisticRegression, {"": 5}).fit(vectors, labels)
    np.testing.assert_allclose(experts.predict_proba(vectors), alone.predict_proba(vectors), rtol=1e-6)


def test_a_sure_zero_does_not_silence_the_others(cells):
    vectors, labels = cells
    forest = Experts(lambda: RandomForestClassifier(5, random_state=0), PARTS).fit(vectors, labels)
    shares = forest.predict_proba(vectors + 1)
    assert np.isfinite(shares).all()
    np.testing.assert_allclose(shares.sum(axis=1), 1)


def test_pixels_and_relations_stay_as_they_are(cells):
    vectors, basis = cells[0], cells[0][:30]
    found = comparable_as_is(vectors, basis, {"pixels": 2, "regions": 2, "relations": 1})
    kept, own = [0, 1, 4], [2, 3]
    np.testing.assert_array_equal(found[:, kept], vectors[:, kept])
    np.testing.assert_allclose(found[:, own], ((vectors - basis.mean(0)) / basis.std(0))[:, own], atol=1e-5)


@pytest.mark.parametrize("adapt_from", ["all", "others"])
def test_the_protocol_trains_them_on_what_they_name(make_latents, adapt_from):
    """Against the adaptation written out for one source, one target and one fold after the other."""
    latents = make_latents({"west": {"x": 40, "y": 40}, "east": {"x": 60, "y": 20}}, distance=2.0, shift=2.0)
    latents = Latents(latents.ids, latents.laboratories, latents.labels, latents.vectors, parts={"pixels": 4, "cls": 2})
    settings = ProtocolSettings(
        classifiers=("logistic_regression_balanced",),
        adaptations=("co_training",),
        adapt_from=adapt_from,  # type: ignore[arg-type]
        leave_one_out=False,
        resamples=100,
        rounds=2,
    )
    found = judge([Method("m", (latents,))], settings, progress=False)

    def make():
        return Experts(lambda: make_classifier("logistic_regression_balanced", 1234), latents.parts)

    splits = split_laboratories(latents, 5, 1234, True)
    classes = np.unique(latents.labels)
    for fit in found.judged[0].fits:
        predicted = np.frombuffer(fit.predicted, np.uint8)
        rows = splits[fit.source].folds[fit.fold][0]
        whole = splits[fit.source].rows if adapt_from == "all" else rows
        known = comparable_as_is(latents.vectors[rows], latents.vectors[whole], latents.parts)
        first = make().fit(known, latents.labels[rows])
        target = splits["east" if fit.source == "west" else "west"]
        pieces = [(target.rows, target.rows)] if adapt_from == "all" else [(t, rest) for rest, t in target.folds]
        for tested, seen in pieces:
            unlabelled = comparable_as_is(latents.vectors[seen], latents.vectors[seen], latents.parts)
            last = self_train(make, known, latents.labels[rows], unlabelled, 2, first)
            asked = comparable_as_is(latents.vectors[tested], latents.vectors[seen], latents.parts)
            np.testing.assert_array_equal(classes[predicted[tested]], last.predict(asked))


def test_they_teach_each_other():
    """One part moved with the laboratory and tells classes well, one is comparable and weak: together they follow."""
    rng = np.random.RandomState(1)

    def laboratory(moved, cells=300):
        labels = rng.randint(0, 2, cells)
        weak = rng.normal(labels[:, None] * [1.8, 0], 1, (cells, 2))
        strong = rng.normal(labels[:, None] * [4, 0, 0] + moved, 0.7, (cells, 3))
        return np.concatenate([weak, strong], axis=1), labels

    source, labels = laboratory(0)
    target, truth = laboratory(2)

    def make():
        return Experts(LogisticRegression, PARTS)

    first = make().fit(source, labels)
    before = np.mean(first.predict(target) == truth)
    after = np.mean(self_train(make, source, labels, target, 4, first).predict(target) == truth)
    weak_alone = LogisticRegression().fit(source[:, :2], labels).score(target[:, :2], truth)
    print(before, weak_alone, after)
    assert after > 0.95 > max(before, weak_alone)
