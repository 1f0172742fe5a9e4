"""The contrast and the parts of the vector reach a training, its files and the vectors of new images."""

import csv
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dorl_jax.data.laboratory import open_laboratories
from dorl_jax.data.manifest import Manifest, make_manifest
from dorl_jax.data.synthetic import write_laboratories
from dorl_jax.data.taxonomy import load_taxonomy
from dorl_jax.dorl import DoRL
from dorl_jax.errors import InputError
from dorl_jax.evaluation.latents import read_latents
from dorl_jax.losses import cae_loss
from dorl_jax.models import Cae, LoraSam
from dorl_jax.models.cae import random_kept
from dorl_jax.models.pixel_encoder import shrink
from dorl_jax.models.pooling import foreground_statistics
from dorl_jax.models.regions import (
    REGION_NUMBERS,
    RELATION_NUMBERS,
    SIZE_NUMBERS,
    region_statistics,
    relation_statistics,
    size_statistics,
)
from dorl_jax.stages.embed import EmbedSettings, embed
from dorl_jax.stages.extract import ExtractSettings, extract
from dorl_jax.stages.finetune_sam import FinetuneSettings, _make_model
from dorl_jax.stages.train_cae import CaeSettings, Contrast, cae_objective, train_cae
from dorl_jax.store import Store
from dorl_jax.training.checkpoints import load_model, save_model

pytestmark = pytest.mark.slow  # all of them train a little first

SETTINGS = CaeSettings(
    steps=3,
    batch_size=6,
    warmup_steps=1,
    log_every=1,
    checkpoint_every=3,
    workers=0,
    reconstruct=2,
    contrast_weight=0.5,
    pixel_channels=(8, 16),
    pixel_size=16,
    vector=("pixels", "features", "cls", "tokens", "regions", "relations", "size"),
)


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = write_laboratories(tmp_path_factory.mktemp("cells"), cells_per_class=1, laboratories=3)
    return make_manifest(open_laboratories(folder), load_taxonomy("five_classes"))


@pytest.fixture(scope="module")
def run(cells: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A segmenter of fresh weights, its store, and an autoencoder that has not seen the first laboratory."""
    folder = tmp_path_factory.mktemp("run")
    segmenter = _make_model(FinetuneSettings(image_size=112), list(cells.cells))
    save_model(folder / "sam", segmenter)
    extract(cells, folder / "sam", folder, ExtractSettings(batch_size=5, dtype="float32"), weights="", progress=False)
    unseen = cells.laboratories[:1]
    train_cae(cells, folder / "store", folder / "cae", SETTINGS, unseen=unseen, progress=False)
    return folder


def test_the_parts_of_the_vector(cells: Manifest, run: Path) -> None:
    path = embed(cells, run / "store", run / "cae" / "model", run, EmbedSettings(batch_size=4), progress=False)
    vectors = read_latents(path).vectors
    store, model = Store(run / "store"), load_model(run / "cae" / "model", Cae)
    feature = np.stack([store["feature"][place] for place in range(len(store))])
    foreground = np.stack([store["foreground"][place] for place in range(len(store))]).astype(np.float32) / 255
    crops = np.stack([store["crop"][place] for place in range(len(store))]).astype(np.float32) / 255
    tokens = model.standardise(feature).reshape(len(store), 196, -1)
    encoded = model.encoder(tokens, None)
    parts = [
        model.pixel_encoder(shrink(crops, 16)),
        foreground_statistics(tokens, foreground),
        encoded[:, 0],
        foreground_statistics(encoded[:, 1:], foreground),
        region_statistics(crops),
        relation_statistics(crops),
        size_statistics(crops, np.stack([store["area"][place] for place in range(len(store))])),
    ]
    np.testing.assert_allclose(vectors, np.concatenate(parts, axis=1), rtol=1e-3, atol=1e-4)
    sizes = {"pixels": 16, "features": 384, "cls": 192, "tokens": 384}
    sizes |= {"regions": REGION_NUMBERS, "relations": RELATION_NUMBERS, "size": SIZE_NUMBERS}
    assert read_latents(path).parts == sizes
    assert vectors.shape[1] == model.config.vector_size == sum(sizes.values())
    # ... and those of images that come without a store
    dorl = DoRL(load_model(run / "sam", LoraSam), model, zoom=1.25)
    assert dorl.width == vectors.shape[1]
    found = dorl.embed([str(cell.image) for cell in cells.cells[:3]], batch_size=4, workers=0)
    np.testing.assert_allclose(found, vectors[:3], rtol=1e-2, atol=1e-2)


def test_what_is_unseen_trains_nothing(cells: Manifest, run: Path, tmp_path: Path) -> None:
    with (run / "cae" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert all(float(row["contrast"]) > 0 and 0 <= float(row["found"]) <= 1 for row in rows)
    others = cells.without(cells.laboratories[:1])
    segmenter = run / "sam"
    extract(others, segmenter, tmp_path, ExtractSettings(batch_size=5, dtype="float32"), weights="", progress=False)
    alone = train_cae(others, tmp_path / "store", tmp_path / "cae", SETTINGS, progress=False)
    model = load_model(run / "cae" / "model", Cae)
    for a, b in zip(jax.tree.leaves(nnx.state(alone)), jax.tree.leaves(nnx.state(model)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert alone.config == model.config


def test_a_whole_batch_is_of_one_laboratory(cells: Manifest, run: Path, tmp_path: Path) -> None:
    def discrepancies(folder: Path) -> list[float]:
        with (folder / "metrics.csv").open(newline="") as file:
            return [float(row["discrepancy"]) for row in csv.DictReader(file)]

    settings = replace(SETTINGS, whole_batches=True)
    train_cae(cells, run / "store", tmp_path, settings, unseen=cells.laboratories[:1], progress=False)
    assert discrepancies(tmp_path) == [0, 0, 0]  # nothing to differ from
    assert min(discrepancies(run / "cae")) > 0


def test_parts_of_a_batch_reconstruct_its_first_cells_together(
    cells: Manifest, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []

    def counting(out: dict[str, jax.Array], *more: object) -> dict[str, jax.Array]:
        sizes.append(len(out["image"]))
        return cae_loss(out, *more)  # type: ignore[arg-type]

    monkeypatch.setattr("dorl_jax.stages.train_cae.cae_loss", counting)
    train_cae(cells, run / "store", tmp_path, replace(SETTINGS, accumulate=2), progress=False)
    assert set(sizes) == {1}  # of each part, two of the batch


def test_the_objective_is_the_sum_of_its_parts(run: Path) -> None:
    model = load_model(run / "cae" / "model", Cae)
    rng = np.random.RandomState(0)
    batch = {
        "feature": rng.standard_normal((6, 14, 14, 192)).astype(np.float32),
        "crop": rng.randint(0, 256, (6, 128, 128, 3)).astype(np.uint8),
        "view_a": rng.randint(0, 256, (6, 16, 16, 3)).astype(np.uint8),
        "view_b": rng.randint(0, 256, (6, 16, 16, 3)).astype(np.uint8),
        "domain": np.array([0, 1, 0, 1, 1, 0], np.int32),
    }
    batch = {name: jnp.asarray(array) for name, array in batch.items()}
    key = jax.random.key(0)
    found = cae_objective(model.config, 2, 2.0, reconstruct=2, contrast=Contrast(0.5, 0.2))(model, batch, key)
    out = model(batch["feature"][:2], random_kept(key, 2, model.config))
    target, truth = model.standardise(batch["feature"][:2]), batch["crop"][:2].astype(np.float32) / 255
    alone = cae_loss(out, target, truth, batch["domain"][:2], 2, 2.0)
    np.testing.assert_allclose(found["loss"], alone["loss"] + 0.5 * found["contrast"], rtol=1e-5)
    swapped = {**batch, "view_a": batch["view_b"], "view_b": batch["view_a"]}
    again = cae_objective(model.config, 2, 2.0, reconstruct=2, contrast=Contrast(0.5, 0.2))(model, swapped, key)
    np.testing.assert_allclose(again["contrast"], found["contrast"], rtol=1e-5)


def test_what_does_not_go_together_is_refused(cells: Manifest, run: Path, tmp_path: Path) -> None:
    def training(**changed: object) -> None:
        train_cae(cells, run / "store", tmp_path, replace(SETTINGS, **changed), progress=False)  # type: ignore[arg-type]

    with pytest.raises(InputError, match="set train_cae.pixel_channels"):
        training(pixel_channels=())
    with pytest.raises(InputError, match="names each of its parts once, not cls, regions, cls"):
        training(vector=("cls", "regions", "cls"))
    with pytest.raises(InputError, match="'pixels' needs a pixel encoder"):
        training(pixel_channels=(), contrast_weight=0.0)
    with pytest.raises(InputError, match="reconstruct = 7 of a batch of 6"):
        training(reconstruct=7)
    with pytest.raises(InputError, match="reconstruct = 2 cells are not shared evenly by the .* = 3 parts"):
        training(accumulate=3)
    with pytest.raises(InputError, match="validation = 1.0 leaves no cell to train on"):
        training(validation=1.0)
    with pytest.raises(InputError, match="set that to 'laboratory'"):
        training(whole_batches=True, balance="none")
    with pytest.raises(InputError, match="18 is no multiple of 4"):
        training(pixel_size=18)
    with pytest.raises(InputError, match="no laboratory"):
        train_cae(cells, run / "store", tmp_path, SETTINGS, unseen=("elsewhere",), progress=False)
