"""LoRA-SAM against outputs and a fine-tuning recorded from the original code.

The rule that makes the weights leaves the attention between tokens and image unscaled (its names contain `_token`):
scores reach 460, and the softmax turns the last bit of a score into the fourth digit of a mask. This model evaluated
in float64 differs from the recorded float32 values by 5e-4 in the masks, 2.4 % in the worst gradient norm and 2.2 %
in the worst loss of the fourth step; PyTorch on another processor than the recording one differs as much. What lies
behind that attention is therefore held to the looser bounds below here, and to 1e-5 and 1e-3 in `test_torch_twin.py`,
where the same weights are scaled. The worst norm, w_a_001, may be off by the record's own distance from float64 and as
much again for ours (2 to 3.7 %, by processor and compiler); the middle one, which a wrong gradient would move, is 0.1
to 0.2 % off.
"""

import numpy as np
import pytest
from fine_tuning import fine_tune
from golden import at_224_shape, deviation, lora_state_dict, rule_made, sam_shapes, sam_state_dict

from weights_conversion import convert_lora_sam

MASKS, LATER_LOSSES, GRADIENT_NORMS = 2e-3, 3e-2, 3e-2
WORST_NORMS, MIDDLE_NORM = {"w_a_001": 5e-2}, 3e-3


@pytest.fixture(scope="module")
def model(golden):
    return convert_lora_sam(sam_state_dict(golden), lora_state_dict(golden), variant="vit_b", image_size=224, rank=4)


@pytest.fixture(scope="module")
def recorded(golden):
    return np.load(golden / "dorl_vit_b_224.npz")


def channels_first(out):
    return {name: np.moveaxis(np.asarray(value), -1, 1) for name, value in out.items()}


def test_vit_b_outputs(model, recorded):
    out = channels_first(model(recorded["images"]))
    assert deviation(out["feature"][0], recorded["encoder_feature0"]) < 5e-6
    assert deviation(out["feature"][1, ::4], recorded["encoder_feature1_s4"]) < 5e-6
    assert deviation(out["low_res_logits"], recorded["low_res_logits"]) < MASKS
    assert deviation(out["logits"][:, :, ::4, ::4], recorded["masks_s4"]) < MASKS
    assert deviation(out["iou"], recorded["iou"]) < MASKS


def test_position_tables(model, recorded):
    encoder = model.sam.image_encoder
    assert deviation(np.asarray(encoder.pos_embed[...])[:, :, ::16], recorded["pos_embed_s16"]) < 5e-6
    assert deviation(np.asarray(encoder.blocks[2].attn.rel_pos_h[...]), recorded["rel_pos_h_block2"]) < 5e-6


@pytest.mark.slow
def test_vit_l_outputs(golden):
    recorded = np.load(golden / "dorl_vit_l_224.npz")
    shapes = sam_shapes(golden, "vit_l")
    sam = {name: rule_made(f"dorl.{name}", at_224_shape(name, shape)) for name, shape in shapes.items()}
    lora = lora_state_dict(golden, "vit_l", own_names=True)
    out = channels_first(convert_lora_sam(sam, lora, variant="vit_l")(recorded["images"]))
    assert deviation(out["feature"][0, ::8], recorded["encoder_feature_s8"][...]) < 5e-6
    assert deviation(out["low_res_logits"], recorded["low_res_logits"]) < MASKS
    assert deviation(out["iou"], recorded["iou"]) < MASKS


@pytest.mark.slow
def test_fine_tuning(golden, model, recorded):
    steps = np.load(golden / "dorl_vit_b_224_finetune.npz")
    norms = dict(zip(steps["grad_names"], steps["grad_norms"], strict=True))
    taken = list(fine_tune(model, recorded["images"], steps["labels56"].astype(np.int32)))
    losses = np.array([[step[0][name] for name in ("loss", "ce", "dice")] for step in taken])
    np.testing.assert_allclose(losses[0], steps["loss_ce_dice"][0], rtol=1e-5)
    np.testing.assert_allclose(losses, steps["loss_ce_dice"], rtol=LATER_LOSSES)
    gradients = taken[0][1]
    assert {name for name, norm in norms.items() if norm > 0} == set(gradients)
    for name, gradient in gradients.items():
        close = WORST_NORMS.get(name, GRADIENT_NORMS)
        np.testing.assert_allclose(np.linalg.norm(gradient), norms[name], rtol=close, atol=1e-6, err_msg=str(name))
    off = [abs(np.linalg.norm(gradients[name]) / norm - 1) for name, norm in norms.items() if norm > 1e-6]
    assert np.median(off) < MIDDLE_NORM
