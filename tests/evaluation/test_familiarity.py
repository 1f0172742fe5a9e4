"""Whether cells are from a laboratory that is known: against loops, and against the share that must be outside."""

import numpy as np
import pytest
from scipy.stats import kstest

from dorl_jax.evaluation import familiarity
from dorl_jax.evaluation.familiarity import FEWEST, OUTSIDE, fit_familiarity, of_set


def cells(rng: np.random.Generator, count: int, centre: float = 0.0, width: int = 8) -> np.ndarray:
    """Of two classes that lie apart, one of them rare."""
    classes = np.where(rng.random(count) < 0.2, 6.0, 0.0)
    return (rng.standard_normal((count, width)) * (1 + np.arange(width)) + classes[:, None] + centre).astype(np.float32)


def test_p_values_against_loops() -> None:
    rng = np.random.default_rng(0)
    known, new = cells(rng, 70), cells(rng, 9, centre=2.0)
    laboratories = np.array(["b"] * 40 + ["a"] * 30)
    learned, notes = fit_familiarity(known, laboratories, seed=0)
    assert not notes
    assert [reference.name for reference in learned.references] == ["a", "b"]
    found = learned.of_cells(new)
    mean, spread = known.mean(axis=0), known.std(axis=0)
    for column, name in enumerate(("a", "b")):
        own = (known[laboratories == name] - mean) / spread
        others = [
            sorted(np.linalg.norm(own[i] - own[j]) for j in range(len(own)) if j != i)[4] for i in range(len(own))
        ]
        for row, cell in enumerate((new - mean) / spread):
            distance = sorted(np.linalg.norm(cell - one) for one in own)[4]
            expected = (1 + sum(other >= distance for other in others)) / (1 + len(own))
            assert found[row, column] == pytest.approx(expected, abs=1e-9)


def test_new_cells_of_a_known_laboratory_are_evenly_spread() -> None:
    rng = np.random.default_rng(1)
    learned, _ = fit_familiarity(cells(rng, 400), np.full(400, "a"), seed=0)
    p_values = learned.of_cells(cells(rng, 600))[:, 0]
    assert kstest(p_values, "uniform").pvalue > 0.001
    (found,) = of_set(["a"], p_values[:, None])
    assert found.verdict == "known"
    # 99 % of binomial draws are within the limit, and not of one cell less
    draws = rng.binomial(600, OUTSIDE, 200_000) / 600
    assert (draws <= found.limit).mean() >= 0.99 - 0.001
    assert (draws <= found.limit - 1 / 600).mean() < 0.99


def test_verdicts() -> None:
    rng = np.random.default_rng(2)
    known = np.concatenate([cells(rng, 200), cells(rng, 200, centre=60.0)])
    learned, _ = fit_familiarity(known, np.repeat(["near", "far"], 200), seed=0)
    names = [reference.name for reference in learned.references]

    def verdicts(vectors: np.ndarray) -> dict[str, str]:
        return {one.laboratory: one.verdict for one in of_set(names, learned.of_cells(vectors))}

    assert verdicts(cells(rng, 150)) == {"near": "known", "far": "unknown"}
    assert verdicts(cells(rng, 150, centre=60.0)) == {"far": "known", "near": "unknown"}
    assert verdicts(cells(rng, 150, centre=30.0)) == {"near": "unknown", "far": "unknown"}
    mixed = np.concatenate([cells(rng, 120), cells(rng, 30, centre=30.0)])
    assert verdicts(mixed) == {"near": "shifted", "far": "unknown"}


def test_few_and_many(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    vectors = cells(rng, 100)
    vectors[:, 2] = 7.0  # says nothing
    laboratories = np.array(["big"] * 81 + ["small"] * (FEWEST - 1))
    learned, notes = fit_familiarity(vectors, laboratories, seed=0)
    assert [reference.name for reference in learned.references] == ["big"]
    assert "small: 19 cells are too few" in notes[0]
    assert np.isfinite(learned.of_cells(vectors)).all()
    monkeypatch.setattr(familiarity, "MOST", 50)
    learned, _ = fit_familiarity(vectors, laboratories, seed=0)
    kept = learned.references[0].vectors
    assert len(kept) == 50
    assert len(np.unique(kept, axis=0)) == 50
