"""Where images are, as text and back."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dorl_jax.data.sources import (
    ImageSource,
    Part,
    Record,
    TarMember,
    ZipMember,
    parse_quickly,
    parse_source,
    source_text,
)

# Paths and names of the marks that the texts are made with, and of anything else.
PIECES = st.sampled_from(
    ["a", "#", "%", "%23", "%25", "/", "#xywh=1,2,3,4", "#tar=5,6:", "#zip=1,2,3,8,5:", "#test[3].image", " ", "ö\n"]
)
TEXT = st.lists(PIECES | st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=3), min_size=1).map(
    "".join
)
PATHS = TEXT.map(lambda text: Path("/", text))
NUMBERS = st.integers(0, 2**40)
SOURCES = st.one_of(
    PATHS,
    st.builds(Part, PATHS, NUMBERS, NUMBERS, NUMBERS, NUMBERS),
    st.builds(Record, PATHS, st.sampled_from(["train", "a.b-c"]), NUMBERS, st.sampled_from(["image", "mask"])),
    st.builds(TarMember, PATHS, NUMBERS, NUMBERS, TEXT),
    st.builds(ZipMember, PATHS, NUMBERS, NUMBERS, NUMBERS, st.sampled_from([0, 8]), NUMBERS, TEXT),
)


@settings(deadline=None, max_examples=250)
@given(SOURCES)
def test_text_and_back(source: ImageSource) -> None:
    assert parse_source(source_text(source)) == source


@settings(deadline=None)
@given(SOURCES)
def test_quick_parsing_differs_only_in_leaving_paths_as_text(source: ImageSource) -> None:
    found = parse_quickly(source_text(source))
    assert (Path(found) if isinstance(found, str) else found) == source


@pytest.mark.parametrize("text", ["/data/a.png", "/data/a#1.png", "/data/100%.png", "a%23.png"])
def test_usual_files_are_their_own_text(text: str) -> None:
    assert source_text(Path(text)) == text
    assert parse_source(text) == Path(text)


def test_texts_of_members() -> None:
    assert str(TarMember(Path("/a.tar"), 512, 7, "x/#1 %.png")) == "/a.tar#tar=512,7:x/%231 %25.png"
    assert str(ZipMember(Path("/a.zip"), 1, 2, 3, 8, 4, "x.png")) == "/a.zip#zip=1,2,3,8,4:x.png"
