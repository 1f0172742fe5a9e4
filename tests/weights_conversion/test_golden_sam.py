"""The whole SAM ViT-B at 1024 pixels, windows and prompts included, against the original code.

For the bound behind the mask decoder's attention see `test_golden_lora_sam.py`; at 1024 pixels it has 4096 keys.
"""

import jax.numpy as jnp
import numpy as np
import pytest
from golden import deviation, sam_state_dict, standard_normal

from weights_conversion import convert_sam

MASKS = 1e-2


@pytest.mark.slow
def test_prompted_masks(golden):
    recorded = np.load(golden / "sam_vit_b_1024.npz")
    model = convert_sam(sam_state_dict(golden), "vit_b")
    embedding = model.encode_image(recorded["image"][None])["embedding"]
    first = np.asarray(embedding[0]).transpose(2, 0, 1)
    assert deviation(first[:, ::8, ::8], recorded["image_embedding_s8"]) < 1e-5
    assert deviation(first.mean((1, 2)), recorded["image_embedding_channel_mean"]) < 1e-5

    points = jnp.asarray(recorded["point_coords"]), jnp.asarray(recorded["point_labels"])
    boxes = jnp.asarray(recorded["box"])
    masks = jnp.asarray(standard_normal(int(recorded["mask_input_seed"]), (1, 1, 256, 256))[:, 0])
    sparse, dense = model.prompt_encoder(1, points, boxes, masks)
    assert deviation(np.asarray(sparse), recorded["sparse"]) < 1e-5
    assert deviation(np.asarray(dense)[0].transpose(2, 0, 1)[:, ::16, ::16], recorded["dense_s16"]) < 1e-5

    logits, iou = (np.asarray(part) for part in model.decode(embedding, points, boxes, masks))
    upscaled = np.asarray(model.postprocess(logits, recorded["image"].shape[:2], (384, 512)))
    assert deviation(upscaled[0, ::8, ::8, 1:].transpose(2, 0, 1), recorded["upscaled_s8"]) < MASKS
    logits = logits[0].transpose(2, 0, 1)[:, ::4, ::4]
    assert deviation(logits[1:], recorded["low_res_multimask_s4"]) < MASKS
    assert deviation(logits[:1], recorded["low_res_single_s4"]) < MASKS
    assert deviation(iou[:, 1:], recorded["iou_multimask"]) < MASKS
    assert deviation(iou[:, :1], recorded["iou_single"]) < MASKS
