"""LoRA-SAM against a PyTorch twin, live, on weights that keep every attention in its working range."""

import numpy as np
import pytest
from fine_tuning import fine_tune
from golden import deviation, lora_state_dict, sam_state_dict

from dorl_jax.models import DORL_PIXEL_MEAN, DORL_PIXEL_STD
from weights_conversion import convert_lora_sam

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'dorl-jax[convert]'")

pytestmark = pytest.mark.slow


def scaled(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Weights of the attention between tokens and image divided by the root of their inputs, as all others are."""
    return {
        name: value / np.float32(np.sqrt(value.shape[1])) if "attn_" in name and value.ndim == 2 else value
        for name, value in tensors.items()
    }


@pytest.fixture(scope="module")
def weights(golden):
    return sam_state_dict(golden), scaled(lora_state_dict(golden))


@pytest.fixture(scope="module")
def images():
    return np.random.RandomState(7).randint(0, 256, (2, 224, 224, 3)).astype(np.uint8)


def test_outputs(weights, images):
    import torch_twin

    out = convert_lora_sam(*weights)(images)
    with torch.no_grad():
        expected = torch_twin.lora_sam(torch_twin.parameters(*weights), images, DORL_PIXEL_MEAN, DORL_PIXEL_STD)
    for name, value in expected.items():
        assert deviation(np.moveaxis(np.asarray(out[name]), -1, 1), value.numpy()) < 1e-5, name


def test_fine_tuning(weights, images):
    import torch_twin

    labels = np.random.RandomState(8).randint(0, 2, (2, 56, 56)).astype(np.int32)
    parameters = torch_twin.parameters(*weights)
    trained = [tensor for tensor in parameters.values() if tensor.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-4, betas=(0.9, 0.999), weight_decay=0.1)
    for index, (losses, gradients, after) in enumerate(fine_tune(convert_lora_sam(*weights), images, labels)):
        out = torch_twin.lora_sam(parameters, images, DORL_PIXEL_MEAN, DORL_PIXEL_STD)
        loss = torch_twin.segmentation_loss(out["low_res_logits"], torch.tensor(labels).long())
        optimiser.zero_grad()
        loss.backward()
        np.testing.assert_allclose(losses["loss"], loss.item(), rtol=1e-5 if index == 0 else 1e-3)
        if index == 0:
            for name, gradient in gradients.items():
                norm = parameters[name].grad.norm().item()
                np.testing.assert_allclose(np.linalg.norm(gradient), norm, rtol=1e-3, atol=1e-6, err_msg=name)
        optimiser.step()
        for name in ("w_a_000", "w_b_005"):
            assert deviation(after[name].T, parameters[name].detach().numpy()) < 1e-3, name
