"""A network that tells the laboratory of a vector, so that the vector learns to keep it to itself."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from dorl_jax.models.layers import AnyArray, linear

HIDDEN = 64
_EPSILON = 1e-4


class Adversary(nnx.Module):
    """One hidden layer that learns the laboratory, while its gradient comes out turned around.

    Domain-adversarial training (Ganin et al., "Domain-adversarial training of neural networks", JMLR 2016). Needed in
    training alone.
    """

    def __init__(self, width: int, domains: int, *, rngs: nnx.Rngs) -> None:
        """Build.

        Args:
          width: numbers of a vector.
          domains: laboratories.
          rngs: of the weights.
        """
        self.lin1 = linear(width, HIDDEN, rngs=rngs)
        self.lin2 = linear(HIDDEN, domains, rngs=rngs)

    def __call__(self, vectors: Float[AnyArray, "b d"], weight: float) -> Float[Array, "b k"]:
        """Scores of the laboratories.

        Args:
          vectors: a batch; every component is standardised over it, so that small vectors hide nothing.
          weight: what the vectors' gradient is multiplied by, less than nothing: what helps to tell the laboratory is
            unlearned.
        """
        x = jnp.asarray(vectors, jnp.float32)
        x = (x - x.mean(axis=0)) * jax.lax.rsqrt(x.var(axis=0) + _EPSILON)
        kept = jax.lax.stop_gradient(x)
        turned = kept + weight * (kept - x)
        return self.lin2(jax.nn.relu(self.lin1(turned)))
