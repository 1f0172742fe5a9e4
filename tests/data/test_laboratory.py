"""Laboratories as they come: tables, trees, and one file that says what is what."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dorl_jax.data.laboratory import open_laboratories, open_laboratory
from dorl_jax.data.manifest import make_manifest, read_laboratories
from dorl_jax.data.taxonomy import Taxonomy
from dorl_jax.errors import InputError


@pytest.fixture
def plant(tmp_path: Path) -> Callable[..., Path]:
    """Writes small images (grey 200) at the given paths under a folder, and text files."""

    def write(folder: str, *images: str, **texts: str) -> Path:
        root = tmp_path / folder
        for name in images:
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((20, 24, 3), 200, np.uint8)).save(path)
        for name, text in texts.items():
            path = root / name.replace("__", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return root

    return write


TREE = ("monocyte/p1_a.png", "monocyte/p2_b.jpg", "neutrophil/deeper/p1_c.BMP")


def test_a_tree_of_classes(plant: Callable[..., Path]) -> None:
    root = plant("hospital", *TREE, "loose.png", notes__txt="x")
    (root / ".hidden").mkdir()
    (root / "monocyte" / "Thumbs.db").write_text("x")
    listing = open_laboratory(root)
    assert listing.name == "hospital"
    assert [(row.file, row.label, row.image, row.mask) for row in listing.rows] == [
        ("monocyte/p1_a.png", "monocyte", root / "monocyte/p1_a.png", None),
        ("monocyte/p2_b.jpg", "monocyte", root / "monocyte/p2_b.jpg", None),
        ("neutrophil/deeper/p1_c.BMP", "neutrophil", root / "neutrophil/deeper/p1_c.BMP", None),
    ]
    assert listing.notes == ("2 files are not taken for images of a class: 1 .png, 1 .txt.",)


def test_a_tree_beside_its_masks(plant: Callable[..., Path]) -> None:
    root = plant("hospital", "images/monocyte/a.jpg", "images/monocyte/b.jpg")
    plant("hospital", "masks/monocyte/a.png", "masks/monocyte/none.png")
    listing = open_laboratory(root)
    assert [(row.file, row.mask) for row in listing.rows] == [
        ("monocyte/a.jpg", root / "masks/monocyte/a.png"),
        ("monocyte/b.jpg", None),
    ]
    assert listing.notes == ("1 masks have no image: monocyte/none.",)
    plant("hospital", "masks/monocyte/a.bmp")
    with pytest.raises(InputError, match="two masks for one image"):
        open_laboratory(root)


FILE = {
    "toml": """
name = "north"
images = "pictures"
group = '^[^/]+/(p\\d+)_'
dropped = ["dirt"]
[labels]
mono = "monocyte"
NO = "neutrophil"
""",
    "yaml": """
name: north
images: pictures
group: ^[^/]+/(p\\d+)_
dropped: [dirt]
labels:
  mono: monocyte
  NO: neutrophil
""",
}


@pytest.mark.parametrize("kind", ["toml", "yaml"])
def test_one_file_describes_a_laboratory(plant: Callable[..., Path], five: Taxonomy, kind: str) -> None:
    images = ("pictures/mono/p1_a.png", "pictures/NO/p2_b.png", "pictures/NO/x.png", "pictures/dirt/p1_d.png")
    root = plant("cells", *images, **{f"laboratory__{kind}": FILE[kind]})
    for listing in (open_laboratory(root), open_laboratory(root / f"laboratory.{kind}")):
        manifest = make_manifest([listing], five)
        assert [(cell.id, cell.label, cell.group) for cell in manifest.cells] == [
            ("north/NO/p2_b.png", "neutrophil", "p2"),
            ("north/NO/x.png", "neutrophil", ""),
            ("north/mono/p1_a.png", "monocyte", "p1"),
        ]
        assert manifest.dropped == {"dirt": 1}
        assert listing.notes == ("1 files do not match group = '^[^/]+/(p\\\\d+)_': NO/x.png.",)


def test_columns_of_other_names(plant: Callable[..., Path], five: Taxonomy) -> None:
    root = plant(
        "data",
        "a.png",
        "m.png",
        "b.png",
        sheet__csv="path,diagnosis,patient,set,outline\na.png,Mono,7,train,m.png\nb.png,Neutro,8,test,\n",
        laboratory__toml="""
table = "sheet.csv"
[columns]
file = "path"
label = "diagnosis"
group = "patient"
split = "set"
mask = "outline"
[labels]
Mono = "monocyte"
Neutro = "neutrophil_banded"
unused = "basophil"
""",
    )
    listing = open_laboratory(root)
    first, second = make_manifest([listing], five).cells
    assert (first.id, first.label, first.group, first.split) == ("data/a.png", "monocyte", "7", "train")
    assert first.mask == root / "m.png"
    assert (second.label, second.group, second.split, second.mask) == ("neutrophil", "8", "test", None)
    assert listing.notes == ("laboratory.toml maps labels that no image has: unused.",)


def test_the_images_may_lie_elsewhere(
    plant: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    root = plant("disk/cells", *TREE)
    plant("described", north__toml='root = "${CELLS}"\nsplit = "p1"\n')
    monkeypatch.setenv("CELLS", str(root))
    listing = open_laboratory(tmp_path / "described" / "north.toml")
    assert (listing.name, [row.split for row in listing.rows]) == ("north", ["p1", "", "p1"])


def test_laboratories_of_every_kind_side_by_side(plant: Callable[..., Path], five: Taxonomy, tmp_path: Path) -> None:
    plant("all/tree", *TREE)
    plant("all/table", "a.png", labels__csv="file,class\na.png,basophil\n")
    plant("all/described", "pictures/mono/p1_a.png", laboratory__toml=FILE["toml"])
    (tmp_path / "all" / "empty").mkdir()
    (tmp_path / "all" / "run.toml").write_text("[data]\n")
    manifest = read_laboratories(tmp_path / "all", (), five)
    assert manifest.laboratories == ("north", "table", "tree")
    assert {name: sum(row.values()) for name, row in manifest.counts().items()} == {"north": 1, "table": 1, "tree": 3}
    # A folder that is a laboratory itself is one, too.
    assert [listing.name for listing in open_laboratories(tmp_path / "all" / "tree")] == ["tree"]
    assert [listing.name for listing in open_laboratories(tmp_path / "all", ["tree", "table"])] == ["tree", "table"]
    plant("all/other", "pictures/mono/p1_a.png", laboratory__toml=FILE["toml"])
    with pytest.raises(InputError, match="two laboratories are called 'north': .*described and .*other"):
        open_laboratories(tmp_path / "all")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("imagess = 'a'", r"laboratory\.toml: unknown key 'imagess' \(did you mean 'images'\?\)"),
        ("[columns]\nfil = 'a'", r"unknown key 'columns.fil' \(did you mean 'columns.file'|unknown key 'columns.fil'"),
        ("images = 'a'\ntable = 'b'", "give one of table and images"),
        ("root = 'nowhere'", r"no folder at .*nowhere \(root = 'nowhere'\)"),
        ("root = '${NOT_SET_ANYWHERE}'", "needs the environment variable NOT_SET_ANYWHERE"),
        ("group = 'x(.)y'", r"laboratory\.toml: group = 'x\(\.\)y' matches none of 3 files, 'monocyte/p1_a\.png' for"),
        ("split = 'nowhere'", r"laboratory\.toml: split = 'nowhere' matches none of 3 files"),
        ("group = '('", r"group = '\(' is no regular expression"),
        ("dropped = ['a']\n[labels]\na = 'monocyte'", "both mapped and dropped: a"),
        ("labels = 3", "labels"),
        ("masks = 'm'\ntable = 'sheet.csv'", r"masks = 'm' mirrors a tree of images, which sheet\.csv is not"),
        ("masks = 'm'\npublished = 'matek19'", r"masks = 'm' mirrors a tree of images, which published = 'matek19' is"),
        ("name = 'north/east'", "name = 'north/east': a laboratory's name has no '/'"),
        ("name = ", "not valid TOML"),
        ("images = 'none'", "no folder at .*none"),
    ],
)
def test_bad_laboratory_files(plant: Callable[..., Path], text: str, message: str) -> None:
    root = plant("cells", *TREE, laboratory__toml=text)
    with pytest.raises(InputError, match=message):
        open_laboratory(root)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("labels: {a: monocyte, b: basophil, a: neutrophil}", "line 1: 'a' is there twice"),
        ("? [a, b]\n: monocyte", "line 1: a key that is no text"),
        ("- a\n- b", "does not hold keys and values"),
        ("a: [", "not valid YAML"),
        ("!!python/object/apply:os.system ['true']", "does not hold keys and values|not valid YAML"),
    ],
)
def test_bad_yaml(plant: Callable[..., Path], text: str, message: str) -> None:
    root = plant("cells", *TREE, laboratory__yaml=text)
    with pytest.raises(InputError, match=message):
        open_laboratory(root)


def test_what_is_no_laboratory(plant: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no laboratory at"):
        open_laboratory(tmp_path / "none")
    root = plant("cells", notes__txt="x")
    with pytest.raises(InputError, match=r"notes\.txt is no laboratory: give a folder"):
        open_laboratory(root / "notes.txt")
    with pytest.raises(InputError, match=r"no labels\.csv in .*, no laboratory\.toml and no folder of images"):
        open_laboratory(root)
    (root / "laboratory.toml").write_text("")
    with pytest.raises(InputError, match="no image in the folders of"):
        open_laboratory(root)


def test_an_unknown_label_of_a_tree_names_the_file(plant: Callable[..., Path], five: Taxonomy) -> None:
    root = plant("cells", "monocite/a.png")
    with pytest.raises(InputError, match=r"monocite/a\.png: unknown label 'monocite' \(did you mean 'monocyte'"):
        make_manifest([open_laboratory(root)], five)


def test_masks_within_the_tree_of_images_are_no_class(plant: Callable[..., Path]) -> None:
    root = plant("cells", "monocyte/a.jpg", "outlines/monocyte/a.png", laboratory__toml="masks = 'outlines'")
    assert [(row.file, row.mask) for row in open_laboratory(root).rows] == [
        ("monocyte/a.jpg", root / "outlines/monocyte/a.png")
    ]


def test_accents_are_the_same_in_one_code_point_and_in_two(plant: Callable[..., Path], five: Taxonomy) -> None:
    """The folders were named by macOS, the file was written elsewhere."""
    root = plant("cells", "E\u0301osino/a.png", "de\u0301bris/b.png", "mono/c.png")
    (root / "laboratory.toml").write_text(
        'dropped = ["d\u00e9bris"]\n[labels]\n"\u00c9osino" = "eosinophil"\nmono = "monocyte"'
    )
    listing = open_laboratory(root)
    manifest = make_manifest([listing], five)
    assert sorted(cell.label for cell in manifest.cells) == ["eosinophil", "monocyte"]
    assert manifest.dropped == {"de\u0301bris": 1}
    assert not any("no image has" in note for note in listing.notes)


def test_laboratories_are_named_by_folder_or_by_their_file(plant: Callable[..., Path], tmp_path: Path) -> None:
    plant("all/Mu\u0308nchen", *TREE)
    plant("all/third", *TREE, laboratory__yaml="name: Le\u0301on")
    plant("all/other", *TREE)
    for names in (["third", "M\u00fcnchen"], ["L\u00e9on", "Mu\u0308nchen"]):
        listings = open_laboratories(tmp_path / "all", names)
        assert [one.name for one in listings] == ["Le\u0301on", "Mu\u0308nchen"]
    with pytest.raises(InputError, match="a laboratory is named twice: third, L"):
        open_laboratories(tmp_path / "all", ["third", "L\u00e9on"])
    with pytest.raises(InputError, match="no laboratory 'fourth'"):
        open_laboratories(tmp_path / "all", ["fourth"])


def test_two_laboratory_files_in_one_folder_are_refused(plant: Callable[..., Path]) -> None:
    root = plant("cells", *TREE, laboratory__toml="", laboratory__yaml="name: north")
    with pytest.raises(InputError, match=r"cells has laboratory\.toml and laboratory\.yaml.*: leave one"):
        open_laboratory(root)
    assert open_laboratory(root / "laboratory.yaml").name == "north"


def test_a_wrong_word_is_looked_for_where_it_was_written(plant: Callable[..., Path], five: Taxonomy) -> None:
    root = plant(
        "cells",
        "a.png",
        labels__csv="file,class\na.png,neutrophil\n",
        laboratory__toml="[labels]\nneutrophil = 'neutrophile'",
    )
    message = (
        r"^\S+/laboratory\.toml: \[labels\] 'neutrophil' = 'neutrophile': unknown label 'neutrophile' \(did you mean"
    )
    with pytest.raises(InputError, match=message) as caught:
        make_manifest([open_laboratory(root)], five)
    assert "labels.csv" not in str(caught.value)


def test_columns_without_a_table_are_told_of(plant: Callable[..., Path]) -> None:
    root = plant("cells", "pictures/monocyte/a.jpg", laboratory__toml="images = 'pictures'\n[columns]\nfile = 'path'")
    assert open_laboratory(root).notes == ("laboratory.toml tells columns, but there is no table.",)


def test_masks_beside_a_table_that_nobody_named_are_not_passed_over(plant: Callable[..., Path]) -> None:
    root = plant(
        "cells", "a.png", "outlines/a.png", labels__csv="file,class\na.png,x\n", laboratory__toml="masks = 'outlines'"
    )
    with pytest.raises(InputError, match=r"masks = 'outlines' mirrors a tree of images, which labels\.csv is not"):
        open_laboratory(root)


def test_masks_that_no_image_has_are_told_of(plant: Callable[..., Path]) -> None:
    tree = plant("tree", "images/monocyte/a.jpg", "masks/monocyte/a_mask.png")
    assert any(note.startswith(f"No image has a mask in {tree}/masks: ") for note in open_laboratory(tree).notes)
    table = plant("table", "a.png", "masks/a.png", labels__csv="file,class\na.png,monocyte\n")
    (note,) = open_laboratory(table).notes
    assert note.startswith(f"No image has a mask, though there is a folder {table}/masks: ")
    described = plant("told", "cells/monocyte/a.jpg", "masks/monocyte/a.png", laboratory__toml="images = 'cells'")
    (note,) = open_laboratory(described).notes
    assert note.startswith(f"No image has a mask, though there is a folder {described}/masks: ")
    (described / "laboratory.toml").write_text("images = 'cells'\nmasks = 'masks'")
    assert open_laboratory(described).notes == ()


def test_a_group_of_the_pattern_that_took_no_part_is_no_group(plant: Callable[..., Path]) -> None:
    root = plant("cells", "monocyte/p7_a.png", "monocyte/p_b.png", laboratory__toml="group = 'p(\\d+)?_'")
    listing = open_laboratory(root)
    assert [row.group for row in listing.rows] == ["7", ""]
    assert "1 files do not match group = 'p(\\\\d+)?_': monocyte/p_b.png." in listing.notes


def test_hidden_folders_are_no_laboratories(plant: Callable[..., Path], tmp_path: Path) -> None:
    plant("all/tree", *TREE)
    plant("all/.Trash-1000", "files/x.png")
    plant("all/__MACOSX", "tree/._p1_a.png")
    assert [listing.name for listing in open_laboratories(tmp_path / "all")] == ["tree"]


@pytest.mark.parametrize(
    "file",
    [
        "pictures/2026/a.png",
        "Images/neutrophil/a.png",
        "images/neutrophil/patient 1/x.bmp",
        "train/neutrophil/a.jpg",
    ],
)
def test_a_folder_of_cells_that_is_no_laboratory_is_refused(
    plant: Callable[..., Path], tmp_path: Path, file: str
) -> None:
    plant("all/north", *TREE)
    plant("all/south", *TREE)
    other = plant("all/west", Labels__csv="file,class\npictures/2026/a.png,monocyte\n")
    (other / file).parent.mkdir(parents=True, exist_ok=True)
    (other / file).write_text("x")
    with pytest.raises(InputError, match=rf"west \(with {file}\)\. A laboratory has a labels\.csv.*data\.laboratories"):
        open_laboratories(tmp_path / "all")
    # Where the wanted ones are named, the others are nobody's business.
    assert [one.name for one in open_laboratories(tmp_path / "all", ["south", "north"])] == ["south", "north"]
    (other / file).unlink()
    assert [one.name for one in open_laboratories(tmp_path / "all")] == ["north", "south"]


def test_folders_of_other_things_beside_laboratories(plant: Callable[..., Path], tmp_path: Path) -> None:
    """What our commands wrote, notes, hidden files, and images that a laboratory's file tells of."""
    plant("all/north", *TREE)
    plant("all/notes", ".hidden.png", "__MACOSX/a.png", readme__txt="x")
    plant("all/page", "contact_sheet.png", check__html="x", check__json="{}")
    plant("all/runs/first", "report/umap.png", settings__toml="")
    plant("all/runs/first/stages", prepare__json="{}")
    plant("all/built/south/1.0.0", failures__csv="x", dataset_info__json="{}")
    plant("all/raw", "deeper/mono/a.png")
    plant("all/east", laboratory__toml="root = '../raw/deeper'")
    assert [one.name for one in open_laboratories(tmp_path / "all")] == ["east", "north"]


def test_links_of_a_tree_are_followed_but_not_round_in_circles(plant: Callable[..., Path], tmp_path: Path) -> None:
    root = plant("hospital", *TREE)
    plant("elsewhere", "c.png")
    (root / "monocyte/again").symlink_to(root / "monocyte")
    (root / "neutrophil/up").symlink_to(root)
    (root / "basophil").symlink_to(tmp_path / "elsewhere")
    assert [row.file for row in open_laboratory(root).rows] == sorted(["basophil/c.png", *TREE])


def test_a_folder_that_cannot_be_read_is_told(plant: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    root = plant("hospital", *TREE)
    scan = os.scandir

    def refusing(path: str) -> object:
        if str(path).endswith("deeper"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(InputError, match="neutrophil/deeper cannot be read: Permission denied"):
        open_laboratory(root)


def test_a_name_that_is_no_text_is_refused(plant: Callable[..., Path], tmp_path: Path) -> None:
    root = plant("hospital", *TREE)
    (root / "monocyte/p1_a.png").rename(os.fsdecode(bytes(root / "monocyte") + b"/gr\xfcn.png"))
    with pytest.raises(InputError, match=r"gr\\udcfcn\.png' is no name in UTF-8: rename the file"):
        open_laboratory(root)
