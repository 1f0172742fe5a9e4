"""Raabin-WBC: cropped cells that two experts agree on, from laboratories in Iran."""

import re
from collections.abc import Sequence
from pathlib import Path

from dorl_jax.data.listing import Row
from dorl_jax.data.sets.archives import files_of
from dorl_jax.data.sets.base import DataSet
from dorl_jax.errors import InputError, name_some, suggest

_ARCHIVES = ("Train.rar", "TestA.rar", "TestB.zip")
_SPLITS = {"train": "train", "testa": "test_a", "testb": "test_b"}
_WORDS = {
    "Basophil": "basophil",
    "Eosinophil": "eosinophil",
    "Lymphocyte": "lymphocyte",
    "Monocyte": "monocyte",
    "Neutrophil": "neutrophil",
}
# <smear>_<field>_<cell>.jpg, or <day>_<time>_<cell>.jpg where a telephone took the pictures.
_GROUP = re.compile(r"(\d+-\d+-\d+-\d+|\d{8})_")


def _read(roots: Sequence[Path]) -> tuple[list[Row], list[str]]:
    rows = []
    ungrouped = 0
    for path in files_of(roots, (".jpg", ".jpeg", ".png")):
        label = path.parent.name
        parts = [part.lower().replace("-", "").replace("_", "") for part in path.parts[:-2]]
        folder = next((part for part in reversed(parts) if part in _SPLITS), None)
        if folder is None or label not in _WORDS:
            raise InputError(
                f"{path}: raabin_wbc has images as Train/Basophil/..., with Train, TestA and TestB and the labels "
                f"{name_some(_WORDS)}{suggest(label, _WORDS)}"
            )
        match = _GROUP.match(path.name)
        ungrouped += match is None
        group = match[1] if match is not None else ""
        split = _SPLITS[folder]
        rows.append(Row(f"{split}/{label}/{path.name}", path, label, group=group, split=split, where=str(path)))
    notes = []
    if ungrouped:
        notes.append(f"{ungrouped} files of raabin_wbc do not begin with the name of a smear: their group is unknown.")
    return rows, notes


RAABIN_WBC = DataSet(
    name="raabin_wbc",
    title="A large dataset of white blood cells containing cell locations and types, along with segmented nuclei and "
    "cytoplasm (the cropped, double-labelled part)",
    homepage="https://raabindata.com/free-data/",
    get="download Train.rar, TestA.rar and TestB.zip, the double-labelled cropped cells, and unpack them beside each "
    "other; they hold a folder of .jpg images for each label: Train/Basophil/20190526_163027_0.jpg",
    download_urls=tuple(f"http://dl.raabindata.com/WBC/Cropped_double_labeled/{name}" for name in _ARCHIVES),
    reader=_read,
    words=_WORDS,
    citation="""@article{kouzehkanan2022large,
  author = {Kouzehkanan, Zahra Mousavi and Saghari, Sepehr and Tavakoli, Sajad and Rostami, Peyman and Abaszadeh,
    Mohammadjavad and Mirzadeh, Farzaneh and Satlsar, Esmaeil Shahabi and Gheidishahran, Maryam and Gorgi, Fatemeh and
    Mohammadi, Saeed and Hosseini, Reshad},
  title = {A large dataset of white blood cells containing cell locations and types, along with segmented nuclei and
    cytoplasm},
  journal = {Scientific Reports},
  volume = {12},
  pages = {1123},
  year = {2022},
  doi = {10.1038/s41598-021-04426-x}
}""",
    expected={
        "train": {"Basophil": 212, "Eosinophil": 744, "Lymphocyte": 2427, "Monocyte": 561, "Neutrophil": 6231},
        "test_a": {"Basophil": 89, "Eosinophil": 322, "Lymphocyte": 1034, "Monocyte": 234, "Neutrophil": 2660},
    },
)
