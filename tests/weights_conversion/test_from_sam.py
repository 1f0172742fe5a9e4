"""A SAM checkpoint without a LoRA file, as fine-tuning starts from."""

import numpy as np
import pytest
from golden import sam_shapes, sam_state_dict

from dorl_jax.errors import InputError
from weights_conversion import convert_lora_sam, convert_sam


@pytest.fixture(scope="module")
def checkpoint(golden):
    return sam_state_dict(golden)


def test_all_but_the_mask_tokens_is_taken(checkpoint):
    model = convert_lora_sam(checkpoint, rank=3, seed=4, pixel_mean=np.array([1, 2, 3]), pixel_std=[4.0, 5.0, 6.0])
    assert (model.config.pixel_mean, model.config.pixel_std) == ((1.0, 2.0, 3.0), (4.0, 5.0, 6.0))
    attention = model.sam.image_encoder.blocks[7].attn
    np.testing.assert_array_equal(attention.proj.kernel[...], checkpoint["image_encoder.blocks.7.attn.proj.weight"].T)
    np.testing.assert_array_equal(
        model.sam.mask_decoder.upscale1.kernel[1, 0], checkpoint["mask_decoder.output_upscaling.0.weight"][:, :, 1, 0]
    )
    np.testing.assert_array_equal(model.sam.mask_decoder.iou_token[...], checkpoint["mask_decoder.iou_token.weight"])
    assert attention.qkv.lora.q.a.shape == (768, 3)
    assert not np.any(attention.qkv.lora.q.b[...])
    assert np.abs(attention.qkv.lora.q.a[...]).max() <= 768**-0.5
    assert model.sam.mask_decoder.mask_tokens.shape == (2, 256)


def test_a_contradiction_is_an_error(checkpoint, golden):
    with pytest.raises(InputError, match="three numbers"):
        convert_lora_sam(checkpoint, pixel_mean=(1.0, 2.0))
    with pytest.raises(InputError, match="the tensors are of vit_b .* not of vit_l"):
        convert_sam(checkpoint, "vit_l")
    with pytest.raises(InputError, match="no place for: image_encoder.blocks.12.norm1.weight"):
        convert_sam({**checkpoint, "image_encoder.blocks.12.norm1.weight": np.zeros(768, np.float32)}, "vit_b")
    wrong = dict(checkpoint)
    del wrong["prompt_encoder.no_mask_embed.weight"]
    with pytest.raises(InputError, match="1 tensors missing from the state dict: prompt_encoder.no_mask_embed.weight"):
        convert_sam(wrong, "vit_b")


def test_global_blocks_are_chosen_by_index(golden):
    from dorl_jax.models import SamConfig
    from weights_conversion.positions import resize_positions
    from weights_conversion.sources import open_state_dict

    shapes = sam_shapes(golden, "vit_h")
    tables = open_state_dict({n: np.ones(shape, np.float32) for n, shape in shapes.items() if "rel_pos_h" in n})
    resized = resize_positions(tables, SamConfig.vit_h(224).encoder)
    assert {tensor.read().shape for tensor in resized.values()} == {(27, 80)}
    resized = resize_positions(tables, SamConfig.vit_h(512).encoder)
    longer = {int(name.split(".")[2]) for name, tensor in resized.items() if len(tensor.read()) == 63}
    assert longer == {7, 15, 23, 31}
