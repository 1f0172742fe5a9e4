"""`dorl-jax train-classifier` and `predict`, from images to tables and sheets."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from PIL import Image
from small_run import write_small_run

from dorl_jax.cli import main
from dorl_jax.dorl import DoRL
from dorl_jax.prediction_sheets import EACH, prediction_sheet, write_sheets
from dorl_jax.sheets import PREDICTED
from dorl_jax.vectors import PROVENANCE

CELLS = 48


def draw(folder: Path, seed: int) -> list[str]:
    """Pictures, dark and bright in turn."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    paths = []
    for place in range(CELLS):
        low = 150 * (place % 2)
        path = folder / f"{place:02d}.png"
        Image.fromarray(rng.integers(low, low + 100, (24, 30, 3)).astype(np.uint8)).save(path)
        paths.append(str(path))
    return paths


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def trained(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with vectors of two laboratories and a classifier of them."""
    folder = tmp_path_factory.mktemp("trained")
    dorl = DoRL.load(run)
    tables = []
    for number, name in enumerate(("north", "south")):
        table = dorl.embed_table(draw(folder / name, number), workers=0)
        columns = {"laboratory": [name] * CELLS, "label": ["dark", "bright"] * (CELLS // 2)}
        ids = pa.array([f"{name}/{text}" for text in table["id"].to_pylist()])
        for column, values in columns.items():
            table = table.append_column(column, pa.array(values))
        tables.append(table.set_column(0, "id", ids))
    table = pa.concat_tables(tables).replace_schema_metadata({PROVENANCE: json.dumps(dorl.provenance)})
    pq.write_table(table, folder / "vectors.parquet")
    assert main(["train-classifier", str(folder / "vectors.parquet"), "--out", str(folder / "one.skops")]) == 0
    return folder


@pytest.mark.slow
def test_from_images_to_classes(run: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = draw(tmp_path / "new", 7)
    Path(paths[5]).write_bytes(b"no image")
    out = tmp_path / "predictions.parquet"
    chosen = ["--model", str(run), "--classifier", str(trained / "one.skops"), "--workers", "0", "--quiet"]
    sheets = ["--overlays", str(tmp_path / "sheets")]
    assert main(["predict", str(tmp_path / "new"), *chosen, "--out", str(out), *sheets]) == 0
    printed = capsys.readouterr().out
    assert "These cells are like those of" in printed
    assert "1 of them without a vector" in printed
    table = pq.read_table(out)
    called = table["class"].to_pylist()
    assert [called[place] for place in range(CELLS) if place != 5] == [
        ["dark", "bright"][place % 2] for place in range(CELLS) if place != 5
    ]
    assert called[5] is None
    assert "05.png" in table["reason"].to_pylist()[5]
    about = json.loads(table.schema.metadata[PROVENANCE])
    assert about["vectors"] == DoRL.load(run).provenance
    (origin,) = about["origins"]
    assert (origin["laboratory"], origin["cells"]) == ("", CELLS - 1)
    assert {one["verdict"] for one in origin["known"]} == {"known"}
    assert [path.name for path in (tmp_path / "sheets").iterdir()] == ["sheet_001.png"]

    # one file, to a CSV, and by vectors that are there already
    assert main(["predict", paths[0], *chosen, "--out", str(tmp_path / "one.csv")]) == 0
    (row,) = pa.csv.read_csv(tmp_path / "one.csv").to_pylist()
    assert row["class"] == "dark"
    assert row["probability_dark"] + row["probability_bright"] == pytest.approx(1, abs=1e-5)
    given = ["--vectors", str(trained / "vectors.parquet"), "--classifier", str(trained / "one.skops")]
    assert main(["predict", *given, "--out", str(out)]) == 0
    table = pq.read_table(out)
    assert table["class"].to_pylist() == table["label"].to_pylist()
    # leaving themselves out is not done here, so that all are inside
    assert table["nearest_laboratory"].to_pylist().count("north") > CELLS / 2


@pytest.mark.slow
def test_another_run_is_refused(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = write_small_run(tmp_path / "other", seed=5)
    draw(tmp_path / "new", 7)
    capsys.readouterr()
    chosen = ["--classifier", str(trained / "one.skops"), "--out", str(tmp_path / "out.parquet"), "--quiet"]
    assert main(["predict", str(tmp_path / "new"), "--model", str(other), "--workers", "0", *chosen]) == 2
    assert "of another model than those the classifier was fitted on: weights" in capsys.readouterr().err
    assert not (tmp_path / "out.parquet").exists()


@pytest.mark.slow
def test_bad_command_lines(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vectors, classifier = str(trained / "vectors.parquet"), str(trained / "one.skops")
    pq.write_table(pq.read_table(vectors).replace_schema_metadata({}), tmp_path / "unknown.parquet")
    for arguments, message in (
        (["predict", "--classifier", classifier], "give IMAGES or --vectors"),
        (["predict", "a.png", "--classifier", classifier], "give --model RUN"),
        (["predict", "--vectors", vectors, "--classifier", classifier, "--overlays", "x"], "give --model RUN"),
        (
            ["predict", "--vectors", vectors, "--classifier", classifier, "--out", "x.txt"],
            "expected a .parquet or .csv",
        ),
        (["predict", "--vectors", vectors, "--classifier", classifier, "--out", vectors], "is what is read"),
        (["train-classifier", vectors, "--out", vectors], "is what is read"),
        (["predict", "--vectors", vectors, "--classifier", vectors], "is no classifier that"),
        (["train-classifier", str(tmp_path / "unknown.parquet"), "--out", "x.skops"], "does not tell which model"),
        (["train-classifier", vectors, "--out", "x.skops", "--classifier", "svm_linea"], "did you mean 'svm_linear'?"),
        (["train-classifier", vectors, "--out", "x.skops", "--label", "kind"], "no column 'kind'"),
    ):
        assert main(arguments) == 2
        assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("*.skops"))


def test_sheets_show_the_mask() -> None:
    image = np.full((80, 160, 3), 250, np.uint8)
    mask = np.zeros((80, 160), bool)
    mask[20:60, 40:120] = True
    sheet = prediction_sheet([(image, mask)] * 3, ["monocyte 0.91", "? basophil 0.40", "x"])
    blue = np.array([int(PREDICTED[place : place + 2], 16) for place in (1, 3, 5)])
    drawn = (sheet == blue).all(axis=2)
    rows, columns = np.nonzero(drawn[30:196, :172])  # the first tile, below the legend
    # the image is as wide as its tile, and as tall as half of it: the outline lies in its middle
    assert rows.max() - rows.min() == pytest.approx(40, abs=2)
    assert columns.max() - columns.min() == pytest.approx(80, abs=2)
    assert (rows.max() + rows.min()) / 2 + 30 - 36 == pytest.approx(80, abs=2)


def test_sheets_are_of_chosen_cells(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = draw(tmp_path / "cells", 0)

    seen = []

    def masks(self: DoRL, images: list[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
        seen.extend(images)
        return [(image, np.ones(image.shape[:2], bool)) for image in images]

    monkeypatch.setattr(DoRL, "masks", masks)
    classes = [None, *["monocyte"] * (2 * CELLS - 1)]
    table = pa.table({"source": paths * 2, "class": classes, "probability": [0.5] * 2 * CELLS})
    dorl = DoRL.load(run)
    written = write_sheets(dorl, table, tmp_path / "sheets", most=70)
    assert [path.name for path in written] == ["sheet_001.png", "sheet_002.png"]
    assert len(seen) == 70 > EACH
    assert write_sheets(dorl, table.slice(0, 1), tmp_path / "none", most=5) == []
