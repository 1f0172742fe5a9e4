"""Sets that were not published but are used in articles: read where somebody has them."""

from dorl_jax.data.sets.base import DataSet
from dorl_jax.data.sets.folders import folder_per_label

_SUFFIXES = (".bmp", ".jpg", ".jpeg", ".png", ".tif", ".tiff")
_INT20 = {
    "01-NORMO": "erythroblast",
    "04-LGL": "lymphocyte_large_granular",
    "05-MONO": "monocyte",
    "08-LYMPH-neo": "lymphocyte_neoplastic",
    "09-BASO": "basophil",
    "10-EOS": "eosinophil",
    "11-STAB": "neutrophil_banded",
    "12-LYMPH-reaktiv": "lymphocyte_reactive",
    "13-MYBL": "myeloblast",
    "14-LYMPH-typ": "lymphocyte_typical",
    "15-SEG": "neutrophil_segmented",
    "16-PLZ": "plasma_cell",
    "17-Kernschatten": "smudge_cell",
    "18-PMYEL": "promyelocyte",
    "19-MYEL": "myelocyte",
    "20-Meta": "metamyelocyte",
    "21-Haarzelle": "hairy_cell",
    "22-Atyp-PMYEL": "promyelocyte_atypical",
}
_SYSU3H = {
    "basophil": "basophil",
    "eosinophil": "eosinophil",
    "lymphocyte": "lymphocyte_typical",
    "monocyte": "monocyte",
    "neutrophil": "neutrophil_segmented",
}

INT20 = DataSet(
    name="int20",
    title="INT-20: cells of the peripheral blood, Munich Leukemia Laboratory",
    homepage="https://arxiv.org/abs/2207.00501",
    get="it is private; its images lie in a folder for each label: 01-NORMO/...",
    # <case>.PB.PAP~B.<cell>.TIF
    reader=folder_per_label(_INT20, _SUFFIXES, group=r"(\d+-\d+)\."),
    words=_INT20,
    private=True,
)

SYSU3H = DataSet(
    name="sysu3h",
    title="SYSU3H: cells of the peripheral blood, Third Affiliated Hospital of Sun Yat-sen University",
    homepage="https://arxiv.org/abs/2408.07467",
    get="it is private; its images lie in a folder for each label: basophil, eosinophil, lymphocyte, monocyte and "
    "neutrophil",
    reader=folder_per_label(_SYSU3H, _SUFFIXES),
    words=_SYSU3H,
    private=True,
)
