"""The adversary against the same network written out, whose gradient is not turned."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dorl_jax.models.adversary import Adversary

VECTORS = jnp.asarray(np.random.default_rng(0).normal(3, 2, (12, 5)), jnp.float32)
LABORATORIES = jnp.arange(12) % 3


def plain(layers: list[tuple[jax.Array, jax.Array]], vectors: jax.Array) -> jax.Array:
    x = (vectors - vectors.mean(axis=0)) / jnp.sqrt(vectors.var(axis=0) + 1e-4)
    (a, b), (c, d) = layers
    return jnp.maximum(x @ a + b, 0) @ c + d


def wrong(scores: jax.Array) -> jax.Array:
    return -jnp.mean(jax.nn.log_softmax(scores)[jnp.arange(12), LABORATORIES])


def test_it_learns_while_the_vectors_unlearn() -> None:
    adversary = Adversary(5, 3, rngs=nnx.Rngs(0))
    layers = [(one.kernel[...], one.bias[...]) for one in (adversary.lin1, adversary.lin2)]
    np.testing.assert_allclose(adversary(VECTORS, 0.3), plain(layers, VECTORS), rtol=1e-4, atol=1e-5)
    of_layers, of_vectors = jax.grad(lambda layers, x: wrong(plain(layers, x)), argnums=(0, 1))(layers, VECTORS)
    graph, state = nnx.split(adversary)

    def loss(state: nnx.State, x: jax.Array, weight: float) -> jax.Array:
        return wrong(nnx.merge(graph, state)(x, weight))

    assert float(jnp.abs(of_vectors).max()) > 1e-3
    for weight in (0.3, 1.0):
        of_state, turned = jax.grad(loss, argnums=(0, 1))(state, VECTORS, weight)
        np.testing.assert_allclose(turned, -weight * of_vectors, rtol=1e-3, atol=1e-6)
        own = nnx.merge(graph, of_state)
        for one, (kernel, bias) in zip((own.lin1, own.lin2), of_layers, strict=True):
            np.testing.assert_allclose(one.kernel[...], kernel, rtol=1e-3, atol=1e-6)
            np.testing.assert_allclose(one.bias[...], bias, rtol=1e-3, atol=1e-6)
