"""Presets, trained sets and inputs of SAM and LoRA-SAM."""

import jax
import numpy as np
import pytest
from flax import nnx

from dorl_jax.errors import InputError
from dorl_jax.models import LoraConfig, LoraSam, Sam, SamConfig


def count(state):
    return sum(leaf.size for leaf in jax.tree.leaves(state))


# Numbers of parameters and buffers of the official checkpoints.
@pytest.mark.parametrize(("variant", "numbers"), [("vit_b", 93735728), ("vit_l", 312343088), ("vit_h", 641090864)])
def test_presets_have_the_official_number_of_parameters(variant, numbers):
    model = nnx.eval_shape(lambda: Sam(SamConfig.preset(variant), rngs=nnx.Rngs(0)))
    assert count(nnx.state(model)) == numbers


def test_tiny_is_a_few_million():
    model = nnx.eval_shape(lambda: LoraSam(SamConfig.tiny(), None, rngs=nnx.Rngs(0)))
    assert 2e6 < count(nnx.state(model)) < 6e6


def test_unknown_preset_is_named():
    with pytest.raises(InputError, match=r"unknown variant 'vit_bb' \(did you mean 'vit_b'\?\)"):
        SamConfig.preset("vit_bb")


@pytest.fixture(scope="module")
def tuned():
    return LoraSam(SamConfig.tiny(), LoraConfig(rank=2), rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def images():
    return np.random.RandomState(0).randint(0, 256, (2, 112, 112, 3)).astype(np.uint8)


def test_fresh_lora_changes_nothing(tuned, images):
    plain = LoraSam(SamConfig.tiny(), None, rngs=nnx.Rngs(1))
    graph, _ = nnx.split(plain)
    without_lora = nnx.filter_state(nnx.state(tuned), nnx.Not(nnx.LoRAParam))
    assert jax.tree.structure(without_lora) == jax.tree.structure(nnx.state(plain))
    np.testing.assert_allclose(
        nnx.merge(graph, without_lora)(images)["logits"], tuned(images)["logits"], rtol=1e-5, atol=1e-6
    )


def names(model, encoder):
    trained = nnx.split(model, model.trainable(encoder), ...)[1]
    return {".".join(map(str, path)) for path, _ in nnx.to_flat_state(trained)}


def test_what_trains(tuned):
    trained = names(tuned, "lora")
    in_encoder = {name for name in trained if "image_encoder" in name}
    assert in_encoder == {
        f"sam.image_encoder.blocks.{block}.attn.qkv.lora.{part}.{matrix}"
        for block in range(6)
        for part in "qv"
        for matrix in "ab"
    }
    assert "sam.prompt_encoder.no_mask_embed" in trained
    assert "sam.mask_decoder.transformer.layers.1.mlp.lin2.bias" in trained
    assert not any("iou_prediction_head" in name or "point_embeddings" in name for name in trained)
    assert "sam.image_encoder.neck.conv2.kernel" in names(tuned, "full")
    with pytest.raises(ValueError, match="'lora', 'lora_only' or 'full'"):
        tuned.trainable("all")


def test_smaller_images_are_padded_behind_the_normalisation(tuned, images):
    small = images[:, :100, :80]
    padded = np.broadcast_to(np.array(tuned.config.pixel_mean, np.float32), images.shape).copy()
    padded[:, :100, :80] = small
    out, expected = tuned(small), tuned(padded)
    assert out["logits"].shape == (2, 100, 80, 2)
    np.testing.assert_allclose(out["logits"], expected["logits"][:, :100, :80], atol=1e-4)
    with pytest.raises(ValueError, match="H <= 112, W <= 112"):
        tuned(np.zeros((1, 113, 100, 3), np.uint8))


def test_logits_are_upsampled_bilinearly(tuned, images):
    cv2 = pytest.importorskip("cv2")
    out = tuned(images)
    expected = cv2.resize(np.asarray(out["low_res_logits"][0]), (112, 112), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(out["logits"][0], expected, atol=1e-5)
