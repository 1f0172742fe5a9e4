"""Sets whose cells are cut out of fields of view: LISC and BCCD."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dorl_jax.data.encoding import encode_mask
from dorl_jax.data.sets import find_set
from dorl_jax.data.sources import Part
from dorl_jax.errors import InputError

Draw = Callable[..., None]
# x, y, width, height in the field.
Rectangle = tuple[int, int, int, int]


@pytest.fixture
def lisc_field(tmp_path: Path, draw: Draw) -> Callable[..., Path]:
    """A field of 720 x 576 pixels and its outlines, which lack 4 pixels on every side, as published."""

    def make(name: str, cells: Sequence[Rectangle], levels: Sequence[int] = (128, 255), rim: int = 4) -> Path:
        root = tmp_path / "LISC Database"
        label, number = name.split("/")
        image = root / "Main Dataset" / label / f"{number}.bmp"
        draw(image, (720, 576))
        outlines = np.zeros((576, 720), np.uint8)
        for x, y, width, height in cells:
            outlines[y : y + height, x : x + width] = levels[0]
            outlines[y + height // 4 : y + height // 2, x + width // 4 : x + width // 2] = levels[1]
        path = root / "Ground Truth Segmentation" / label / "areaforexpert1" / f"{number}_expert.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(outlines[rim : 576 - rim, rim : 720 - rim]).save(path)
        return root

    return make


@pytest.mark.parametrize("rim", [4, 0])
def test_lisc_cells_and_their_outlines_lie_alike(lisc_field: Callable[..., Path], rim: int) -> None:
    root = lisc_field("Baso/1", [(100, 200, 80, 64)], rim=rim)
    (row,) = find_set("lisc").read(root).rows
    # An eighth of 80 pixels around the cell.
    assert row.image == Part(root / "Main Dataset/Baso/1.bmp", 90, 190, 100, 84)
    outlines = root / "Ground Truth Segmentation/Baso/areaforexpert1/1_expert.bmp"
    assert row.mask == Part(outlines, 90 - rim, 190 - rim, 100, 84)
    assert (row.file, row.label, row.group) == ("Baso/1.bmp", "Baso", "Baso/1.bmp")
    levels = np.array(Image.open(_as_file(encode_mask(row.mask), root / "mask.png")))
    expected = np.zeros((84, 100), np.uint8)
    expected[10:74, 10:90] = 128
    expected[26:42, 30:50] = 255
    np.testing.assert_array_equal(levels, expected)


def test_lisc_several_cells_of_a_field_are_one_group(lisc_field: Callable[..., Path]) -> None:
    lisc_field("lymp/3", [(400, 100, 60, 60), (100, 300, 60, 60), (300, 300, 10, 10)])
    root = lisc_field("neut/7", [(10, 10, 40, 40)])
    rows = find_set("lisc").read(root).rows
    found = [(row.file, row.group, row.image.x if isinstance(row.image, Part) else -1) for row in rows]
    # Left to right; the speck of 10 x 10 pixels is no cell.
    assert found == [
        ("lymp/3.bmp#1", "lymp/3.bmp", 92),
        ("lymp/3.bmp#2", "lymp/3.bmp", 392),
        ("neut/7.bmp", "neut/7.bmp", 5),
    ]


def test_lisc_window_stays_where_there_are_outlines(lisc_field: Callable[..., Path]) -> None:
    root = lisc_field("mono/1", [(4, 500, 80, 72)])
    (row,) = find_set("lisc").read(root).rows
    assert row.image == Part(root / "Main Dataset/mono/1.bmp", 4, 490, 90, 82)
    assert isinstance(row.mask, Part)
    assert (row.mask.x, row.mask.y, row.mask.width, row.mask.height) == (0, 486, 90, 82)


def test_lisc_mixed_fields_are_left_out(lisc_field: Callable[..., Path]) -> None:
    lisc_field("mixt/1", [(100, 100, 60, 60)])
    root = lisc_field("eosi/1", [(100, 100, 60, 60)])
    listing = find_set("lisc").read(root)
    assert [row.label for row in listing.rows] == ["eosi"]
    assert "1 fields of LISC with cells of several kinds are left out." in listing.notes


def test_lisc_outlines_of_low_grey_are_no_masks(lisc_field: Callable[..., Path]) -> None:
    root = lisc_field("eosi/1", [(100, 100, 60, 60)], levels=(1, 2))
    listing = find_set("lisc").read(root)
    assert [row.mask for row in listing.rows] == [None]
    assert any("levels of 64 or less" in note for note in listing.notes)


def test_lisc_counts_fields(lisc_field: Callable[..., Path], caplog: pytest.LogCaptureFixture) -> None:
    root = lisc_field("Baso/1", [(400, 100, 60, 60), (100, 300, 60, 60)])
    find_set("lisc").read(root)
    assert "Baso          53      1" in caplog.text


@pytest.mark.parametrize("cells", [[], [(100, 100, 60, 60)]])
def test_lisc_field_without_outlines(lisc_field: Callable[..., Path], cells: list[Rectangle]) -> None:
    root = lisc_field("eosi/1", cells)
    if cells:
        (root / "Ground Truth Segmentation/eosi/areaforexpert1/1_expert.bmp").unlink()
    with pytest.raises(InputError, match=r"no outlines of .*1.bmp at" if cells else "outlines no cell"):
        find_set("lisc").read(root)


def test_lisc_outlines_of_another_size(lisc_field: Callable[..., Path]) -> None:
    root = lisc_field("eosi/1", [(100, 100, 60, 60)], rim=3)
    with pytest.raises(InputError, match=r"1_expert.bmp has 714 x 570 pixels, .* 720 x 576"):
        find_set("lisc").read(root)


@pytest.fixture
def bccd(tmp_path: Path, draw: Draw) -> Callable[..., Path]:
    """Fields of 640 x 480 pixels: number -> boxes of leucocytes, and the table of kinds."""

    def make(fields: dict[int, list[Rectangle]], kinds: str) -> Path:
        root = tmp_path / "BCCD_Dataset"
        for number, boxes in fields.items():
            draw(root / f"BCCD/JPEGImages/BloodImage_{number:05d}.jpg", (640, 480))
            objects = "".join(
                f"<object><name>{name}</name><bndbox><xmin>{x}</xmin><ymin>{y}</ymin><xmax>{x + width}</xmax>"
                f"<ymax>{y + height}</ymax></bndbox></object>"
                for name, (x, y, width, height) in [("RBC", (1, 1, 90, 90)), *(("WBC", box) for box in boxes)]
            )
            path = root / f"BCCD/Annotations/BloodImage_{number:05d}.xml"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"<annotation>{objects}</annotation>")
        (root / "labels.csv").write_text(f",Image,Category\n{kinds}")
        return root

    return make


def test_bccd_boxes_get_the_kind_of_their_field(bccd: Callable[..., Path]) -> None:
    root = bccd(
        {
            0: [(260, 177, 231, 199)],
            1: [(300, 10, 80, 80), (10, 10, 80, 80)],
            2: [(10, 10, 80, 80)],
            3: [(10, 10, 80, 80)],
            4: [(10, 10, 80, 80), (200, 10, 80, 80)],
            5: [],
        },
        ',0,NEUTROPHIL\n,1,"EOSINOPHIL, EOSINOPHIL"\n,2,"MONOCYTE, BASOPHIL"\n,3,\n,4,LYMPHOCYTE\n,5,NEUTROPHIL\n',
    )
    listing = find_set("bccd").read(root)
    picture = root / "BCCD/JPEGImages"
    assert [(row.file, row.label, row.image, row.group) for row in listing.rows] == [
        (
            "BloodImage_00000.jpg",
            "NEUTROPHIL",
            Part(picture / "BloodImage_00000.jpg", 231, 148, 289, 257),
            "BloodImage_00000",
        ),
        (
            "BloodImage_00001.jpg#1",
            "EOSINOPHIL",
            Part(picture / "BloodImage_00001.jpg", 0, 0, 100, 100),
            "BloodImage_00001",
        ),
        (
            "BloodImage_00001.jpg#2",
            "EOSINOPHIL",
            Part(picture / "BloodImage_00001.jpg", 290, 0, 100, 100),
            "BloodImage_00001",
        ),
    ]
    assert listing.notes == ("4 fields of BCCD are left out: which box is which kind of leucocyte is not said.",)


def test_bccd_without_its_table(bccd: Callable[..., Path]) -> None:
    root = bccd({0: [(10, 10, 80, 80)]}, ",0,NEUTROPHIL\n")
    (root / "labels.csv").unlink()
    with pytest.raises(InputError, match=r"no labels.csv beside"):
        find_set("bccd").read(root)


@pytest.mark.parametrize(
    ("kinds", "message"),
    [(",0,NEUTROFIL\n", "line 2: unknown kind 'NEUTROFIL'"), (",zero,NEUTROPHIL\n", "'zero' is no number of a field")],
)
def test_bccd_bad_table(bccd: Callable[..., Path], kinds: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        find_set("bccd").read(bccd({0: [(10, 10, 80, 80)]}, kinds))


def test_bccd_bad_boxes(bccd: Callable[..., Path]) -> None:
    root = bccd({0: [(10, 10, 80, 80)]}, ",0,NEUTROPHIL\n")
    (root / "BCCD/Annotations/BloodImage_00000.xml").write_text("<annotation>")
    with pytest.raises(InputError, match=r"BloodImage_00000.xml is no file of boxes"):
        find_set("bccd").read(root)


def _as_file(data: bytes, path: Path) -> Path:
    path.write_bytes(data)
    return path
