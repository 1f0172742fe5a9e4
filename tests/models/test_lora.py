"""LoRA against the dense map it stands for: W + scale * A B, each part in its place."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from dorl_jax.models import LoraConfig, LoraSam, SamConfig
from dorl_jax.models.image_encoder import Attention, ImageEncoder, ImageEncoderConfig
from dorl_jax.models.layers import Mlp
from dorl_jax.models.lora import TARGETS, AdaptedLinear, adapted_linear, is_merged, merge_lora, unmerge_lora
from dorl_jax.models.mask_decoder import MaskDecoderConfig

ENCODER = ImageEncoderConfig(24, 8, 12, 2, 3, (1,), window=2, out_channels=16)
SAM = SamConfig(ENCODER, MaskDecoderConfig(heads=2, hidden=24, depth=1))

ranks = st.sampled_from([1, 3])
alphas = st.one_of(st.none(), st.floats(0.25, 16))
targets = st.sets(st.sampled_from(TARGETS), min_size=1).map(lambda chosen: tuple(sorted(chosen)))
blocks = st.sampled_from([None, (), (0,), (1,), (0, 1)])
choices = st.tuples(ranks, alphas, targets, blocks)


def few(examples):
    return settings(max_examples=examples, deadline=None, derandomize=True)


def drawn(module, seed=0):
    """The module with every parameter drawn anew: B, tables and biases are not zero."""
    graph, state = nnx.split(module)
    leaves, tree = jax.tree.flatten(state)
    rng = np.random.default_rng(seed)
    values = [jnp.asarray(0.3 * rng.standard_normal(leaf.shape), leaf.dtype) for leaf in leaves]
    return nnx.merge(graph, jax.tree.unflatten(tree, values))


def draw(*shape, seed=1):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def adapted(model):
    return [module for _, module in nnx.iter_modules(model) if isinstance(module, AdaptedLinear)]


def dense(layer):
    """W + scale * A B in float64."""
    kernel = np.array(layer.kernel[...], np.float64)
    for lora, (start, stop) in zip(layer.lora.values(), layer.places, strict=True):
        a, b = np.asarray(lora.a[...], np.float64), np.asarray(lora.b[...], np.float64)
        kernel[:, start:stop] += layer.scale * a @ b
    return kernel


def bits(model):
    return {path: np.asarray(leaf.get_value()).tobytes() for path, leaf in nnx.to_flat_state(nnx.state(model))}


@pytest.mark.slow
@few(8)
@given(choices, st.integers(0, 99))
def test_merged_and_back(choice, seed):
    lora = LoraConfig(*choice)
    model = drawn(ImageEncoder(replace(ENCODER, lora=lora), rngs=nnx.Rngs(0)), seed)
    layers = adapted(model)
    in_block = bool({"q", "k", "v"} & set(lora.targets)) + ("proj" in lora.targets) + 2 * ("mlp" in lora.targets)
    assert len(layers) == in_block * (2 if lora.blocks is None else len(lora.blocks))
    images = draw(2, 24, 24, 3, seed=seed)
    before, fresh, kernels = model(images), bits(model), [dense(layer) for layer in layers]
    merge_lora(model)
    assert is_merged(model) == bool(layers)
    for layer, kernel in zip(layers, kernels, strict=True):
        np.testing.assert_allclose(layer.kernel[...], kernel, atol=1e-6 * np.abs(kernel).max())
    once = bits(model)
    merge_lora(model)
    assert bits(model) == once
    for a, b in zip(before, model(images), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * np.abs(a).max())
    unmerge_lora(model)
    assert not is_merged(model)
    assert bits(model) == fresh
    unmerge_lora(model)
    assert bits(model) == fresh


@few(6)
@given(
    st.permutations(["q", "k", "v"]).flatmap(lambda order: st.integers(1, 3).map(lambda n: tuple(order[:n]))),
    ranks,
    alphas,
)
def test_parts_stand_in_their_thirds(chosen, rank, alpha):
    """The outputs of q, k and v against x W + b and x A B, part by part, whatever the order they are named in."""
    lora = LoraConfig(rank, alpha, chosen)
    qkv = drawn(Attention(ENCODER, (2, 2), lora, rngs=nnx.Rngs(0))).qkv
    x = draw(3, 5, 12)
    assert set(qkv.lora) == set(chosen)
    kernel, bias = np.asarray(qkv.kernel[...]), np.asarray(qkv.bias[...])
    for third, part in enumerate("qkv"):
        columns = slice(12 * third, 12 * third + 12)
        expected = x @ kernel[:, columns] + bias[columns]
        if part in chosen:
            a, b = qkv.lora[part].a[...], qkv.lora[part].b[...]
            assert (a.shape, b.shape) == ((12, rank), (rank, 12))
            expected += (1 if alpha is None else alpha / rank) * (x @ a @ b)
        np.testing.assert_allclose(qkv(x)[..., columns], expected, atol=1e-5 * np.abs(expected).max())


def test_proj_and_mlp_are_adapted_whole():
    lora = LoraConfig(2, 3.0, ("proj", "mlp"))
    model = drawn(ImageEncoder(replace(ENCODER, lora=lora), rngs=nnx.Rngs(0)))
    for block in model.blocks:
        assert isinstance(block.mlp, Mlp)
        assert not isinstance(block.attn.qkv, AdaptedLinear)
        for layer in (block.attn.proj, block.mlp.lin1, block.mlp.lin2):
            x = draw(4, layer.in_features)
            expected = np.asarray(x, np.float64) @ dense(layer) + np.asarray(layer.bias[...])
            np.testing.assert_allclose(layer(x), expected, atol=1e-5 * np.abs(expected).max())


@few(4)
@given(ranks, st.floats(0.25, 16))
def test_alpha_scales_the_update(rank, alpha):
    plain, scaled = (drawn(adapted_linear(6, 5, config=LoraConfig(rank, a), rngs=nnx.Rngs(0))) for a in (None, alpha))
    x = draw(7, 6)
    frozen = x @ plain.kernel[...] + plain.bias[...]
    expected = alpha / rank * (plain(x) - frozen)
    np.testing.assert_allclose(scaled(x) - frozen, expected, atol=1e-5 * np.abs(scaled(x)).max())
    assert (LoraConfig(rank).scale, LoraConfig(rank, float(rank)).scale) == (1, 1)


@pytest.mark.slow
@few(4)
@given(choices)
def test_training_starts_from_the_frozen_map(choice):
    lora = LoraConfig(*choice)
    model = ImageEncoder(replace(ENCODER, lora=lora), rngs=nnx.Rngs(0))
    plain, _ = nnx.split(ImageEncoder(ENCODER, rngs=nnx.Rngs(0)))
    frozen = nnx.merge(plain, nnx.filter_state(nnx.state(model), nnx.Not(nnx.LoRAParam)))
    for layer in adapted(model):
        for lora_part in layer.lora.values():
            assert not np.any(lora_part.b[...])
            assert 0 < np.abs(lora_part.a[...]).max() <= layer.in_features**-0.5
    images = draw(1, 24, 24, 3)
    for a, b in zip(model(images), frozen(images), strict=True):
        np.testing.assert_array_equal(a, b)


def total(model, images):
    return jnp.sum(jnp.sin(model(images)[1]))


def by_path(state):
    return {path: np.asarray(leaf.get_value()) for path, leaf in nnx.to_flat_state(state)}


@pytest.mark.slow
def test_gradients_by_the_chain_rule():
    """scale * G B^T and scale * A^T G, where G is the gradient to the kernel; a fresh A has none, as its B is 0."""
    lora = LoraConfig(2, 3.0, TARGETS)
    model = ImageEncoder(replace(ENCODER, lora=lora), rngs=nnx.Rngs(0))
    gradients = nnx.jit(nnx.grad(total))
    images = draw(2, 24, 24, 3)
    fresh = {path: x for path, x in by_path(gradients(model, images)).items() if "lora" in path}
    assert len(fresh) == 2 * 2 * 6
    for path, gradient in fresh.items():
        assert np.any(gradient) == (path[-1] == "b"), path
    model = drawn(model)
    found, values = by_path(gradients(model, images)), by_path(nnx.state(model))
    thirds = {"q": slice(0, 12), "k": slice(12, 24), "v": slice(24, 36), "all": slice(None)}
    for path in fresh:
        *layer, _, part, matrix = path
        to_kernel = lora.scale * found[*layer, "kernel"][:, thirds[part]]
        a, b = values[*path[:-1], "a"], values[*path[:-1], "b"]
        expected = to_kernel @ b.T if matrix == "a" else a.T @ to_kernel
        np.testing.assert_allclose(found[path], expected, atol=1e-4 * np.abs(expected).max(), err_msg=str(path))


@pytest.mark.slow
@few(4)
@given(choices)
def test_what_trains_in_the_encoder_is_a_and_b(choice):
    lora = LoraConfig(*choice)
    model = nnx.eval_shape(lambda: LoraSam(SAM, lora, rngs=nnx.Rngs(0)))
    _, trained, rest = nnx.split(model, model.trainable("lora"), ...)
    in_encoder = [path for path, _ in nnx.to_flat_state(trained) if "image_encoder" in path]
    assert len(in_encoder) == 2 * sum(len(layer.lora) for layer in adapted(model))
    assert {path[-1] for path in in_encoder} <= {"a", "b"}
    assert not any("lora" in path for path, _ in nnx.to_flat_state(rest))


@pytest.mark.slow
def test_a_merged_model_does_not_train():
    model = LoraSam(SAM, LoraConfig(1), rngs=nnx.Rngs(0)).merge()
    with pytest.raises(ValueError, match="call unmerge"):
        model.trainable()
    assert model.unmerge().trainable() is not None


@pytest.mark.parametrize("rank", [0, -1])
def test_no_rank_is_refused(rank):
    with pytest.raises(ValueError, match=f"LoRA of rank {rank}: expected at least 1; leave LoRA out with lora=None"):
        LoraConfig(rank)


@pytest.mark.parametrize(("wrong", "meant"), [("prj", "proj"), ("mpl", "mlp"), ("proj_", "proj")])
def test_an_unknown_target_is_named_with_the_nearest(wrong, meant):
    with pytest.raises(ValueError, match=rf"unknown LoRA target '{wrong}' \(did you mean '{meant}'\?\); known: q, k"):
        LoraConfig(targets=("q", wrong))


def test_blocks_that_do_not_exist_are_named():
    with pytest.raises(ValueError, match=r"LoRA on blocks \[2, -1\], but the encoder has 2"):
        replace(ENCODER, lora=LoraConfig(blocks=(0, 2, -1)))
