"""Vectors are those of the parts by hand, each image's own, whoever reads it; what fails says why."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from small_dorl import SIDE, save_small_run, small_dorl, small_models, write_images

from dorl_jax import DoRL
from dorl_jax.data.crops import cell_view, is_empty
from dorl_jax.data.cut import mask_at
from dorl_jax.data.images import read_image, resize_image
from dorl_jax.data.light import in_light
from dorl_jax.dorl import Dtype, _check_dtype
from dorl_jax.errors import InputError
from dorl_jax.models import Cae, CaeConfig, LoraSam
from dorl_jax.vectors import refuse_other_model

COUNT = 11
FINE = [place for place in range(COUNT) if place not in (3, 7)]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images") / "some", COUNT)


@pytest.fixture(scope="module", params=[0.0, 1.25])
def dorl(request: pytest.FixtureRequest) -> DoRL:
    return small_dorl(request.param)


@nnx.jit
def features_and_margin(segmenter: LoraSam, images: np.ndarray) -> tuple[jax.Array, jax.Array]:
    out = segmenter(images)
    return out["feature"], out["low_res_logits"][0, ..., 1] - out["low_res_logits"][0, ..., 0]


def by_hand(segmenter: LoraSam, cae: Cae, image: np.ndarray, zoom: float) -> tuple[np.ndarray, bool]:
    features, margin = features_and_margin(segmenter, resize_image(image, SIDE)[None])
    if not zoom:
        return np.asarray(nnx.jit(Cae.encode)(cae, features)[0]), bool((margin <= 0).all())
    mask = mask_at(np.asarray(margin), *image.shape[:2])
    features, _ = features_and_margin(segmenter, resize_image(cell_view(image, mask, zoom), SIDE)[None])
    return np.asarray(nnx.jit(Cae.encode)(cae, features)[0]), is_empty(mask)


def test_vectors_are_the_parts_by_hand(dorl: DoRL, images: Path) -> None:
    table = dorl.embed_table(images, batch_size=4)
    assert table["id"].to_pylist() == [f"{place:03d}.png" for place in range(COUNT)]
    models = small_models()  # with their LoRA beside the weights, not merged
    for place in FINE:
        vector, empty = by_hand(*models, read_image(str(images / f"{place:03d}.png")), dorl.zoom)
        np.testing.assert_allclose(table["vector"][place].as_py(), vector, rtol=1e-4, atol=1e-5)
        assert table["empty"][place].as_py() == empty


def test_a_failed_image_has_a_reason_and_no_vector(dorl: DoRL, images: Path) -> None:
    table = dorl.embed_table(images, batch_size=4)
    reasons = table["reason"].to_pylist()
    assert [place for place in range(COUNT) if reasons[place] is None] == FINE
    assert "cut short" in reasons[3]
    assert "007.png is no BMP" in reasons[7]
    assert [table["vector"][place].as_py() for place in (3, 7)] == [None, None]
    with pytest.raises(InputError, match=r"2 of 11 images give no vector: 003.png"):
        dorl.embed(images, batch_size=4)


def test_it_does_not_matter_where_images_come_from(dorl: DoRL, images: Path) -> None:
    paths = [images / f"{place:03d}.png" for place in FINE]
    expected = dorl.embed(paths, batch_size=4)
    assert expected.dtype == np.float32
    arrays = [read_image(str(path)) for path in paths]
    np.testing.assert_array_equal(dorl.embed(arrays, batch_size=4), expected)
    assert len(dorl.embed(arrays[:0])) == 0
    # Of another batch, the sums are others in their last bits.
    np.testing.assert_allclose(dorl.embed(arrays[2:3], batch_size=4)[0], expected[2], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_files_may_be_there_more_than_once(dorl: DoRL, images: Path) -> None:
    files = [images / f"{place:03d}.png" for place in (4, 0, 4, 2, 0)]
    vectors = dorl.embed(files, batch_size=4)
    np.testing.assert_array_equal(vectors[[0, 1, 3]], dorl.embed([files[0], files[1], files[3]], batch_size=4))
    np.testing.assert_array_equal(vectors[[2, 4]], vectors[[0, 1]])
    np.testing.assert_array_equal(dorl.embed(iter(files), batch_size=4), vectors)


def test_wrong_types_are_named(dorl: DoRL, images: Path) -> None:
    with pytest.raises(InputError, match=r"dtype = 'bfloat1' \(did you mean 'bfloat16'\?\): it may be float32 or"):
        _check_dtype("dtype", "bfloat1")
    with pytest.raises(InputError, match="not as both"):
        dorl.embed([images / "000.png", np.zeros((20, 20, 3), np.uint8)])  # type: ignore[list-item]


def test_workers_change_nothing(dorl: DoRL, images: Path) -> None:
    expected = dorl.embed_table(images, batch_size=4, workers=0)
    assert dorl.embed_table(images, batch_size=4, workers=2).equals(expected)


def test_two_threads_at_once(dorl: DoRL, images: Path) -> None:
    paths = sorted(path for path in images.iterdir() if path.suffix == ".png")
    given = [np.asarray(Image.open(path).convert("RGB")) for path in paths[:3]] * 4
    expected = dorl.embed(given, batch_size=2, workers=0)
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: dorl.embed(given, batch_size=2, workers=0), range(6)))
    for one in found:
        np.testing.assert_array_equal(one, expected)


def test_bf16_is_near(dorl: DoRL, images: Path) -> None:
    paths = [images / f"{place:03d}.png" for place in FINE]
    exact, rough = (dorl.embed(paths, batch_size=4, dtype=dtype) for dtype in ("float32", "bfloat16"))
    assert not np.array_equal(exact, rough)
    layer = dorl.cae.encoder.blocks[0].mlp.lin1
    assert layer.dtype == layer.kernel[...].dtype == jnp.float32  # the models stay as they are
    if not dorl.zoom:  # else a mask on the edge may give another window
        cosine = (exact * rough).sum(1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(rough, axis=1)
        assert cosine.min() > 0.999


def test_a_run_is_loaded(tmp_path: Path, images: Path) -> None:
    loaded = DoRL.load(save_small_run(tmp_path, zoom=1.5))
    assert (loaded.zoom, loaded.width, loaded.side) == (1.5, 192, SIDE)
    own = small_dorl(1.5)
    assert loaded.provenance == own.provenance
    image = read_image(str(images / "000.png"))
    np.testing.assert_array_equal(loaded.embed([image], batch_size=1), own.embed([image], batch_size=1))
    other = small_dorl(1.5)
    kernel = other.cae.projector.bias
    kernel.set_value(kernel[...] + 1e-6)
    changed = DoRL(other.lora_sam.unmerge(), other.cae, zoom=1.5).provenance["weights"]
    assert changed["segmenter"] == own.provenance["weights"]["segmenter"]
    assert changed["autoencoder"] != own.provenance["weights"]["autoencoder"]


def test_a_run_that_is_not_trained_to_its_end(tmp_path: Path) -> None:
    (save_small_run(tmp_path) / "train_cae" / "model" / "model.json").unlink()
    with pytest.raises(InputError, match=r"not trained to its end: .*train_cae/model; `dorl-jax run --run"):
        DoRL.load(tmp_path)


def held(dorl: DoRL) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state((dorl.lora_sam, dorl.cae))))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loaded_for_one_type_it_holds_less_and_gives_the_same(tmp_path: Path, images: Path, dtype: Dtype) -> None:
    run = save_small_run(tmp_path, zoom=0)
    whole, lean = DoRL.load(run), DoRL.load(run, only=dtype)
    assert lean.provenance == whole.provenance
    paths = [images / f"{place:03d}.png" for place in FINE]
    np.testing.assert_array_equal(
        lean.embed(paths, batch_size=4, dtype=dtype), whole.embed(paths, batch_size=4, dtype=dtype)
    )
    assert held(lean) < (0.85 if dtype == "float32" else 0.5) * held(whole)
    other: Dtype = "bfloat16" if dtype == "float32" else "float32"
    with pytest.raises(InputError, match=f"loaded for {dtype} only"):
        lean.embed(paths, dtype=other)
    with pytest.raises(ValueError, match="has been let go"):
        lean.lora_sam.unmerge()


def test_vectors_are_of_images_in_the_light_of_the_segmenter(images: Path) -> None:
    paths = [images / f"{place:03d}.png" for place in FINE[:3]]
    given = [in_light(read_image(str(path)), "white_patch") for path in paths]
    as_is, lit = small_dorl(), small_dorl()
    lit.lora_sam.config = replace(lit.lora_sam.config, light="white_patch")
    expected = as_is.embed(given, batch_size=4)
    np.testing.assert_array_equal(lit.embed(paths, batch_size=4), expected)
    assert np.abs(as_is.embed(paths, batch_size=4) - expected).max() > 1e-3
    for image, (seen, _) in zip(given, lit.masks(paths, batch_size=4), strict=True):
        np.testing.assert_array_equal(seen, image)
    assert lit.provenance["light"] == "white_patch"
    with pytest.raises(InputError, match=r"light \(as_is, now white_patch\)"):
        refuse_other_model(as_is.provenance, lit.provenance)
    older = {name: value for name, value in as_is.provenance.items() if name != "light"}
    refuse_other_model(older, as_is.provenance)


def test_models_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"reads features 14 x 14 x 192, the segmenter gives 6 x 6 x 192"):
        DoRL(small_models()[0], Cae(CaeConfig.tiny(), rngs=nnx.Rngs(0)))
    with pytest.raises(InputError, match=r"no run at .*settings.toml is missing"):
        DoRL.load(tmp_path)
    with pytest.raises(InputError, match="batch_size = 0"):
        small_dorl().engine(0)


def test_not_finite_is_a_reason() -> None:
    broken = small_dorl(0.0)
    broken.cae.encoder.cls_token.set_value(jnp.full_like(broken.cae.encoder.cls_token[...], jnp.nan))
    table = broken.embed_table([np.zeros((20, 30, 3), np.uint8)], batch_size=1)
    assert table["reason"].to_pylist() == ["the model's numbers are not finite"]
    assert table["vector"].to_pylist() == [None]


def test_masks(dorl: DoRL, images: Path) -> None:
    paths = [images / f"{place:03d}.png" for place in FINE[:3]]
    segmenter = small_models()[0]
    for path, (image, mask) in zip(paths, dorl.masks(paths, batch_size=2), strict=True):
        np.testing.assert_array_equal(image, read_image(str(path)))
        margin = features_and_margin(segmenter, resize_image(image, SIDE)[None])[1]
        expected = mask_at(np.asarray(margin), *image.shape[:2])
        assert (mask != expected).mean() < 0.01
