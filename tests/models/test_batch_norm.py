"""Batch normalisation against its formulas in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from dorl_jax.models.batch_norm import BatchNorm

BATCHES = [np.random.RandomState(i).standard_normal((2, 3, 2, 4)).astype(np.float32) * 2 + i for i in range(2)]
SCALE, SHIFT = np.array([1.0, 2, -1, 0.5], np.float32), np.array([0.0, 1, 2, -1], np.float32)


def made():
    norm = BatchNorm(4)
    norm.scale[...], norm.bias[...] = jnp.asarray(SCALE), jnp.asarray(SHIFT)
    return norm


def by_hand(x, mean, var):
    return (x - mean) / np.sqrt(var + 1e-5) * SCALE + SHIFT


def test_training_and_evaluation():
    norm, mean, var = made(), np.zeros(4), np.ones(4)
    for batch in BATCHES:
        flat = batch.reshape(-1, 4).astype(np.float64)
        np.testing.assert_allclose(norm(jnp.asarray(batch)), by_hand(batch, flat.mean(0), flat.var(0)), atol=1e-5)
        mean, var = 0.9 * mean + 0.1 * flat.mean(0), 0.9 * var + 0.1 * flat.var(0, ddof=1)
    for _ in range(2):  # an evaluation leaves no trace
        np.testing.assert_allclose(norm.mean[...], mean, rtol=1e-6)
        np.testing.assert_allclose(norm.var[...], var, rtol=1e-6)
        norm.eval()
        np.testing.assert_allclose(norm(jnp.asarray(BATCHES[0])), by_hand(BATCHES[0], mean, var), atol=1e-5)


def test_statistics_of_a_large_mean():
    x = 1000 + jnp.asarray(BATCHES[0])
    flat = np.asarray(x, np.float64).reshape(-1, 4)
    np.testing.assert_allclose(made()(x), by_hand(np.asarray(x), flat.mean(0), flat.var(0)), atol=1e-3)


def test_bf16_is_normalised_in_fp32():
    x = jnp.asarray(BATCHES[0], jnp.bfloat16)
    rough, exact = BatchNorm(4, dtype=jnp.bfloat16), BatchNorm(4)
    normal = rough(x)
    assert normal.dtype == jnp.bfloat16
    np.testing.assert_array_equal(normal, exact(x.astype(jnp.float32)).astype(jnp.bfloat16))
    np.testing.assert_array_equal(rough.var[...], exact.var[...])


def test_one_value_has_no_variance():
    with pytest.raises(ValueError, match="more than one value in each channel"):
        made()(jnp.zeros((1, 1, 1, 4)))
