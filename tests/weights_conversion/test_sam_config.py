"""Variant, sizes and rank are read off the tensors; what contradicts them is an error."""

import numpy as np
import pytest
from golden import sam_shapes
from small_sam import SMALL, small_lora, small_sam

from dorl_jax.errors import InputError
from dorl_jax.models import Sam, SamConfig
from weights_conversion import convert_lora_sam, convert_sam
from weights_conversion.key_map import shapes_in_torch
from weights_conversion.sam_config import read_sam_config
from weights_conversion.sam_rules import SAM_RULES
from weights_conversion.sources import Tensor


def never_read() -> np.ndarray:
    raise AssertionError("the shape alone must do")


def tensors(shapes):
    return {name: Tensor(shape, "float32", never_read) for name, shape in shapes.items()}


def shapes_of(config: SamConfig):
    return shapes_in_torch(lambda rngs: Sam(config, rngs=rngs), SAM_RULES)


@pytest.mark.parametrize("variant", ["vit_b", "vit_l", "vit_h"])
def test_official_variants(golden, variant):
    source = tensors(sam_shapes(golden, variant))
    assert read_sam_config(source) == read_sam_config(source, variant) == SamConfig.preset(variant, 1024)
    assert read_sam_config(source, image_size=224) == SamConfig.preset(variant, 224)
    assert read_sam_config(source, image_size=(512, 768)) == SamConfig.preset(variant, (512, 768))


@pytest.mark.parametrize(
    "config",
    [SMALL, SamConfig.tiny(), SamConfig.vit_b(224), SamConfig.vit_l((224, 320)), SamConfig.vit_b((96, 160))],
    ids=["small", "tiny", "vit_b 224", "vit_l 224x320", "vit_b, grid smaller than a window"],
)
def test_shapes_come_back(config):
    assert read_sam_config(tensors(shapes_of(config))) == config


def test_one_damaged_tensor_does_not_change_what_is_read():
    """So that the loading can name that tensor, and it alone."""
    shapes = shapes_of(SMALL)
    for name, shape in shapes.items():
        damaged = [{**shapes, name: shape[::-1]}]
        if name not in ("image_encoder.pos_embed", "image_encoder.patch_embed.proj.weight"):  # alone show the sizes
            damaged.append({other: shape for other, shape in shapes.items() if other != name})
            for source in damaged:
                assert read_sam_config(tensors(source)) == SMALL, name
    with pytest.raises(InputError, match=r"not a SAM checkpoint.*image_encoder.pos_embed"):
        read_sam_config(tensors({name: shape for name, shape in shapes.items() if name != "image_encoder.pos_embed"}))
    for stray in ("image_encoder.blocks.4.norm1.bias", "mask_decoder.transformer.layers.2.norm1.bias", "w_a_000"):
        assert read_sam_config(tensors({**shapes, stray: (3,)})) == SMALL


def test_another_variant_than_said(golden):
    source = tensors(sam_shapes(golden, "vit_b"))
    with pytest.raises(InputError, match=r"the tensors are of vit_b \(width 768, 12 blocks, 12 heads\), not of vit_l"):
        read_sam_config(source, "vit_l")
    with pytest.raises(InputError, match=r"of no known variant \(width 24, 4 blocks, 3 heads\), not of vit_b"):
        convert_sam(small_sam(), "vit_b")
    with pytest.raises(InputError, match="vit_bb.*did you mean 'vit_b'"):
        convert_sam(small_sam(), "vit_bb")


def test_sizes_that_cannot_be(golden):
    with pytest.raises(InputError, match="image_size 225 is not a multiple of patch_size 16"):
        read_sam_config(tensors(sam_shapes(golden, "vit_b")), image_size=225)
    # a grid of one window: nothing tells the windowed blocks from the global ones
    one_window = small_sam(read_sam_config(tensors(shapes_of(SMALL)), image_size=24))
    assert convert_sam(one_window).config.encoder.global_blocks == (0, 1, 2, 3)
    with pytest.raises(InputError, match="it can be loaded at 24 pixels only"):
        convert_sam(one_window, image_size=32)


def test_no_sam():
    with pytest.raises(InputError, match="not a SAM checkpoint: expected tensors named"):
        convert_sam({"layer4.0.conv1.weight": np.zeros((3, 3), np.float32)})
    with pytest.raises(InputError, match="the state dict is empty"):
        convert_sam({})


def test_rank_is_read_off():
    model = convert_lora_sam(small_sam(), small_lora(rank=5), image_size=32)
    assert model.config.encoder.lora.rank == 5
    assert convert_lora_sam(small_sam(), small_lora(rank=5), image_size=32, rank=5).config == model.config
    with pytest.raises(InputError, match="the LoRA file is of rank 5, not 4"):
        convert_lora_sam(small_sam(), small_lora(rank=5), image_size=32, rank=4)


def test_classes_are_read_off():
    # SAMed trains one mask token a class, and there are nine of them in its published files.
    file = small_lora(classes=9)
    model = convert_lora_sam(small_sam(), file, image_size=32)
    np.testing.assert_array_equal(model.sam.mask_decoder.mask_tokens[...], file["mask_decoder.mask_tokens.weight"])


def test_lora_on_some_blocks():
    file = small_lora(blocks=2)
    with pytest.raises(InputError, match=r"4 pairs of matrices, for 2 of the 4 blocks: say which with blocks="):
        convert_lora_sam(small_sam(), file, image_size=32)
    blocks = convert_lora_sam(small_sam(), file, image_size=32, blocks=[3, 1]).sam.image_encoder.blocks
    np.testing.assert_array_equal(blocks[3].attn.qkv.lora.v.a[...], file["w_a_001"].T)
    np.testing.assert_array_equal(blocks[1].attn.qkv.lora.q.b[...], file["w_b_002"].T)
    assert not hasattr(blocks[0].attn.qkv, "lora")
    with pytest.raises(InputError, match="w_a_002"):
        convert_lora_sam(small_sam(), file, image_size=32, blocks=[3])


@pytest.mark.slow
def test_what_starts_a_fine_tuning():
    from dorl_jax.models import LoraConfig

    assert convert_lora_sam(small_sam(), image_size=32).config.encoder.lora == LoraConfig(4)
    assert convert_lora_sam(small_sam(), image_size=32, rank=0).config.encoder.lora is None
    lora = LoraConfig(3, alpha=6.0, targets=("q", "mlp"), blocks=(1,))
    assert convert_lora_sam(small_sam(), image_size=32, lora=lora).config.encoder.lora == lora
    with pytest.raises(InputError, match="contradict each other"):
        convert_lora_sam(small_sam(), image_size=32, lora=lora, rank=4)
    with pytest.raises(InputError, match="a LoRA file says itself what its LoRA is"):
        convert_lora_sam(small_sam(), small_lora(), image_size=32, lora=lora)
