"""A tensor that is dropped, added, renamed, transposed or retyped is refused by its name, and it alone."""

import re

import numpy as np
import pytest
from small_sam import small_lora, small_sam

from dorl_jax.errors import InputError
from weights_conversion import convert_lora_sam, convert_sam
from weights_conversion.hugging_face import from_official


def hugging_face_sam():
    return {from_official(name): value for name, value in small_sam().items()}


SOURCES = {
    "official": (small_sam, convert_sam),
    "huggingface": (hugging_face_sam, convert_sam),
    "lora": (small_lora, lambda file: convert_lora_sam(small_sam(), file, image_size=32)),
}


def sample(names):
    """Some names of all parts: a conversion takes half a second. What is read off the tensors is tested with each."""
    return list(names)[1::35]


def refusal(convert, state_dict) -> str:
    with pytest.raises(InputError) as caught:
        convert(state_dict)
    return str(caught.value)


@pytest.fixture(params=["official", *(pytest.param(name, marks=pytest.mark.slow) for name in ("huggingface", "lora"))])
def source(request):
    make, convert = SOURCES[request.param]
    return make(), convert


def test_as_it_is(source):
    state_dict, convert = source
    convert(state_dict)


def test_dropped(source):
    state_dict, convert = source
    for name in sample(state_dict):
        rest = {other: value for other, value in state_dict.items() if other != name}
        message = refusal(convert, rest)
        if name.endswith("image_encoder.pos_embed") or name == "vision_encoder.pos_embed":
            assert "not a SAM checkpoint" in message
            assert name in message
        else:
            expected = f"1 tensors missing from the state dict: {name}"
            assert message == f"the state dict does not match the model. {expected}", name


def test_added(source):
    state_dict, convert = source
    prefix = "vision_encoder.layers" if "vision_encoder.pos_embed" in state_dict else "image_encoder.blocks"
    for name in ("extra", f"{prefix}.4.attn.proj.bias", "mask_decoder.transformer.layers.2.mlp.lin1.weight"):
        message = refusal(convert, {**state_dict, name: np.zeros(3, np.float32)})
        assert message.endswith(f"1 tensors the model has no place for: {name}")


def test_renamed(source):
    state_dict, convert = source
    for name in sample(state_dict):
        renamed = {f"{key}_" if key == name else key: value for key, value in state_dict.items()}
        message = refusal(convert, renamed)
        assert f"{name}_" in message, name
        assert message.count(name) == 2, message


def test_transposed(source):
    state_dict, convert = source
    # a transposed square cannot be seen
    for name in sample(name for name, value in state_dict.items() if value.T.shape != value.shape):
        value = state_dict[name]
        message = refusal(convert, {**state_dict, name: np.ascontiguousarray(value.T)})
        assert "1 tensors that do not fit: " in message, message
        assert re.search(rf": {re.escape(name)}: shape {re.escape(str(value.T.shape))}", message), message


def test_retyped(source):
    state_dict, convert = source
    for name in sample(state_dict):
        value = state_dict[name]
        message = refusal(convert, {**state_dict, name: value.astype(np.float16)})
        assert message.endswith(f"1 tensors that do not fit: {name}: type float16, expected float32; cast it first")


def test_several_are_listed_together():
    state_dict = small_sam()
    del state_dict["mask_decoder.iou_token.weight"]
    state_dict["extra"] = np.zeros(1, np.float32)
    state_dict["image_encoder.neck.1.bias"] = np.zeros(7, np.float32)
    message = refusal(convert_sam, state_dict)
    assert "no place for: extra" in message
    assert "missing from the state dict: mask_decoder.iou_token.weight" in message
