"""A state dict that does not match is refused, and the message says where."""

import pickle
from contextlib import suppress

import numpy as np
import pytest
from golden import rule_made
from safetensors.numpy import save_file
from small_sam import small_lora, small_sam

from dorl_jax.errors import InputError
from weights_conversion import convert_cae, convert_lora_sam, convert_sam, read_state_dict

WIDTH, TOKENS = 16, 9


def small_cae():
    """An autoencoder's state dict of width 16 over 3 x 3 tokens."""
    shapes = {
        "encoder.cls_token": (1, 1, WIDTH),
        "encoder.pos_embedding": (TOKENS, 1, WIDTH),
        "encoder.layer_norm.weight": (WIDTH,),
        "encoder.layer_norm.bias": (WIDTH,),
        "decoder.mask_token": (1, 1, WIDTH),
        "decoder.pos_embedding": (TOKENS + 1, 1, WIDTH),
        "decoder.Linear.weight": (5, WIDTH),
        "decoder.Linear.bias": (5,),
    }
    for part, depth in (("encoder", 2), ("decoder", 1)):
        for index in range(depth):
            block = f"{part}.transformer.{index}"
            shapes[f"{block}.attn.qkv.weight"] = (3 * WIDTH, WIDTH)
            for name, sizes in (("attn.proj", (WIDTH, WIDTH)), ("mlp.fc1", (64, WIDTH)), ("mlp.fc2", (WIDTH, 64))):
                shapes |= {f"{block}.{name}.weight": sizes, f"{block}.{name}.bias": sizes[:1]}
            for norm in ("norm1", "norm2"):
                shapes |= {f"{block}.{norm}.weight": (WIDTH,), f"{block}.{norm}.bias": (WIDTH,)}
    channels = (WIDTH, 8, 6, 4, 4, 3)
    for index, kernel in enumerate((4, 4, 4, 8, 8)):
        head = f"decoder.head.{2 * index}"
        shapes[f"{head}.weight"] = (channels[index], channels[index + 1], kernel, kernel)
        shapes[f"{head}.bias"] = (channels[index + 1],)
    return {name: rule_made(name, shape) for name, shape in shapes.items()}


def encode(source):
    features = np.random.RandomState(0).standard_normal((2, 3, 3, WIDTH)).astype(np.float32)
    return np.asarray(convert_cae(source, heads=2).encode(features))


def test_shape_is_read_off_the_tensors():
    config = convert_cae(small_cae(), heads=2).config
    assert (config.width, config.grid, config.encoder_depth, config.decoder_depth, config.projection) == (
        16,
        3,
        2,
        1,
        5,
    )
    assert config.head_channels == (8, 6, 4, 4)


@pytest.mark.parametrize("prefix", ["module.", "cae.", "module.cae."])
def test_a_common_prefix_is_dropped(prefix):
    np.testing.assert_array_equal(
        encode({prefix + name: value for name, value in small_cae().items()}), encode(small_cae())
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda d: d.pop("encoder.transformer.1.mlp.fc2.bias"),
            "1 tensors missing .*: encoder.transformer.1.mlp.fc2.bias",
        ),
        (lambda d: d.update(extra=np.zeros(3, np.float32)), "1 tensors the model has no place for: extra"),
        (
            lambda d: d.update({"encoder.norm.weight": d.pop("encoder.layer_norm.weight")}),
            "no place for: encoder.norm.weight; .*missing .*: encoder.layer_norm.weight",
        ),
        (
            lambda d: d.update({"decoder.Linear.weight": d["decoder.Linear.weight"].T.copy()}),
            r"do not fit: decoder.Linear.weight: shape \(16, 5\), expected \(5, 16\)",
        ),
        (
            lambda d: d.update({"decoder.head.4.weight": d["decoder.head.4.weight"][:, :, 0]}),
            "decoder.head.4.weight: shape .* does not fit",
        ),
        (
            lambda d: d.update({"encoder.cls_token": d["encoder.cls_token"].astype(np.float16)}),
            "encoder.cls_token: type float16, expected float32",
        ),
        (lambda d: d.pop("encoder.cls_token"), "1 tensors missing .*: encoder.cls_token"),
        (
            lambda d: d.update({"encoder.pos_embedding": np.zeros((8, 1, WIDTH), np.float32)}),
            "8 tokens, which is no square grid",
        ),
    ],
    ids=["dropped", "added", "renamed", "transposed", "flattened", "retyped", "no token", "no grid"],
)
def test_one_wrong_tensor(change, message):
    state_dict = small_cae()
    change(state_dict)
    with pytest.raises(InputError, match=message):
        convert_cae(state_dict, heads=2)


@pytest.mark.parametrize(
    ("heads", "message"),
    [(None, "how many attention heads an autoencoder of width 16 has: give heads"), (3, "3 heads do not divide")]
    + [(count, f"16 wide, which {count} heads do not divide") for count in (0, -2)],
)
def test_heads_are_not_guessed(heads, message):
    with pytest.raises(InputError, match=message):
        convert_cae(small_cae(), heads=heads)


def test_an_autoencoder_without_norms():
    tensors = {name: value for name, value in small_cae().items() if "norm" not in name}
    with pytest.raises(InputError, match="not a state dict of DoRL's autoencoder: no norms"):
        convert_cae(tensors, heads=2)


def test_a_lora_file_needs_lora():
    with pytest.raises(InputError, match="no tensor named w_a_NNN"):
        convert_lora_sam(small_sam(), {"mask_decoder.iou_token.weight": np.zeros((1, 48), np.float32)}, image_size=32)


@pytest.mark.parametrize("blocks", [(1, 9), (1, 1), (-1, 2)])
def test_blocks_of_a_lora_file(blocks):
    with pytest.raises(InputError, match=f"counted from 0 to 3 here, each named once, not {blocks[0]}, {blocks[1]}"):
        convert_lora_sam(small_sam(), small_lora(blocks=2), image_size=32, blocks=blocks)


@pytest.mark.parametrize("heads", [0, -4, 5])
def test_heads_of_the_mask_decoder(heads):
    with pytest.raises(InputError, match=f"24 wide, which {heads} heads do not divide: give decoder_heads"):
        convert_sam(small_sam(), decoder_heads=heads)


def test_safetensors(tmp_path):
    save_file(small_cae(), tmp_path / "cae.safetensors")
    np.testing.assert_array_equal(encode(tmp_path / "cae.safetensors"), encode(small_cae()))
    (tmp_path / "torn.safetensors").write_bytes((tmp_path / "cae.safetensors").read_bytes()[:-9])
    with pytest.raises(InputError, match="torn.safetensors is not a safetensors file"):
        read_state_dict(tmp_path / "torn.safetensors")


def test_other_files(tmp_path):
    with pytest.raises(InputError, match="no checkpoint at"):
        read_state_dict(tmp_path / "none.pth")
    (tmp_path / "a.npz").write_bytes(b"")
    with pytest.raises(InputError, match="expected a .pth"):
        read_state_dict(tmp_path / "a.npz")
    with pytest.raises(InputError, match="'a' in the state dict is not an array but dict"):
        read_state_dict({"a": {}})


def test_pth(tmp_path):
    torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'dorl-jax[convert]'")
    tensors = {f"module.{name}": torch.tensor(value) for name, value in small_cae().items()}
    for stored in (tensors, {"state_dict": tensors}, {"model": tensors}):
        torch.save(stored, tmp_path / "cae.mdl")
        np.testing.assert_array_equal(encode(tmp_path / "cae.mdl"), encode(small_cae()))
    torch.save({1: torch.zeros(3)}, tmp_path / "numbers.pth")
    with pytest.raises(InputError, match="1 in the state dict is no name: it is int, expected text"):
        read_state_dict(tmp_path / "numbers.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(InputError, match="holds a list, not a state dict"):
        read_state_dict(tmp_path / "list.pth")


class Malicious:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (open, (self.mark, "w"))


def test_nothing_but_tensors_is_unpickled(tmp_path):
    torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'dorl-jax[convert]'")
    mark = tmp_path / "ran"
    torch.save({"encoder.cls_token": Malicious(str(mark))}, tmp_path / "a.pth")
    (tmp_path / "b.pth").write_bytes(pickle.dumps(Malicious(str(mark)), protocol=2))
    for name in ("a.pth", "b.pth"):
        with pytest.raises(InputError, match=rf"{name} is not a checkpoint of tensors alone: it names \w+.open"):
            read_state_dict(tmp_path / name)
    assert not mark.exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_pth_that_is_not_whole(tmp_path, zipped):
    """PyTorch's own words would have the user unpickle a broken download."""
    torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'dorl-jax[convert]'")
    torch.save({"a": torch.zeros(1000)}, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    whole = (tmp_path / "a.pth").read_bytes()
    for text, message in (
        (whole[:-9], "is not whole"),
        (whole[: len(whole) // 2], "is not whole"),
        (b"<!DOCTYPE html><html>", "is no file that torch.save wrote, perhaps a page"),
        (b"version https://git-lfs.github.com/spec/v1", "is no file that torch.save wrote"),
        (b"", "is no file that torch.save wrote"),
    ):
        (tmp_path / "b.pth").write_bytes(text)
        with pytest.raises(InputError, match=f"b.pth {message}"):
            read_state_dict(tmp_path / "b.pth")
    for place in range(20, 400, 10):  # a byte on the way
        (tmp_path / "b.pth").write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        with suppress(InputError):
            read_state_dict(tmp_path / "b.pth")
