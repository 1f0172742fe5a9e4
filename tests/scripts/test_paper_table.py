"""The paper's table, end to end, on stand-ins of the same layout; and what it says of figures that are known."""

import shutil
from pathlib import Path

import numpy as np
import paper_table
import pytest
from PIL import Image
from safetensors.numpy import save_file
from small_sam import small_sam

from dorl_jax.data.manifest import read_laboratories
from dorl_jax.data.synthetic import write_laboratories
from dorl_jax.data.taxonomy import load_taxonomy
from dorl_jax.evaluation.results import read_evaluation
from dorl_jax.models import SamConfig

LAYOUTS = {
    "matek19": {
        "basophil": "AML-Cytomorphology_LMU/BAS/BAS_{}.tiff",
        "monocyte": "AML-Cytomorphology_LMU/MON/MON_{}.tiff",
        "neutrophil": "AML-Cytomorphology_LMU/NGS/NGS_{}.tiff",
        "lymphocyte": "AML-Cytomorphology_LMU/LYT/LYT_{}.tiff",
        "eosinophil": "AML-Cytomorphology_LMU/PMB/PMB_{}.tiff",  # left out, as DoRL does
    },
    "acevedo20": {
        "basophil": "PBC_dataset_normal_DIB/basophil/BA_{}.jpg",
        "monocyte": "PBC_dataset_normal_DIB/monocyte/MO_{}.jpg",
        "neutrophil": "PBC_dataset_normal_DIB/neutrophil/SNE_{}.jpg",
        "lymphocyte": "PBC_dataset_normal_DIB/lymphocyte/LY_{}.jpg",
        "eosinophil": "PBC_dataset_normal_DIB/platelet/PLATELET_{}.jpg",  # no class of the paper's
    },
    "sysu3h": {name: f"{name}/{{}}.png" for name in ("basophil", "monocyte", "neutrophil", "lymphocyte", "eosinophil")},
}


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sets as they are published, of 6 drawn cells a class; masked cells; rule-made weights under SAM's names."""
    root = tmp_path_factory.mktemp("paper")
    drawn = write_laboratories(root / "masked", cells_per_class=6, laboratories=3)
    manifest = read_laboratories(drawn, [], load_taxonomy("five_classes"))
    for laboratory, (name, layout) in zip(manifest.laboratories, LAYOUTS.items(), strict=True):
        number = dict.fromkeys(layout, 0)
        for cell in manifest.of(laboratory):
            path = root / name / layout[cell.label].format(number[cell.label])
            number[cell.label] += 1
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.asarray(Image.open(str(cell.image)).convert("RGB"))).save(path)
    weights = {key: np.ascontiguousarray(value) for key, value in small_sam(SamConfig.tiny(112)).items()}
    save_file(weights, root / "sam_tiny.safetensors")
    return root


def arguments(root: Path) -> list[str]:
    small = {
        "finetune_sam.variant": "tiny", "finetune_sam.steps": 2, "finetune_sam.warmup_steps": 1,
        "finetune_sam.batch_size": 4, "finetune_sam.workers": 0, "extract.workers": 0, "extract.batch_size": 8,
        "train_cae.variant": "tiny", "train_cae.steps": 2, "train_cae.warmup_steps": 1, "train_cae.batch_size": 8,
    }  # fmt: skip
    sets = [part for name in LAYOUTS for part in (f"--{name}", str(root / name))]
    changed = [part for key, value in small.items() for part in ("--set", f"{key}={value}")]
    return ["--sam", str(root / "sam_tiny.safetensors"), "--masks", str(root / "masked"), *sets, *changed,
            "--out", str(root / "out"), "--quiet"]  # fmt: skip


@pytest.mark.slow
def test_everything_from_weights_and_folders(stand_ins, capsys):
    assert paper_table.main(arguments(stand_ins)) == 0
    text = capsys.readouterr().out
    assert "M = matek19, 24 cells (paper: 18341), A = acevedo20, 24 cells (paper: 14543), S = sysu3h, 30 cells" in text
    rows = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in text.splitlines() if line.startswith("| ")}
    found = read_evaluation(stand_ins / "out" / "evaluation")
    assert found.settings["parity"]
    letters = {"M": "matek19", "A": "acevedo20", "S": "sysu3h"}
    for classifier in ("svm_linear", "logistic_regression", "random_forest", "xgboost", "svm_poly", "mlp"):
        means = {(m.source, m.target): m.accuracy for m in found.means if m.classifier == classifier}
        own = [means[letters[a], letters[b]] for a, b in paper_table.PAIRS]
        expected = [f"{100 * score.mean:.2f} ± {100 * score.sd:.2f}" for score in own]
        expected.append(f"{100 * np.mean([score.mean for score in own]):.2f}")
        assert [cell.strip() for cell in rows[f"ours + {classifier}"]] == expected
    # Four classes of 6 cells each in the first two sets; a fifth class in the last.
    assert [cell.strip() for cell in rows["majority floor, here"]][:3] == ["25.00", "25.00", "20.00"]
    assert [cell.strip() for cell in rows["ceiling, here"]][:3] == ["100.00", "100.00", "80.00"]
    assert [cell.strip() for cell in rows["DoRL + SVM linear (paper)"]] == [
        "94.25", "63.18", "27.61", "55.42", "88.05", "33.65", "60.36",
    ]  # fmt: skip
    # Again: nothing is made anew, and the same is said.
    before = {path: path.stat().st_mtime_ns for path in (stand_ins / "out").rglob("*.parquet") if "seed" in str(path)}
    assert paper_table.main(arguments(stand_ins)) == 0
    assert capsys.readouterr().out == text
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert paper_table.main([*arguments(stand_ins), "--set", "train_cae.learning_rate=1e-3"]) == 2
    assert "was made with other settings" in capsys.readouterr().err


def test_published_means_are_those_of_their_figures():
    for row in paper_table.PUBLISHED:
        assert np.mean(row.figures) == pytest.approx(row.mean, abs=0.011), row.title


def test_epochs_are_the_papers(stand_ins):
    """150 of the masked cells that train, 300 of all cells."""
    masked = read_laboratories(stand_ins / "masked", [], load_taxonomy("five_classes"))
    settings = paper_table.paper_settings(Path("sam.pth"), masked, masked, {})
    training = len(masked.cells) - sum(round(0.2 * 6) for _ in range(15))
    assert settings.finetune_sam.steps == 150 * -(-training // 32)
    assert settings.finetune_sam.warmup_steps == 10 * -(-training // 32)
    assert settings.train_cae.steps == 300 * -(-90 // 64)
    assert (settings.finetune_sam.variant, settings.train_cae.batch_size) == ("vit_b", 64)
    assert settings.finetune_sam.checkpoint == "sam.pth"


def test_a_missing_folder_is_one_line(stand_ins, capsys):
    given = [one if one != str(stand_ins / "sysu3h") else "nowhere" for one in arguments(stand_ins)]
    given[given.index("--out") + 1] = str(stand_ins / "other")
    assert paper_table.main(given) == 2
    assert "no folder or archive at" in capsys.readouterr().err


def test_what_the_table_could_not_tell_is_refused_before_a_training(stand_ins, capsys):
    """No seed, and a set of which no class has a cell for each fold."""
    given = arguments(stand_ins)
    given[given.index("--out") + 1] = str(stand_ins / "refused")
    assert paper_table.main([*given, "--seeds", "0"]) == 2
    assert "--seeds 0: at least 1 is needed" in capsys.readouterr().err
    few = shutil.copytree(stand_ins / "sysu3h", stand_ins / "few")
    for path in few.rglob("[4-9].png"):
        path.unlink()
    given[given.index("--sysu3h") + 1] = str(few)
    assert paper_table.main(given) == 2
    assert "laboratory 'sysu3h' has too few cells for 5 folds" in capsys.readouterr().err
    assert not (stand_ins / "refused" / "finetune_sam").exists()
