"""Files and folders that hold a state dict, and those that do not."""

import json
import sys

import jax.numpy as jnp
import pytest
from safetensors.numpy import save_file
from small_sam import assert_same_tensors, small_sam

from dorl_jax.errors import InputError
from weights_conversion import convert_sam, export_sam, open_state_dict, read_state_dict
from weights_conversion.hugging_face import from_official


@pytest.fixture
def hugging_face():
    return {from_official(name): value for name, value in small_sam().items()}


def configure(folder, **decoder):
    (folder / "config.json").write_text(json.dumps({"model_type": "sam", "mask_decoder_config": decoder}))


def test_safetensors_need_no_torch(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it fails
    save_file(small_sam(), tmp_path / "sam.safetensors")
    assert_same_tensors(export_sam(convert_sam(tmp_path / "sam.safetensors")), small_sam())
    (tmp_path / "sam.pth").write_bytes(b"")
    with pytest.raises(InputError, match=r"needs PyTorch: pip install 'dorl-jax\[convert\]'"):
        convert_sam(tmp_path / "sam.pth")


def test_a_folder_of_the_hub(tmp_path, hugging_face):
    save_file(hugging_face, tmp_path / "model.safetensors")
    assert convert_sam(tmp_path).config.decoder.heads == 8  # SamModel's default
    configure(tmp_path, num_attention_heads=4, layer_norm_eps=1e-7)
    for source in (tmp_path, tmp_path / "model.safetensors"):
        decoder = convert_sam(source).config.decoder
        assert (decoder.heads, decoder.epsilon) == (4, 1e-7)
    assert convert_sam(tmp_path, decoder_heads=2).config.decoder.heads == 2
    with pytest.raises(InputError, match="24 wide, which 7 heads do not divide: give decoder_heads"):
        convert_sam(tmp_path, decoder_heads=7)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(InputError, match="config.json is not the configuration of a SamModel"):
        convert_sam(tmp_path)


def test_a_checkpoint_in_parts(tmp_path, hugging_face):
    names = list(hugging_face)
    parts = {"model-1.safetensors": names[:50], "model-2.safetensors": names[50:]}
    for file, inside in parts.items():
        save_file({name: hugging_face[name] for name in inside}, tmp_path / file)
    index = {"weight_map": {name: file for file, inside in parts.items() for name in inside}}
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
    assert_same_tensors(read_state_dict(tmp_path), hugging_face)
    del index["weight_map"][names[3]]
    path.write_text(json.dumps(index))
    with pytest.raises(InputError, match=f"disagree on {names[3]}"):
        read_state_dict(tmp_path)
    path.write_text(json.dumps({"weight_map": {"a": "../model-1.safetensors"}}))
    with pytest.raises(InputError, match="points outside its folder"):
        read_state_dict(tmp_path)
    for wrong in ({}, {"weight_map": {"a": 1}}, {"weight_map": {"a": "model-1.safetensors", "b": None}}):
        path.write_text(json.dumps(wrong))
        with pytest.raises(InputError, match="is not an index"):
            read_state_dict(tmp_path)


def test_an_empty_folder(tmp_path):
    with pytest.raises(InputError, match="no checkpoint in the folder .*: expected one of model.safetensors"):
        read_state_dict(tmp_path)


def test_a_shared_matrix_under_both_names(hugging_face):
    shared = "shared_image_embedding.positional_embedding"
    tied = "prompt_encoder.shared_embedding.positional_embedding"
    both = {**hugging_face, tied: hugging_face[shared]}
    assert_same_tensors(export_sam(convert_sam(both)), small_sam())
    assert_same_tensors(export_sam(convert_sam({n: v for n, v in both.items() if n != shared})), small_sam())
    with pytest.raises(InputError, match="are one matrix in SamModel, but differ"):
        convert_sam({**both, tied: hugging_face[shared] + 1})


def test_arrays_of_other_libraries():
    source = small_sam()
    assert_same_tensors(export_sam(convert_sam({name: jnp.array(value) for name, value in source.items()})), source)
    torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'dorl-jax[convert]'")
    as_torch = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in source.items()}
    assert_same_tensors(export_sam(convert_sam(as_torch)), source)


def test_what_has_no_plain_values_is_refused():
    with pytest.raises(InputError, match="'a' in the state dict is not an array: .* inhomogeneous"):
        open_state_dict({"a": [[1.0], [1.0, 2.0]]})
    torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'dorl-jax[convert]'")
    with pytest.raises(InputError, match="a is on PyTorch's device 'meta' and has no values"):
        read_state_dict({"a": torch.empty(2, device="meta")})
    with pytest.raises(InputError, match=r"a is sparse \(torch.sparse_coo\): give tensor.to_dense\(\)"):
        read_state_dict({"a": torch.eye(2).to_sparse()})


def test_half_precision_is_refused(tmp_path):
    torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'dorl-jax[convert]'")
    from safetensors.torch import save_file as save_torch_file

    halves = {name: torch.tensor(value).bfloat16() for name, value in small_sam().items()}
    torch.save(halves, tmp_path / "sam.pth")
    save_torch_file(halves, tmp_path / "sam.safetensors")
    for source in (halves, tmp_path / "sam.pth", tmp_path / "sam.safetensors"):
        with pytest.raises(InputError, match="type bfloat16, expected float32; cast it first"):
            convert_sam(source)
        with pytest.raises(InputError, match="bfloat16, which NumPy has not: cast it to float32 first"):
            read_state_dict(source)


def test_nothing_is_read_to_know_the_shapes(tmp_path):
    save_file(small_sam(), tmp_path / "sam.safetensors")
    tensors = open_state_dict(tmp_path / "sam.safetensors")
    (tmp_path / "sam.safetensors").unlink()
    for name, value in small_sam().items():
        assert (tensors[name].shape, tensors[name].dtype) == (value.shape, "float32")
