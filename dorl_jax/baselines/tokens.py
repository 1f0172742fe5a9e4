"""The frozen encoder's tokens, brought to one vector a cell without any training."""

import numpy as np
from jaxtyping import Float32, UInt8

from dorl_jax.baselines.cells import Cells


def mean_tokens(cells: Cells) -> Float32[np.ndarray, "n c"]:
    """The mean of all tokens."""
    return np.stack([_tokens(cells, place).mean(axis=0) for place in range(len(cells))])


def pooled_tokens(cells: Cells) -> Float32[np.ndarray, "n 2c"]:
    """Mean and standard deviation of the tokens over the cell, each token counted by the share of it that is cell."""
    return np.stack([pool(_tokens(cells, place), cells.foreground(place).ravel()) for place in range(len(cells))])


def pool(tokens: Float32[np.ndarray, "t c"], weights: UInt8[np.ndarray, " t"]) -> Float32[np.ndarray, " 2c"]:
    """Weighted mean and standard deviation; with all weights 0 those of all tokens alike."""
    shares = weights / weights.sum() if weights.any() else np.full(len(weights), 1 / len(weights))
    mean = shares @ tokens
    spread = np.sqrt(shares @ (tokens - mean) ** 2)
    return np.concatenate([mean, spread]).astype(np.float32)


def _tokens(cells: Cells, place: int) -> Float32[np.ndarray, "t c"]:
    feature = cells.features[place].astype(np.float32)
    return feature.reshape(-1, feature.shape[-1])
