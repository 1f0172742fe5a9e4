"""MLL23: cells of the peripheral blood of patients, Munich Leukemia Laboratory."""

from dorl_jax.data.sets.base import DataSet
from dorl_jax.data.sets.folders import folder_per_label

_WORDS = {
    "basophil": "basophil",
    "eosinophil": "eosinophil",
    "hairy_cell": "hairy_cell",
    "lymphocyte": "lymphocyte_typical",
    "lymphocyte_large_granular": "lymphocyte_large_granular",
    "lymphocyte_neoplastic": "lymphocyte_neoplastic",
    "lymphocyte_reactive": "lymphocyte_reactive",
    "metamyelocyte": "metamyelocyte",
    "monocyte": "monocyte",
    "myeloblast": "myeloblast",
    "myelocyte": "myelocyte",
    "neutrophil_band": "neutrophil_banded",
    "neutrophil_segmented": "neutrophil_segmented",
    "normoblast": "erythroblast",
    "plasma_cell": "plasma_cell",
    "promyelocyte": "promyelocyte",
    "promyelocyte_atypical": "promyelocyte_atypical",
    "smudge_cell": "smudge_cell",
}

MLL23 = DataSet(
    name="mll23",
    title="A large expert-annotated single-cell peripheral blood dataset for hematological disease diagnostics",
    homepage="https://zenodo.org/records/14277609",
    get="download the 18 .zip archives of Zenodo record 14277609, one for each label; each holds a folder of .TIF "
    "images of its label: basophil/...",
    download_urls=tuple(f"https://zenodo.org/api/records/14277609/files/{label}.zip/content" for label in _WORDS),
    reader=folder_per_label(_WORDS, (".tif", ".tiff")),
    words=_WORDS,
    citation="""@article{boushehri2025large,
  author = {Shetab Boushehri, Sayedali and Kazeminia, Salome and Gruber, Armin and Matek, Christian and Spiekermann,
    Karsten and Pohlkamp, Christian and Haferlach, Torsten and Marr, Carsten},
  title = {A large expert-annotated single-cell peripheral blood dataset for hematological disease diagnostics},
  journal = {Scientific Data},
  volume = {12},
  pages = {1773},
  year = {2025},
  doi = {10.1038/s41597-025-06223-x}
}""",
    licence="CC BY 4.0",
    expected={
        "": {
            "basophil": 616,
            "eosinophil": 2448,
            "hairy_cell": 3265,
            "lymphocyte": 5532,
            "lymphocyte_large_granular": 1849,
            "lymphocyte_neoplastic": 180,
            "lymphocyte_reactive": 33,
            "metamyelocyte": 483,
            "monocyte": 2510,
            "myeloblast": 8606,
            "myelocyte": 747,
            "neutrophil_band": 687,
            "neutrophil_segmented": 7170,
            "normoblast": 2071,
            "plasma_cell": 1658,
            "promyelocyte": 745,
            "promyelocyte_atypical": 2033,
            "smudge_cell": 988,
        }
    },
)
