"""Matek-19: leucocytes of patients with AML and of controls, Munich."""

from dorl_jax.data.sets.base import DataSet
from dorl_jax.data.sets.folders import folder_per_label

_WORDS = {
    "BAS": "basophil",
    "EBO": "erythroblast",
    "EOS": "eosinophil",
    "KSC": "smudge_cell",
    "LYA": "lymphocyte_atypical",
    "LYT": "lymphocyte_typical",
    "MMZ": "metamyelocyte",
    "MOB": "monoblast",
    "MON": "monocyte",
    "MYB": "myelocyte",
    "MYO": "myeloblast",
    "NGB": "neutrophil_banded",
    "NGS": "neutrophil_segmented",
    "PMB": "promyelocyte_bilobed",
    "PMO": "promyelocyte",
}

MATEK19 = DataSet(
    name="matek19",
    title="A Single-cell Morphological Dataset of Leukocytes from AML Patients and Non-malignant Controls",
    homepage="https://doi.org/10.7937/tcia.2019.36f5o9ld",
    get="download AML-Cytomorphology_LMU from The Cancer Imaging Archive (about 11 GB, with the IBM Aspera plugin); it "
    "holds a folder of .tiff images for each of 15 labels: AML-Cytomorphology_LMU/BAS/BAS_0001.tiff",
    reader=folder_per_label(_WORDS, (".tiff", ".tif")),
    words=_WORDS,
    citation="""@misc{matek2019aml,
  author = {Matek, Christian and Schwarz, Simone and Marr, Carsten and Spiekermann, Karsten},
  title = {A Single-cell Morphological Dataset of Leukocytes from {AML} Patients and Non-malignant Controls},
  publisher = {The Cancer Imaging Archive},
  year = {2019},
  doi = {10.7937/tcia.2019.36f5o9ld}
}""",
    licence="CC BY 3.0",
    expected={
        "": {
            "BAS": 79,
            "EBO": 78,
            "EOS": 424,
            "KSC": 15,
            "LYA": 11,
            "LYT": 3937,
            "MMZ": 15,
            "MOB": 26,
            "MON": 1789,
            "MYB": 42,
            "MYO": 3268,
            "NGB": 109,
            "NGS": 8484,
            "PMB": 18,
            "PMO": 70,
        }
    },
)
