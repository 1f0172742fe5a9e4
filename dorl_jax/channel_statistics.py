"""Mean and sd of the channels of features, by which autoencoders standardise what they read."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

from dorl_jax.store import Rows


def channel_statistics(
    features: Rows, places: Sequence[int], most: int = 500
) -> tuple[Float32[np.ndarray, " c"], Float32[np.ndarray, " c"]]:
    """Mean and sd of each channel over evenly spaced cells of these, `most` to twice as many."""
    chosen = places[:: max(1, len(places) // most)]
    values = np.stack([features[place] for place in chosen]).astype(np.float32)
    std = values.std(axis=(0, 1, 2))
    return values.mean(axis=(0, 1, 2)), np.maximum(std, 1e-3 * std.max())  # a channel that never changes
