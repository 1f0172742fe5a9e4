"""Masking in the autoencoder."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dorl_jax.errors import InputError
from dorl_jax.models import Cae, CaeConfig
from dorl_jax.models.cae import random_kept

CONFIG = CaeConfig(
    width=16, grid=4, encoder_depth=2, decoder_depth=1, heads=2, projection=5, head_channels=(8, 6, 4, 3)
)


@pytest.fixture(scope="module")
def model():
    return Cae(CONFIG, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def features():
    return jnp.asarray(np.random.RandomState(0).standard_normal((3, 4, 4, 16)), jnp.float32)


def test_published_shape():
    assert (CaeConfig.vit_b().kept_tokens, CaeConfig.vit_b().image_size) == (49, 128)
    with pytest.raises(InputError, match="unknown variant 'tinny'"):
        CaeConfig.preset("tinny")


def test_kept_tokens_are_distinct_and_differ_between_samples():
    kept = np.asarray(random_kept(jax.random.key(0), 50, CaeConfig()))
    assert kept.shape == (50, 49)
    assert all(len(set(row)) == 49 and row.min() >= 0 and row.max() < 196 for row in kept)
    assert len({tuple(sorted(row)) for row in kept}) == 50
    often = np.bincount(kept.ravel(), minlength=196)  # each place is kept a quarter of the time
    assert abs(often.mean() / 50 - 0.25) < 1e-6
    assert often.max() < 30


def test_all_tokens_in_any_order_is_no_masking(model, features):
    order = jnp.asarray(np.stack([np.random.RandomState(i).permutation(16) for i in range(3)]))
    for name, value in model(features, order).items():
        np.testing.assert_allclose(value, model(features)[name], atol=1e-5, err_msg=name)


def test_hidden_tokens_are_not_seen(model, features):
    kept = random_kept(jax.random.key(1), 3, CONFIG)
    hidden = np.ones((3, 16), bool)
    hidden[np.arange(3)[:, None], np.asarray(kept)] = False
    changed = jnp.where(hidden.reshape(3, 4, 4, 1), 99.0, features)
    for name, value in model(features, kept).items():
        np.testing.assert_array_equal(value, model(changed, kept)[name], err_msg=name)


def test_the_vector_is_the_cls_token(model, features):
    tokens = model.encoder(features.reshape(3, 16, 16), None)
    np.testing.assert_array_equal(model.encode(features), tokens[:, 0])


def test_samples_do_not_mix(model, features):
    np.testing.assert_allclose(model.encode(features)[1:2], model.encode(features[1:2]), atol=1e-6)


def test_features_of_another_width_are_refused(model):
    with pytest.raises(ValueError, match=r"expected features of shape \(B, 4, 4, 16\)"):
        model.encode(jnp.zeros((1, 4, 4, 8)))


def test_bf16_stays_near(features):
    exact = Cae(replace(CONFIG), rngs=nnx.Rngs(0))
    rough = Cae(CONFIG, rngs=nnx.Rngs(0), dtype=jnp.bfloat16)
    a, b = np.asarray(exact.encode(features)), np.asarray(rough.encode(features), np.float32)
    assert rough.encode(features).dtype == jnp.bfloat16
    assert 1e-5 < np.abs(a - b).max() / np.abs(a).max() < 0.05


def test_standardised_features(model, features):
    mean, std = np.arange(16.0), np.arange(1.0, 17.0)
    config = replace(CONFIG, feature_mean=tuple(mean.tolist()), feature_std=tuple(std.tolist()))
    standardising = Cae(config, rngs=nnx.Rngs(0))
    raw = features * std + mean
    np.testing.assert_allclose(standardising.encode(raw), model.encode(features), atol=1e-5)
    np.testing.assert_allclose(standardising.standardise(raw), features, atol=1e-5)
    np.testing.assert_allclose(standardising(raw)["feature"], model(features)["feature"], atol=1e-5)
