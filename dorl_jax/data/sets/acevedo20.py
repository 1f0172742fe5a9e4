"""Acevedo-20: normal peripheral blood cells, Barcelona."""

from collections.abc import Sequence
from pathlib import Path

from dorl_jax.data.listing import Row
from dorl_jax.data.sets.archives import files_of
from dorl_jax.data.sets.base import DataSet
from dorl_jax.errors import InputError, name_some, suggest

# The folders are coarser than the prefixes of the files: the prefix is the label, the folder has to agree.
_PREFIXES = {
    "basophil": ("BA",),
    "eosinophil": ("EO",),
    "erythroblast": ("ERB",),
    "ig": ("IG", "MMY", "MY", "PMY"),
    "lymphocyte": ("LY",),
    "monocyte": ("MO",),
    "neutrophil": ("BNE", "NEUTROPHIL", "SNE"),
    "platelet": ("PLATELET",),
}
_FOLDER_OF = {prefix: folder for folder, prefixes in _PREFIXES.items() for prefix in prefixes}


def _read(roots: Sequence[Path]) -> tuple[list[Row], list[str]]:
    rows = []
    for path in files_of(roots, (".jpg",)):
        folder = path.parent.name
        if folder not in _PREFIXES:
            raise InputError(
                f"{path} lies in no folder of the set{suggest(folder, _PREFIXES)}: there are {name_some(_PREFIXES, 8)}"
            )
        prefix = path.name.partition("_")[0]
        if prefix not in _FOLDER_OF:
            raise InputError(
                f"{path}: its prefix {prefix!r} is no label{suggest(prefix, _FOLDER_OF)}; "
                f"the labels are {name_some(_FOLDER_OF, 13)}"
            )
        if _FOLDER_OF[prefix] != folder:
            raise InputError(
                f"{path}: its prefix {prefix!r} belongs into the folder {_FOLDER_OF[prefix]!r}, not {folder!r}; "
                "one of the two is wrong"
            )
        rows.append(Row(f"{folder}/{path.name}", path, prefix, where=str(path)))
    return rows, []


ACEVEDO20 = DataSet(
    name="acevedo20",
    title="A dataset for microscopic peripheral blood cell images for development of automatic recognition systems",
    homepage="https://data.mendeley.com/datasets/snkd93bnjr/1",
    get="download PBC_dataset_normal_DIB.zip from Mendeley Data, snkd93bnjr, version 1; it holds a folder of .jpg "
    "images for each of 8 groups: PBC_dataset_normal_DIB/neutrophil/SNE_1.jpg",
    download_urls=(
        "https://data.mendeley.com/public-files/datasets/snkd93bnjr/files/"
        "2fc38728-2ae7-4a62-a857-032af82334c3/file_downloaded",
    ),
    reader=_read,
    words={
        "BA": "basophil",
        "EO": "eosinophil",
        "ERB": "erythroblast",
        "IG": "immature_granulocyte_unspecified",
        "MMY": "metamyelocyte",
        "MY": "myelocyte",
        "PMY": "promyelocyte",
        "LY": "lymphocyte_typical",
        "MO": "monocyte",
        "BNE": "neutrophil_banded",
        "NEUTROPHIL": "neutrophil_unspecified",
        "SNE": "neutrophil_segmented",
        "PLATELET": "platelet",
    },
    citation="""@article{acevedo2020dataset,
  author = {Acevedo, Andrea and Merino, Anna and Alf{\\'e}rez, Santiago and Molina, {\\'A}ngel and Bold{\\'u}, Laura and
    Rodellar, Jos{\\'e}},
  title = {A dataset of microscopic peripheral blood cell images for development of automatic recognition systems},
  journal = {Data in Brief},
  volume = {30},
  pages = {105474},
  year = {2020},
  doi = {10.1016/j.dib.2020.105474}
}""",
    licence="CC BY 4.0",
    expected={
        "": {
            "BA": 1218,
            "EO": 3117,
            "ERB": 1551,
            "IG": 151,
            "MMY": 1015,
            "MY": 1137,
            "PMY": 592,
            "LY": 1214,
            "MO": 1420,
            "BNE": 1633,
            "NEUTROPHIL": 50,
            "SNE": 1646,
            "PLATELET": 2348,
        }
    },
)
