"""Into a model and back, or out of a model and back: not a bit changes."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx
from golden import cae_state_dict, lora_state_dict, sam_state_dict
from small_sam import SMALL, assert_same_tensors, lora_sam, small_lora, small_sam

from dorl_jax.errors import InputError
from dorl_jax.models import Cae, CaeConfig, LoraConfig
from dorl_jax.models.abstract import abstract_model
from weights_conversion import (
    convert_cae,
    convert_lora_sam,
    convert_sam,
    export_cae,
    export_lora_sam,
    export_sam,
    read_state_dict,
)
from weights_conversion.files import write_state_dict
from weights_conversion.hugging_face import from_official


def assert_same_model(actual: nnx.Module, expected: nnx.Module) -> None:
    assert actual.config == expected.config
    pairs = zip(nnx.to_flat_state(nnx.state(actual)), nnx.to_flat_state(nnx.state(expected)), strict=True)
    for (path, a), (other, b) in pairs:
        assert path == other
        np.testing.assert_array_equal(a.get_value(), b.get_value(), err_msg=str(path))


def test_sam():
    source = small_sam()
    assert_same_tensors(export_sam(convert_sam(source)), source)


def test_hugging_face_names():
    official = small_sam()
    source = {from_official(name): value for name, value in official.items()}
    model = convert_sam(source)
    assert_same_tensors(export_sam(model, "huggingface"), source)
    assert_same_tensors(export_sam(model), official)
    # its norms are another's by an epsilon, and nothing else
    assert model.config.decoder.epsilon == 1e-6
    decoder = dataclasses.replace(model.config.decoder, epsilon=1e-5)
    assert dataclasses.replace(model.config, decoder=decoder) == convert_sam(official).config


def test_the_names_of_the_sam_do_not_matter_to_a_lora_sam():
    official = small_sam()
    named = {from_official(name): value for name, value in official.items()}
    models = [convert_lora_sam(sam, small_lora(), image_size=32) for sam in (official, named)]
    assert_same_model(*models)
    assert models[0].config.decoder.epsilon == 1e-5  # the decoder is the LoRA file's, and that is the official code's


@pytest.mark.parametrize("blocks", [None, (2, 0)])
def test_lora_files(blocks):
    sam, lora = small_sam(), small_lora(blocks=len(blocks) if blocks else 4)
    model = convert_lora_sam(sam, lora, image_size=32, blocks=blocks)
    files = export_lora_sam(model)
    assert_same_tensors(files.lora, lora)
    encoder = {name: value for name, value in sam.items() if name.startswith("image_encoder.")}
    assert_same_tensors({name: files.sam[name] for name in encoder}, encoder)
    assert_same_model(convert_lora_sam(*files, image_size=32, blocks=blocks), model)


@pytest.mark.slow
def test_official_sizes(golden):
    """The real names and shapes; the position tables stay as they are."""
    sam = sam_state_dict(golden)
    assert_same_tensors(export_sam(convert_sam(sam)), sam)
    lora = lora_state_dict(golden)
    assert_same_tensors(export_lora_sam(convert_lora_sam(sam, lora)).lora, lora)


@pytest.mark.slow
def test_autoencoder(golden):
    source = cae_state_dict(golden)
    assert_same_tensors(export_cae(convert_cae(source)), source)


def test_the_heads_of_an_autoencoder():
    """No tensor shows them: other ones would give other vectors from the same weights."""
    small = {"grid": 3, "encoder_depth": 0, "decoder_depth": 0, "head_channels": (8, 6, 4, 3)}
    config = dataclasses.replace(CaeConfig.tiny(), **small)
    assert convert_cae(export_cae(Cae(config, rngs=nnx.Rngs(0)))).config == config


def test_an_autoencoder_that_standardises_is_not_written():
    config = dataclasses.replace(CaeConfig.tiny(), feature_mean=(0.5,) * 192, feature_std=(2.0,) * 192)
    with pytest.raises(InputError, match=r"Train one with train_cae.standardise = false"):
        export_cae(abstract_model(lambda rngs: Cae(config, rngs=rngs)))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_files(tmp_path, suffix):
    if suffix == ".pth":
        pytest.importorskip("torch", reason="needs PyTorch: pip install 'dorl-jax[convert]'")
    model = convert_sam(small_sam())
    path = tmp_path / f"sam{suffix}"
    write_state_dict(export_sam(model), path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert_same_tensors(read_state_dict(path), small_sam())
    assert_same_model(convert_sam(path), model)


def test_other_files(tmp_path):
    with pytest.raises(InputError, match=r"expected a name that ends in .safetensors, .pth"):
        write_state_dict({}, tmp_path / "a.npz")
    with pytest.raises(InputError, match="no names 'hugingface' .did you mean 'huggingface'"):
        export_sam(convert_sam(small_sam()), "hugingface")


@pytest.mark.slow
def test_what_a_lora_file_cannot_hold():
    images = np.random.RandomState(0).randint(0, 256, (1, 32, 32, 3)).astype(np.uint8)
    model = lora_sam(LoraConfig(2, alpha=6.0, targets=("k", "mlp")))
    with pytest.raises(InputError, match="this model's are of k, mlp scaled by 3"):
        export_lora_sam(model)
    with pytest.raises(InputError, match=r"call merge\(\) first"):
        export_sam(model.sam)
    # merged it is a SAM like any other, and gives the same masks
    expected = model(images)["low_res_logits"]
    tensors = export_sam(model.merge().sam)
    assert tensors.keys() == small_sam(SMALL.with_masks(1)).keys()
    with pytest.raises(InputError, match=r"call unmerge\(\) first"):
        export_lora_sam(model)
    statistics = SMALL.pixel_mean, SMALL.pixel_std
    plain = convert_lora_sam(tensors, None, None, 32, 0, *statistics)  # its decoder is fresh, its encoder is not
    features = model(images)["feature"]
    np.testing.assert_allclose(plain(images)["feature"], features, atol=1e-5 * np.abs(features).max())
    sam = convert_sam(tensors)
    with pytest.raises(InputError, match="no LoRA"):
        export_lora_sam(plain)
    logits, _ = sam.decode(model.sam.encode_image(images)["embedding"])
    np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())


def test_the_model_has_its_own_copy():
    source = small_sam()
    model = convert_sam(source)
    for value in source.values():
        value[...] = np.nan
    assert all(bool(np.isfinite(leaf).all()) for leaf in jax.tree.leaves(nnx.state(model)))
