"""Extraction: the same whoever does the work and wherever it was interrupted, and what the parts by hand give."""

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from dorl_jax.data.crops import cell_crop, cell_view, is_empty
from dorl_jax.data.cut import cut_cells, mask_at
from dorl_jax.data.images import read_image, resize_image
from dorl_jax.data.manifest import Manifest, read_laboratories
from dorl_jax.data.synthetic import write_laboratories
from dorl_jax.data.taxonomy import load_taxonomy
from dorl_jax.models import LoraSam, SamConfig
from dorl_jax.stages.extract import ExtractSettings, extract
from dorl_jax.store import Store
from dorl_jax.training.checkpoints import save_model


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    root = write_laboratories(tmp_path_factory.mktemp("cells") / "root", cells_per_class=1, laboratories=2)
    return read_laboratories(root, (), load_taxonomy("five_classes"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LoraSam]:
    """An untrained segmenter: its masks are odd shapes, some of them empty."""
    folder = tmp_path_factory.mktemp("model")
    model = LoraSam(SamConfig.tiny(48), None, rngs=nnx.Rngs(3))
    positions = model.sam.image_encoder.pos_embed
    positions.set_value(jax.random.normal(jax.random.key(0), positions.shape))
    save_model(folder, model)
    return folder, model


def fields(store: Store) -> dict[str, np.ndarray]:
    return {
        name: np.stack([store[name][place] for place in range(len(store))])
        for name in ("feature", "crop", "foreground", "empty")
    }


@nnx.jit
def features_and_logits(model: LoraSam, images: np.ndarray) -> tuple[jax.Array, jax.Array]:
    out = model(images)
    return out["feature"], out["low_res_logits"][..., 1] - out["low_res_logits"][..., 0]


@pytest.mark.slow
@pytest.mark.parametrize("zoom", [0.0, 1.25])
def test_rows_are_the_parts_by_hand(cells: Manifest, model: tuple[Path, LoraSam], tmp_path: Path, zoom: float) -> None:
    settings = ExtractSettings(batch_size=4, dtype="float32", zoom=zoom, shard_size=3, workers=0)
    found = fields(extract(cells, model[0], tmp_path, settings, weights="w", progress=False))
    for place, cell in enumerate(cells.cells):
        image = read_image(cell.image)
        features, margins = features_and_logits(model[1], np.repeat(resize_image(image, 48)[None], 4, 0))
        mask = mask_at(np.asarray(margins)[0], *image.shape[:2])
        if zoom:
            view = resize_image(cell_view(image, mask, zoom), 48)
            features = features_and_logits(model[1], np.repeat(view[None], 4, 0))[0]
        np.testing.assert_allclose(found["feature"][place], np.asarray(features)[0], rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(found["crop"][place], cell_crop(image, mask, found["crop"].shape[1]))
        assert found["empty"][place] == is_empty(mask)


@pytest.mark.slow
def test_workers_and_interruptions_change_nothing(cells: Manifest, model: tuple[Path, LoraSam], tmp_path: Path) -> None:
    def run(out: str, workers: int) -> dict[str, np.ndarray]:
        settings = ExtractSettings(batch_size=3, shard_size=3, workers=workers)
        return fields(extract(cells, model[0], tmp_path / out, settings, weights="w", progress=False))

    expected = run("plain", 0)
    for name, values in run("workers", 2).items():
        np.testing.assert_array_equal(values, expected[name])
    # Two of four shards are gone: the cells of the others are not touched, these are done again.
    shards = sorted((tmp_path / "plain" / "store").glob("shard_*"))
    assert len(shards) == 4
    kept = {path: path.stat().st_mtime_ns for path in (shards[0], shards[2])}
    for path in (shards[1], shards[3]):
        shutil.rmtree(path)
    for name, values in run("plain", 0).items():
        np.testing.assert_array_equal(values, expected[name])
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_cut_cells_is_each_cell_by_itself() -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (side, side + 9, 3), dtype=np.uint8) for side in (30, 70, 41)]
    margins = rng.standard_normal((3, 8, 8)).astype(np.float32)
    margins[1] = -1
    cut = cut_cells(images, margins, 24, 5, zoom=1.5, view_size=20)
    assert cut.empty.tolist() == [False, True, False]
    assert cut.views is not None
    for place, image in enumerate(images):
        mask = mask_at(margins[place], *image.shape[:2])
        np.testing.assert_array_equal(cut.crops[place], cell_crop(image, mask, 24))
        np.testing.assert_array_equal(cut.views[place], resize_image(cell_view(image, mask, 1.5), 20))
        assert cut.areas[place] == (70 * 79 if place == 1 else np.count_nonzero(mask))
    assert cut_cells(images, margins, 24, 5).views is None


def test_foreground_is_the_share_of_each_patch() -> None:
    image = np.zeros((40, 40, 3), np.uint8)
    margin = np.full((8, 8), -1, np.float32)
    margin[:, 4:] = 1  # the right half, up to the edge
    whole = cut_cells([image], margin[None], 24, 4)
    np.testing.assert_array_equal(whole.foreground[0], np.tile([0, 0, 255, 255], (4, 1)))
    # A window of 60 x 60 around a box of 20 x 40: the cell is in its middle third, two thirds high.
    window = cut_cells([image], margin[None], 24, 6, zoom=1.5, view_size=20)
    expected = np.zeros((6, 6))
    expected[1:5, 2:4] = 255
    np.testing.assert_array_equal(window.foreground[0], expected)
    assert (cut_cells([image], -np.abs(margin)[None], 24, 4).foreground == 255).all()
