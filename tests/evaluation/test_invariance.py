import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import silhouette_samples

from dorl_jax.evaluation import invariance
from dorl_jax.evaluation.invariance import measure_invariance, probe, robustness_index
from dorl_jax.evaluation.methods import Method, align


@pytest.fixture
def cells(make_latents):
    def make(distance, shift):
        return make_latents({name: {"a": 30, "b": 30} for name in ("north", "south", "west")}, 4, distance, shift)

    return make


def test_probe_is_at_chance_without_and_at_one_with_the_laboratory():
    random = np.random.default_rng(0)
    laboratories = np.repeat(["x", "y", "z"], [200, 100, 50])
    noise = random.normal(size=(350, 5)).astype(np.float32)
    told = noise + 20 * (laboratories == "y")[:, None] - 20 * (laboratories == "z")[:, None]
    make = lambda: LogisticRegression(class_weight="balanced")  # noqa: E731
    assert probe(make, noise, laboratories, np.arange(350)) == pytest.approx(1 / 3, abs=0.1)
    assert probe(make, told, laboratories, np.arange(350)) == 1.0


def test_probe_never_sees_the_group_it_is_tested_on():
    """Groups of equal vectors: seen twice they would be known by heart."""
    random = np.random.default_rng(1)
    vectors = np.repeat(random.normal(size=(30, 40)), 6, axis=0)
    laboratories = np.repeat(random.permutation(np.repeat(["x", "y"], 15)), 6)
    make = lambda: LogisticRegression(C=100.0, max_iter=1000)  # noqa: E731
    assert probe(make, vectors, laboratories, np.arange(180)) > 0.95
    assert probe(make, vectors, laboratories, np.repeat(np.arange(30), 6)) < 0.75


def test_probe_of_few_groups_has_as_many_folds_and_none_of_one():
    random = np.random.default_rng(2)
    laboratories = np.repeat(["x", "y"], 60)
    told = random.normal(size=(120, 3)) + 20 * (laboratories == "y")[:, None]
    make = lambda: LogisticRegression()  # noqa: E731
    assert probe(make, told, laboratories, np.repeat(np.arange(4), 30)) == 1.0
    assert probe(make, told, laboratories, np.repeat([0, 1, 2, 2], 30)) is None


def test_robustness_index_written_plainly(cells):
    """Every block has 30 cells, so that nothing is drawn: all pairs of laboratories and classes, every distance."""
    for distance, shift in ((2.0, 1.0), (0.5, 2.0), (6.0, 0.2)):
        latents = cells(distance, shift)
        same_class = same_laboratory = 0
        for first, second in (("north", "south"), ("north", "west"), ("south", "west")):
            rows = np.flatnonzero(np.isin(latents.laboratories, [first, second]))
            for row in rows:
                others = rows[rows != row]
                order = others[np.argsort(np.linalg.norm(latents.vectors[others] - latents.vectors[row], axis=1))][:10]
                for near in order:
                    alike = latents.labels[near] == latents.labels[row]
                    home = latents.laboratories[near] == latents.laboratories[row]
                    same_class += alike and not home
                    same_laboratory += home and not alike
        found = robustness_index(latents.vectors, latents.laboratories, latents.labels)
        assert found == pytest.approx(same_class / (same_class + same_laboratory), abs=0.002)


def test_robustness_index_has_the_ends_it_says(cells):
    mixed, apart = cells(30.0, 0.0), cells(0.0, 30.0)
    assert robustness_index(mixed.vectors, mixed.laboratories, mixed.labels) == 1.0
    assert robustness_index(apart.vectors, apart.laboratories, apart.labels) == 0.0
    nothing = np.random.default_rng(0).normal(size=(180, 4)).astype(np.float32)
    assert robustness_index(nothing, apart.laboratories, apart.labels) == pytest.approx(0.5, abs=0.05)
    alone = np.where(np.arange(180) < 3, "a", "b")
    assert robustness_index(nothing, apart.laboratories, alone) is None


def test_own_units_take_the_laboratory_away(cells, monkeypatch):
    monkeypatch.setattr(invariance, "_scib", lambda: None)
    latents, runs = align([Method("m", (cells(4.0, 6.0),))])
    (plain, own), complete = measure_invariance(latents, runs, ("none", "own", "self_training"))
    assert not complete
    assert (plain.adaptation, own.adaptation) == ("none", "own")
    assert plain.probe > 0.95
    assert plain.probe_forest > 0.95
    assert own.probe < 0.5
    assert plain.probe_of_class == pytest.approx(1 / 3, abs=0.15)
    assert own.robustness > plain.robustness
    assert plain.kbet is plain.ilisi is plain.silhouette_batch is plain.silhouette_class is None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_scib_metrics_against_their_definitions(cells):
    """Silhouettes by scikit-learn, kBET by SciPy's chi-square, iLISI by its ends."""
    pytest.importorskip("scib_metrics")
    from scipy.stats import chisquare

    found = {}
    for name, (distance, shift) in {"mixed": (6.0, 0.0), "apart": (6.0, 8.0)}.items():
        latents, runs = align([Method("m", (cells(distance, shift),))])
        (measured,), complete = measure_invariance(latents, runs, ("none",))
        assert complete
        vectors = (latents.vectors - latents.vectors.mean(0)) / latents.vectors.std(0)
        assert measured.silhouette_class == pytest.approx(
            (silhouette_samples(vectors, latents.labels).mean() + 1) / 2, abs=1e-3
        )
        of_batch = [
            np.mean(1 - np.abs(silhouette_samples(vectors[rows], latents.laboratories[rows])))
            for label in ("a", "b")
            if len(rows := np.flatnonzero(latents.labels == label))
        ]
        assert measured.silhouette_batch == pytest.approx(np.mean(of_batch), abs=1e-3)
        accepted = []
        for label in ("a", "b"):
            rows = np.flatnonzero(latents.labels == label)
            distances = np.linalg.norm(vectors[rows][:, None] - vectors[rows], axis=2)
            near = np.argsort(distances, axis=1)[:, :45]
            names = np.unique(latents.laboratories)
            expected = np.full(3, 15.0)
            p = [
                chisquare([(latents.laboratories[rows][one] == name).sum() for name in names], expected).pvalue
                for one in near
            ]
            accepted.append(np.mean(np.array(p) >= 0.05))
        assert measured.kbet == pytest.approx(np.mean(accepted), abs=0.05)
        found[name] = measured
    assert found["mixed"].ilisi > 0.7
    assert found["apart"].ilisi < 0.2
    assert found["mixed"].kbet > 0.5 > found["apart"].kbet
