import numpy as np
import pytest

from dorl_jax.evaluation.latents import Latents


@pytest.fixture
def make_latents():
    """Cells of several laboratories: a Gaussian blob for each class, all of a laboratory shifted together."""

    def make(cells, dimensions=6, distance=10.0, shift=0.5, seed=0):
        """`cells`: laboratory -> class -> number of cells."""
        random = np.random.default_rng(seed)
        names = sorted({name for counts in cells.values() for name in counts})
        centres = {name: distance * np.eye(dimensions)[i] for i, name in enumerate(names)}
        laboratories, labels, vectors = [], [], []
        for laboratory, counts in cells.items():
            moved = shift * random.normal(size=dimensions)
            for name, count in counts.items():
                laboratories += [laboratory] * count
                labels += [name] * count
                vectors.append(centres[name] + moved + random.normal(size=(count, dimensions)))
        order = random.permutation(len(labels))
        return Latents(
            ids=np.array([f"cell {i}" for i in range(len(labels))]),
            laboratories=np.array(laboratories)[order],
            labels=np.array(labels)[order],
            vectors=np.concatenate(vectors)[order].astype(np.float32),
            seen=np.full(len(labels), "no"),
        )

    return make
