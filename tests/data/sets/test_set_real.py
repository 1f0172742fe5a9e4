"""The real laboratories, put back into their published layouts, read, built and read back."""

import csv
import io
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from dorl_jax.data.built import build, build_set, read_built, read_record
from dorl_jax.data.images import read_image, read_mask
from dorl_jax.data.laboratory import open_laboratory
from dorl_jax.data.sets import find_set
from dorl_jax.data.sources import Record

pytestmark = pytest.mark.slow


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "labels.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def acevedo(real_data: Path, tmp_path: Path) -> Path:
    """PBC_dataset_normal_DIB/<folder>/<PREFIX>_<number>.jpg."""
    folders = {"immature_granulocyte": "ig"}
    for row in table(real_data / "acevedo20"):
        name = Path(row["file"]).name
        place = tmp_path / "downloads/PBC_dataset_normal_DIB" / folders.get(row["class"], row["class"])
        place.mkdir(parents=True, exist_ok=True)
        (place / name).symlink_to(real_data / "acevedo20" / row["file"])
    return tmp_path / "downloads"


@pytest.fixture
def zheng(real_data: Path, tmp_path: Path, write_table: Callable[..., None]) -> Path:
    """Dataset 1/001.bmp, Dataset 1/001.png and Class Labels of Dataset 1.csv; the same of 2."""
    root = tmp_path / "segmentation_WBC-master"
    for number, name, header in ((1, "jiangxi_tecom", "class label"), (2, "cellavision_blog", "class")):
        place = root / f"Dataset {number}"
        place.mkdir(parents=True)
        labels: dict[str, str] = {}
        for row in sorted(table(real_data / name), key=lambda row: Path(row["file"]).stem):
            stem = Path(row["file"]).stem
            (place / f"{stem}.bmp").symlink_to(real_data / name / row["file"])
            (place / f"{stem}.png").symlink_to(real_data / name / row["mask"])
            labels[str(int(stem))] = row["orig_label"]
        write_table(root / f"Class Labels of Dataset {number}.csv", labels, ("image ID", header))
    return root


def pixels(source: object) -> np.ndarray:
    assert isinstance(source, Record)
    return np.array(Image.open(io.BytesIO(read_record(source))))


def test_acevedo20(acevedo: Path, real_data: Path, tmp_path: Path) -> None:
    rows = table(real_data / "acevedo20")
    expected = {Path(row["file"]).name: row["orig_label"].split("/")[1] for row in rows}
    listing = find_set("acevedo20").read(acevedo)
    assert {Path(row.file).name: row.label for row in listing.rows} == expected
    fine = {Path(row["file"]).name: row["fine"] for row in rows}
    spelling = {"neutrophil_band": "neutrophil_banded", "lymphocyte": "lymphocyte_typical"}
    for row in listing.rows:
        word = fine[Path(row.file).name]
        assert listing.words[row.label] == spelling.get(word, word)
    some = replace(listing, rows=listing.rows[::40])
    back = read_built(build(some, tmp_path / "out", progress=False).folder)
    for row, stored in zip(some.rows, back.rows, strict=True):
        assert isinstance(row.image, Path)
        assert isinstance(stored.image, Record)
        assert read_record(stored.image) == row.image.read_bytes()


@pytest.mark.parametrize("name", ["jiangxi_tecom", "cellavision_blog"])
def test_zheng(zheng: Path, real_data: Path, tmp_path: Path, name: str) -> None:
    """All cells; the published numbers are met, so `strict` has nothing to say."""
    expected: Mapping[str, dict[str, str]] = {Path(row["file"]).name: row for row in table(real_data / name)}
    built = build_set(find_set(name), zheng, tmp_path / "out", strict=True, progress=False)
    listing = read_built(built.folder)
    assert (built.cells, built.left_out) == (len(expected), ())
    for row in listing.rows:
        known = expected[Path(row.file).name]
        assert (row.label, listing.words[row.label]) == (known["orig_label"], known["class"])
        np.testing.assert_array_equal(pixels(row.image), read_image(real_data / name / known["file"]))
        levels = pixels(row.mask)
        np.testing.assert_array_equal(levels, np.array(Image.open(real_data / name / known["mask"]).convert("L")))
        np.testing.assert_array_equal(levels > 64, read_mask(real_data / name / known["mask"]))
    source = tfds.builder_from_directory(built.folder).as_data_source("train")
    example, first = source[0], expected[Path(listing.rows[0].file).name]
    np.testing.assert_array_equal(example["image"], read_image(real_data / name / first["file"]))
    assert set(np.unique(example["mask"])) <= set(range(256))


def test_zheng_as_one_archive(zheng: Path, tmp_path: Path) -> None:
    """As GitHub packs the repository."""
    (tmp_path / "zip").mkdir()
    plain = shutil.copytree(zheng, tmp_path / "plain/segmentation_WBC-master")
    archive = shutil.make_archive(str(tmp_path / "zip/segmentation_WBC-master"), "zip", plain.parent)
    listing = find_set("cellavision_blog").read(Path(archive), unpack_to=tmp_path / "unpacked", strict=True)
    assert len(listing.rows) == 100


def test_bccd_crops_of_the_four_laboratories(real_data: Path, tmp_path: Path) -> None:
    """The laboratory's own table, with masks; BCCD's fields are not there to be read as published."""
    listing = open_laboratory(real_data / "bccd")
    some = replace(listing, rows=listing.rows[::10])
    back = read_built(build(some, tmp_path, progress=False).folder)
    for row, stored in zip(some.rows, back.rows, strict=True):
        assert isinstance(row.image, Path)
        assert isinstance(row.mask, Path)
        np.testing.assert_array_equal(pixels(stored.image), read_image(row.image))
        np.testing.assert_array_equal(pixels(stored.mask) > 64, read_mask(row.mask))
