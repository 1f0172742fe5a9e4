"""The two sets of Zheng et al. 2018, with masks: Jiangxi Tecom, and the CellaVision blog."""

import csv
from collections.abc import Sequence
from pathlib import Path

from dorl_jax.data.listing import Row
from dorl_jax.data.sets.archives import files_of
from dorl_jax.data.sets.base import DataSet, Reader
from dorl_jax.data.tables import opened_csv
from dorl_jax.errors import InputError, name_some

_WORDS = {"1": "neutrophil", "2": "lymphocyte", "3": "monocyte", "4": "eosinophil", "5": "basophil"}
_CITATION = """@article{zheng2018fast,
  author = {Zheng, Xin and Wang, Yong and Wang, Guoyou and Liu, Jianguo},
  title = {Fast and Robust Segmentation of White Blood Cell Images by Self-supervised Learning},
  journal = {Micron},
  volume = {107},
  pages = {55--71},
  year = {2018},
  doi = {10.1016/j.micron.2018.01.010}
}"""
_HOMEPAGE = "https://github.com/zxaoyou/segmentation_WBC"


def _reader(number: int) -> Reader:
    """Reads `Dataset <number>/001.bmp`, its mask `Dataset <number>/001.png` and `Class Labels of Dataset <number>.csv`.

    The masks are 0 on the background, 128 on the cytoplasm, 255 on the nucleus.
    """
    folder = f"Dataset {number}"

    def read(roots: Sequence[Path]) -> tuple[list[Row], list[str]]:
        images = [path for path in files_of(roots, (".bmp",)) if path.parent.name == folder]
        tables = [path for path in files_of(roots, (".csv",)) if path.name == f"Class Labels of Dataset {number}.csv"]
        if not images:
            return [], []
        if len(tables) != 1:
            raise InputError(
                f"{len(tables)} files 'Class Labels of Dataset {number}.csv' beside {images[0].parent}; one is needed"
            )
        labels = _labels(tables[0])
        rows = []
        for image in images:
            key = image.stem.lstrip("0")
            if key not in labels:
                raise InputError(f"{tables[0]} has no label for {image}")
            line, label = labels.pop(key)
            mask = image.with_suffix(".png")
            if not mask.is_file():
                raise InputError(f"no mask of {image} at {mask}")
            rows.append(Row(f"{folder}/{image.name}", image, label, mask=mask, where=f"{tables[0]}, line {line}"))
        notes = ["Some labels were set by the authors without an expert and are wrong, as they say themselves."]
        if labels:
            notes.append(f"{len(labels)} labels of {tables[0].name} have no image: {name_some(labels)}.")
        return rows, notes

    return read


def _labels(table: Path) -> dict[str, tuple[int, str]]:
    """Number of the image -> line and label. The header is "image ID" and "class label", or "class"."""
    with opened_csv(table) as file:
        lines = list(enumerate(csv.reader(file, strict=True), 1))[1:]
    labels: dict[str, tuple[int, str]] = {}
    for line, values in lines:
        if not values:
            continue
        if len(values) != 2 or not values[0].strip().isdigit() or values[1].strip() not in _WORDS:
            raise InputError(f"{table}, line {line}: not an image's number and a label of 1 to 5: {','.join(values)}")
        key = values[0].strip().lstrip("0")
        if key in labels:
            raise InputError(f"{table}, line {line}: image {key} is there already in line {labels[key][0]}")
        labels[key] = line, values[1].strip()
    return labels


def _data_set(number: int, name: str, origin: str, counts: tuple[int, ...]) -> DataSet:
    return DataSet(
        name=name,
        title=f"WBC Image Dataset, Dataset {number}: {origin}",
        homepage=_HOMEPAGE,
        get="clone github.com/zxaoyou/segmentation_WBC, or download it as .zip; its images and masks are "
        f"Dataset {number}/001.bmp and Dataset {number}/001.png, its labels 'Class Labels of Dataset {number}.csv'",
        download_urls=(f"{_HOMEPAGE}/archive/refs/heads/master.zip",),
        reader=_reader(number),
        words=_WORDS,
        citation=_CITATION,
        licence="GPL-3.0",
        expected={"": dict(zip(_WORDS, counts, strict=True))},
        masks="all",
    )


JIANGXI_TECOM = _data_set(1, "jiangxi_tecom", "Jiangxi Tecom Science Corporation", (176, 53, 48, 22, 1))
CELLAVISION_BLOG = _data_set(2, "cellavision_blog", "the CellaVision blog", (33, 37, 15, 12, 3))
