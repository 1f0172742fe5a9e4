"""Planted faults: each is found, named, and nothing else is."""

import csv
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from dorl_jax.cli import main
from dorl_jax.data.check import Report, check_listings, format_report, write_report
from dorl_jax.data.check.pictures import contact_sheet
from dorl_jax.data.images import read_image
from dorl_jax.data.laboratory import open_laboratories
from dorl_jax.data.synthetic import write_laboratories
from dorl_jax.data.taxonomy import Taxonomy


def check(root: Path, five: Taxonomy) -> Report:
    return check_listings(open_laboratories(root), five, workers=0, progress=False)


def rewrite(laboratory: Path, change: dict[int, dict[str, str]], extra: list[dict[str, str]] | None = None) -> None:
    """Change rows of the table by number, and add others."""
    table = laboratory / "labels.csv"
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for number, values in change.items():
        rows[number] |= values
    rows += [rows[0] | {"mask": "", "duplicate_of": ""} | values for values in extra or []]
    names = list(dict.fromkeys(name for row in rows for name in row))
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, names, restval="")
        writer.writeheader()
        writer.writerows(rows)


def files(laboratory: Path) -> list[str]:
    with (laboratory / "labels.csv").open(newline="") as file:
        return [row["file"] for row in csv.DictReader(file)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_laboratories(tmp_path / "cells", cells_per_class=5, laboratories=2)


def test_sound_data_have_no_errors(root: Path, five: Taxonomy) -> None:
    report = check(root, five)
    assert report.errors == report.copies == report.leaks == ()
    assert not [problem for problem in report.problems if problem.severity == "warning"]
    assert [sum(one.classes.values()) for one in report.laboratories] == [25, 25]
    assert all(one.masks is not None and one.masks.count == 25 for one in report.laboratories)


def test_planted_faults(root: Path, five: Taxonomy) -> None:
    first, second = sorted(root.iterdir())
    own = files(first)
    # An exact copy in another format under another label; a turned one, brighter and saved again, next door.
    image = read_image(first / own[0])
    Image.fromarray(image).save(first / "same.bmp")
    turned = np.clip(np.ascontiguousarray(np.rot90(image)) * 1.03, 0, 255).astype(np.uint8)
    Image.fromarray(turned).save(second / "turned.jpg", quality=80)
    (first / own[1]).write_bytes((first / own[1]).read_bytes()[:-200])
    with Image.open(first / own[2]) as picture:
        Image.new("L", picture.size).save(first / "empty.png")
    Image.new("L", (10, 10), 255).save(first / "small.png")
    rewrite(
        first,
        {
            2: {"mask": "empty.png"},
            3: {"mask": "small.png"},
            4: {"class": "neutrophyl"},
            5: {"class": "platelet"},
            6: {"split": "train", "group": "p1"},
            7: {"split": "test", "group": "p1"},
            8: {"split": "test", "group": "p2"},
            9: {"duplicate_of": own[8]},
        },
        [{"file": "same.bmp", "class": "basophil"}, {"file": "missing.png"}],
    )
    rewrite(second, {}, [{"file": "turned.jpg"}])
    report = check(root, five)
    one, two = report.laboratories
    assert (one.rows, one.declared, one.groups, one.splits) == (27, 1, 2, {"": 23, "train": 1, "test": 2})
    assert (one.unmapped, one.nearest, one.dropped) == (
        {"neutrophyl": 1},
        {"neutrophyl": "neutrophil"},
        {"platelet": 1},
    )
    reasons = {bad.file: bad.reason for bad in one.unusable}
    assert set(reasons) == {own[1], own[2], own[3], "missing.png"}
    assert "broken or truncated" in reasons[own[1]]
    assert "empty" in reasons[own[2]]
    assert "10 x 10" in reasons[own[3]]
    assert "no image file at" in reasons["missing.png"]
    assert two.unusable == ()
    (copies,) = report.copies
    assert set(copies.cells) == {f"{first.name}/{own[0]}", f"{first.name}/same.bmp", f"{second.name}/turned.jpg"}
    assert not copies.exact
    assert [(leak.laboratory, leak.what, leak.splits) for leak in report.leaks] == [
        (first.name, "group p1", ("test", "train"))
    ]
    said = format_report(report)
    for phrase in (
        "unmapped labels 'neutrophyl' (1, near 'neutrophil')",
        "4 cells cannot be used",
        "1 cells are in several laboratories",
        f"1 leaks between splits: {first.name}: group p1 in test and train",
    ):
        assert phrase in said
    assert len(report.errors) == 4
    # Worst first.
    severities = [problem.severity for problem in report.problems]
    assert severities == sorted(severities, key=("error", "warning", "note").index)


def test_copies_within_a_laboratory(root: Path, five: Taxonomy) -> None:
    first = sorted(root.iterdir())[0]
    own = files(first)
    Image.fromarray(read_image(first / own[0])).save(first / "same.bmp")
    Image.fromarray(read_image(first / own[7])).save(first / "again.bmp")
    rewrite(first, {1: {"group": "a"}, 2: {"group": "a"}, 3: {"group": "a"}}, [{"file": "same.bmp"}])
    rewrite(first, {}, [{"file": "again.bmp", "class": "basophil"}])
    report = check(root, five)
    assert {(frozenset(one.cells), one.exact, one.distance) for one in report.copies} == {
        (frozenset({f"{first.name}/{own[0]}", f"{first.name}/same.bmp"}), True, 0.0),
        (frozenset({f"{first.name}/{own[7]}", f"{first.name}/again.bmp"}), True, 0.0),
    }
    # Three of a group stay together in one of five folds with probability 1/25, two copies with 1/5.
    assert report.torn == pytest.approx((24 / 25, 2 * 4 / 5))
    said = format_report(report)
    assert "2 cells are there more than once (2 with the same pixels)" in said
    assert "1 cells are there under several labels" in said
    assert "five random folds would tear apart about 1 groups and 2 sets of copies" in said


def warnings_of(report: Report) -> list[str]:
    return [str(problem) for problem in report.problems if problem.severity == "warning"]


def test_inverted_masks(root: Path, five: Taxonomy) -> None:
    first = sorted(root.iterdir())[0]
    masks = sorted(first.glob("masks/*/*.png"))
    for number, path in enumerate(masks):
        if number == 12:
            assert warnings_of(check(root, five)) == []
        with Image.open(path) as mask:
            values = np.asarray(mask)
        Image.fromarray(np.where(values > 64, 0, 255).astype(np.uint8)).save(path)
        if number == 12:
            break
    (warning,) = warnings_of(check(root, five))
    assert warning == (
        f"{first.name}: 13 of 25 masks cover all four corners of their image; are they inverted? 0 is the background"
    )


@pytest.mark.parametrize(("bits", "factor"), [(12, 16), (14, 4), (16, 0)])
def test_bits_that_cameras_leave_empty(root: Path, five: Taxonomy, bits: int, factor: int) -> None:
    first = sorted(root.iterdir())[0]
    for name in files(first):
        image = read_image(first / name).astype(np.float64) / 255
        image.flat[0] = 1
        assert cv2.imwrite(str(first / name), np.round(image * (2**bits - 1)).astype(np.uint16))
    told = [warning for warning in warnings_of(check(root, five)) if "bits in 16" in warning]
    assert told == (
        [
            f"{first.name}: images of 16 bits look like {bits} bits in 16: none has a larger value; "
            f"they are read too dark: multiply their values by {factor}"
        ]
        if factor
        else []
    )


def test_workers_change_nothing(root: Path, five: Taxonomy) -> None:
    listings = open_laboratories(root)
    plain, threads = (check_listings(listings, five, workers=0, progress=bar) for bar in (False, True))
    assert plain == threads


@pytest.mark.slow
def test_worker_processes_change_nothing(root: Path, five: Taxonomy) -> None:
    listings = open_laboratories(root)
    assert check_listings(listings, five, workers=2, progress=False) == check(root, five)


def test_the_page_escapes_what_it_is_told(root: Path, five: Taxonomy, tmp_path: Path) -> None:
    first = sorted(root.iterdir())[0]
    rewrite(first, {0: {"class": "<script>alert(1)</script>"}})
    listings = open_laboratories(root)
    report = check_listings(listings, five, workers=0, progress=False)
    page = write_report(report, listings, five, tmp_path / "out").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert not re.search(r"(?:src|href)=\"(?!data:)", page)
    tree = json.loads((tmp_path / "out" / "check.json").read_text())
    assert tree["laboratories"][0]["unmapped"] == {"<script>alert(1)</script>": 1}
    assert tree == json.loads(json.dumps(report.as_tree()))


def test_contact_sheet(tmp_path: Path, five: Taxonomy) -> None:
    (tmp_path / "lab" / "monocyte").mkdir(parents=True)
    Image.new("RGB", (60, 30), (10, 200, 30)).save(tmp_path / "lab" / "monocyte" / "a.png")
    sheet = contact_sheet(open_laboratories(tmp_path / "lab"), five)
    green = np.argwhere((sheet == (10, 200, 30)).all(-1))
    (top, left), (bottom, right) = green.min(0), green.max(0)
    # Fitted into a tile of 72 pixels, in the third column of classes.
    assert (bottom - top + 1, right - left + 1) == (36, 72)
    assert len(green) == 36 * 72
    assert left == 150 + 2 * (3 * 76 + 12)
    assert cv2.countNonZero((sheet[:, :150] < 128).astype(np.uint8)[..., 0]) > 50  # the laboratory's name


def test_the_command(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["data", "check", str(root), "--out", str(tmp_path / "out"), "--quiet", "--workers", "0"]
    assert main([*command, "--strict"]) == 0
    assert "50 images of 2 laboratories" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "check.html",
        "check.json",
        "contact_sheet.png",
    ]
    first = sorted(root.iterdir())[0]
    (first / files(first)[0]).write_bytes(b"no image")
    assert main(command) == 0
    capsys.readouterr()
    assert main([*command, "--strict"]) == 2
    assert "1 errors in the data" in capsys.readouterr().err
