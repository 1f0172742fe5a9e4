"""`dorl-jax convert`, there and back."""

import re

import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file
from small_sam import assert_same_tensors, small_lora, small_sam

from dorl_jax.cli import main
from dorl_jax.models import Cae, CaeConfig, ConvAutoencoder, ConvAutoencoderConfig, LoraSam, Sam
from dorl_jax.training.checkpoints import load_model
from weights_conversion import export_cae, export_conv_autoencoder, read_state_dict
from weights_conversion.hugging_face import from_official

SMALL_CAE = CaeConfig(
    width=16, grid=3, encoder_depth=1, decoder_depth=1, heads=1, projection=5, head_channels=(8, 6, 4, 3)
)


@pytest.fixture
def sam(tmp_path):
    save_file(small_sam(), tmp_path / "sam.safetensors")
    return tmp_path / "sam.safetensors"


@pytest.fixture
def lora(tmp_path):
    save_file(small_lora(), tmp_path / "lora.safetensors")
    return tmp_path / "lora.safetensors"


def convert(*arguments) -> int:
    return main(["convert", *map(str, arguments)])


def test_a_sam_there_and_back(sam, tmp_path, capsys):
    assert convert(sam, "--to", tmp_path / "model", "--check") == 0
    said = capsys.readouterr().out
    assert "Sam, 4 blocks of width 24, patches of 8, input 32 x 32, 4 mask tokens" in said
    assert "   4 x  attn.qkv.weight   72 x 24  attn.qkv.kernel   24 x 72  transposed" in said
    assert said.endswith(f"wrote {tmp_path / 'model'}\n")
    np.testing.assert_array_equal(
        load_model(tmp_path / "model", Sam).mask_decoder.iou_token[...], small_sam()["mask_decoder.iou_token.weight"]
    )
    assert convert(tmp_path / "model", "--to", tmp_path / "back.safetensors") == 0
    assert_same_tensors(read_state_dict(tmp_path / "back.safetensors"), small_sam())


def test_from_file_to_file(sam, tmp_path):
    assert convert(sam, "--to", tmp_path / "theirs.safetensors", "--names", "huggingface") == 0
    expected = {from_official(name): value for name, value in small_sam().items()}
    assert_same_tensors(read_state_dict(tmp_path / "theirs.safetensors"), expected)
    assert convert(sam, "--to", tmp_path / "smaller.safetensors", "--image-size", "64x40") == 0
    assert read_state_dict(tmp_path / "smaller.safetensors")["image_encoder.pos_embed"].shape == (1, 8, 5, 24)


def test_a_lora_sam_there_and_back(sam, lora, tmp_path):
    assert convert(sam, "--lora", lora, "--image-size", 32, "--rank", 2, "--to", tmp_path / "model") == 0
    model = load_model(tmp_path / "model", LoraSam)
    assert convert(tmp_path / "model", "--to", tmp_path / "a.safetensors", "--sam-to", tmp_path / "b.safetensors") == 0
    assert_same_tensors(read_state_dict(tmp_path / "a.safetensors"), small_lora())
    encoder = {name: value for name, value in small_sam().items() if name.startswith("image_encoder.")}
    written = read_state_dict(tmp_path / "b.safetensors")
    assert_same_tensors({name: written[name] for name in encoder}, encoder)
    assert convert(tmp_path / "model", "--to", tmp_path / "merged.safetensors", "--merge") == 0
    kernel = read_state_dict(tmp_path / "merged.safetensors")["image_encoder.blocks.1.attn.qkv.weight"]
    np.testing.assert_array_equal(kernel, model.merge().sam.image_encoder.blocks[1].attn.qkv.kernel[...].T)


@pytest.mark.slow
def test_autoencoders(tmp_path):
    shapes = ConvAutoencoderConfig(width=12, hidden=10, latent=6, decoder_channels=(9, 8, 7, 6, 5, 4, 8))
    for model, export in (
        (Cae(SMALL_CAE, rngs=nnx.Rngs(0)), export_cae),
        (ConvAutoencoder(shapes, rngs=nnx.Rngs(0)), export_conv_autoencoder),
    ):
        file, folder, back = (
            tmp_path / f"{type(model).__name__}{end}" for end in (".safetensors", "", "2.safetensors")
        )
        save_file(export(model), file)
        heads = ("--heads", 1) if isinstance(model, Cae) else ()
        assert convert(file, *heads, "--to", folder) == 0
        assert load_model(folder, type(model)).config == model.config
        assert convert(folder, "--to", back) == 0
        assert_same_tensors(read_state_dict(back), export(model))


def test_a_check_writes_nothing(sam, tmp_path, capsys):
    assert convert(sam, "--check") == 0
    assert f"{len(small_sam())} tensors: " in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["sam.safetensors"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "say where to write with --to OUT, or only look with --check"),
        (["--check", "--variant", "vit_b"], "of no known variant .*, not of vit_b"),
        (["--check", "--rank", "4"], "--rank is not for what .*sam.safetensors holds: leave it out"),
        (["--check", "--heads", "4"], "--heads is not for what"),
        (["--to", "sam.safetensors"], "sam.safetensors exists already: choose another, or say --overwrite"),
        (["--to", "out", "--merge"], "--sam-to, --merge and --names are for files, but out is a folder"),
        (["--to", "out", "--names", "official"], "--sam-to, --merge and --names are for files"),
        (["--to", "out.pth", "--sam-to", "b.pth"], "--sam-to goes with a LoRA file"),
        (["--to", "out.pth", "--merge"], "--merge is for a LoRA-SAM, not for a Sam"),
        (["--check", "--sam-to", "b.pth"], "say where that goes, too, with --to FILE"),
        (["--to", "out.pth", "--sam-to", "out.pth"], "--to and --sam-to are both out.pth"),
        (["--to", "out.pth", "--sam-to", "b.npz"], "--sam-to b.npz: expected a name that ends in .safetensors"),
        (["--to", "notes", "--overwrite"], "notes is a file, and would be a folder"),
        (["--to", "a.pth", "--overwrite"], "a.pth is a folder, but its name is that of a file"),
        (["--check", "--lora", "none.pth"], "no checkpoint at none.pth"),
    ],
)
def test_options_that_cannot_be(arguments, message, sam, monkeypatch, capsys):
    monkeypatch.chdir(sam.parent)
    (sam.parent / "notes").write_text("mine")
    (sam.parent / "a.pth").mkdir()
    assert convert("sam.safetensors", *arguments) == 2
    assert sorted(path.name for path in sam.parent.iterdir()) == ["a.pth", "notes", "sam.safetensors"]
    said = capsys.readouterr().err
    assert said.startswith("dorl-jax: ")
    assert re.search(message, said), said


def test_what_a_model_folder_is_cannot_be_said_again(sam, lora, tmp_path, capsys):
    assert convert(sam, "--to", tmp_path / "model") == 0
    for name, value in {"--image-size": 64, "--lora": lora, "--variant": "vit_b", "--rank": 2, "--heads": 2}.items():
        assert convert(tmp_path / "model", name, value, "--to", tmp_path / "out.safetensors") == 2
        assert f"{name} is not for the model folder {tmp_path / 'model'}: leave it out" in capsys.readouterr().err
    assert not (tmp_path / "out.safetensors").exists()


def test_what_no_file_holds_is_told(sam, lora, tmp_path, capsys):
    assert convert(sam, "--lora", lora, "--to", tmp_path / "lora_too.safetensors") == 0
    assert "not in the file" not in capsys.readouterr().out  # DoRL's own statistics, which its code has
    assert convert(sam, "--lora", lora, "--to", tmp_path / "merged.safetensors", "--merge") == 0
    said = capsys.readouterr().out
    assert "not in the file: pixel_mean = (215.032, 187.759, 200.467)" in said
    assert "not in the file: pixel_std = (41.3047, 56.9191, 21.9522)" in said
    assert convert(sam, "--to", tmp_path / "sam_too.safetensors") == 0
    assert "not in the file" not in capsys.readouterr().out


def test_a_run_holds_two_models(tmp_path, capsys):
    (tmp_path / "settings.toml").touch()
    assert convert(tmp_path, "--check") == 2
    assert f"models, {tmp_path}/finetune_sam/model or {tmp_path}/train_cae/model" in capsys.readouterr().err


def test_other_files(lora, tmp_path, capsys):
    assert convert(lora, "--check") == 2
    assert "give the SAM checkpoint it belongs to, and --lora" in capsys.readouterr().err
    save_file({"fc.weight": np.zeros(3, np.float32)}, tmp_path / "resnet.safetensors")
    assert convert(tmp_path / "resnet.safetensors", "--check") == 2
    assert "a state dict of no known model" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        convert(lora, "--image-size", "big")
    assert "'big' is no size: expected a side such as 224" in capsys.readouterr().err
