from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dorl_jax.data.manifest import (
    Checked,
    check_cells,
    few_cells,
    load_cells,
    read_cell,
    read_laboratories,
    read_laboratory,
    require_laboratories,
    require_usable,
    save_cells,
)
from dorl_jax.data.taxonomy import Taxonomy
from dorl_jax.errors import InputError

Make = Callable[..., Path]


def row(file: str, label: str = "monocyte", mask: str = "", **others: str) -> dict[str, str]:
    return {"file": file, "class": label, "mask": mask, "duplicate_of": "", "note": "any"} | others


def test_reads_a_laboratory(make_laboratory: Make, five: Taxonomy) -> None:
    folder = make_laboratory(
        [
            row("a.png", "neutrophil_band", "a_mask.png"),
            row("b.bmp"),
            row("c.png", duplicate_of="a.png"),
            row("d.png", "platelet"),
            row("e.png", "Platelet"),
        ]
    )
    manifest = read_laboratory(folder, five)
    first, second = manifest.cells
    assert (first.id, first.laboratory, first.label) == ("lab/a.png", "lab", "neutrophil")
    assert (first.image, first.mask) == (folder / "a.png", folder / "a_mask.png")
    assert (second.id, second.label, second.mask) == ("lab/b.bmp", "monocyte", None)
    assert manifest.dropped == {"platelet": 1, "Platelet": 1}
    assert manifest.laboratories == ("lab",)
    assert manifest.counts() == {
        "lab": {"neutrophil": 1, "lymphocyte": 0, "monocyte": 1, "eosinophil": 0, "basophil": 0}
    }
    assert manifest.of("lab") == manifest.cells
    with pytest.raises(InputError, match=r"no laboratory 'lap' \(did you mean 'lab'\?\)"):
        manifest.of("lap")


def test_paths_do_not_depend_on_the_working_folder(
    make_laboratory: Make, five: Taxonomy, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_laboratory([row("a.png")])
    monkeypatch.chdir(folder)
    (cell,) = read_laboratory(Path("."), five).cells
    assert (cell.id, cell.image) == ("lab/a.png", folder / "a.png")


def test_byte_order_mark(make_laboratory: Make, five: Taxonomy) -> None:
    folder = make_laboratory([row("a.png")])
    table = folder / "labels.csv"
    table.write_bytes(b"\xef\xbb\xbf" + table.read_bytes())
    assert read_laboratory(folder, five).cells[0].label == "monocyte"


def test_unknown_label_names_file_line_and_nearest(make_laboratory: Make, five: Taxonomy) -> None:
    folder = make_laboratory([row("a.png"), row("b.png", "monocite")])
    with pytest.raises(InputError, match=r"labels\.csv, line 3: unknown label 'monocite' \(did you mean 'monocyte'"):
        read_laboratory(folder, five)


def test_unknown_labels_are_all_named(make_laboratory: Make, tmp_path: Path, five: Taxonomy) -> None:
    words = ["monocite", "lympho", "lympho", "monocyte"]
    make_laboratory([row(f"{place}.png", word) for place, word in enumerate(words)], name="north")
    make_laboratory([row("a.png", "lympho"), row("b.png", "odd", duplicate_of="a.png")], name="south")
    with pytest.raises(
        InputError, match=r"line 2: unknown label 'monocite'.*; laboratory\.toml maps or drops"
    ) as caught:
        read_laboratories(tmp_path, (), five)
    assert str(caught.value).endswith("; not known either: 'lympho' of north, 'lympho' of south")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "file,clas\na.png,monocyte\n",
            r"no column 'class' \(did you mean 'clas'\?\); there are: file, clas",
        ),
        (
            "file;class\na.png;monocyte\n",
            r"no column 'file'; there are: file;class\. Its values are parted by ';': save",
        ),
        ("file,class,class\na.png,monocyte,basophil\n", "has 2 columns 'class': call all but one otherwise"),
        ("file,class\nimages\\a.png,monocyte\n", r"line 2: there is no images\\a\.png: write '/' between"),
        ("", "no column 'file'; there are: none"),
        ("file,class\n", "has no rows"),
        ("file,class\n,monocyte\n", "line 2: empty file"),
        ("file,class\na.png,\n", "line 2: empty class"),
        ("file,class\na.png,monocyte,x\n", "line 2: more values than the 2 columns"),
        ("file,class\na.png,platelet\n", r"no cell left of 1 rows \(labels dropped: platelet; dup"),
        (
            "file,class,duplicate_of\na.png,platelet,\nb.png,platelet,./a.png\nc.png,platelet,b.png\n",
            r"no cell left of 3 rows \(labels dropped: platelet; duplicates of another: 2\)",
        ),
        ("file,class,duplicate_of\na.png,monocyte,\nb.png,monocyte,no\n", "line 3: duplicate_of is 'no', which is no"),
        ("file,class,duplicate_of\na.png,monocyte,a.png\n", r"line 2: duplicate_of is 'a\.png', which is no file that"),
        ("file,class,duplicate_of\na.png,x,b.png\nb.png,x,a.png\n", r"line 2: duplicate_of is 'b\.png'"),
        ("file,class\n,\n , \n", "has no rows"),
        ("file,class\nnone.png,monocyte\n", r"line 2: no image file at .*none\.png"),
        ("file,class,mask\na.png,monocyte,none.png\n", r"line 2: no mask file at .*none\.png"),
        ("file,class\na.png,monocyte\n./a.png,monocyte\n", r"line 3: \./a\.png is listed already in line 2"),
        ("file,class\n\udcff.png,monocyte\n", "not a readable CSV file in UTF-8"),
        ('file,class\n"a.png,monocyte\n', "not a readable CSV file in UTF-8"),
    ],
)
def test_bad_csv(make_laboratory: Make, five: Taxonomy, text: str, message: str) -> None:
    folder = make_laboratory([row("a.png")])
    (folder / "labels.csv").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=message):
        read_laboratory(folder, five)


def test_rows_without_any_value_are_no_rows(make_laboratory: Make, five: Taxonomy) -> None:
    folder = make_laboratory([row("a.png"), row("b.png")])
    with (folder / "labels.csv").open("a") as file:
        file.write(",,,,\n, ,\n\n,,,,,,\n")
    assert [cell.id for cell in read_laboratory(folder, five).cells] == ["lab/a.png", "lab/b.png"]


def test_no_csv(tmp_path: Path, five: Taxonomy) -> None:
    with pytest.raises(InputError, match=r"no labels\.csv in"):
        read_laboratory(tmp_path, five)


def test_reads_laboratories_in_the_wanted_order(make_laboratory: Make, tmp_path: Path, five: Taxonomy) -> None:
    make_laboratory([row("a.png"), row("p.png", "platelet")], name="north")
    make_laboratory([row("a.png"), row("p.png", "platelet")], name="east")
    (tmp_path / "no_laboratory").mkdir()
    everything = read_laboratories(tmp_path, (), five)
    assert everything.laboratories == ("east", "north")
    assert [cell.id for cell in everything.cells] == ["east/a.png", "north/a.png"]
    assert everything.dropped == {"platelet": 2}
    assert read_laboratories(tmp_path, ("north", "east"), five).laboratories == ("north", "east")


def test_bad_choice_of_laboratories(make_laboratory: Make, tmp_path: Path, five: Taxonomy) -> None:
    with pytest.raises(InputError, match="no laboratory in"):
        read_laboratories(tmp_path, (), five)
    make_laboratory([row("a.png")], name="north")
    with pytest.raises(InputError, match=r"no laboratory 'nort' \(did you mean 'north'\?\); there are: north"):
        read_laboratories(tmp_path, ("nort",), five)
    with pytest.raises(InputError, match="named twice"):
        read_laboratories(tmp_path, ("north", "north"), five)
    with pytest.raises(InputError, match="no data folder at"):
        read_laboratories(tmp_path / "none", (), five)


def test_single_laboratory_is_named(make_laboratory: Make, five: Taxonomy) -> None:
    manifest = read_laboratory(make_laboratory([row("a.png")], name="north"), five)
    require_laboratories(manifest, least=1)
    with pytest.raises(InputError, match=r"2 laboratories are needed .* only north"):
        require_laboratories(manifest)


def test_few_cells(make_laboratory: Make, five: Taxonomy) -> None:
    rows = [row(f"{n}.png") for n in range(5)] + [row(f"b{n}.png", "basophil") for n in range(4)]
    manifest = read_laboratory(make_laboratory(rows), five)
    # A class without any cell is absent, not rare.
    assert few_cells(manifest) == (("lab", "basophil", 4),)
    assert few_cells(manifest, least=4) == ()


def test_save_and_load(make_laboratory: Make, tmp_path: Path, five: Taxonomy) -> None:
    make_laboratory([row("a.png", mask="m.png"), row("p.png", "platelet")], name="north")
    make_laboratory([row("ä b.png")], name="east")
    manifest = read_laboratories(tmp_path, ("north", "east"), five)
    path = tmp_path / "run" / "cells.parquet"
    save_cells(manifest, path)
    assert load_cells(path) == manifest
    assert [file.name for file in path.parent.iterdir()] == ["cells.parquet"]


def test_load_refuses_other_files(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pytest.raises(InputError, match="no list of cells at"):
        load_cells(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("text")
    with pytest.raises(InputError, match="is no Parquet file"):
        load_cells(tmp_path / "text.parquet")
    pq.write_table(pa.table({"other": [1]}), tmp_path / "other.parquet")
    with pytest.raises(InputError, match="no list of cells: it has the columns other"):
        load_cells(tmp_path / "other.parquet")


def test_check_cells_parts_the_usable_from_the_others(make_laboratory: Make, five: Taxonomy) -> None:
    names = ["good", "text", "short", "small", "empty", "wide", "broken_mask", "bare"]
    folder = make_laboratory([row(f"{n}.png", mask="" if n == "bare" else f"{n}_m.png") for n in names])
    (folder / "text.png").write_text("no image")
    whole = (folder / "short.png").read_bytes()
    (folder / "short.png").write_bytes(whole[: len(whole) // 2])
    Image.new("RGB", (15, 40)).save(folder / "small.png")
    Image.new("L", (15, 40), 255).save(folder / "small_m.png")
    Image.new("L", (24, 20), 1).save(folder / "empty_m.png")
    Image.new("L", (20, 24), 255).save(folder / "wide_m.png")
    (folder / "broken_mask_m.png").write_bytes(b"")

    checked = check_cells(read_laboratory(folder, five), progress=False)
    accepted, failures = checked.accepted, checked.failures

    assert [cell.id for cell in accepted.cells] == ["lab/good.png", "lab/bare.png"]
    found = {failure.id: failure for failure in failures}
    expected = {
        "lab/text.png": ("text.png", "no BMP, PNG, JPEG, TIFF or WebP image"),
        "lab/short.png": ("short.png", "broken or truncated"),
        "lab/small.png": ("small.png", "15 x 40 pixels"),
        "lab/empty.png": (
            "empty_m.png",
            "empty: no pixel above 64 (128 is cytoplasm, 255 nucleus); values up to 1: mult",
        ),
        "lab/wide.png": ("wide_m.png", "20 x 24 pixels, its image"),
        "lab/broken_mask.png": ("broken_mask_m.png", "no BMP, PNG, JPEG, TIFF or WebP image"),
    }
    assert list(found) == list(expected)
    for id, (file, reason) in expected.items():
        assert found[id].image == folder / id.removeprefix("lab/")
        assert str(folder / file) in found[id].reason
        assert reason in found[id].reason
        assert "\n" not in found[id].reason


def test_check_cells_drops_a_laboratory_without_usable_cells(
    make_laboratory: Make, tmp_path: Path, five: Taxonomy
) -> None:
    make_laboratory([row("a.png")], name="north")
    (make_laboratory([row("a.png")], name="east") / "a.png").write_text("no image")
    checked = check_cells(read_laboratories(tmp_path, (), five), progress=False)
    assert checked.accepted.laboratories == ("north",)
    assert [failure.id for failure in checked.failures] == ["east/a.png"]


def test_a_laboratory_of_which_nothing_is_left_is_refused(
    make_laboratory: Make, tmp_path: Path, five: Taxonomy
) -> None:
    make_laboratory([row("a.png")], name="north")
    folder = make_laboratory([row(f"{n}.png", mask=f"{n}_m.png") for n in "abcd"], name="east")
    (folder / "a.png").write_text("no image")
    for name, value in (("b", 2), ("c", 2), ("d", 0)):
        Image.new("L", (24, 20), value).save(folder / f"{name}_m.png")
    listed = read_laboratories(tmp_path, (), five)
    with pytest.raises(
        InputError,
        match=r"no cell of east can be used: the mask .*/b_m\.png is empty.*up to 2: multiply by 127 .*2 of 4 cells",
    ):
        require_usable(listed, check_cells(listed, progress=False))
    for name in "bcd":
        Image.new("L", (24, 20), 255).save(folder / f"{name}_m.png")
    require_usable(listed, check_cells(listed, progress=False))


def test_check_cells_counts_what_there_is_to_say(make_laboratory: Make, five: Taxonomy) -> None:
    folder = make_laboratory([row("a.png"), row("b.tif"), row("c.tif")])
    pages = [Image.new("RGB", (20, 24), colour) for colour in ("red", "green", "blue")]
    for name in ("b.tif", "c.tif"):
        pages[0].save(folder / name, save_all=True, append_images=pages[1:])
    checked = check_cells(read_laboratory(folder, five), progress=False)
    assert (checked.failures, checked.notes) == ((), {"first of 3 pages": 2})
    assert (read_cell(checked.accepted.cells[1])[0] == (255, 0, 0)).all()


def test_check_cells_shows_progress(make_laboratory: Make, five: Taxonomy, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = read_laboratory(make_laboratory([row("a.png"), row("b.png")]), five)
    check_cells(manifest, progress=True)
    assert "checking images: 100%" in capsys.readouterr().err


def test_read_cell(make_laboratory: Make, five: Taxonomy) -> None:
    folder = make_laboratory([row("a.png", mask="m.png"), row("b.png")])
    with_mask, bare = read_laboratory(folder, five).cells
    image, mask = read_cell(with_mask)
    assert mask is not None
    assert image.shape == (20, 24, 3)
    assert (mask.sum(), mask[5:15, 6:18].all()) == (120, True)
    assert read_cell(bare)[1] is None


@pytest.mark.parametrize(
    ("laboratory", "counts"),
    [
        ("acevedo20", (450, 200, 200, 200, 200)),
        ("jiangxi_tecom", (176, 52, 48, 22, 1)),
        ("cellavision_blog", (33, 37, 15, 12, 3)),
        ("bccd", (202, 33, 20, 84, 2)),
    ],
)
def test_real_laboratories(real_data: Path, five: Taxonomy, laboratory: str, counts: tuple[int, ...]) -> None:
    manifest = read_laboratory(real_data / laboratory, five)
    assert tuple(manifest.counts()[laboratory].values()) == counts
    assert check_cells(manifest, progress=False) == Checked(manifest, (), {})
    assert {cell.mask is None for cell in manifest.cells} == {laboratory == "acevedo20"}
    dropped = {"immature_granulocyte": 751, "erythroblast": 200, "platelet": 200}
    assert manifest.dropped == (dropped if laboratory == "acevedo20" else {})


def test_real_cells_are_darker_than_their_surroundings(real_data: Path, five: Taxonomy) -> None:
    names = ("jiangxi_tecom", "cellavision_blog", "bccd")
    for cell in read_laboratories(real_data, names, five).cells[::20]:
        image, mask = read_cell(cell)
        assert mask is not None
        assert np.mean(image[mask]) < np.mean(image[~mask])
