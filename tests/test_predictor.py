"""The predictor against the official steps in Pillow and PyTorch, Hugging Face's processor, and one prompt at a time.

Compiling is what takes time here: most tests share one encoder and the decoder of two points, a box and a mask.
"""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden import deviation
from PIL import Image

from dorl_jax import predictor as module
from dorl_jax.errors import InputError
from dorl_jax.models import LoraConfig, LoraSam, Sam, SamConfig
from dorl_jax.models.image_encoder import ImageEncoderConfig
from dorl_jax.models.mask_decoder import MaskDecoderConfig
from dorl_jax.predictor import Predictor

SIDE = 64
# Landscape, portrait, square; smaller and larger than the input, and of it; a rounded short side; a sliver.
SIZES = [(40, 56), (100, 75), (64, 64), (64, 48), (33, 33), (37, 150), (131, 130), (2, 200)]
# Positions are computed in fp32, and so are the interpolated logits, which reach 20: 1e-5 of the largest.
CLOSE = {"rtol": 1e-4, "atol": 2e-4}


def small_config(image_size=SIDE):
    encoder = ImageEncoderConfig(image_size, 8, 32, 2, 2, (1,), window=3, out_channels=32)
    return SamConfig(encoder, MaskDecoderConfig(hidden=64, depth=1))


def made(model, seed=0):
    """The model (abstract) with random weights that give logits of some size."""
    rng = np.random.RandomState(seed)

    def draw(path, leaf):
        z, last = rng.standard_normal(leaf.shape).astype(leaf.dtype), path[-1]
        if last == "scale":
            return jnp.asarray(1 + 0.1 * z)
        if last == "bias":
            return jnp.asarray(0.1 * z)
        loud = 5 if "hypernetworks" in path else 1
        return jnp.asarray(loud * z / np.sqrt(np.prod(leaf.shape[:-1])) if last == "kernel" else z)

    graph, state = nnx.split(model)
    flat = [(path, variable.replace(draw(path, variable.get_value()))) for path, variable in nnx.to_flat_state(state)]
    return nnx.merge(graph, nnx.from_flat_state(flat))


def small_sam(image_size=SIDE, seed=0, dtype=jnp.float32):
    config = small_config(image_size)
    return made(nnx.eval_shape(lambda: Sam(config, rngs=nnx.Rngs(0), dtype=dtype)), seed)


@pytest.fixture(scope="module")
def sam():
    return small_sam()


@pytest.fixture
def predictor(sam):
    return Predictor(sam)


def picture(size, seed=0):
    """Blobs and noise, so that the filter of the resize shows."""
    rng = np.random.RandomState(seed + 1000 * size[0] + size[1])
    coarse = Image.fromarray(rng.randint(0, 256, (5, 5, 3)).astype(np.uint8)).resize(
        size[::-1], Image.Resampling.BICUBIC
    )
    return (np.asarray(coarse) // 2 + rng.randint(0, 128, (*size, 3))).astype(np.uint8)


def low_res(seed, *axes, side=SIDE // 2):
    return (5 * np.random.RandomState(seed).standard_normal((*axes, side, side))).astype(np.float32)


def prompts_on(size, kinds, seed=0, sets=None):
    """Prompts as `predict` takes them; of P sets as `predict_many` does."""
    rng = np.random.RandomState(seed)
    leading = () if sets is None else (sets,)
    scale = np.array(size[::-1])
    given = {}
    if "points" in kinds:
        given["point_coords"] = rng.uniform(0, 1, (*leading, 2, 2)) * scale
        given["point_labels"] = rng.randint(0, 2, (*leading, 2))
    if "box" in kinds:
        corners = np.sort(rng.uniform(0, 1, (*leading, 2, 2)), axis=-2) * scale
        given["box"] = corners.reshape(*leading, 4)
    if "mask" in kinds:
        given["mask_input"] = low_res(seed, *leading)
    return given


@nnx.jit
def encode(sam, pixels):
    return sam.image_encoder(pixels)[1]


@nnx.jit
def decode(sam, embedding, points, boxes, masks):
    return sam.decode(embedding, points, boxes, masks)


def official(sam, image, given, multimask=True):
    """Logits on the image, IoU, low-resolution logits: the official steps around the model's own network."""
    torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'dorl-jax[convert]'")
    functional = torch.nn.functional
    (old_h, old_w), (height, width) = image.shape[:2], sam.config.encoder.image_shape
    scale = min(height / old_h, width / old_w)
    new_h, new_w = max(1, int(old_h * scale + 0.5)), max(1, int(old_w * scale + 0.5))
    resized = np.array(Image.fromarray(image).resize((new_w, new_h), Image.Resampling.BILINEAR))
    x = torch.as_tensor(resized).permute(2, 0, 1).float()
    mean, std = (torch.tensor(v)[:, None, None] for v in (sam.config.pixel_mean, sam.config.pixel_std))
    x = functional.pad((x - mean) / std, (0, width - new_w, 0, height - new_h))
    embedding = encode(sam, jnp.asarray(x.permute(1, 2, 0).numpy())[None])

    def placed(coords):
        coords = torch.tensor(coords, dtype=torch.float64).reshape(-1, 2)
        coords[:, 0] = coords[:, 0] * (new_w / old_w)
        coords[:, 1] = coords[:, 1] * (new_h / old_h)
        return jnp.asarray(coords.float().numpy())[None]

    points = boxes = masks = None
    if "point_coords" in given:
        points = placed(given["point_coords"]), jnp.asarray(given["point_labels"], jnp.int32)[None]
    if "box" in given:
        boxes = placed(given["box"]).reshape(1, 4)
    if "mask_input" in given:
        masks = jnp.asarray(given["mask_input"]).reshape(1, *given["mask_input"].shape[-2:])
    logits, iou = decode(sam, embedding, points, boxes, masks)
    chosen = slice(1, None) if multimask else slice(0, 1)
    small = torch.tensor(np.array(logits)).permute(0, 3, 1, 2)[:, chosen]
    large = functional.interpolate(small, (height, width), mode="bilinear", align_corners=False)[..., :new_h, :new_w]
    large = functional.interpolate(large, (old_h, old_w), mode="bilinear", align_corners=False)
    return large[0].numpy(), np.array(iou)[0, chosen], small[0].numpy()


ALL = ("points", "box", "mask")


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_official_steps(sam, predictor, size):
    image = picture(size)
    predictor.set_image(image)
    given = prompts_on(size, ALL)
    expected = official(sam, image, given)
    for actual, wanted in zip(predictor.predict(**given, return_logits=True), expected, strict=True):
        np.testing.assert_allclose(actual, wanted, **CLOSE)
    assert predictor.original_size == size
    assert max(predictor.input_size) == SIDE
    masks, _, _ = predictor.predict(**given)
    sure = np.abs(expected[0]) > 1e-3
    assert sure.mean() > 0.99
    assert 0.02 < masks.mean() < 0.98
    np.testing.assert_array_equal(masks[sure], expected[0][sure] > 0)


KINDS = [(), ("points",), ("box",), ("mask",), ("points", "box"), ("points", "mask"), ("box", "mask")]


@pytest.mark.slow
@pytest.mark.parametrize("kinds", KINDS, ids=lambda kinds: "+".join(kinds) or "none")
@pytest.mark.parametrize("multimask", [True, False])
def test_every_kind_of_prompt(sam, predictor, kinds, multimask):
    image = picture((50, 70))
    predictor.set_image(image)
    given = prompts_on((50, 70), kinds, seed=3)
    answer = predictor.predict(**given, multimask_output=multimask, return_logits=True)
    for actual, wanted in zip(answer, official(sam, image, given, multimask), strict=True):
        np.testing.assert_allclose(actual, wanted, **CLOSE)
    assert len(answer[1]) == (3 if multimask else 1)


@pytest.mark.slow
def test_input_that_is_not_square():
    sam = small_sam((48, 80))
    predictor = Predictor(sam)
    for size, fitted in [((50, 70), (48, 67)), ((30, 90), (27, 80)), ((200, 40), (48, 10)), ((48, 80), (48, 80))]:
        image = picture(size)
        predictor.set_image(image)
        assert predictor.input_size == fitted
        given = prompts_on(size, ("points", "box"))
        expected = official(sam, image, given)
        for actual, wanted in zip(predictor.predict(**given, return_logits=True), expected, strict=True):
            np.testing.assert_allclose(actual, wanted, **CLOSE)


@pytest.mark.slow
def test_hugging_face_processor(sam, predictor):
    """Its resize, padding, coordinates and way back, written by others."""
    torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'dorl-jax[convert]'")
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

    processor = transformers.SamProcessor(
        SamImageProcessorPil(size={"longest_edge": SIDE}, pad_size={"height": SIDE, "width": SIDE})
    )
    for size in SIZES[:-1]:
        image = picture(size)
        given = prompts_on(size, ALL)
        predictor.set_image(image)
        logits, _, small = predictor.predict(**given, return_logits=True)
        theirs = processor(
            images=Image.fromarray(image),
            input_points=[[given["point_coords"].tolist()]],
            input_labels=[[given["point_labels"].tolist()]],
            input_boxes=[[given["box"].tolist()]],
            return_tensors="pt",
        )
        assert tuple(theirs["reshaped_input_sizes"][0].tolist()) == predictor.input_size
        pixels = theirs["pixel_values"].float().permute(0, 2, 3, 1).numpy()
        embedding = encode(sam, jnp.asarray(pixels))
        np.testing.assert_allclose(predictor.features, embedding, **CLOSE)
        points = (
            jnp.asarray(theirs["input_points"][0].float().numpy()),
            jnp.asarray(given["point_labels"][None], jnp.int32),
        )
        boxes = jnp.asarray(theirs["input_boxes"][0].float().numpy())
        masks = jnp.asarray(given["mask_input"][None])
        expected = np.array(decode(sam, embedding, points, boxes, masks)[0]).transpose(0, 3, 1, 2)[:, 1:]
        np.testing.assert_allclose(small, expected[0], **CLOSE)
        sizes = theirs["original_sizes"], theirs["reshaped_input_sizes"]
        large = processor.post_process_masks([torch.tensor(expected)], *sizes, binarize=False)
        np.testing.assert_allclose(logits, large[0][0].numpy(), **CLOSE)


def test_coordinates_scale_by_the_rounded_size_of_each_axis(sam, predictor):
    size = (37, 150)  # 64 / 150 * 37 = 15.79, rounded to 16
    predictor.set_image(picture(size))
    assert predictor.input_size == (16, 64)

    mask = low_res(0)

    def answer(coords, box):
        points = jnp.asarray(coords, jnp.float32)[None], jnp.ones((1, 2), jnp.int32)
        logits, _ = decode(
            sam, predictor.features, points, jnp.asarray(box, jnp.float32)[None], jnp.asarray(mask)[None]
        )
        return np.array(logits)[0].transpose(2, 0, 1)[1:]

    coords, box = np.array([[75, 18.5], [0, 37]]), np.array([30, 3.7, 120, 37])
    actual = predictor.predict(coords, np.array([1, 1]), box, mask)[2]
    np.testing.assert_allclose(actual, answer([[32, 8], [0, 16]], [12.8, 1.6, 51.2, 16]), **CLOSE)
    assert np.abs(actual - answer(coords * 64 / 150, box * 64 / 150)).max() > 0.05


def test_official_forms_of_one_box_and_one_mask(predictor):
    predictor.set_image(picture((50, 70)))
    given = prompts_on((50, 70), ALL)
    with_axis = given | {name: given[name][None] for name in ("box", "mask_input")}
    for actual, wanted in zip(predictor.predict(**with_axis), predictor.predict(**given), strict=True):
        np.testing.assert_array_equal(actual, wanted)


def test_outside_of_the_image_is_allowed(sam, predictor):
    image = picture((50, 70))
    predictor.set_image(image)
    given = {
        "point_coords": np.array([[-5, 60], [0, 0]]),
        "point_labels": np.array([1, -1]),
        "box": np.array([-3, 5, 80, 40]),
        "mask_input": low_res(0),
    }
    for actual, wanted in zip(predictor.predict(**given, return_logits=True), official(sam, image, given), strict=True):
        np.testing.assert_allclose(actual, wanted, **CLOSE)


def test_bgr(predictor):
    image = picture((50, 70))
    predictor.set_image(image)
    expected = np.array(predictor.get_image_embedding())
    predictor.set_image(image[..., ::-1], image_format="BGR")
    np.testing.assert_array_equal(predictor.features, expected)


def check_sets_against_singles(predictor, kinds, sets):
    predictor.set_image(picture((50, 70)))
    given = prompts_on((50, 70), kinds, sets=sets)
    together = predictor.predict_many(**given, return_logits=True)
    assert all(len(part) == sets for part in together)
    for index in range(sets):
        alone = predictor.predict(**{name: value[index] for name, value in given.items()}, return_logits=True)
        for actual, wanted in zip(together, alone, strict=True):
            np.testing.assert_allclose(actual[index], wanted, **CLOSE)
    assert np.abs(np.diff(together[2], axis=0)).max(axis=(1, 2, 3)).min() > 0.05


def test_many_sets_are_singles(predictor):
    check_sets_against_singles(predictor, ALL, 5)  # filled up to 8


@pytest.mark.slow
@pytest.mark.parametrize("kinds", [("points",), ("box",), ("mask",), ALL], ids="+".join)
@pytest.mark.parametrize("sets_per_call", [64, 3])
def test_sets_of_every_kind_are_singles(sam, kinds, sets_per_call):
    check_sets_against_singles(Predictor(sam, sets_per_call=sets_per_call), kinds, 5)


def test_no_sets(predictor):
    predictor.set_image(picture((50, 70)))
    masks, iou, low = predictor.predict_many(box=np.zeros((0, 4)))
    assert (masks.shape, iou.shape, low.shape) == ((0, 3, 50, 70), (0, 3), (0, 3, 32, 32))


def check_batch_against_singles(batched, prompts):
    sizes = [(40, 56), (100, 75), (37, 150)]
    images, single = [picture(size) for size in sizes], Predictor(batched.model)
    batched.set_image_batch(images)
    assert batched.original_sizes == sizes
    names = ("point_coords", "point_labels", "box", "mask_input")
    lists = {f"{name}_batch": [given.get(name) for given in prompts] for name in names}
    answers = batched.predict_batch(**lists, return_logits=True)
    for index, (image, given) in enumerate(zip(images, prompts, strict=True)):
        single.set_image(image)
        assert batched.input_sizes[index] == single.input_size
        expected = single.predict_many(**given, return_logits=True)
        for actual, wanted in zip(answers, expected, strict=True):
            np.testing.assert_allclose(actual[index], wanted, **CLOSE)
    masks, _, _ = batched.predict_batch(**lists)
    for mask, logits in zip(masks, answers[0], strict=True):
        np.testing.assert_array_equal(mask, logits > 0)


def test_batch_is_one_by_one(predictor):
    # An image without sets among them.
    check_batch_against_singles(
        predictor, [prompts_on((40, 40), ALL, seed, sets) for seed, sets in enumerate((3, 0, 5))]
    )


@pytest.mark.slow
@pytest.mark.parametrize("images_per_call", [2, 4])
def test_batch_of_prompts_of_different_kinds(sam, images_per_call):
    prompts = [
        prompts_on((40, 56), ("points",), sets=3),
        prompts_on((100, 75), ("box",), sets=2),
        prompts_on((37, 150), ("points",), seed=1, sets=2),
    ]
    predictor = Predictor(sam, images_per_call=images_per_call)
    check_batch_against_singles(predictor, prompts)
    check_batch_against_singles(predictor, [{}, prompts[1], {}])


def test_nothing_is_compiled_again(predictor):
    def compiled(size, sets, **options):
        predictor.set_image(picture(size))
        predictor.predict_many(**prompts_on(size, ALL, sets=sets), **options)
        return module._encode._cache_size(), module._decode._cache_size()

    first = compiled((50, 70), 5)
    for size, sets in [((90, 31), 5), ((64, 64), 8), ((12, 200), 6)]:
        assert compiled(size, sets, multimask_output=sets > 5) == first
    # 16 sets in a call, as in no other test.
    assert compiled((50, 70), 9) == (first[0], first[1] + 1)
    assert compiled((70, 50), 16) == (first[0], first[1] + 1)


def test_way_back_is_that_of_the_model(sam, predictor):
    noise = low_res(0, 4)
    for size in SIZES[:3]:
        predictor.set_image(picture(size))
        expected = sam.postprocess(np.moveaxis(noise, 0, -1), predictor.input_size, size)
        actual = predictor._on_original(0, noise[None], True)[0]
        np.testing.assert_allclose(actual, np.moveaxis(np.asarray(expected), -1, 0), **CLOSE)


@pytest.mark.slow
def test_lora_sam_without_prompts():
    model = made(nnx.eval_shape(lambda: LoraSam(small_config(), LoraConfig(rank=2), rngs=nnx.Rngs(0))))
    image = picture((64, 48))
    predictor = Predictor(model.sam)
    predictor.set_image(image)
    logits, iou, _ = predictor.predict(return_logits=True)
    expected = model(image[None])
    assert deviation(logits[0], np.asarray(expected["logits"])[0, ..., 1]) < 5e-5
    assert deviation(iou, np.asarray(expected["iou"])[0, 1:]) < 5e-5


def test_the_model_is_read_when_an_image_is_set():
    sam, image, given = small_sam(seed=1), picture((50, 70)), prompts_on((50, 70), ALL)
    predictor = Predictor(sam)

    def answer(predictor):
        predictor.set_image(image)
        return predictor.predict(**given)[2]

    before = answer(predictor)
    sam.mask_decoder.mask_tokens[...] = 2 * sam.mask_decoder.mask_tokens[...]
    np.testing.assert_array_equal(predictor.predict(**given)[2], before)
    after = answer(predictor)
    np.testing.assert_array_equal(after, answer(Predictor(sam)))
    assert np.abs(after - before).max() > 0.05


@pytest.mark.slow
def test_half_precision(sam):
    answers = []
    for model in (sam, small_sam(dtype=jnp.bfloat16)):
        predictor = Predictor(model)
        predictor.set_image(picture((50, 70)))
        answers.append(predictor.predict(**prompts_on((50, 70), ("points",)))[2])
    assert answers[1].dtype == np.float32
    difference = np.abs(answers[1] - answers[0]).max()
    assert 0 < difference < 0.1 * np.abs(answers[0]).max()


def test_reset(predictor):
    assert not predictor.is_image_set
    assert predictor.original_size is predictor.input_size is predictor.features is None
    predictor.set_image(picture((50, 70)))
    assert predictor.is_image_set
    predictor.reset_image()
    assert not predictor.is_image_set
    for ask in (predictor.predict, predictor.predict_many, predictor.predict_batch, predictor.get_image_embedding):
        with pytest.raises(InputError, match="no image is set: call set_image first"):
            ask()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((8, 8, 3), np.float32), "the image is of type float32, expected uint8, 0..255"),
        (np.zeros((8, 8), np.uint8), r"shape \(8, 8\), expected \(H, W, 3\): repeat a grey channel"),
        (np.zeros((8, 8, 4), np.uint8), r"shape \(8, 8, 4\), .* drop an alpha channel"),
        (np.zeros((3, 8, 8), np.uint8), r"shape \(3, 8, 8\), .* channels last"),
        (np.zeros((0, 8, 3), np.uint8), r"shape \(0, 8, 3\)"),
    ],
)
def test_wrong_images(predictor, image, message):
    with pytest.raises(InputError, match=message):
        predictor.set_image(image)
    with pytest.raises(InputError, match=message.replace("the image", "image 1")):
        predictor.set_image_batch([picture((8, 8)), image])
    assert not predictor.is_image_set


def test_wrong_format_and_no_images(predictor):
    with pytest.raises(InputError, match="image_format 'RGBA' is unknown: say 'RGB' or 'BGR'"):
        predictor.set_image(picture((8, 8)), "RGBA")
    with pytest.raises(InputError, match="set_image_batch needs one or more"):
        predictor.set_image_batch([])
    with pytest.raises(ValueError, match="images_per_call=0"):
        Predictor(predictor.model, images_per_call=0)


POINT, LABEL = np.zeros((1, 2)), np.ones(1, int)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"point_coords": POINT}, "point_coords without point_labels: give both"),
        ({"point_labels": LABEL}, "point_labels without point_coords: give both"),
        ({"point_coords": POINT, "point_labels": 2 * LABEL}, "point_labels has 2: use 1 for foreground"),
        ({"point_coords": POINT, "point_labels": 0.5 * LABEL}, "point_labels has 0.5"),
        ({"point_coords": POINT, "point_labels": np.ones(2, int)}, r"point_labels has shape \(2,\), expected \(1\)"),
        ({"point_coords": np.zeros(2), "point_labels": LABEL}, r"point_coords has shape \(2,\), expected \(N, 2\)"),
        ({"point_coords": np.zeros((2, 1, 2)), "point_labels": np.ones((2, 1))}, r"\(2, 1, 2\), .* use predict_many"),
        ({"point_coords": np.array([[1, np.nan]]), "point_labels": LABEL}, "point_coords has numbers that are not fin"),
        ({"point_coords": np.array([["a", "b"]]), "point_labels": LABEL}, "point_coords is of type <U1"),
        ({"box": np.zeros(5)}, r"box has shape \(5,\), expected \(4\)"),
        (
            {"box": np.zeros((3, 4))},
            r"box has shape \(3, 4\), expected \(4\); for several prompt sets use predict_many",
        ),
        ({"mask_input": np.zeros((64, 64))}, r"mask_input has shape \(64, 64\), expected \(32, 32\)"),
        ({"mask_input": np.zeros((3, 32, 32))}, r"mask_input has shape \(3, 32, 32\), expected \(32, 32\)"),
    ],
)
def test_wrong_prompts(predictor, given, message):
    predictor.set_image(picture((50, 70)))
    with pytest.raises(InputError, match=message):
        predictor.predict(**given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"box": np.zeros(4)}, r"box has shape \(4,\), expected \(P, 4\)$"),
        ({"point_coords": np.zeros((2, 3, 2)), "point_labels": np.zeros((2, 1), int)}, r"\(2, 1\), expected \(2, 3\)"),
        (
            {"point_coords": np.zeros((2, 3, 2)), "point_labels": np.zeros((2, 3), int), "box": np.zeros((3, 4))},
            r"box has shape \(3, 4\), expected \(2, 4\)",
        ),
        ({"mask_input": np.zeros((2, 8, 8))}, r"mask_input has shape \(2, 8, 8\), expected \(2, 32, 32\)"),
    ],
)
def test_wrong_prompt_sets(predictor, given, message):
    predictor.set_image(picture((50, 70)))
    with pytest.raises(InputError, match=message):
        predictor.predict_many(**given)
    predictor.set_image_batch([picture((50, 70)), picture((20, 30))])
    lists = {f"{name}_batch": [None, value] for name, value in given.items()}
    with pytest.raises(InputError, match="image 1: .*" + message):
        predictor.predict_batch(**lists)


def test_several_images_and_one_image(predictor):
    predictor.set_image_batch([picture((50, 70)), picture((20, 30))])
    with pytest.raises(InputError, match="2 images are set: use predict_batch"):
        predictor.predict()
    with pytest.raises(InputError, match="2 images are set"):
        _ = predictor.original_size
    with pytest.raises(InputError, match="box_batch has 1 entries, but 2 images are set"):
        predictor.predict_batch(box_batch=[np.zeros((1, 4))])
