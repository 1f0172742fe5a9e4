"""Bad laboratories: each fault is named, and what is left is used."""

import csv

import pytest
from PIL import Image

from dorl_jax import config
from dorl_jax.data.synthetic import write_laboratories
from dorl_jax.errors import InputError
from dorl_jax.stages.prepare import DataSettings, changes, prepare
from dorl_jax.stages.run import RunSettings, open_run, run_stages


@pytest.fixture
def root(tmp_path):
    return write_laboratories(tmp_path / "cells", cells_per_class=5)


def settings(root, **changes):
    return DataSettings(source="folder", root=str(root), **changes)


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def spoil(root):
    """A file that is no image, an empty mask, and a mask of another size; their ids and what is said of them."""
    laboratory = sorted(path for path in root.iterdir())[0]
    table = rows(laboratory / "labels.csv")
    (laboratory / table[0]["file"]).write_bytes(b"no image")
    with Image.open(laboratory / table[1]["file"]) as image:
        Image.new("L", image.size).save(laboratory / table[1]["mask"])
    Image.new("L", (17, 17), 255).save(laboratory / table[2]["mask"])
    names = [f"{laboratory.name}/{row['file']}" for row in table[:3]]
    return dict(zip(names, ("is no BMP, PNG, JPEG, TIFF or WebP image", "is empty", "pixels, its image"), strict=True))


def test_unusable_files_are_left_out_and_listed(root, tmp_path, caplog):
    import re

    spoilt = spoil(root)
    accepted = prepare(tmp_path / "data", settings(root), progress=False)
    assert len(accepted.cells) == 47
    assert not {cell.id for cell in accepted.cells} & spoilt.keys()
    failures = {row["id"]: row["reason"] for row in rows(tmp_path / "data" / "failures.csv")}
    assert failures.keys() == spoilt.keys()
    for name, reason in spoilt.items():
        assert re.search(reason, failures[name]), failures[name]
    assert "left out 3 of 50 cells" in caplog.text


def test_a_folder_that_would_not_be_read_is_refused(root, tmp_path):
    file = tmp_path / "settings.toml"
    file.write_text(f'[data]\nroot = "{root}"\n')
    with pytest.raises(InputError, match=r"source = 'synthetic', the default: add source = 'folder'"):
        config.load(RunSettings, file)
    assert config.load(RunSettings, file, {"data.source": "folder"}).data.root == str(root)


def test_strict_stops_at_them(root, tmp_path):
    spoil(root)
    with pytest.raises(InputError, match="3 cells cannot be used"):
        prepare(tmp_path / "data", settings(root, strict=True), progress=False)


def test_a_class_with_few_cells_is_named(root, tmp_path, caplog):
    table = sorted(root.iterdir())[0] / "labels.csv"
    lines = table.read_text().splitlines()
    table.write_text("\n".join(line for line in lines if "basophil" not in line or "000" in line) + "\n")
    prepare(tmp_path / "data", settings(root), progress=False)
    assert "has 1 cells of class basophil" in caplog.text


def test_a_single_laboratory(root, tmp_path):
    only = sorted(root.iterdir())[0].name
    with pytest.raises(InputError, match=f"there is only {only}"):
        prepare(tmp_path / "data", settings(root, laboratories=(only,)), progress=False)
    found = prepare(tmp_path / "data", settings(root, laboratories=(only,)), least=1, progress=False)
    assert found.laboratories == (only,)


def test_unknown_label_and_missing_column(root, tmp_path):
    table = sorted(root.iterdir())[0] / "labels.csv"
    text = table.read_text()
    table.write_text(text.replace(",monocyte,", ",monocite,", 1))
    with pytest.raises(InputError, match=r"labels.csv, line \d+: .*monocite.*monocyte"):
        prepare(tmp_path / "data", settings(root), progress=False)
    table.write_text(text.replace("class", "klass", 1))
    with pytest.raises(InputError, match="no column 'class'.*'klass'"):
        prepare(tmp_path / "data", settings(root), progress=False)


def test_what_reading_found_out_is_told(root, tmp_path, caplog):
    laboratory = sorted(root.iterdir())[0]
    (laboratory / "laboratory.toml").write_text("group = '(monocyte)'\n")
    missed = sum("monocyte" not in row["file"] for row in rows(laboratory / "labels.csv"))
    assert 0 < missed < 25
    prepare(tmp_path / "data", settings(root), progress=False)
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert any(one.startswith(f"{laboratory.name}: {missed} files do not match group") for one in told), told


def test_the_number_of_duplicates_is_told(root, tmp_path, caplog):
    table = sorted(root.iterdir())[0] / "labels.csv"
    own = rows(table)
    for repeated in own[3:5]:
        repeated["duplicate_of"] = own[0]["file"]
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(own[0]))
        writer.writeheader()
        writer.writerows(own)
    with caplog.at_level("INFO", logger="dorl_jax"):
        assert len(prepare(tmp_path / "data", settings(root), progress=False).cells) == 48
    assert f"{table.parent.name}: 2 rows are left out as duplicates of another" in caplog.text


def test_a_laboratory_of_which_nothing_can_be_used_is_refused_before_anything_is_written(root, tmp_path):
    laboratory = sorted(root.iterdir())[0]
    for row in rows(laboratory / "labels.csv"):
        with Image.open(laboratory / row["mask"]) as mask:
            mask.point(lambda value: value > 64).save(laboratory / row["mask"])
    write_laboratories(tmp_path / "more", cells_per_class=1, laboratories=3)
    for other in sorted((tmp_path / "more").iterdir())[2:]:
        other.rename(root / other.name)
    with pytest.raises(
        InputError, match=rf"no cell of {laboratory.name} can be used: .*values up to 1: multiply by 255"
    ):
        prepare(tmp_path / "data", settings(root, unseen=(laboratory.name,)), progress=False)
    assert not (tmp_path / "data").exists()


def change(table, alter):
    own = rows(table)
    alter(own)
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(own[0]))
        writer.writeheader()
        writer.writerows(own)


def test_data_that_changed_after_they_were_prepared_are_told_of(root, tmp_path, caplog):
    caplog.set_level("WARNING", logger="dorl_jax")  # whatever another test has left
    spoil(root)
    run = open_run(tmp_path / "run", RunSettings(data=settings(root)), progress=False)
    run_stages(run, ["prepare"])
    caplog.clear()
    run_stages(run, ["prepare"])
    assert not caplog.records  # the three that cannot be used are no change
    table = sorted(root.iterdir())[0] / "labels.csv"

    def alter(own):
        own[5]["class"] = own[6]["class"] = "basophil"
        own[7]["mask"] = own[8]["mask"]
        own[9]["mask"] = ""
        own[10] = own[10] | {"file": "new.png"}

    kept = rows(table)[10]["file"]
    (table.parent / "new.png").write_bytes((table.parent / kept).read_bytes())
    change(table, alter)
    run_stages(run, ["prepare"])
    (told,) = [record.getMessage() for record in caplog.records]
    assert "1 cells added, 1 cells gone, 2 cells of another class, 2 cells with another mask; --redo prepare" in told
    table.write_text(table.read_text().replace("class", "klass", 1))
    assert "they cannot be read as they are: " in changes(tmp_path / "run" / "data", settings(root))
    # Data that were moved away are none that changed.
    root.rename(tmp_path / "elsewhere")
    assert changes(tmp_path / "run" / "data", settings(root)) == ""


@pytest.mark.parametrize("name", ["s\u00fcd", "su\u0308d", "grey"])
def test_unseen_laboratories_are_named_by_folder_or_by_their_file(root, tmp_path, name):
    (root / "grey" / "laboratory.toml").write_text('name = "su\u0308d"\n', encoding="utf-8")
    run = open_run(tmp_path / "run", RunSettings(data=settings(root, unseen=(name,))), progress=False)
    run_stages(run, ["prepare"])
    assert run.cells().laboratories == ("cream", "su\u0308d")
    assert run.unseen() == ("su\u0308d",)
    assert run.seen_cells().laboratories == ("cream",)
