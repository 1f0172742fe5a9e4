"""Names of Hugging Face's SamModel and of the official checkpoints.

That the arrays are the same under both names, and no two of one shape are exchanged, is proved in
`tests/models/test_live_transformers.py`: outputs and the gradient of every weight agree.
"""

from dataclasses import replace

import numpy as np
import pytest
from golden import sam_shapes

from dorl_jax.errors import InputError
from dorl_jax.models import SamConfig
from dorl_jax.models.image_encoder import ImageEncoderConfig
from dorl_jax.models.mask_decoder import MaskDecoderConfig
from weights_conversion.hugging_face import (
    SHARED,
    TIED,
    as_official,
    from_official,
    is_hugging_face,
    to_official,
)
from weights_conversion.sources import open_state_dict

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'dorl-jax[convert]'")
transformers = pytest.importorskip("transformers", reason="needs Hugging Face transformers")

from hugging_face_twin import their_config, twins  # noqa: E402

CONFIG = SamConfig(
    ImageEncoderConfig(32, 8, 12, 2, 3, (1,), 3, 16), MaskDecoderConfig(heads=2, hidden=24, epsilon=1e-6)
)
GAUSSIAN = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"


def official_names(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: tensor.read() for name, tensor in as_official(open_state_dict(tensors))[0].items()}


def shapes(config: SamConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of `SamModel`, without the second name of the shared matrix."""
    with torch.device("meta"):
        model = transformers.SamModel(their_config(config))
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name != TIED}


@pytest.mark.parametrize("variant", ["vit_b", "vit_l", "vit_h"])
def test_official_checkpoints(golden, variant):
    official, theirs = sam_shapes(golden, variant), shapes(SamConfig.preset(variant))
    assert {from_official(name): shape for name, shape in official.items()} == theirs
    assert {to_official(name): shape for name, shape in theirs.items()} == official
    assert is_hugging_face(theirs)
    assert not is_hugging_face(official)


@pytest.mark.parametrize(
    ("depth", "decoder_depth", "iou_depth", "masks"), [(0, 1, 2, 1), (1, 1, 3, 3), (3, 2, 4, 2), (12, 4, 6, 4)]
)
def test_every_number_of_layers(depth, decoder_depth, iou_depth, masks):
    decoder = replace(CONFIG.decoder, depth=decoder_depth, iou_depth=iou_depth, multimask_outputs=masks)
    theirs = shapes(replace(CONFIG, encoder=replace(CONFIG.encoder, depth=depth), decoder=decoder))
    empty = {name: np.broadcast_to(np.float32(0), shape) for name, shape in theirs.items()}
    official = {name: array.shape for name, array in official_names(empty).items()}
    assert len(official) == len(theirs)
    assert {from_official(name, iou_depth): shape for name, shape in official.items()} == theirs
    assert {to_official(name, iou_depth) for name in theirs} == set(official)
    head = "mask_decoder.iou_prediction_head.layers"
    assert {name for name in official if name.startswith(head)} == {
        f"{head}.{index}.{leaf}" for index in range(iou_depth) for leaf in ("weight", "bias")
    }
    assert official[f"{head}.{iou_depth - 1}.bias"] == (masks + 1,)
    for mask in range(masks + 1):
        assert official[f"mask_decoder.output_hypernetworks_mlps.{mask}.layers.2.weight"] == (2, 16)


def test_arrays_are_the_same():
    model, ours = twins(CONFIG)
    tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    official = official_names(tensors)
    for name, array in official.items():
        np.testing.assert_array_equal(array, tensors[from_official(name)])
    attention = ours.image_encoder.blocks[1].attn
    np.testing.assert_array_equal(attention.qkv.kernel[...].T, tensors["vision_encoder.layers.1.attn.qkv.weight"])
    np.testing.assert_array_equal(
        ours.prompt_encoder.position_encoding.gaussian_matrix[...],
        tensors["prompt_encoder.shared_embedding.positional_embedding"],
    )


def test_the_shared_matrix():
    both = {name: tensor.numpy() for name, tensor in transformers.SamModel(their_config(CONFIG)).state_dict().items()}
    assert {SHARED, TIED} <= set(both)
    for left_out in (SHARED, TIED):
        one = official_names({name: array for name, array in both.items() if name != left_out})
        assert set(one) == set(official_names(both))
        np.testing.assert_array_equal(one[GAUSSIAN], both[SHARED])
    assert (to_official(SHARED), to_official(TIED), from_official(GAUSSIAN)) == (GAUSSIAN, GAUSSIAN, SHARED)
    with pytest.raises(InputError, match=f"{SHARED} and {TIED} are one matrix in SamModel, but differ"):
        official_names(both | {TIED: both[TIED] + 1})


@pytest.mark.parametrize(
    "name",
    [
        "vision_encoder.layers.0.attn.q_proj.weight",
        "vision_encoder.layers.x.attn.qkv.weight",
        "vision_encoder.layers.0.attn.qkv.weight.more",
        "more.vision_encoder.pos_embed",
        "vision_encoder.neck.conv1.bias",
        "vision_encoderXpos_embed",
        "mask_decoder.output_hypernetworks_mlps.0.layers.1.weight",
        "image_encoder.pos_embed",
        "",
    ],
)
def test_other_names(name):
    assert to_official(name) is None
    kept = official_names({SHARED: np.zeros(2, np.float32), name: np.ones(2, np.float32)})
    assert set(kept) == {GAUSSIAN, name}  # for the strict loading to refuse


def test_names_that_are_not_official():
    for name in ("vision_encoder.pos_embed", "image_encoder.neck.0.bias", "pixel_mean"):
        with pytest.raises(InputError, match=f"'{name}' is no tensor of an official"):
            from_official(name)
    with pytest.raises(InputError, match=r"iou_prediction_head\.layers\.3\.weight"):
        from_official("mask_decoder.iou_prediction_head.layers.3.weight")
    assert not is_hugging_face(["w_a_000", "mask_decoder.iou_token.weight"])
    with pytest.raises(ValueError, match="at least 2 layers"):
        to_official("vision_encoder.pos_embed", 1)
