"""A model without values, to know the shapes of its parameters."""

from collections.abc import Callable
from typing import TypeVar

import jax
from flax import nnx

M = TypeVar("M", bound=nnx.Module)


class _Stream(nnx.RngStream):
    """Draws the keys of `nnx.RngStream`, but counts them in a plain number.

    Counting in a variable takes time, under a trace, that grows with the square of the draws: seconds for a ViT-H.
    """

    def __init__(self, seed: int) -> None:
        super().__init__(jax.random.key(seed), tag="params")
        self.drawn = 0

    def __call__(self) -> jax.Array:
        key = jax.random.fold_in(self.key[...], self.drawn)
        self.drawn += 1
        return key


def traced_rngs(seed: int = 0) -> nnx.Rngs:
    """`nnx.Rngs(params=seed)` for use inside a traced function: the same numbers, faster."""
    rngs = nnx.Rngs()
    rngs.params = _Stream(seed)
    return rngs


def abstract_model(make: Callable[[nnx.Rngs], M]) -> M:
    """The model that `make` builds, traced: its variables hold shapes and types, and nothing is computed.

    Args:
      make: builds the model with the random numbers it is given; it draws from the stream `params`.
    """
    return nnx.eval_shape(lambda: make(traced_rngs()))
