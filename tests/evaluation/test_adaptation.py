import numpy as np
from sklearn.linear_model import LogisticRegression

from dorl_jax.evaluation.adaptation import in_own_units, self_train, standardise_by_laboratory
from dorl_jax.evaluation.latents import Latents


def test_standardised_by_laboratory():
    rng = np.random.RandomState(0)
    vectors = rng.standard_normal((9, 3)).astype(np.float32)
    vectors[:4, 2] = 5.0  # does not vary within a
    names = np.array(["a"] * 4 + ["b"] * 5)
    latents = Latents(np.arange(9).astype(str), names, np.array(["x"] * 9), vectors)
    # a shift and a scale of one laboratory leave nothing behind
    moved = vectors.copy()
    moved[:4, :2] = 3 * moved[:4, :2] + 7
    other = Latents(latents.ids, names, latents.labels, moved)
    ours, theirs = standardise_by_laboratory(latents).vectors, standardise_by_laboratory(other).vectors
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    np.testing.assert_allclose(ours[4:], (vectors[4:] - vectors[4:].mean(0)) / vectors[4:].std(0), atol=1e-5)
    assert not ours[:4, 2].any()


def test_own_units_of_some_cells_for_others():
    rng = np.random.RandomState(1)
    basis, vectors = rng.standard_normal((7, 2)).astype(np.float32), rng.standard_normal((3, 2)).astype(np.float32)
    np.testing.assert_allclose(
        in_own_units(vectors, basis), (vectors - basis.mean(0)) / basis.std(0), rtol=1e-4, atol=1e-5
    )


def test_self_training_takes_the_surest_of_every_class():
    """Against the rule written out: the cells a round adds are those it says."""
    rng = np.random.RandomState(2)
    source = np.concatenate([rng.normal(-1, 1, (30, 2)), rng.normal(1, 1, (30, 2))])
    labels = np.repeat(["a", "b"], 30)
    target = np.concatenate([rng.normal(-1, 1, (40, 2)), rng.normal(1, 1, (8, 2))]) + 0.5
    fits = []

    class Recorder(LogisticRegression):
        def fit(self, vectors, labels):
            fits.append((vectors, labels))
            return super().fit(vectors, labels)

    first = LogisticRegression().fit(source, labels)
    last = self_train(Recorder, source, labels, target, 2, first)
    classifier = first
    for number, (vectors, given) in enumerate(fits, start=1):
        np.testing.assert_array_equal(vectors[:60], source)
        called, sure = classifier.predict(target), classifier.predict_proba(target).max(1)
        expected = []
        for name in ("a", "b"):
            rows = [i for i in range(48) if called[i] == name]
            most = round(0.4 * number * len(rows))
            expected += sorted(rows, key=lambda i: -sure[i])[:most]
        expected = sorted(expected)
        np.testing.assert_array_equal(vectors[60:], target[expected])
        np.testing.assert_array_equal(given[60:], called[expected])
        classifier = LogisticRegression().fit(vectors, given)
    assert len(fits) == 2
    np.testing.assert_array_equal(last.predict(target), classifier.predict(target))


def test_self_training_follows_a_target_that_moved():
    """Clear clusters that the source's boundary cuts: their surest cells draw the boundary between them."""
    rng = np.random.RandomState(0)
    source = np.concatenate([rng.normal((-2, 0), 1, (200, 2)), rng.normal((2, 0), 1, (200, 2))])
    labels = np.repeat([0, 1], 200)
    target = np.concatenate([rng.normal((-1, 3), 0.4, (200, 2)), rng.normal((5, 3), 0.4, (200, 2))])
    target[:, 0] += 1.0
    first = LogisticRegression().fit(source, labels)
    before = np.mean(first.predict(target) == labels)
    after = np.mean(self_train(LogisticRegression, source, labels, target, 5, first).predict(target) == labels)
    print(before, after)
    assert before < 0.85
    assert after > 0.97
