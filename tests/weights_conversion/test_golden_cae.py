"""The autoencoder against outputs and a training recorded from the original code."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from golden import as_nhwc, cae_state_dict, deviation, standard_normal

from dorl_jax.losses import cae_loss
from weights_conversion import convert_cae
from weights_conversion.cae import CAE_RULES
from weights_conversion.key_map import target_of


@pytest.fixture(scope="module")
def model(golden):
    return convert_cae(cae_state_dict(golden))


@pytest.fixture(scope="module")
def recorded(golden):
    return np.load(golden / "cae_vit_b.npz")


@pytest.fixture(scope="module")
def features(recorded):
    return jnp.asarray(as_nhwc(standard_normal(int(recorded["feats_seed"]), (6, 768, 14, 14))))


@pytest.fixture(scope="module")
def kept(recorded):
    return jnp.asarray(recorded["permutations"][:, :49].astype(np.int32))


def test_latent(model, features, recorded):
    assert deviation(np.asarray(model.encode(features)), recorded["latent_cls"]) < 1e-5


def test_unmasked(model, features, recorded):
    out = {name: np.moveaxis(np.asarray(value), -1, 1) for name, value in model(features).items()}
    assert deviation(out["image"][0], recorded["image_unmasked0"]) < 1e-5
    assert deviation(out["projection"], recorded["gap_unmasked"]) < 1e-5
    assert deviation(out["feature"][0, ::8].reshape(96, 196), recorded["feature_unmasked0_s8"]) < 1e-5


def test_masked(model, features, kept, recorded):
    out = {name: np.moveaxis(np.asarray(value), -1, 1) for name, value in model(features, kept).items()}
    assert deviation(out["image"][0], recorded["masked_image0"]) < 1e-5
    assert deviation(out["projection"], recorded["masked_gap"]) < 1e-5
    assert deviation(out["feature"][0, ::8], recorded["masked_feature0_s8"]) < 1e-5


@pytest.mark.slow
def test_training(model, features, kept, recorded):
    targets = jnp.asarray(recorded["target_u8"], jnp.float32) / 255
    domains = jnp.asarray(recorded["domain"].astype(np.int32))
    graph, params = nnx.split(model)
    optimiser = optax.adamw(1e-4, b1=0.9, b2=0.999, weight_decay=0.05)

    def loss_of(params):
        losses = cae_loss(nnx.merge(graph, params)(features, kept), features, targets, domains, 3)
        return losses["loss"], losses

    @jax.jit
    def step(params, state):
        (_, losses), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
        updates, state = optimiser.update(grads, state, params)
        return optax.apply_updates(params, updates), state, losses, grads

    state = optimiser.init(params)
    curve = []
    for index in range(4):
        params, state, losses, grads = step(params, state)
        curve.append([losses["loss"], 1 - losses["ssim"], 2 * (losses["discrepancy"] + 0.5 * losses["mse"])])
        if index == 0:
            first, first_grads = losses, {".".join(map(str, p)): v[...] for p, v in nnx.to_flat_state(grads)}
    curve = np.array(curve)
    np.testing.assert_allclose(curve[0], recorded["loss_ssim_mmd"][0], rtol=1e-5)
    np.testing.assert_allclose(curve, recorded["loss_ssim_mmd"], rtol=1e-3)
    np.testing.assert_allclose(first["discrepancy"], recorded["mean_mmd"], rtol=1e-5)
    np.testing.assert_allclose(0.5 * first["mse"], recorded["rec_half_mse"], rtol=1e-5)
    for name, norm in zip(recorded["grad_names"], recorded["grad_norms"], strict=True):
        path, _ = target_of(CAE_RULES, name)
        np.testing.assert_allclose(np.linalg.norm(first_grads[path]), norm, rtol=1e-3, atol=1e-6, err_msg=name)
