"""Vectors of a run's cells, with all that the run knows of these."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

from dorl_jax.data.manifest import Manifest
from dorl_jax.evaluation.exposure import what_was_seen
from dorl_jax.evaluation.latents import Latents


def latents_of(
    manifest: Manifest, vectors: Float32[np.ndarray, "n d"], unseen: Sequence[str] = (), labels_seen: bool = False
) -> Latents:
    """The vectors as those of these cells.

    Args:
      manifest: the cells.
      vectors: in their order.
      unseen, labels_seen: what the trainings saw (see `exposure.what_was_seen`).
    """
    laboratories = np.array([cell.laboratory for cell in manifest.cells])
    return Latents(
        ids=np.array([cell.id for cell in manifest.cells]),
        laboratories=laboratories,
        labels=np.array([cell.label for cell in manifest.cells]),
        vectors=vectors,
        groups=np.array([cell.whole_group for cell in manifest.cells]),
        seen=what_was_seen(laboratories, unseen, labels_seen),
    )
