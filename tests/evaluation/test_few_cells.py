from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from dorl_jax.evaluation.classifiers import make_classifier
from dorl_jax.evaluation.few_cells import DRAWS, few_cells
from dorl_jax.evaluation.methods import Method, align

CELLS = {name: {"a": 25, "b": 20, "c": 15} for name in ("north", "south")}


@pytest.mark.parametrize("tested", ["all", "unseen"])
def test_curve_written_plainly(make_latents, tested):
    """Every point is counted again; of south 24 cells were not seen, so that 20 leave too few of them."""
    latents = make_latents(CELLS, distance=2.0, shift=1.5)
    south = latents.laboratories == "south"
    seen = np.full(len(latents), "no")
    seen[np.flatnonzero(south)[24:]] = "unlabelled"
    latents = replace(latents, seen=seen)
    cells, runs = align([Method("m", (latents,))])
    found = {
        (one.target, one.cells, one.draw): one
        for one in few_cells(cells, runs, "logistic_regression", (5, 12, 20), seed=3, tested=tested)
    }
    sizes = {"north": (5, 12, 20), "south": (5, 12) if tested == "unseen" else (5, 12, 20)}
    assert set(found) == {(name, 0, 0) for name in sizes} | {
        (name, size, draw) for name, own in sizes.items() for size in own for draw in range(DRAWS)
    }
    vectors = latents.vectors.astype(float)
    for target, other in (("north", "south"), ("south", "north")):
        source = vectors[latents.laboratories == other]
        labels = latents.labels[latents.laboratories == other]
        plain = make_classifier("logistic_regression", 3).fit(source, labels)
        own = make_classifier("logistic_regression", 3).fit((source - source.mean(0)) / source.std(0), labels)
        rows = np.flatnonzero(latents.laboratories == target)
        for size in (0, *sizes[target]):
            for draw in range(DRAWS if size else 1):
                order = np.random.default_rng([3, size, draw]).permutation(rows)
                drawn = vectors[order[:size]]
                rest = [row for row in order[size:] if tested == "all" or seen[row] == "no"]
                assert len(rest) >= size
                called = (
                    own.predict((vectors[rest] - drawn.mean(0)) / drawn.std(0))
                    if size
                    else plain.predict(vectors[rest])
                )
                one = found[target, size, draw]
                truth = latents.labels[rest]
                assert one.accuracy == pytest.approx(accuracy_score(truth, called))
                macro_f1 = f1_score(truth, called, labels=np.unique(truth), average="macro", zero_division=0)
                assert one.macro_f1 == pytest.approx(macro_f1)
