"""`dorl-jax data`: what it prints, writes and refuses."""

import re
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
from limits import limited

from dorl_jax.cli import main
from dorl_jax.data.image_lists import open_images
from dorl_jax.data.images import read_image, read_mask
from dorl_jax.data.laboratory import open_laboratories
from dorl_jax.data.manifest import check_cells, load_cells, make_manifest, read_laboratories, save_cells
from dorl_jax.data.sets import SETS
from dorl_jax.data.sources import Record
from dorl_jax.data.synthetic import write_laboratories
from dorl_jax.data.taxonomy import load_taxonomy

FIVE = load_taxonomy("five_classes")


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    return write_laboratories(tmp_path / "cells", cells_per_class=2, laboratories=2)


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(SETS)
    assert next(line for line in lines if line.startswith("acevedo20")).split()[1:4] == ["17092", "13", "none"]
    assert main(["data", "list", "acevedo20"]) == 0
    told = capsys.readouterr().out
    assert "CC BY 4.0" in told
    assert "@article" in told
    assert [line.split() for line in told.splitlines() if line.startswith("  BNE ")] == [
        ["BNE", "neutrophil_banded", "1633"]
    ]
    assert main(["data", "list", "acevedo"]) == 2
    assert "did you mean 'acevedo20'?" in capsys.readouterr().err


def test_built_laboratories_are_read_as_the_folders_they_came_from(
    cells: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "built"
    assert main(["data", "build", str(cells), "--out", str(out), "--quiet"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.rsplit(": ")[-1] for line in printed] == ["10 cells", "10 cells"]
    plain, built = read_laboratories(cells, (), FIVE), read_laboratories(out, (), FIVE)
    assert built.laboratories == plain.laboratories
    assert [(cell.id, cell.label) for cell in built.cells] == [(cell.id, cell.label) for cell in plain.cells]
    for one, other in zip(plain.cells, built.cells, strict=True):
        assert isinstance(other.image, Record)
        np.testing.assert_array_equal(read_image(other.image), read_image(one.image))
        assert other.mask is not None
        assert one.mask is not None
        np.testing.assert_array_equal(read_mask(other.mask), read_mask(one.mask))
    # A run keeps the places of its cells in a file.
    save_cells(built, tmp_path / "cells.parquet")
    assert load_cells(tmp_path / "cells.parquet") == built
    assert check_cells(built, progress=False).accepted == built
    # A second time there is nothing to do; one laboratory, or a version of it, can be named.
    assert main(["data", "build", str(cells), "--out", str(out), "--quiet"]) == 0
    assert all(line.endswith("10 cells, there already") for line in capsys.readouterr().out.splitlines())
    name = plain.laboratories[0]
    for path in (out / name, out / name / "1.0.0"):
        (listing,) = open_laboratories(path)
        assert make_manifest([listing], FIVE).cells == built.of(name)


def test_what_cannot_be_built_is_named(cells: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    laboratory = sorted(cells.iterdir())[0]
    broken = next(laboratory.glob("images/*/*"))
    broken.write_bytes(b"no image")
    build = ["data", "build", str(laboratory), "--out", str(tmp_path / "built"), "--quiet"]
    assert main([*build, "--strict"]) == 2
    assert broken.name in capsys.readouterr().err
    assert main(build) == 0
    printed = capsys.readouterr().out
    assert "9 cells" in printed
    assert f"left out images/{broken.parent.name}/{broken.name}: " in printed


def test_bad_sources(cells: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    laboratory = sorted(cells.iterdir())[0]
    for arguments, message in (
        ([str(tmp_path / "none")], "no data folder at"),
        ([str(cells), str(laboratory)], "two laboratories of one name"),
        ([str(laboratory), "--size", "-5"], "--size -5: the side in pixels, at least 1"),
        ([str(cells), "--set", "matek"], "did you mean 'matek19'?"),
        ([str(cells), "--set", "matek19"], "no image of matek19 in"),
    ):
        assert main(["data", "build", *arguments, "--out", str(tmp_path / "built")]) == 2
        assert message in capsys.readouterr().err


def test_a_page_among_the_cells_is_none_of_them(
    cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command is given in the folder of the cells, again and again."""
    for laboratory in cells.iterdir():
        shutil.copytree(laboratory / "images", tmp_path / "trees" / laboratory.name)
    monkeypatch.chdir(tmp_path / "trees")
    for _ in range(2):
        assert main(["data", "check", ".", "--quiet"]) == 0
        assert capsys.readouterr().out.startswith("20 images of 2 laboratories: ")
    assert len(open_images(tmp_path / "trees")) == 20


@pytest.mark.parametrize("action", ["check", "build"])
def test_a_folder_that_cannot_be_made_is_told_before_the_work(
    cells: Path, tmp_path: Path, action: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert main(["data", action, str(cells), "--out", str(tmp_path / "file"), "--quiet"]) == 2
    told = capsys.readouterr()
    assert (told.out, told.err) == (
        "",
        f"dorl-jax: --out {tmp_path}/file is no folder and cannot be made one: File exists\n",
    )


def test_a_full_disk_is_told(cells: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build = ["data", "build", str(cells), "--out", str(tmp_path / "built"), "--quiet"]
    with limited(resource.RLIMIT_FSIZE, 70_000):
        assert main(build) == 2
    assert re.search(r"1\.0\.0 cannot be written: .*File too large.*make room", capsys.readouterr().err)
    assert main(build) == 0
