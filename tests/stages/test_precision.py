"""Training in bfloat16, with parameters and optimiser in float32, follows the curves of float32 on real cells."""

import csv
from pathlib import Path

import numpy as np
import pytest

from dorl_jax.data.laboratory import open_laboratories
from dorl_jax.data.manifest import Manifest, make_manifest
from dorl_jax.data.taxonomy import load_taxonomy
from dorl_jax.stages.extract import ExtractSettings, extract
from dorl_jax.stages.finetune_sam import FinetuneSettings, finetune_sam
from dorl_jax.stages.train_cae import CaeSettings, train_cae

MASKED = ("bccd", "cellavision_blog", "jiangxi_tecom")


@pytest.fixture(scope="module")
def cells(real_data: Path) -> Manifest:
    found = make_manifest(open_laboratories(real_data), load_taxonomy("five_classes"))
    chosen = [cell for name in MASKED for cell in [one for one in found.of(name) if one.mask][::4][:20]]
    return Manifest(tuple(chosen), MASKED, found.classes, found.dropped)


def curve(folder: Path) -> np.ndarray:
    with (folder / "metrics.csv").open(newline="") as file:
        return np.array([float(row["loss"]) for row in csv.DictReader(file)])


@pytest.mark.slow
def test_loss_curves_within_one_percent(cells: Manifest, tmp_path: Path) -> None:
    usual = {"steps": 40, "batch_size": 8, "log_every": 5, "warmup_steps": 8, "checkpoint_every": 100}
    for dtype in ("float32", "bfloat16"):
        settings = FinetuneSettings(dtype=dtype, learning_rate=2e-4, validation=0.0, select="", image_size=64, **usual)
        model = finetune_sam(cells, tmp_path / "sam" / dtype, settings, progress=False)
        assert model.sam.image_encoder.patch_embed.kernel[...].dtype == np.float32
    store = tmp_path / "extract" / "store"
    extracting = ExtractSettings(batch_size=8, workers=0)
    extract(cells, tmp_path / "sam" / "float32" / "model", store.parent, extracting, weights="w", progress=False)
    for dtype in ("float32", "bfloat16"):
        settings = CaeSettings(dtype=dtype, learning_rate=5e-4, **usual)
        train_cae(cells, store, tmp_path / "cae" / dtype, settings, progress=False)
    for stage, fall in (("sam", 0.8), ("cae", 0.9)):
        exact, rough = (curve(tmp_path / stage / dtype) for dtype in ("float32", "bfloat16"))
        assert exact[-1] < fall * exact[0]
        assert not np.array_equal(exact, rough)
        np.testing.assert_allclose(rough, exact, rtol=1e-2, err_msg=stage)
