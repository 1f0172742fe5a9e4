from pathlib import Path

import pytest

from dorl_jax.data.sets import find_set
from dorl_jax.data.taxonomy import load_taxonomy
from dorl_jax.errors import InputError

# Raw labels of the paper's data sets onto its 13 classes; None is dropped.
PAPER = {
    "Matek-19": """BAS basophil, EBO erythroblast, EOS eosinophil, KSC smudge_cell, LYA lymphocyte_atypical,
        LYT lymphocyte_typical, MMZ metamyelocyte, MOB monocyte, MON monocyte, MYB myelocyte, MYO myeloblast,
        NGB neutrophil_banded, NGS neutrophil_segmented, PMO promyelocyte, PMB promyelocyte""",
    "Acevedo-20": """BA basophil, EO eosinophil, ERB erythroblast, PMY promyelocyte, MY myelocyte,
        MMY metamyelocyte, LY lymphocyte_typical, MO monocyte, BNE neutrophil_banded, SNE
        neutrophil_segmented, IG None, NEUTROPHIL None, PLATELET None""",
    "INT-20": """01-NORMO erythroblast, 05-MONO monocyte, 08-LYMPH-neo lymphocyte_atypical,
        12-LYMPH-reaktiv lymphocyte_atypical, 09-BASO basophil, 10-EOS eosinophil, 11-STAB neutrophil_banded,
        13-MYBL myeloblast, 14-LYMPH-typ lymphocyte_typical, 15-SEG neutrophil_segmented,
        17-Kernschatten smudge_cell, 18-PMYEL promyelocyte, 19-MYEL myelocyte, 20-Meta metamyelocyte,
        04-LGL None, 16-PLZ None, 21-Haarzelle None, 22-Atyp-PMYEL None""",
    "SYSU3H": """basophil basophil, eosinophil eosinophil, lymphocyte lymphocyte_typical, monocyte monocyte,
        neutrophil neutrophil_segmented""",
}
PAIRS = [tuple(pair.split()) for table in PAPER.values() for pair in table.split(",")]

FIVE_OF_THIRTEEN = {
    "basophil": "basophil",
    "eosinophil": "eosinophil",
    "monocyte": "monocyte",
    "neutrophil_banded": "neutrophil",
    "neutrophil_segmented": "neutrophil",
    "lymphocyte_typical": "lymphocyte",
    "lymphocyte_atypical": "lymphocyte",
}


@pytest.mark.parametrize(("raw", "expected"), PAIRS)
def test_thirteen_classes_are_the_papers(raw: str, expected: str) -> None:
    assert load_taxonomy("thirteen_classes").resolve(raw) == (None if expected == "None" else expected)


@pytest.mark.parametrize(("raw", "expected"), PAIRS)
def test_five_classes_are_the_thirteen_merged(raw: str, expected: str) -> None:
    # An unspecified neutrophil has no place among the 13, but one among the 5.
    merged = "neutrophil" if raw == "NEUTROPHIL" else FIVE_OF_THIRTEEN.get(expected)
    assert load_taxonomy("five_classes").resolve(raw) == merged


@pytest.mark.parametrize("name", PAPER)
def test_published_sets_say_what_the_paper_says(name: str) -> None:
    data_set = find_set(name.replace("-", "").lower())
    expected = dict(pair.split() for pair in PAPER[name].split(","))
    taxonomy = load_taxonomy("thirteen_classes")
    assert {raw: str(taxonomy.resolve(word)) for raw, word in data_set.words.items()} == expected


def test_words_of_mll23() -> None:
    """It comes from the laboratory of INT-20: the same cells are kept, merged and dropped."""
    expected = """basophil basophil, eosinophil eosinophil, hairy_cell None, lymphocyte lymphocyte_typical,
        lymphocyte_large_granular None, lymphocyte_neoplastic lymphocyte_atypical,
        lymphocyte_reactive lymphocyte_atypical, metamyelocyte metamyelocyte, monocyte monocyte,
        myeloblast myeloblast, myelocyte myelocyte, neutrophil_band neutrophil_banded,
        neutrophil_segmented neutrophil_segmented, normoblast erythroblast, plasma_cell None,
        promyelocyte promyelocyte, promyelocyte_atypical None, smudge_cell smudge_cell"""
    for taxonomy, merge in (("thirteen_classes", {}), ("five_classes", FIVE_OF_THIRTEEN)):
        known = load_taxonomy(taxonomy)
        for pair in expected.split(","):
            raw, common = pair.split()
            word = find_set("mll23").words[raw]
            assert known.resolve(word) == (merge.get(common) if merge or common == "None" else common), raw


@pytest.mark.parametrize("name", ["raabin_wbc", "lisc", "bccd", "jiangxi_tecom", "cellavision_blog"])
def test_words_of_sets_of_five_kinds(name: str) -> None:
    words = find_set(name).words.values()
    five, thirteen = load_taxonomy("five_classes"), load_taxonomy("thirteen_classes")
    assert {five.resolve(word) for word in words} == set(five.classes)
    assert {thirteen.resolve(word) for word in words} == {
        "neutrophil_segmented",
        "lymphocyte_typical",
        "monocyte",
        "eosinophil",
        "basophil",
    }


def test_order_of_classes() -> None:
    five = load_taxonomy("five_classes")
    assert five.classes == ("neutrophil", "lymphocyte", "monocyte", "eosinophil", "basophil")
    assert len(load_taxonomy("thirteen_classes").classes) == 13


@pytest.mark.parametrize("raw", ["erythroblast", "immature_granulocyte", "platelet", "smudge_cell", "myelocyte"])
def test_five_classes_drop_the_rest(raw: str) -> None:
    assert load_taxonomy("five_classes").resolve(raw) is None


@pytest.mark.parametrize("raw", ["Neutrophil Segmented", "NEUTROPHIL_SEGMENTED", " neutrophil-segmented "])
def test_spelling_is_blind_to_case_and_separators(raw: str) -> None:
    assert load_taxonomy("five_classes").resolve(raw) == "neutrophil"


def test_unknown_label_names_the_nearest() -> None:
    with pytest.raises(InputError, match=r"unknown label 'neutrofil' \(did you mean 'neutrophil'\?\)"):
        load_taxonomy("five_classes").resolve("neutrofil")


def test_label_whose_spellings_differ_in_meaning_is_refused() -> None:
    with pytest.raises(InputError, match="'Neutrophil' is ambiguous"):
        load_taxonomy("thirteen_classes").resolve("Neutrophil")


def test_unknown_taxonomy_names_the_nearest() -> None:
    with pytest.raises(InputError, match=r"'five_class' \(did you mean 'five_classes'\?\)"):
        load_taxonomy("five_class")


def test_taxonomy_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "two.toml"
    path.write_text('classes = ["granulocyte", "other"]\ndropped = ["junk"]\n[labels]\nNEU = "granulocyte"\n')
    taxonomy = load_taxonomy(str(path))
    assert (taxonomy.name, taxonomy.classes) == ("two", ("granulocyte", "other"))
    assert [taxonomy.resolve(raw) for raw in ("NEU", "other", "junk")] == ["granulocyte", "other", None]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("classes = [", "not valid TOML"),
        ('clases = ["a"]', r"unknown key 'clases' \(did you mean 'classes'\?\)"),
        ("dropped = []", "`classes` is missing or empty"),
        ("classes = 3", "`classes` must be a list of strings"),
        ('classes = ["a", "a"]', "names a class twice"),
        (
            'classes = ["alpha"]\n[labels]\nx = "alpa"',
            r"'x' maps to 'alpa', which is no class \(did you mean 'alpha'",
        ),
        ('classes = ["a", "b"]\n[labels]\na = "b"', "'a' is a class and cannot map to 'b'"),
        ('classes = ["a"]\n[labels]\nx = 3', "must be a table of raw"),
        ('classes = ["a"]\ndropped = ["a"]', "both kept and dropped: a"),
    ],
)
def test_bad_taxonomy_file(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        load_taxonomy(str(path))
    assert str(path) in str(caught.value)


def test_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('classes = ["blast"]', encoding="utf-8-sig")
    assert load_taxonomy(str(path)).classes == ("blast",)


def test_missing_taxonomy_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no taxonomy file at"):
        load_taxonomy(str(tmp_path / "none.toml"))
