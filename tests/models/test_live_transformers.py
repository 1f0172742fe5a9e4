"""SAM against Hugging Face's PyTorch `SamModel`, live, on random weights: outputs, and gradients of every weight.

Every comparison prints its largest deviation: `pytest -rP` shows them.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden import deviation

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'dorl-jax[convert]'")
pytest.importorskip("transformers", reason="needs Hugging Face transformers")

from hugging_face_twin import as_sam, our_answer, their_answer, their_pixels, twins  # noqa: E402

from dorl_jax.models import SamConfig  # noqa: E402
from dorl_jax.models.image_encoder import ImageEncoderConfig  # noqa: E402
from dorl_jax.models.mask_decoder import MaskDecoderConfig  # noqa: E402

FORWARD, GRADIENT = 1e-5, 3e-5

# The time goes into compiling, not computing.
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
twins_of = cache(lambda name: twins(SMALL[name]))

IMAGES = 2
DECODER = MaskDecoderConfig(heads=2, hidden=24, epsilon=1e-6)

# A grid that windows do not divide, that one window is, that is smaller than a window, and no windows at all.
SMALL = {
    "grid 4, window 3": SamConfig(ImageEncoderConfig(32, 8, 12, 2, 3, (1,), 3, 16), DECODER),
    "grid 5, window 2": SamConfig(
        ImageEncoderConfig(80, 16, 32, 3, 4, (0, 2), 2, 32), replace(DECODER, heads=4, multimask_outputs=1)
    ),
    "grid 7, windows alone": SamConfig(
        ImageEncoderConfig(56, 8, 24, 2, 2, (), 4, 16, mlp_hidden=40), replace(DECODER, depth=3, iou_depth=4)
    ),
    "grid 3, global alone": SamConfig(
        ImageEncoderConfig(48, 16, 16, 1, 1, (0,), 14, 16), replace(DECODER, depth=1, iou_depth=2, iou_hidden=20)
    ),
    "window is the grid": SamConfig(
        ImageEncoderConfig(40, 8, 16, 4, 4, (1, 3), 5, 24), replace(DECODER, epsilon=1e-5, multimask_outputs=4)
    ),
    "window over the grid": SamConfig(ImageEncoderConfig(32, 8, 20, 2, 5, (0,), 6, 16), DECODER, mask_prompt_hidden=12),
}

SOON_COMPILED = ("grid 4, window 3", "grid 3, global alone")

# What is given, and how many sets of it an image.
PROMPTS = {
    "nothing": ((), 1),
    "a point": (("points",), 1),
    "points in sets": (("points",), 3),
    "boxes": (("boxes",), 2),
    "points and boxes": (("points", "boxes"), 2),
    "a mask": (("masks",), 1),
    "points and a mask": (("points", "masks"), 2),
    "all": (("points", "boxes", "masks"), 2),
}


def draw_images(config: SamConfig, images: int = IMAGES) -> np.ndarray:
    rng = np.random.default_rng(1)
    return rng.uniform(0, 255, (images, *config.encoder.image_shape, 3)).astype(np.float32)


def draw_prompts(config: SamConfig, kinds: tuple[str, ...], sets: int, images: int = IMAGES) -> dict[str, np.ndarray]:
    rng, side, (rows, columns) = np.random.default_rng(2), config.encoder.side, config.encoder.grid
    made = {
        "points": rng.uniform(0, side, (images, sets, 3, 2)).astype(np.float32),
        "labels": np.tile(np.array([1, 0, -1], np.int32), (images, sets, 1)),
        "boxes": rng.uniform(0, side, (images, sets, 4)).astype(np.float32),
        "masks": rng.standard_normal((images, 4 * rows, 4 * columns), np.float32),
    }
    wanted = {*kinds, "labels"} if "points" in kinds else set(kinds)
    return {name: prompt for name, prompt in made.items() if name in wanted}


def channels_last(x: "torch.Tensor") -> np.ndarray:
    return x.detach().permute(0, 2, 3, 1).numpy()


def near(what: str, actual: jax.Array, truth: "np.ndarray | torch.Tensor", bound: float = FORWARD) -> None:
    largest = deviation(np.asarray(actual), np.asarray(truth))
    print(f"{what}: {largest:.1e}")
    assert largest < bound, (what, largest)


def taps(encoder, pixels: jax.Array) -> list[jax.Array]:
    """What enters the first block, what leaves each, and the embedding."""
    (rows, columns), patch = encoder.config.grid, encoder.config.patch_size
    patches = pixels.reshape(-1, rows, patch, columns, patch, 3).swapaxes(2, 3).reshape(-1, rows, columns, 3 * patch**2)
    seen = [encoder.patch_embed(patches) + encoder.pos_embed[...]]
    for block in encoder.blocks:
        seen.append(block(seen[-1]))
    return [*seen, encoder.neck(seen[-1])]


@pytest.mark.parametrize(
    "name", [name if name in SOON_COMPILED else pytest.param(name, marks=pytest.mark.slow) for name in SMALL]
)
def test_every_layer_of_the_image_encoder(name):
    config = SMALL[name]
    theirs, ours = twins_of(name)
    images = draw_images(config)
    with torch.no_grad():
        out = theirs.vision_encoder(their_pixels(config, torch.from_numpy(images)), output_hidden_states=True)
    expected = [*(tap.numpy() for tap in out.hidden_states), channels_last(out.last_hidden_state)]
    graph, state = nnx.split(ours)

    @jit
    def run(state, images):
        model = nnx.merge(graph, state)
        return taps(model.image_encoder, model.normalise(images)), model.encode_image(images)

    seen, encoded = run(state, images)
    for index, (tap, truth) in enumerate(zip(seen, expected, strict=True)):
        near(f"tap {index}", tap, truth)
    near("tokens", encoded["tokens"], expected[-2])
    near("embedding", encoded["embedding"], expected[-1])


def both_answers(answer: Callable, *arguments) -> list:
    """Logits and IoU of the multimask answer, then of the single one."""
    return [*answer(*arguments, True), *answer(*arguments, False)]


OUTPUTS = ("logits", "iou", "single logits", "single iou")


def both_near(actual: list, truth: list) -> None:
    """What `both_answers` gave; the single IoU by the scale of all four, for by itself it may lie next to 0."""
    for output, one, other in zip(OUTPUTS, actual, truth, strict=True):
        if output == "single iou":
            one, other = (np.append(np.asarray(answer[1]), np.asarray(answer[3])) for answer in (actual, truth))
        near(output, one, other)


@pytest.mark.slow
@pytest.mark.parametrize("kind", PROMPTS)
@pytest.mark.parametrize("name", ["grid 4, window 3", "grid 7, windows alone"])
def test_prompts(name, kind):
    config = SMALL[name]
    theirs, ours = twins_of(name)
    prompts = draw_prompts(config, *PROMPTS[kind])
    rows, columns = config.encoder.grid
    embedding = np.random.default_rng(3).standard_normal(
        (IMAGES, rows, columns, config.encoder.out_channels), np.float32
    )
    with torch.no_grad():
        expected = both_answers(their_answer, theirs, torch.from_numpy(embedding).permute(0, 3, 1, 2), prompts)
    graph, state = nnx.split(ours)
    run = jit(lambda state, *given: both_answers(our_answer, nnx.merge(graph, state), *given))
    both_near(run(state, embedding, prompts), expected)


# Together they reach every weight: labels of all kinds, both corners, a mask and none, every mask token.
ASKED = ((("points", "boxes", "masks"), 2, True), (("points",), 3, False))


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_gradients(name):
    """Of a random linear function of logits and IoU, to every weight and to the pixels."""
    config = SMALL[name]
    theirs, ours = twins(config)
    images = draw_images(config)
    asked = [(draw_prompts(config, kinds, sets), multimask) for kinds, sets, multimask in ASKED]
    rng = np.random.default_rng(4)

    pixels = torch.from_numpy(images).requires_grad_()
    embedding = theirs.vision_encoder(their_pixels(config, pixels)).last_hidden_state
    expected = [x for prompts, multimask in asked for x in their_answer(theirs, embedding, prompts, multimask)]
    factors = [rng.standard_normal(x.shape, np.float32) for x in expected]
    sum((x * torch.from_numpy(factor)).sum() for x, factor in zip(expected, factors, strict=True)).backward()

    graph, state = nnx.split(ours)

    def total(state, images):
        model = nnx.merge(graph, state)
        embedding = model.encode_image(images)["embedding"]
        outputs = [x for prompts, multimask in asked for x in our_answer(model, embedding, prompts, multimask)]
        return sum(jnp.sum(x * factor) for x, factor in zip(outputs, factors, strict=True)), outputs

    (gradients, to_pixels), outputs = jit(jax.grad(total, (0, 1), has_aux=True))(state, images)

    for output, actual, truth in zip(OUTPUTS, outputs, expected, strict=True):
        near(output, actual, truth.detach())
    near("gradient to pixels", to_pixels, pixels.grad, GRADIENT)

    truths = as_sam(config, {name: parameter.grad for name, parameter in theirs.named_parameters()})
    found = {path: np.asarray(leaf.get_value()) for path, leaf in nnx.to_flat_state(gradients)}
    worst = {}
    for path, leaf in nnx.to_flat_state(nnx.state(truths)):
        truth = np.asarray(leaf.get_value())
        of_scale = np.abs(truth).max()
        assert of_scale > 0, f"{path} is not reached"
        if path[-2:] == ("k_proj", "bias"):  # the softmax is blind to it: both are rounding of 0
            of_scale = np.abs(found[*path[:-1], "kernel"]).max()
            assert np.abs(truth).max() < GRADIENT * of_scale
        worst[".".join(map(str, path))] = float(np.abs(found.pop(path) - truth).max() / of_scale)
    assert not found
    path = max(worst, key=worst.__getitem__)
    print(f"gradient to {len(worst)} weights: {worst[path]:.1e} ({path})")
    assert worst[path] < GRADIENT, (path, worst[path])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "image_size"), [("vit_b", 1024), ("vit_l", 224), ("vit_h", 224)], ids=["vit_b", "vit_l", "vit_h"]
)
def test_published_sizes(variant, image_size):
    config = SamConfig.preset(variant, image_size)
    config = replace(config, decoder=replace(config.decoder, epsilon=1e-6))
    images = draw_images(config, images=1)
    asked = [draw_prompts(config, kinds, sets, images=1) for kinds, sets in (PROMPTS["nothing"], PROMPTS["all"])]
    theirs, ours = twins(config)
    with torch.no_grad():
        embedding = theirs.vision_encoder(their_pixels(config, torch.from_numpy(images))).last_hidden_state
        expected = [both_answers(their_answer, theirs, embedding, prompts) for prompts in asked]
    del theirs
    graph, state = nnx.split(ours)

    @jax.jit
    def run(state, images, asked):
        model = nnx.merge(graph, state)
        embedding = model.encode_image(images)["embedding"]
        return embedding, [both_answers(our_answer, model, embedding, prompts) for prompts in asked]

    found, answers = run(state, images, asked)
    near("embedding", found, channels_last(embedding))
    for answer, truths in zip(answers, expected, strict=True):
        both_near(answer, truths)
