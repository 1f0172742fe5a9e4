"""What can be chosen in a training reaches it: what trains, by which it is selected, how it is split."""

from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from dorl_jax.data.images import read_image, resize_image, resize_mask
from dorl_jax.data.laboratory import open_laboratories
from dorl_jax.data.light import in_light
from dorl_jax.data.manifest import Manifest, make_manifest, read_cell
from dorl_jax.data.synthetic import write_laboratories
from dorl_jax.data.taxonomy import load_taxonomy
from dorl_jax.errors import InputError
from dorl_jax.models import LoraSam
from dorl_jax.stages import train_cae
from dorl_jax.stages.finetune_sam import FinetuneSettings, _make_model, finetune_sam, split_masked
from dorl_jax.training.checkpoints import load_model

USUAL = {"batch_size": 4, "image_size": 32, "warmup_steps": 1, "log_every": 1, "checkpoint_every": 2, "workers": 0}


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = write_laboratories(tmp_path_factory.mktemp("cells"), cells_per_class=4)
    return make_manifest(open_laboratories(folder), load_taxonomy("five_classes"))


def test_the_validation_part_is_of_every_laboratory(cells: Manifest) -> None:
    learning, test = split_masked(cells.cells, 0.25, 0)
    training, selecting = split_masked(learning, 0.05, 1, least=1)
    ids = [{cell.id for cell in part} for part in (training, selecting, test)]
    assert sum(map(len, ids)) == len(set.union(*ids))
    assert ids[0] | ids[1] | ids[2] == {cell.id for cell in cells.cells if cell.mask}
    masked = {cell.laboratory for cell in cells.cells if cell.mask}
    assert {cell.laboratory for cell in selecting} == masked
    assert split_masked(learning, 0.0, 1, least=1)[1] == []


def test_no_patient_is_in_two_parts(cells: Manifest) -> None:
    """Ten patients of the first laboratory, of all classes; the others' cells are drawn as without any patient."""
    first = cells.laboratories[0]
    own = [cell for cell in cells.cells if cell.laboratory == first and cell.mask]
    patients = {cell.id: f"patient {place % 10}" for place, cell in enumerate(own)}
    named = [replace(cell, group=patients.get(cell.id, "")) for cell in cells.cells]
    learning, test = split_masked(named, 0.25, 0)
    training, selecting = split_masked(learning, 0.05, 1, least=1)
    groups = [{cell.group for cell in part if cell.laboratory == first} for part in (training, selecting, test)]
    assert all(groups)
    assert sum(map(len, groups)) == len(set.union(*groups)) == 10
    held = [cell for cell in test if cell.laboratory == first]
    assert round(0.25 * len(own)) <= len(held) < round(0.25 * len(own)) + 10
    places = list(range(len(named)))
    kept = train_cae._split(named, places, 0.3, 0)
    sides = [{named[place].group for place in part if named[place].group} for part in kept]
    assert all(sides)
    assert not sides[0] & sides[1]
    one = [replace(cell, group="the only one") for cell in own]
    assert split_masked(one, 0.25, 0, least=1)[1] == []


@pytest.mark.slow
def test_frozen_parameters_and_selection(cells: Manifest, tmp_path: Path) -> None:
    settings = FinetuneSettings(
        **USUAL, steps=4, learning_rate=1e-2, freeze=("sam.image_encoder.blocks.0.*",), average=0.5, accumulate=2,
        remat=True, schedule="epoch", decayed="matrices", class_weights=(0.5, 2.0),
    )  # fmt: skip
    model = finetune_sam(cells, tmp_path, settings, progress=False)
    learning, _ = split_masked(cells.cells, settings.held_out, settings.seed)
    training, selecting = split_masked(learning, settings.validation, settings.seed + 1, least=1)
    before = nnx.to_flat_state(nnx.state(_make_model(settings, training), nnx.Param))
    after = dict(nnx.to_flat_state(nnx.state(model, nnx.Param)))
    for path, leaf in before:
        same = np.array_equal(np.asarray(leaf[...]), np.asarray(after[path][...]))
        if path[1:4] == ("image_encoder", "blocks", 0):
            assert same, path
        elif path[1:3] == ("image_encoder", "patch_embed"):
            assert not same, path
    table = (tmp_path / "trained.txt").read_text()
    assert table.splitlines()[0].split() == ["part", "trained", "frozen"]
    # What is looked at is what was written: by hand, from the model on disk.
    loaded = load_model(tmp_path / "model", LoraSam)
    best = max(_column(tmp_path / "validation.csv", "iou"))
    assert _mean_iou(loaded, selecting) == pytest.approx(best, abs=1e-5)
    assert list((tmp_path / "pictures").glob("masks_*.png"))


def _column(path: Path, name: str) -> list[float]:
    lines = [line.split(",") for line in path.read_text().splitlines()]
    return [float(line[lines[0].index(name)]) for line in lines[1:]]


def _mean_iou(model: LoraSam, cells: list) -> float:
    """By loops over cells and laboratories."""
    of: dict[str, list[float]] = {}
    for cell in cells:
        image, mask = read_cell(cell)
        truth = resize_mask(mask, 32)
        logits = np.asarray(jax.jit(lambda m, x: m(x)["logits"])(model, resize_image(image, 32)[None]))[0]
        predicted = logits[..., 1] > logits[..., 0]
        either = (predicted | truth).sum()
        of.setdefault(cell.laboratory, []).append((predicted & truth).sum() / either if either else 1.0)
    return float(np.mean([np.mean(values) for values in of.values()]))


def test_choices_that_cannot_be(cells: Manifest, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="encoder = 'lora_only' tunes a trained SAM"):
        finetune_sam(cells, tmp_path, FinetuneSettings(**USUAL, encoder="lora_only"), progress=False)
    with pytest.raises(InputError, match="select needs cells that do not train"):
        finetune_sam(cells, tmp_path, FinetuneSettings(**USUAL, validation=0.0), progress=False)
    with pytest.raises(InputError, match="batch_size = 4 cells cannot be computed in accumulate = 3 equal parts"):
        finetune_sam(cells, tmp_path, FinetuneSettings(**USUAL, accumulate=3), progress=False)
    with pytest.raises(InputError, match=r"finetune_sam.image_size = 63: .* not a multiple of patch_size 8"):
        finetune_sam(cells, tmp_path, FinetuneSettings(**USUAL | {"image_size": 63}), progress=False)
    with pytest.raises(InputError, match="matches no parameter"):
        finetune_sam(cells, tmp_path, FinetuneSettings(**USUAL, freeze=("sam.image_encodr.*",)), progress=False)
    with pytest.raises(InputError, match=r"class_weights = \[0.0, 0.0\]: one of them above 0"):
        FinetuneSettings(**USUAL, class_weights=(0.0, 0.0))


def test_statistics_are_of_images_in_their_light(cells: Manifest) -> None:
    model = _make_model(FinetuneSettings(**USUAL, light="white_patch"), cells.cells)
    assert model.config.light == "white_patch"
    lit = [in_light(read_image(cell.image), "white_patch") for cell in cells.cells]
    pixels = np.stack([resize_image(image, 32) for image in lit]).reshape(-1, 3)
    np.testing.assert_allclose(model.config.pixel_mean, pixels.mean(0))
    np.testing.assert_allclose(model.config.pixel_std, pixels.std(0))
