"""What is put behind a vector while it learns by contrast, and dropped afterwards."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dorl_jax.models.layers import AnyArray, linear

HIDDEN, OUT = 256, 128


class ContrastHead(nnx.Module):
    """Two linear layers and a ReLU; what is compared loses all that changes between views, the vector need not."""

    def __init__(self, width: int, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32) -> None:
        self.lin1 = linear(width, HIDDEN, rngs=rngs, dtype=dtype)
        self.lin2 = linear(HIDDEN, OUT, rngs=rngs, dtype=dtype)

    def __call__(self, vectors: Float[AnyArray, "b d"], standardise: Callable[[Array], Array]) -> Float[Array, "b p"]:
        """What is compared.

        Args:
          vectors: two views of each cell.
          standardise: over the batch, before, between and behind the layers (see `contrast.standardise_in_domains`).
            Without it all vectors of fresh weights point the same way, and contrast begins to learn after hundreds of
            steps only.
        """
        hidden = jax.nn.relu(standardise(self.lin1(standardise(jnp.asarray(vectors)))))
        return standardise(self.lin2(hidden))
