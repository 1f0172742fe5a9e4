"""Sets that are folders of images: Matek-19, Acevedo-20, Raabin-WBC, MLL23 and the private ones."""

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from dorl_jax.data.listing import Listing
from dorl_jax.data.sets import SETS, find_set
from dorl_jax.errors import InputError

Draw = Callable[..., None]
Labels = Callable[[Listing], dict[str, str]]


@pytest.mark.parametrize("below", ["", "AML-Cytomorphology_LMU", "PKG - AML-Cytomorphology_LMU/AML-Cytomorphology_LMU"])
def test_matek19(tmp_path: Path, draw: Draw, labels_of: Labels, below: str) -> None:
    for name in ("BAS/BAS_0001.tiff", "NGS/NGS_0001.tiff", "NGS/NGS_0002.tiff"):
        draw(tmp_path / below / name)
    (tmp_path / below / "annotations.dat").write_text("BAS/BAS_0001.tiff BAS nan nan\n")
    listing = find_set("matek19").read(tmp_path)
    assert labels_of(listing) == {"BAS/BAS_0001.tiff": "BAS", "NGS/NGS_0001.tiff": "NGS", "NGS/NGS_0002.tiff": "NGS"}
    assert listing.rows[0].image == tmp_path / below / "BAS/BAS_0001.tiff"
    assert listing.words["MOB"] == "monoblast"


def test_unknown_folder_names_a_file_and_the_nearest_label(tmp_path: Path, draw: Draw) -> None:
    draw(tmp_path / "NGS/NGS_0001.tiff")
    draw(tmp_path / "NGX/NGX_0001.tiff")
    with pytest.raises(InputError, match=r"NGX_0001.tiff \(and 0 more\) .*'NGX' \(did you mean 'NG.'\?\)"):
        find_set("matek19").read(tmp_path)


def test_nothing_of_the_set_says_where_to_get_it(tmp_path: Path, draw: Draw) -> None:
    draw(tmp_path / "holiday/beach.jpg")
    with pytest.raises(InputError, match=r"no image of matek19 in .*: download AML-Cytomorphology_LMU from"):
        find_set("matek19").read(tmp_path)
    with pytest.raises(InputError, match="no folder or archive at"):
        find_set("matek19").read(tmp_path / "none")


ACEVEDO = {
    "basophil/BA_1.jpg": "BA",
    "eosinophil/EO_1.jpg": "EO",
    "erythroblast/ERB_1.jpg": "ERB",
    "ig/IG_1.jpg": "IG",
    "ig/MMY_1.jpg": "MMY",
    "ig/MY_1.jpg": "MY",
    "ig/PMY_1.jpg": "PMY",
    "lymphocyte/LY_1.jpg": "LY",
    "monocyte/MO_1.jpg": "MO",
    "neutrophil/BNE_1.jpg": "BNE",
    "neutrophil/NEUTROPHIL_1.jpg": "NEUTROPHIL",
    "neutrophil/SNE_1.jpg": "SNE",
    "platelet/PLATELET_1.jpg": "PLATELET",
}


def test_acevedo20_goes_by_the_prefix(tmp_path: Path, draw: Draw, labels_of: Labels) -> None:
    root = tmp_path / "PBC_dataset_normal_DIB"
    for name in ACEVEDO:
        draw(root / name)
    # The published archive holds both.
    (root / "neutrophil/.DS_169665.jpg").write_bytes(b"no image")
    draw(tmp_path / "__MACOSX/PBC_dataset_normal_DIB/neutrophil/._SNE_1.jpg")
    assert labels_of(find_set("acevedo20").read(tmp_path)) == ACEVEDO
    assert set(ACEVEDO.values()) == set(find_set("acevedo20").words)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("neutrophil/BA_7.jpg", "BA_7.jpg: its prefix 'BA' belongs into the folder 'basophil', not 'neutrophil'"),
        ("ig/PMM_7.jpg", r"PMM_7.jpg: its prefix 'PMM' is no label \(did you mean '.*M.*'\?\)"),
        ("neutrophils/SNE_7.jpg", r"SNE_7.jpg lies in no folder of the set \(did you mean 'neutrophil'\?\)"),
    ],
)
def test_acevedo20_prefix_and_folder_have_to_agree(tmp_path: Path, draw: Draw, name: str, message: str) -> None:
    draw(tmp_path / "basophil/BA_1.jpg")
    draw(tmp_path / name)
    with pytest.raises(InputError, match=message):
        find_set("acevedo20").read(tmp_path)


def test_raabin_wbc_has_splits_and_smears(tmp_path: Path, draw: Draw) -> None:
    for name in (
        "Train/Neutrophil/95-8-22-4_19_1.jpg",
        "Train/Basophil/20190526_163055_2.jpg",
        "TestA/Eosinophil/95-8-27-1_100_2.jpg",
        "TestB/Lymphocyte/strange.jpg",
        # The same name in two splits is two cells.
        "TestB/Neutrophil/95-8-22-4_19_1.jpg",
    ):
        draw(tmp_path / name)
    listing = find_set("raabin_wbc").read(tmp_path)
    found = {(row.split, row.label, row.group) for row in listing.rows}
    assert found == {
        ("train", "Neutrophil", "95-8-22-4"),
        ("train", "Basophil", "20190526"),
        ("test_a", "Eosinophil", "95-8-27-1"),
        ("test_b", "Lymphocyte", ""),
        ("test_b", "Neutrophil", "95-8-22-4"),
    }
    assert listing.notes[0].startswith("1 files of raabin_wbc do not begin with the name of a smear")


def test_raabin_wbc_of_one_split_alone(tmp_path: Path, draw: Draw) -> None:
    draw(tmp_path / "TestA/Monocyte/95-9-1-2_41_1.jpg")
    listing = find_set("raabin_wbc").read(tmp_path / "TestA")
    assert [(row.file, row.split) for row in listing.rows] == [("test_a/Monocyte/95-9-1-2_41_1.jpg", "test_a")]


def test_raabin_wbc_out_of_its_layout(tmp_path: Path, draw: Draw) -> None:
    draw(tmp_path / "Train/Neutrophils/1_1.jpg")
    with pytest.raises(InputError, match=r"has images as Train/Basophil.*did you mean 'Neutrophil'"):
        find_set("raabin_wbc").read(tmp_path)


@pytest.mark.parametrize("layout", ["{0}/{1}", "{0}/{0}/{1}"])
def test_mll23(tmp_path: Path, draw: Draw, labels_of: Labels, layout: str) -> None:
    labels = list(find_set("mll23").words)
    assert len(labels) == 18
    for label in labels:
        draw(tmp_path / layout.format(label, "cell.TIF"))
    assert labels_of(find_set("mll23").read(tmp_path)) == {f"{label}/cell.TIF": label for label in labels}


def test_int20_groups_by_case(tmp_path: Path, draw: Draw) -> None:
    draw(tmp_path / "15-SEG/15-48904.PB.PAP~B.1272-1272.TIF")
    draw(tmp_path / "17-Kernschatten/other.TIF")
    rows = find_set("int20").read(tmp_path).rows
    assert [(row.label, row.group) for row in rows] == [("15-SEG", "15-48904"), ("17-Kernschatten", "")]


def test_sysu3h(tmp_path: Path, draw: Draw, labels_of: Labels) -> None:
    draw(tmp_path / "neutrophil/1.jpg")
    draw(tmp_path / "basophil/1.png")
    assert SETS["sysu3h"].private
    assert labels_of(find_set("sysu3h").read(tmp_path)) == {
        "basophil/1.png": "basophil",
        "neutrophil/1.jpg": "neutrophil",
    }


def test_an_archive_that_is_there_twice_is_refused(tmp_path: Path, draw: Draw) -> None:
    draw(tmp_path / "a/BAS/BAS_0001.tiff")
    draw(tmp_path / "b/BAS/BAS_0001.tiff")
    with pytest.raises(InputError, match=r"a/BAS/BAS_0001.tiff are both BAS/BAS_0001.tiff: the archive is there twice"):
        find_set("matek19").read(tmp_path)


def test_zip_archives(tmp_path: Path, draw: Draw, pack: Callable[[Path, Path], Path], labels_of: Labels) -> None:
    for name in ACEVEDO:
        draw(tmp_path / "made/PBC_dataset_normal_DIB" / name)
    archive = pack(tmp_path / "made", tmp_path / "downloads/PBC_dataset_normal_DIB.zip")
    data_set = find_set("acevedo20")
    for path in (archive, archive.parent):
        with pytest.raises(InputError, match=r"PBC_dataset_normal_DIB.zip is packed: unpack it"):
            data_set.read(path)
        listing = data_set.read(path, unpack_to=tmp_path / "unpacked")
        assert labels_of(listing) == ACEVEDO
        assert listing.rows[0].image.is_relative_to(tmp_path / "unpacked/PBC_dataset_normal_DIB")
    # It was not unpacked a second time.
    assert [path.name for path in (tmp_path / "unpacked").iterdir()] == ["PBC_dataset_normal_DIB"]


def test_zip_archives_of_one_label_each(
    tmp_path: Path, draw: Draw, pack: Callable[[Path, Path], Path], labels_of: Labels
) -> None:
    for label in ("basophil", "monocyte"):
        draw(tmp_path / "made" / label / label / "1.TIF")
        pack(tmp_path / "made" / label, tmp_path / f"downloads/{label}.zip")
    listing = find_set("mll23").read(tmp_path / "downloads", unpack_to=tmp_path / "unpacked")
    assert labels_of(listing) == {"basophil/1.TIF": "basophil", "monocyte/1.TIF": "monocyte"}


def test_archives_beside_what_is_unpacked_of_others(
    tmp_path: Path, draw: Draw, pack: Callable[[Path, Path], Path], caplog: pytest.LogCaptureFixture
) -> None:
    """Two of the three archives of Raabin-WBC are .rar: they were unpacked by hand, the third was not."""
    folder = tmp_path / "downloads"
    draw(folder / "Train/Neutrophil/95-8-22-4_19_1.jpg")
    (folder / "Train.rar").write_bytes(b"Rar!")
    draw(tmp_path / "made/TestB/Lymphocyte/95-9-3-1_14_1.jpg")
    pack(tmp_path / "made", folder / "TestB.zip")
    data_set = find_set("raabin_wbc")
    without = data_set.read(folder)
    assert [row.split for row in without.rows] == ["train"]
    assert "Not unpacked, so that their images are missing: TestB.zip." in without.notes
    assert "TestB.zip" in caplog.text
    # Also when the archives are unpacked below the folder that is read.
    for unpack_to in (tmp_path / "unpacked", folder / "unpacked"):
        for _ in range(2):
            listing = data_set.read(folder, unpack_to=unpack_to)
            assert sorted(row.split for row in listing.rows) == ["test_b", "train"]
            assert not any("Not unpacked" in note for note in listing.notes)


def test_zip_with_a_damaged_image_leaves_nothing(
    tmp_path: Path, draw: Draw, pack: Callable[[Path, Path], Path]
) -> None:
    draw(tmp_path / "made/TestB/Lymphocyte/95-9-3-1_14_1.jpg")
    archive = pack(tmp_path / "made", tmp_path / "downloads/TestB.zip")
    data = bytearray(archive.read_bytes())
    data[200:240] = bytes(40)
    archive.write_bytes(data)
    with pytest.raises(InputError, match=r"TestB.zip is no whole .zip archive: .*CRC"):
        find_set("raabin_wbc").read(archive.parent, unpack_to=tmp_path / "unpacked")
    assert not list((tmp_path / "unpacked").iterdir())


def test_broken_zip_and_rar(tmp_path: Path) -> None:
    (tmp_path / "zip").mkdir()
    (tmp_path / "zip/Train.zip").write_bytes(b"PK not really")
    with pytest.raises(InputError, match=r"Train.zip is no whole .zip archive"):
        find_set("raabin_wbc").read(tmp_path / "zip", unpack_to=tmp_path / "unpacked")
    (tmp_path / "rar").mkdir()
    (tmp_path / "rar/Train.rar").write_bytes(b"Rar!")
    with pytest.raises(InputError, match=r"Train.rar is packed: unpack it first; only .zip"):
        find_set("raabin_wbc").read(tmp_path / "rar", unpack_to=tmp_path / "unpacked")


def test_what_a_killed_unpacking_left_is_not_taken_for_the_archive(
    tmp_path: Path, draw: Draw, pack: Callable[[Path, Path], Path], labels_of: Labels, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ACEVEDO:
        draw(tmp_path / "made" / name)
    archive = pack(tmp_path / "made", tmp_path / "downloads/PBC_dataset_normal_DIB.zip")
    unpack_to = archive.parent / "unpacked"

    def killed(file: zipfile.ZipFile, into: Path) -> None:
        file.extract(next(name for name in file.namelist() if name.endswith(".jpg")), into)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(zipfile.ZipFile, "extractall", killed)
        patch.setattr(shutil, "rmtree", lambda folder: None)  # which nobody calls in a process that is killed
        with pytest.raises(KeyboardInterrupt):
            find_set("acevedo20").read(archive.parent, unpack_to=unpack_to)
    assert len(list(unpack_to.rglob("*.jpg"))) == 1
    assert labels_of(find_set("acevedo20").read(archive.parent, unpack_to=unpack_to)) == ACEVEDO


@pytest.mark.parametrize(
    ("place", "value", "reason"), [(8, 1, "is encrypted"), (10, 9, "compression method is not supported")]
)
def test_zip_that_python_cannot_unpack(
    tmp_path: Path, draw: Draw, pack: Callable[[Path, Path], Path], place: int, value: int, reason: str
) -> None:
    """Place and value: of a field in the archive's directory, and two bytes before in a member's own header."""
    draw(tmp_path / "made/TestB/Lymphocyte/95-9-3-1_14_1.jpg")
    archive = pack(tmp_path / "made", tmp_path / "downloads/TestB.zip")
    data = bytearray(archive.read_bytes())
    for beginning, field in ((b"PK\1\2", place), (b"PK\3\4", place - 2)):
        data[data.rindex(beginning) + field] = value
    archive.write_bytes(data)
    with pytest.raises(InputError, match=rf"TestB.zip cannot be unpacked here: .*{reason}.*; unpack it by another"):
        find_set("raabin_wbc").read(archive.parent, unpack_to=tmp_path / "unpacked")
    assert not list((tmp_path / "unpacked").iterdir())
