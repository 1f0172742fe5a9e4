"""What holds of SAM whatever its weights: images and prompts do not mix, sizes are filled up and brought back."""

from functools import partial

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from dorl_jax.models import LoraConfig, LoraSam, Sam, SamConfig
from dorl_jax.models.image_encoder import ImageEncoderConfig
from dorl_jax.models.mask_decoder import MaskDecoderConfig

HEIGHT, WIDTH, ROWS, COLUMNS = 24, 32, 3, 4
IMAGES, SETS, POINTS = 3, 2, 3
CONFIG = SamConfig(
    ImageEncoderConfig((HEIGHT, WIDTH), 8, 12, 2, 3, (1,), window=2, out_channels=16),
    MaskDecoderConfig(heads=2, hidden=24, depth=1),
)

few = settings(max_examples=6, deadline=None, derandomize=True)
orders = st.permutations(range(IMAGES)).map(np.array)
seeds = st.integers(0, 99)
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # compiling is what takes the time


def drawn(make):
    """A model with every parameter drawn: biases, tables and B are not zero."""
    graph, state = nnx.split(nnx.eval_shape(make))
    leaves, tree = jax.tree.flatten(state)
    rng = np.random.default_rng(0)

    def tensor(shape):
        scale = 1 / np.sqrt(shape[0]) if len(shape) == 2 and shape[0] > 4 else 0.3
        return jnp.asarray(scale * rng.standard_normal(shape), jnp.float32)

    return graph, jax.tree.unflatten(tree, [tensor(leaf.shape) for leaf in leaves])


@pytest.fixture(scope="module")
def parts():
    return drawn(lambda: Sam(CONFIG, rngs=nnx.Rngs(0)))


@pytest.fixture(scope="module")
def model(parts):
    return nnx.merge(*parts)


@pytest.fixture(scope="module")
def predict(parts):
    graph, state = parts
    run = jit(lambda state, embedding, prompts: nnx.merge(graph, state).predict(embedding, **prompts))
    return lambda embedding, **prompts: jax.tree.map(np.asarray, run(state, embedding, prompts))


@pytest.fixture(scope="module")
def encode(parts):
    graph, state = parts
    run = jit(lambda state, images: nnx.merge(graph, state).encode_image(images))
    return lambda images: jax.tree.map(np.asarray, run(state, images))


@pytest.fixture(scope="module")
def segment():
    graph, state = drawn(lambda: LoraSam(CONFIG, LoraConfig(2), rngs=nnx.Rngs(0)))
    run = jit(lambda state, images: nnx.merge(graph, state)(images))
    return lambda images: jax.tree.map(np.asarray, run(state, images))


def draw_images(seed, height=HEIGHT, width=WIDTH):
    return np.random.default_rng(seed).integers(0, 256, (IMAGES, height, width, 3)).astype(np.uint8)


def draw_embedding(seed, images=IMAGES):
    return np.random.default_rng(seed).standard_normal((images, ROWS, COLUMNS, 16), np.float32)


def draw_prompts(seed, *leading):
    """Points of all labels, a box and a mask for every set."""
    rng = np.random.default_rng(seed)
    size = np.array([WIDTH, HEIGHT], np.float32)
    points = rng.random((*leading, POINTS, 2), np.float32) * size
    labels = rng.integers(-1, 2, (*leading, POINTS)).astype(np.int32)
    boxes = (rng.random((*leading, 2, 2), np.float32) * size).reshape(*leading, 4)
    return {
        "points": (points, labels),
        "boxes": boxes,
        "masks": rng.standard_normal((*leading, 4 * ROWS, 4 * COLUMNS), np.float32),
    }


def of(index, tree):
    return jax.tree.map(lambda x: x[index], tree)


def same(actual, expected):
    """Equal but for rounding: matrix products of another number of rows may add in another order."""
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(actual[name], value, atol=1e-5 * np.abs(value).max(), err_msg=name)


@few
@given(seeds, orders)
def test_images_do_not_mix(encode, seed, order):
    images = draw_images(seed)
    out = encode(images)
    same(encode(images[order]), of(order, out))
    for index in range(IMAGES):
        same(encode(images[index : index + 1]), of(slice(index, index + 1), out))


@pytest.mark.slow
@few
@given(seeds, orders)
def test_images_do_not_mix_in_lora_sam(segment, seed, order):
    images = draw_images(seed)
    out = segment(images)
    same(segment(images[order]), of(order, out))
    for index in range(IMAGES):
        same(segment(images[index : index + 1]), of(slice(index, index + 1), out))


@pytest.mark.slow
@few
@given(seeds, orders)
def test_prompted_images_do_not_mix(predict, seed, order):
    embedding, prompts = draw_embedding(seed), draw_prompts(seed, IMAGES)
    out = predict(embedding, **prompts)
    same(predict(embedding[order], **of(order, prompts)), of(order, out))
    for index in range(IMAGES):
        one = slice(index, index + 1)
        same(predict(embedding[one], **of(one, prompts)), of(one, out))


@pytest.mark.slow
@few
@given(seeds, st.permutations(range(SETS)).map(np.array))
def test_sets_of_prompts_do_not_mix(predict, seed, order):
    """P sets an image are P calls of one; for a single image the axis of images may be left out."""
    embedding, prompts = draw_embedding(seed), draw_prompts(seed, IMAGES, SETS)
    out = predict(embedding, **prompts)
    assert out["iou"].shape == (IMAGES, SETS, 3)
    for number in range(SETS):
        same(predict(embedding, **of(np.s_[:, number], prompts)), of(np.s_[:, number], out))
    same(predict(embedding, **of(np.s_[:, order], prompts)), of(np.s_[:, order], out))
    for index in range(IMAGES):
        same(predict(embedding[index : index + 1], **of(index, prompts)), of(index, out))


@few
@given(seeds, st.permutations(range(POINTS)).map(np.array))
def test_points_have_no_order(predict, seed, order):
    """The decoder sees points as a set, padding included."""
    embedding, (points, labels) = draw_embedding(seed), draw_prompts(seed, IMAGES)["points"]
    same(predict(embedding, points=(points[:, order], labels[:, order])), predict(embedding, points=(points, labels)))


@few
@given(seeds)
def test_where_padding_points_lie_does_not_matter(predict, seed):
    embedding, (points, labels) = draw_embedding(seed), draw_prompts(seed, IMAGES)["points"]
    moved = np.where(labels[..., None] == -1, points[:, ::-1] + 7, points)
    out = predict(embedding, points=(points, labels))
    for name, value in predict(embedding, points=(moved, labels)).items():
        np.testing.assert_array_equal(value, out[name])


def test_padding_points_are_tokens(model):
    """Each is one learned token, "not a point", and points without a box have one more: in the official model, too."""
    points, _ = draw_prompts(0, IMAGES)["points"]
    boxes = draw_prompts(0, IMAGES)["boxes"]
    padding = np.asarray(model.prompt_encoder.not_a_point_embed[...])
    one, both = np.full((IMAGES, 1), 1, np.int32), np.tile(np.array([1, -1], np.int32), (IMAGES, 1))
    plain, _ = model.prompt_encoder(IMAGES, (jnp.asarray(points[:, :1]), jnp.asarray(one)))
    padded, _ = model.prompt_encoder(IMAGES, (jnp.asarray(points[:, :2]), jnp.asarray(both)))
    boxed, _ = model.prompt_encoder(IMAGES, (jnp.asarray(points[:, :2]), jnp.asarray(both)), jnp.asarray(boxes))
    assert (plain.shape[1], padded.shape[1], boxed.shape[1]) == (2, 3, 4)
    np.testing.assert_allclose(padded[:, :1], plain[:, :1], atol=1e-5)
    np.testing.assert_allclose(boxed[:, :2], plain, atol=1e-5)
    for token in (plain[:, 1], padded[:, 1], padded[:, 2], boxed[:, 1]):
        np.testing.assert_array_equal(token, np.broadcast_to(padding, token.shape))


def test_a_padded_set_is_another_question(predict):
    """So sets padded to one length are not answered as they are without: the tokens take part in every attention."""
    embedding, (points, _) = draw_embedding(0), draw_prompts(0, IMAGES)["points"]
    plain = predict(embedding, points=(points[:, :1], np.ones((IMAGES, 1), np.int32)))
    padded = predict(embedding, points=(points, np.tile(np.array([1, -1, -1], np.int32), (IMAGES, 1))))
    assert (
        np.abs(plain["low_res_logits"] - padded["low_res_logits"]).max() > 1e-3 * np.abs(plain["low_res_logits"]).max()
    )


@pytest.mark.slow
@few
@given(seeds, st.sampled_from([(HEIGHT, 20), (13, WIDTH), (17, 9), (HEIGHT, WIDTH)]))
def test_a_smaller_image_is_padded_with_the_mean(model, encode, seed, size):
    height, width = size
    small = draw_images(seed, height, width)
    padded = np.broadcast_to(np.array(CONFIG.pixel_mean, np.float32), (IMAGES, HEIGHT, WIDTH, 3)).copy()
    padded[:, :height, :width] = small
    normalised = np.asarray(model.normalise(small))
    np.testing.assert_array_equal(normalised, model.normalise(padded))
    expected = (small.astype(np.float64) - CONFIG.pixel_mean) / CONFIG.pixel_std
    np.testing.assert_allclose(normalised[:, :height, :width], expected, atol=1e-6)
    assert not np.any(normalised[:, height:])
    assert not np.any(normalised[:, :, width:])
    same(encode(small), encode(padded))


@pytest.mark.parametrize("original", [None, (37, 41), (10, 12), (20, 29)])
@pytest.mark.parametrize("leading", [(), (2,), (2, 3)])
def test_masks_are_brought_back_bilinearly(model, leading, original):
    torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'dorl-jax[convert]'")
    resize = partial(torch.nn.functional.interpolate, mode="bilinear", align_corners=False)
    logits = np.random.default_rng(0).standard_normal((*leading, 4 * ROWS, 4 * COLUMNS, 3), np.float32)
    flat = torch.from_numpy(logits).reshape(-1, 4 * ROWS, 4 * COLUMNS, 3).permute(0, 3, 1, 2)
    expected = resize(flat, (HEIGHT, WIDTH))[..., :20, :29]
    expected = expected if original is None else resize(expected, original)
    expected = expected.permute(0, 2, 3, 1).reshape(*leading, *expected.shape[-2:], 3).numpy()
    actual = model.postprocess(logits, (20, 29), original)
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, atol=1e-5)


@pytest.fixture
def without_types():
    """What a user meets, for whom shapes are not checked on the way in as they are in tests."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("without_types")
@pytest.mark.parametrize(
    ("images", "change", "message"),
    [
        (3, {"boxes": (2, 4)}, "prompts of one shape"),
        (3, {"boxes": (3, 2, 4)}, "prompts of one shape"),
        (3, {"masks": (3, 1, 12, 16)}, "prompts of one shape"),
        (2, {}, "prompts for 3 images, but the embedding is of 2"),
        (1, {"boxes": (2, 4)}, "prompts of one shape"),
    ],
    ids=["fewer", "more axes", "an axis of one", "other images", "one image"],
)
def test_prompts_that_do_not_match(model, images, change, message):
    prompts = draw_prompts(0, 3)
    prompts |= {name: np.zeros(shape, np.float32) for name, shape in change.items()}
    with pytest.raises(ValueError, match=message):
        model.predict(draw_embedding(0, images), **prompts)


@pytest.mark.usefixtures("without_types")
def test_too_many_axes_or_none(model):
    with pytest.raises(ValueError, match=r"\(B, ...\) or \(B, P, ...\)"):
        model.predict(draw_embedding(0, 1), boxes=np.zeros((1, 1, 1, 4), np.float32))
    with pytest.raises(ValueError, match=r"\(B, ...\) or \(B, P, ...\)"):
        model.predict(draw_embedding(0, 1), boxes=np.zeros(4, np.float32))


@pytest.mark.slow
def test_bf16_stays_near(parts):
    _, state = parts
    graph, _ = nnx.split(nnx.eval_shape(lambda: Sam(CONFIG, rngs=nnx.Rngs(0), dtype=jnp.bfloat16)))
    images, prompts = draw_images(0), draw_prompts(0, IMAGES)

    def answers(graph):
        @jit
        def run(state, images, prompts):
            model = nnx.merge(graph, state)
            out = model.encode_image(images)
            return out | model.predict(out["embedding"], **prompts)

        return run(state, images, prompts)

    exact, rough = answers(parts[0]), answers(graph)
    assert {name: value.dtype for name, value in rough.items()} == {
        "tokens": jnp.bfloat16,
        "embedding": jnp.bfloat16,
        "low_res_logits": jnp.float32,
        "iou": jnp.float32,
    }
    for name, value in exact.items():
        largest = np.abs(np.asarray(value) - np.asarray(rough[name], np.float32)).max() / np.abs(value).max()
        print(f"{name}: {largest:.1e}")
        assert 1e-5 < largest < 0.05, name
