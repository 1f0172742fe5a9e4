"""The PyTorch twin of the autoencoder against outputs and a training recorded from the original code."""

import numpy as np
import pytest
from golden import cae_state_dict, deviation, standard_normal

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'dorl-jax[convert]'")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def recorded(golden):
    return np.load(golden / "cae_vit_b.npz")


@pytest.fixture(scope="module")
def features(recorded):
    return torch.tensor(standard_normal(int(recorded["feats_seed"]), (6, 768, 14, 14)))


@pytest.fixture(scope="module")
def kept(recorded):
    return torch.tensor(recorded["permutations"][:, :49].astype(np.int64))


def test_outputs(golden, recorded, features, kept):
    import torch_cae_twin

    parameters = torch_cae_twin.parameters(cae_state_dict(golden))
    with torch.no_grad():
        whole = {name: x.numpy() for name, x in torch_cae_twin.cae(parameters, features).items()}
        masked = {name: x.numpy() for name, x in torch_cae_twin.cae(parameters, features, kept).items()}
    assert deviation(whole["cls"], recorded["latent_cls"]) < 1e-5
    assert deviation(whole["image"][0], recorded["image_unmasked0"]) < 1e-5
    assert deviation(whole["projection"], recorded["gap_unmasked"]) < 1e-5
    assert deviation(whole["feature"][0, ::8].reshape(96, 196), recorded["feature_unmasked0_s8"]) < 1e-5
    assert deviation(masked["image"][0], recorded["masked_image0"]) < 1e-5
    assert deviation(masked["projection"], recorded["masked_gap"]) < 1e-5
    assert deviation(masked["feature"][0, ::8], recorded["masked_feature0_s8"]) < 1e-5


def test_training(golden, recorded, features, kept):
    import torch_cae_twin

    images = torch.tensor(recorded["target_u8"]).permute(0, 3, 1, 2) / 255
    domains = torch.tensor(recorded["domain"])
    parameters = torch_cae_twin.parameters(cae_state_dict(golden))
    optimiser = torch.optim.AdamW(parameters.values(), lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05)
    curve = []
    for index in range(4):
        out = torch_cae_twin.cae(parameters, features, kept)
        losses = torch_cae_twin.cae_loss(out, features, images, domains)
        optimiser.zero_grad()
        losses["loss"].backward()
        values = {name: value.item() for name, value in losses.items()}
        curve.append([values["loss"], 1 - values["ssim"], 2 * (values["discrepancy"] + 0.5 * values["mse"])])
        if index == 0:
            np.testing.assert_allclose(values["discrepancy"], recorded["mean_mmd"], rtol=1e-5)
            np.testing.assert_allclose(0.5 * values["mse"], recorded["rec_half_mse"], rtol=1e-5)
            for name, norm in zip(recorded["grad_names"], recorded["grad_norms"], strict=True):
                gradient = parameters[name].grad.norm().item()
                np.testing.assert_allclose(gradient, norm, rtol=1e-3, atol=1e-6, err_msg=str(name))
        optimiser.step()
    np.testing.assert_allclose(curve[0], recorded["loss_ssim_mmd"][0], rtol=1e-5)
    np.testing.assert_allclose(curve, recorded["loss_ssim_mmd"], rtol=1e-3)
