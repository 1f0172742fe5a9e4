"""LoRA-SAM against a PyTorch twin, live, on weights that keep every attention in its working range.

The twin itself against what was recorded from the original code comes first.
"""

import jax.numpy as jnp
import numpy as np
import pytest
from fine_tuning import fine_tune
from flax import nnx
from golden import deviation, lora_state_dict, sam_state_dict, scaled

from dorl_jax.models import DORL_PIXEL_MEAN, DORL_PIXEL_STD
from weights_conversion import convert_lora_sam, export_lora_sam, write_state_dict

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'dorl-jax[convert]'")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def weights(golden):
    return sam_state_dict(golden), scaled(lora_state_dict(golden))


@pytest.fixture(scope="module")
def images():
    return np.random.RandomState(7).randint(0, 256, (2, 224, 224, 3)).astype(np.uint8)


def test_the_twin_gives_what_was_recorded(golden):
    """Bounds of the masks and of later losses as in `test_golden_lora_sam.py`, and for its reason."""
    import torch_twin

    recorded, steps = (np.load(golden / f"dorl_vit_b_224{part}.npz") for part in ("", "_finetune"))
    norms = dict(zip(steps["grad_names"].tolist(), steps["grad_norms"].tolist(), strict=True))
    labels = torch.tensor(steps["labels56"]).long()
    parameters = torch_twin.parameters(sam_state_dict(golden), lora_state_dict(golden))
    table = parameters["image_encoder.pos_embed"].numpy()[0, :, :, ::16]
    assert deviation(table, recorded["pos_embed_s16"]) < 1e-6
    assert deviation(parameters["image_encoder.blocks.2.attn.rel_pos_h"].numpy(), recorded["rel_pos_h_block2"]) < 1e-6
    trained = [tensor for tensor in parameters.values() if tensor.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-4, betas=(0.9, 0.999), weight_decay=0.1)
    curve = []
    for index in range(4):
        out = torch_twin.lora_sam(parameters, recorded["images"], DORL_PIXEL_MEAN, DORL_PIXEL_STD)
        loss = torch_twin.segmentation_loss(out["low_res_logits"], labels)
        curve.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        if index == 0:
            found = {name: value.detach().numpy() for name, value in out.items()}
            assert deviation(found["feature"][0], recorded["encoder_feature0"]) < 5e-6
            assert deviation(found["feature"][1, ::4], recorded["encoder_feature1_s4"]) < 5e-6
            assert deviation(found["low_res_logits"], recorded["low_res_logits"]) < 2e-3
            assert deviation(found["iou"], recorded["iou"]) < 2e-3
            for name, norm in norms.items():
                gradient = parameters[name].grad
                assert (gradient is None) == (norm == 0), name  # AdamW leaves such a tensor alone
                if gradient is not None:
                    np.testing.assert_allclose(gradient.norm().item(), norm, rtol=3e-2, atol=1e-6, err_msg=name)
        optimiser.step()
    np.testing.assert_allclose(curve[0], steps["loss_ce_dice"][0, 0], rtol=1e-5)
    np.testing.assert_allclose(curve, steps["loss_ce_dice"][:, 0], rtol=3e-2)


def test_outputs(weights, images):
    import torch_twin

    out = convert_lora_sam(*weights)(images)
    with torch.no_grad():
        expected = torch_twin.lora_sam(torch_twin.parameters(*weights), images, DORL_PIXEL_MEAN, DORL_PIXEL_STD)
    for name, value in expected.items():
        assert deviation(np.moveaxis(np.asarray(out[name]), -1, 1), value.numpy()) < 1e-5, name


def test_what_is_written_runs_in_pytorch(weights, images, tmp_path):
    """A LoRA-SAM with other values than it came with, through the files that the original code loads."""
    import torch_twin

    model = convert_lora_sam(*weights)
    rng = np.random.RandomState(9)
    for _, leaf in nnx.to_flat_state(nnx.state(model, nnx.LoRAParam)):
        leaf.set_value(jnp.asarray(rng.standard_normal(leaf.shape).astype(np.float32) / np.sqrt(leaf.shape[0])))
    model.sam.mask_decoder.mask_tokens.set_value(-model.sam.mask_decoder.mask_tokens[...])
    for name, tensors in zip(("sam", "lora"), export_lora_sam(model), strict=True):
        write_state_dict(tensors, tmp_path / f"{name}.pth")
    sam, lora = (torch.load(tmp_path / f"{name}.pth", weights_only=True) for name in ("sam", "lora"))
    parameters = torch_twin.parameters(*({name: x.numpy() for name, x in part.items()} for part in (sam, lora)))
    with torch.no_grad():
        expected = torch_twin.lora_sam(parameters, images, DORL_PIXEL_MEAN, DORL_PIXEL_STD)
    out, before = model(images), convert_lora_sam(*weights)(images)
    for name, value in expected.items():
        assert deviation(np.moveaxis(np.asarray(out[name]), -1, 1), value.numpy()) < 1e-5, name
        assert deviation(np.asarray(before[name]), np.asarray(out[name])) > 1e-2, name


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
