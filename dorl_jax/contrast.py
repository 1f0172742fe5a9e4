"""Contrast between two views of a cell: what stays when stain, light and magnification change (SimCLR)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dorl_jax.models.layers import AnyArray

_EPSILON = 1e-4


def standardise_in_domains(
    vectors: Float[AnyArray, "b d"], domains: Int[AnyArray, " b"], num_domains: int
) -> Float[Array, "b d"]:
    """Every component with mean 0 and sd 1 over the batch's vectors of each domain: `(x - mean) / sqrt(var + 1e-4)`.

    What differs between laboratories as a whole is gone before anything is compared.

    Args:
      vectors: one a sample.
      domains: the sample's domain, 0 .. num_domains - 1.
      num_domains: static.
    """
    member = jax.nn.one_hot(domains, num_domains, dtype=jnp.float32)
    counts = jnp.maximum(member.sum(axis=0), 1)[:, None]
    centred = jnp.asarray(vectors) - member @ ((member.T @ vectors) / counts)
    variance = (member.T @ centred**2) / counts
    return centred * (member @ jax.lax.rsqrt(variance + _EPSILON))


def contrastive_loss(
    a: Float[AnyArray, "b d"], b: Float[AnyArray, "b d"], domains: Int[AnyArray, " b"], temperature: float
) -> dict[str, Float[Array, ""]]:
    """Normalised temperature-scaled cross-entropy (Chen et al. 2020, NT-Xent), within domains.

    Of all other views of the same domain, the one of the same cell has to be the nearest by the cosine. A cell of
    another laboratory, told apart by its stain alone, would be no test.

    Args:
      a, b: vectors of two views of each cell.
      domains: of the cells.
      temperature: above 0.

    Returns:
      "loss"; "found", the share of views to which the other view of their cell is the nearest, 0..1.
    """
    vectors = jnp.concatenate([a, b]).astype(jnp.float32)
    count = len(vectors)
    vectors = vectors * jax.lax.rsqrt(jnp.sum(vectors**2, axis=1, keepdims=True) + 1e-12)
    of = jnp.concatenate([domains, domains])
    others = (of[:, None] == of[None, :]) & ~jnp.eye(count, dtype=bool)
    similarity = jnp.where(others, vectors @ vectors.T / temperature, -jnp.inf)
    partner = (jnp.arange(count) + count // 2) % count
    of_partner = similarity[jnp.arange(count), partner]
    loss = jnp.mean(jax.nn.logsumexp(similarity, axis=1) - of_partner)
    return {"loss": loss, "found": jnp.mean(similarity.argmax(axis=1) == partner)}
