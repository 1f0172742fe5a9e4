import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dorl_jax.data.sets import SETS, count_differences, differences_table, find_set
from dorl_jax.data.taxonomy import load_taxonomy
from dorl_jax.errors import InputError

# Published totals, counted by hand from the articles and repositories.
TOTALS = {
    "matek19": 18_365,
    "acevedo20": 17_092,
    "raabin_wbc": 10_175 + 4_339,
    "mll23": 41_621,
    "lisc": 250 - 8,
    "jiangxi_tecom": 300,
    "cellavision_blog": 100,
}


def test_unknown_set_names_the_nearest() -> None:
    with pytest.raises(InputError, match=r"unknown data set 'matek' \(did you mean 'matek19'\?\); there are: matek19"):
        find_set("matek")


def test_sets_are_found_by_their_names() -> None:
    assert [find_set(name).name for name in SETS] == list(SETS)


@pytest.mark.parametrize(("name", "total"), TOTALS.items())
def test_expected_numbers_add_up_to_the_published_total(name: str, total: int) -> None:
    assert sum(sum(labels.values()) for labels in SETS[name].expected.values()) == total


def test_folders_of_acevedo_have_their_published_numbers() -> None:
    expected = SETS["acevedo20"].expected[""]
    assert sum(expected[prefix] for prefix in ("BNE", "SNE", "NEUTROPHIL")) == 3_329
    assert sum(expected[prefix] for prefix in ("MMY", "MY", "PMY", "IG")) == 2_895


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("taxonomy", ["five_classes", "thirteen_classes"])
def test_every_label_of_every_set_has_a_meaning(name: str, taxonomy: str) -> None:
    known = load_taxonomy(taxonomy)
    data_set = SETS[name]
    for word in data_set.words.values():
        known.resolve(word)
    assert {label for labels in data_set.expected.values() for label in labels} <= set(data_set.words)


def test_what_the_paper_takes_of_acevedo() -> None:
    data_set, taxonomy = SETS["acevedo20"], load_taxonomy("thirteen_classes")
    kept = {
        label: number
        for label, number in data_set.expected[""].items()
        if taxonomy.resolve(data_set.words[label]) is not None
    }
    assert set(data_set.words) - set(kept) == {"PLATELET", "IG", "NEUTROPHIL"}
    assert sum(kept.values()) == 17_092 - 2_348 - 151 - 50 == 14_543


def test_what_the_thirteen_classes_are_of_matek() -> None:
    data_set, taxonomy = SETS["matek19"], load_taxonomy("thirteen_classes")
    counts: Counter[str | None] = Counter()
    for label, number in data_set.expected[""].items():
        counts[taxonomy.resolve(data_set.words[label])] += number
    assert counts["monocyte"] == 1_789 + 26
    assert counts["promyelocyte"] == 70 + 18
    assert None not in counts
    assert len(counts) == 13


def test_public_sets_say_where_they_are() -> None:
    for data_set in SETS.values():
        assert data_set.title
        assert data_set.get
        assert data_set.homepage.startswith("https://")
        # The Cancer Imaging Archive hands Matek-19 out through a plugin.
        assert data_set.private or data_set.name == "matek19" or data_set.download_urls


def test_incomplete_download(tmp_path: Path, draw: Callable[..., None], caplog: pytest.LogCaptureFixture) -> None:
    for name in ("BAS/BAS_0001.tiff", "BAS/BAS_0002.tiff", "NGS/NGS_0001.tiff"):
        draw(tmp_path / name)
    few = replace(SETS["matek19"], expected={"": {"BAS": 2, "KSC": 15, "NGS": 8484}})
    with caplog.at_level(logging.WARNING):
        listing = few.read(tmp_path)
    table = "label  published  found\nKSC           15      0\nNGS         8484      1"
    assert table in caplog.text
    assert listing.notes[-1] == "2 labels do not have their published number of images (see the log)."
    differences = count_differences(listing, few)
    assert differences_table(differences) == table
    assert [(item.label, item.expected, item.found) for item in differences] == [("KSC", 15, 0), ("NGS", 8484, 1)]
    with pytest.raises(InputError, match=r"is not matek19 as published:\nlabel"):
        few.read(tmp_path, strict=True)


def test_complete_download_is_quiet(
    tmp_path: Path, draw: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    draw(tmp_path / "BAS/BAS_0001.tiff")
    listing = replace(SETS["matek19"], expected={"": {"BAS": 1}}).read(tmp_path, strict=True)
    assert (listing.notes, caplog.text) == ((), "")
