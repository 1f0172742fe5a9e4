"""All stages on synthetic cells, in little time; going on, refusing, doing again."""

import json
import shutil
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from dorl_jax import DoRL, config
from dorl_jax.cli import main
from dorl_jax.data.crops import cell_view
from dorl_jax.data.cut import mask_at
from dorl_jax.data.images import resize_image
from dorl_jax.data.manifest import load_cells
from dorl_jax.embedding.table import read_provenance
from dorl_jax.evaluation.latents import read_latents
from dorl_jax.models import Cae, LoraSam
from dorl_jax.stages.run import STAGES
from dorl_jax.store import Store
from dorl_jax.training.checkpoints import load_model

SETTINGS = """
[data]
synthetic_laboratories = 2
synthetic_cells = 8

[finetune_sam]
steps = 3
batch_size = 4
warmup_steps = 1

[train_cae]
steps = 3
batch_size = 4

[baselines]
names = ["mean_token", "resnet"]
resnet.steps = 1
resnet.size = 16
resnet.width = 8
resnet.folds = 2

[evaluate]
classifiers = ["svm_linear", "logistic_regression"]
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    (folder / "settings.toml").write_text(SETTINGS)
    assert main(["run", "--config", str(folder / "settings.toml"), "--run", str(folder / "run"), "--quiet"]) == 0
    return folder / "run"


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def test_every_stage_leaves_its_output(finished):
    manifest = load_cells(finished / "data" / "cells.parquet")
    assert [len(manifest.of(name)) for name in manifest.laboratories] == [40, 40]
    store = Store(finished / "extract" / "store")
    assert store.ids == [cell.id for cell in manifest.cells]
    latents = read_latents(finished / "embed" / "latents.parquet")
    # the vectors in the table are those of the stored features
    model = load_model(finished / "train_cae" / "model", Cae)
    features = np.stack([store["feature"][place] for place in (0, 41)]).astype(np.float32)
    np.testing.assert_allclose(latents.vectors[[0, 41]], model.encode(features), rtol=1e-3, atol=1e-4)
    assert list(latents.ids) == store.ids
    assert read_provenance(finished / "embed" / "latents.parquet") == DoRL.load(finished).provenance
    assert set(latents.seen.tolist()) == {"unlabelled"}
    # ... and those the features of the images
    image = np.asarray(Image.open(manifest.cells[3].image).convert("RGB"))
    segmenter = load_model(finished / "finetune_sam" / "model", LoraSam)
    logits = np.asarray(segmenter(resize_image(image, 112)[None])["low_res_logits"][0])
    view = cell_view(image, mask_at(logits[..., 1] - logits[..., 0], *image.shape[:2]), 1.25)
    feature = segmenter(resize_image(view, 112)[None])["feature"][0]
    np.testing.assert_allclose(store["feature"][3].astype(np.float32), feature, rtol=1e-2, atol=1e-2)
    summary = json.loads((finished / "evaluation" / "summary.json").read_text())
    pairs = {(row["source"], row["target"]) for row in summary["rows"]}
    assert len(pairs) == 4
    of_methods = Counter(row["method"] for row in summary["rows"])
    # pairs, classifiers, folds, adaptations
    assert of_methods == dict.fromkeys(("this run", "mean_token", "resnet"), 4 * 2 * 5 * 2)
    held_out = json.loads((finished / "finetune_sam" / "held_out.json").read_text())
    assert set(held_out["mean_iou"]) == set(manifest.laboratories)
    assert "<img" in (finished / "report.html").read_text()


def test_what_is_done_is_skipped(run, capsys):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*.npz")}
    assert main(["run", "--run", str(run), "--quiet"]) == 0
    assert capsys.readouterr().err == ""
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*.npz")}
    assert "train-cae: done already" in (run / "log.txt").read_text()


def test_what_stands_behind_a_new_stage_is_done_again(run):
    """The folder of a version that had no such stage."""
    (run / "stages" / "baselines.json").unlink()
    shutil.rmtree(run / "baselines")
    arguments = ["--run", str(run), "--set", "baselines.names=[]", "--quiet"]
    assert main(["baselines", *arguments]) == 0
    assert main(["report", *arguments]) == 2
    assert main(["evaluate", *arguments]) == 0
    summary = json.loads((run / "evaluation" / "summary.json").read_text())
    assert {row["method"] for row in summary["rows"]} == {"this run"}


def test_other_settings_are_refused(run, capsys):
    arguments = ["run", "--run", str(run), "--set", "train_cae.steps=4", "--quiet"]
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert "other settings of train-cae: steps (3, now 4)" in message
    assert "--redo train-cae" in message


def test_a_stage_is_done_again_with_other_settings(run):
    before = read_latents(run / "embed" / "latents.parquet").vectors
    kept = (run / "finetune_sam" / "held_out.json").stat().st_mtime_ns
    assert main(["train-cae", "--run", str(run), "--redo", "train-cae", "--seed", "1", "--quiet"]) == 0
    assert config.tomllib.loads((run / "settings.toml").read_text())["train_cae"]["seed"] == 1
    assert main(["embed", "--run", str(run), "--quiet"]) == 0
    assert np.abs(read_latents(run / "embed" / "latents.parquet").vectors - before).max() > 0.1
    assert (run / "finetune_sam" / "held_out.json").stat().st_mtime_ns == kept


def test_a_refused_redo_removes_nothing(run, capsys):
    before = sorted(run.rglob("*"))
    arguments = ["--run", str(run), "--redo", "embed", "--set", "train_cae.steps=4", "--quiet"]
    assert main(["run", *arguments]) == 2
    assert "other settings of train-cae" in capsys.readouterr().err
    assert sorted(run.rglob("*")) == before
    assert main(["run", "--run", str(run), "--redo", "embedd", "--quiet"]) == 2
    assert "no stage 'embedd'" in capsys.readouterr().err


def test_a_stage_needs_the_ones_before(tmp_path, capsys):
    (tmp_path / "settings.toml").write_text(SETTINGS)
    arguments = ["--config", str(tmp_path / "settings.toml"), "--run", str(tmp_path / "run"), "--quiet"]
    assert main(["embed", *arguments]) == 2
    assert "embed needs what prepare writes: dorl-jax prepare" in capsys.readouterr().err
    assert main(["run", "--run", str(tmp_path / "nothing")]) == 2
    assert "no settings file" in capsys.readouterr().err


@pytest.mark.parametrize("stage", ["run", *(stage.name for stage in STAGES)])
def test_help_explains(stage, capsys):
    with pytest.raises(SystemExit) as stop:
        main([stage, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "--config" in text
    assert "Args:" not in text
    assert "Raises:" not in text
    if stage == "train-cae":
        assert "--mask-ratio" in text
        assert "share of the tokens hidden from the encoder" in " ".join(text.split())
    if stage == "evaluate":
        shown = " ".join(text.split())
        assert '(default: ["none", "own"])' in shown  # as it would be typed
        assert "no adaptation (default: false)" in shown
        assert 'looser than this; one of "", held_out, unlabelled_target, transductive (default: "")' in shown
    if stage == "baselines":
        assert "--resnet.learning-rate VALUE of AdamW, falling to 0 with a cosine" in " ".join(text.split())


def test_bad_input_is_one_line_and_status_2(tmp_path, capsys):
    (tmp_path / "a.toml").write_text("[train_cae]\nstepps = 1\n")
    assert main(["run", "--config", str(tmp_path / "a.toml"), "--run", str(tmp_path / "run")]) == 2
    assert "unknown key 'train_cae.stepps' (did you mean 'steps'?)" in capsys.readouterr().err
    assert main(["run"]) == 2
    assert "give --config FILE" in capsys.readouterr().err
    for section, line, message in (
        ("evaluate", 'classifiers = ["svm"]', "unknown classifier 'svm'"),
        ("baselines", 'names = ["resnett"]', "no baseline 'resnett' (did you mean 'resnet'?)"),
        ("baselines", "resnet.size = 40", "resnet.size = 40: take a multiple of 16"),
        ("evaluate", 'parts = ["cls+size"]', "the vectors will have no part size; train_cae.vector is cls"),
        ("evaluate", "few_cells = [1]", "few_cells = [1]: a mean and sd take at least 2 cells"),
    ):
        (tmp_path / "a.toml").write_text(f"[{section}]\n{line}\n")
        assert main(["run", "--config", str(tmp_path / "a.toml"), "--run", str(tmp_path / "run")]) == 2
        assert message in capsys.readouterr().err
    (tmp_path / "a.toml").write_text('[data]\nsource = "folder"\n')
    assert main(["run", "--config", str(tmp_path / "a.toml"), "--run", str(tmp_path / "run"), "--quiet"]) == 2
    assert "needs data.root" in capsys.readouterr().err
