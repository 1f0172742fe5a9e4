import io
import json
import multiprocessing
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from dorl_jax.data import building
from dorl_jax.data.building import dataset_name, split_name
from dorl_jax.data.built import About, Built, build, build_set, read_built, read_left_out, read_record
from dorl_jax.data.images import ImageError, read_image, read_mask, resize_image, resize_mask
from dorl_jax.data.laboratory import open_laboratory
from dorl_jax.data.listing import Listing, Row
from dorl_jax.data.sets import find_set
from dorl_jax.data.sources import Part, Record, parse_source
from dorl_jax.errors import InputError

RNG = np.random.default_rng(1)


def pixels(source: object) -> np.ndarray:
    assert isinstance(source, Record)
    return np.array(Image.open(io.BytesIO(read_record(source))))


@pytest.fixture
def laboratory(tmp_path: Path) -> Listing:
    """Nine cells: JPEG, PNG and TIFF, a part of a picture, some masks, splits that take turns."""
    folder = tmp_path / "cells"
    folder.mkdir()
    rows = []
    for number in range(9):
        path = folder / f"{number}.{('jpg', 'png', 'tif')[number % 3]}"
        Image.fromarray(RNG.integers(0, 256, (20 + number, 24, 3), dtype=np.uint8)).save(path)
        mask = None
        if number % 2:
            mask = folder / f"{number}_mask.png"
            Image.fromarray(RNG.choice(np.array([0, 2, 128, 255], np.uint8), (20 + number, 24))).save(mask)
        rows.append(
            Row(
                file=f"cells/{number}",
                image=path,
                label=("segmentkerniger", "Lympho 1", "NEU")[number % 3],
                mask=mask,
                group=f"patient {number // 3}",
                split=("", "train", "hold-out")[number // 3 if number != 4 else 2],
                duplicate_of="cells/0" if number == 8 else "",
                where=f"row {number}",
            )
        )
    rows[1] = replace(
        rows[1], image=Part(folder / "1.png", 2, 3, 17, 16), mask=Part(folder / "1_mask.png", 2, 3, 17, 16)
    )
    words = {"segmentkerniger": "neutrophil_segmented", "NEU": ""}
    return Listing("Lab of Żory-2", tuple(rows), words, ("A remark.",))


def original(row: Row) -> np.ndarray:
    if isinstance(row.image, Part):
        part = row.image
        return read_image(part.path)[part.y : part.y + part.height, part.x : part.x + part.width]
    assert isinstance(row.image, Path)
    return read_image(row.image)


def test_what_is_built_is_read_back(laboratory: Listing, tmp_path: Path) -> None:
    built = build(laboratory, tmp_path / "out", progress=False)
    assert built == Built(tmp_path / "out/Lab_of_ory_2/1.0.0", 9, (), True)
    back = read_built(built.folder)
    assert (back.name, back.words, back.notes) == (laboratory.name, laboratory.words, laboratory.notes)
    facts = ("file", "label", "group", "split", "duplicate_of")
    for row, stored in zip(laboratory.rows, back.rows, strict=True):
        assert [getattr(stored, name) for name in facts] == [getattr(row, name) for name in facts]
        np.testing.assert_array_equal(pixels(stored.image), original(row))
        assert parse_source(str(stored.image)) == stored.image
        assert (stored.mask is None) == (row.mask is None)
        if isinstance(row.mask, Path):
            np.testing.assert_array_equal(pixels(stored.mask), np.array(Image.open(row.mask)))
    # JPEG bytes are those of the file.
    first = laboratory.rows[0].image
    assert isinstance(first, Path)
    assert read_record(back.rows[0].image) == first.read_bytes()
    assert open_laboratory(built.folder) == back


def test_tfds_reads_what_was_built(laboratory: Listing, tmp_path: Path) -> None:
    about = About("Cells of a test.", "@misc{none}", "https://example.org", "CC0")
    folder = build(laboratory, tmp_path, about=about, version="2.1.0", progress=False).folder
    builder = tfds.builder_from_directory(folder)
    assert (str(builder.info.version), builder.info.description) == ("2.1.0", "Cells of a test.")
    assert (builder.info.homepage, builder.info.citation) == ("https://example.org", "@misc{none}")
    assert builder.info.as_proto.redistribution_info.license == "CC0"
    assert builder.info.supervised_keys == ("image", "label")
    names = builder.info.features["label"].names
    expected = {split: [] for split in ("train", "hold_out")}
    for row in laboratory.rows:
        expected[split_name(row.split)].append(row)
    assert {name: len(rows) for name, rows in expected.items()} == {"train": 5, "hold_out": 4}
    for split, rows in expected.items():
        source = builder.as_data_source(split)
        for example, row in zip(source, rows, strict=True):
            if not isinstance(row.image, Path) or row.image.suffix != ".jpg":
                np.testing.assert_array_equal(example["image"], original(row))
            assert names[example["label"]] == row.label
            assert example["file"].decode() == row.file
            assert example["split_name"].decode() == row.split
            assert len(example["mask"]) == (row.mask is not None)
            if isinstance(row.mask, Path):
                np.testing.assert_array_equal(example["mask"][0][..., 0], np.array(Image.open(row.mask)))


def test_masks_for_all_or_none(laboratory: Listing, tmp_path: Path) -> None:
    masked = [row for row in laboratory.rows if isinstance(row.mask, Path)]
    folder = build(Listing("masked", tuple(masked)), tmp_path, progress=False).folder
    source = tfds.builder_from_directory(folder).as_data_source("hold_out")
    np.testing.assert_array_equal(source[0]["mask"][..., 0], np.array(Image.open(masked[-1].mask)))
    bare = Listing("bare", tuple(replace(row, mask=None) for row in masked))
    folder = build(bare, tmp_path, progress=False).folder
    assert "mask" not in tfds.builder_from_directory(folder).info.features
    with pytest.raises(InputError, match=r"#train\[0\].mask: the cell has no mask"):
        read_record(Record(folder, "train", 0, "mask"))


def test_shards_keep_the_order(laboratory: Listing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "_SHARD_BYTES", 1)
    built = build(laboratory, tmp_path, progress=False, workers=3)
    assert len(list(built.folder.glob("*-train.array_record-*"))) == 5
    back = read_built(built.folder)
    assert [row.file for row in back.rows] == [row.file for row in laboratory.rows]
    for row, stored in zip(laboratory.rows, back.rows, strict=True):
        np.testing.assert_array_equal(pixels(stored.image), original(row))


def test_unreadable_images_are_left_out_with_a_reason(laboratory: Listing, tmp_path: Path) -> None:
    for number, what in ((2, "image"), (3, "mask")):
        source = getattr(laboratory.rows[number], what)
        source.write_bytes(source.read_bytes()[:60])
    (tmp_path / "cells/6.jpg").unlink()
    built = build(laboratory, tmp_path / "out", progress=False)
    assert [item.file for item in built.left_out] == ["cells/2", "cells/3", "cells/6"]
    assert [item.reason.partition(": ")[0].rpartition("/")[2] for item in built.left_out] == [
        "2.tif is a broken or truncated image",
        "3_mask.png is a broken or truncated image",
        "6.jpg",
    ]
    assert read_left_out(built.folder) == built.left_out
    assert [row.file for row in read_built(built.folder).rows] == [f"cells/{n}" for n in (0, 1, 4, 5, 7, 8)]
    for row in read_built(built.folder).rows:
        np.testing.assert_array_equal(pixels(row.image), original(laboratory.rows[int(row.file[-1])]))
    # It is complete: the same again builds nothing.
    again = build(laboratory, tmp_path / "out", progress=False)
    assert again == replace(built, new=False)


def test_strict_stops_at_the_first_and_leaves_nothing(laboratory: Listing, tmp_path: Path) -> None:
    (tmp_path / "cells/6.jpg").unlink()
    with pytest.raises(InputError, match=r"cells/6 cannot be stored: no image file at .*6.jpg"):
        build(laboratory, tmp_path / "out", strict=True, progress=False)
    assert not list((tmp_path / "out/Lab_of_ory_2").iterdir())


def test_nothing_to_store(laboratory: Listing, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no images to build"):
        build(replace(laboratory, rows=()), tmp_path / "out")
    shutil.rmtree(tmp_path / "cells")
    with pytest.raises(InputError, match=r"none of 9 images can be stored: no image file at"):
        build(laboratory, tmp_path / "out", progress=False)
    with pytest.raises(InputError, match="version 'two' is not of the form 1.0.0"):
        build(laboratory, tmp_path / "out", version="two")


def test_another_listing_under_the_same_name_is_refused(laboratory: Listing, tmp_path: Path) -> None:
    build(laboratory, tmp_path / "out", progress=False)
    fewer = replace(laboratory, rows=laboratory.rows[:5])
    with pytest.raises(InputError, match=r"holds other files than Lab of Żory-2 has now: remove it, or build in"):
        build(fewer, tmp_path / "out", progress=False)
    assert build(fewer, tmp_path / "out", version="1.0.1", progress=False).cells == 5


def test_laboratories_that_are_one_in_letters_of_ascii_are_not_mixed_up(laboratory: Listing, tmp_path: Path) -> None:
    first, second = replace(laboratory, name="医院甲"), replace(laboratory, name="医院乙")
    assert build(first, tmp_path / "out", progress=False).folder == tmp_path / "out/set/1.0.0"
    with pytest.raises(InputError, match="set/1.0.0 holds the laboratory '医院甲', not '医院乙'"):
        build(second, tmp_path / "out", progress=False)


@pytest.mark.parametrize(
    "change",
    [{"label": "NEU"}, {"group": "patient 9"}, {"split": "test"}, {"mask": None}, {"duplicate_of": "cells/1"}],
    ids=str,
)
def test_what_the_laboratory_tells_otherwise_by_now_is_not_passed_over(
    laboratory: Listing, tmp_path: Path, change: dict[str, str | None]
) -> None:
    build(laboratory, tmp_path / "out", progress=False)
    rows = [replace(row, **change) if row.file == "cells/3" else row for row in laboratory.rows]
    with pytest.raises(InputError, match=r"holds cells/3 with another label, group, split, mask or original than"):
        build(replace(laboratory, rows=tuple(rows)), tmp_path / "out", progress=False)
    with pytest.raises(InputError, match="has labels that mean something else than those of Lab of Żory-2 now"):
        build(replace(laboratory, words={"NEU": "neutrophil"}), tmp_path / "out", progress=False)


def test_what_no_reader_could_refuse_at_a_common_size_is_left_out(laboratory: Listing, tmp_path: Path) -> None:
    """A mask of another image, and an image that is too small to be a cell."""
    Image.fromarray(np.full((30, 30), 255, np.uint8)).save(tmp_path / "cells/5_mask.png")
    Image.fromarray(np.full((7, 19, 3), 255, np.uint8)).save(tmp_path / "cells/2.tif")
    built = build(laboratory, tmp_path / "out", size=32, progress=False)
    assert [(item.file, item.reason.partition(" has ")[2]) for item in built.left_out] == [
        ("cells/2", "19 x 7 pixels; a side needs at least 16"),
        ("cells/5", f"30 x 30 pixels, its image {tmp_path}/cells/5.tif 24 x 25"),
    ]
    # At their own sizes those who read them refuse them.
    assert not build(laboratory, tmp_path / "plain", progress=False).left_out


def test_a_built_set_can_be_built_again(laboratory: Listing, tmp_path: Path) -> None:
    first = read_built(build(laboratory, tmp_path / "first", progress=False).folder)
    second = read_built(build(first, tmp_path / "second", progress=False).folder)
    for row, stored in zip(first.rows, second.rows, strict=True):
        assert isinstance(row.image, Record)
        assert isinstance(stored.image, Record)
        assert read_record(row.image) == read_record(stored.image)


def test_the_bar_shows_the_cells(laboratory: Listing, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    build(laboratory, tmp_path, progress=True)
    shown = capfd.readouterr()
    assert "building Lab_of_ory_2: 100%" in shown.err
    assert "9/9" in shown.err
    assert shown.out == ""


KILLED = """
    import os, sys
    from pathlib import Path
    import numpy as np
    from PIL import Image
    from dorl_jax.data import building
    from dorl_jax.data.built import build
    from dorl_jax.data.listing import Listing, Row
    folder, kill_at = Path(sys.argv[1]), int(sys.argv[2])
    rows = tuple(Row(str(n), folder / f"{n}.png", "a") for n in range(20))
    for row in rows:
        if not row.image.is_file():
            Image.fromarray(np.full((20, 20, 3), int(row.file), np.uint8)).save(row.image)
    encode = building._encode
    def dying(row, size):
        if int(row.file) == kill_at:
            os._exit(9)
        return encode(row, size)
    building._encode = dying
    print(build(Listing("lab", rows), folder / "out", progress=False).new)
"""


@pytest.mark.slow
def test_a_killed_build_leaves_nothing_that_reads_as_complete(tmp_path: Path) -> None:
    def run(kill_at: int) -> subprocess.CompletedProcess[str]:
        code = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path), str(kill_at)]
        return subprocess.run(code, capture_output=True, text=True, timeout=300)

    assert run(13).returncode == 9
    folder = tmp_path / "out/lab/1.0.0"
    assert not folder.exists()
    with pytest.raises(InputError, match="no built data set at"):
        read_built(folder)
    assert [path.name.partition(".")[0] for path in folder.parent.iterdir()] == ["incomplete"]
    done = run(-1)
    assert (done.returncode, done.stdout.strip()) == (0, "True"), done.stderr
    assert [path.name for path in folder.parent.iterdir()] == ["1.0.0"]
    assert len(read_built(folder).rows) == 20


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "cells.parquet").unlink(), "has no cells.parquet: it was not built by dorl_jax"),
        (lambda folder: (folder / "cells.parquet").write_bytes(b"PAR1"), "is no Parquet file"),
        (lambda folder: (folder / "dataset_info.json").write_text("{"), "is no description of a data set"),
        (
            lambda folder: (folder / "dataset_info.json").write_text(
                json.dumps({"splits": [{"name": "train", "shardLengths": ["4"]}]})
            ),
            "is damaged: . cells of split",
        ),
    ],
)
def test_damaged_sets(laboratory: Listing, tmp_path: Path, spoil: Callable[[Path], None], message: str) -> None:
    folder = build(laboratory, tmp_path, progress=False).folder
    spoil(folder)
    with pytest.raises(InputError, match=message):
        read_built(folder)


def test_folder_without_its_version_is_told(laboratory: Listing, tmp_path: Path) -> None:
    folder = build(laboratory, tmp_path, progress=False).folder
    with pytest.raises(InputError, match=r"no built data set at .*; give the folder of its version: .*1.0.0"):
        read_built(folder.parent)


def test_records_that_are_not_there(laboratory: Listing, tmp_path: Path) -> None:
    folder = build(laboratory, tmp_path, progress=False).folder
    for record, message in (
        (Record(folder, "train", 5, "image"), r"train\[5\].image: the split has 5 cells"),
        (Record(folder, "train", 0, "nucleus"), "the cell has no nucleus"),
        (Record(folder, "test", 0, "image"), "has no split 'test'; there are: train, hold_out"),
        (Record(tmp_path / "none", "train", 0, "image"), "no built data set at"),
    ):
        with pytest.raises(InputError, match=message):
            read_record(record)
    copy = shutil.copytree(folder, tmp_path / "copy")
    next(copy.glob("*-train.array_record-*")).unlink()
    with pytest.raises(InputError, match="is damaged: 0 of 1 files of split train"):
        read_record(Record(copy, "train", 0, "image"))


def test_a_damaged_record_is_one_image_that_cannot_be_read(laboratory: Listing, tmp_path: Path) -> None:
    # Each in a block of 64 kB of its own.
    rows = []
    for number in range(4):
        path = tmp_path / f"{number}.png"
        Image.fromarray(RNG.integers(0, 256, (200, 200, 3), dtype=np.uint8)).save(path)
        rows.append(Row(path.name, path, "NEU"))
    folder = build(Listing("lab", tuple(rows)), tmp_path / "out", progress=False).folder
    back = read_built(folder).rows
    (shard,) = folder.glob("*.array_record-*")
    stored = shard.read_bytes()
    # The pixels of a BMP lie from below.
    place = stored.index(read_image(rows[2].image)[100, :20, ::-1].tobytes())
    shard.write_bytes(stored[:place] + bytes(20) + stored[place + 20 :])
    for number in (0, 1, 3):
        np.testing.assert_array_equal(read_image(back[number].image), read_image(rows[number].image))
    with pytest.raises(ImageError, match=r"train\[2\].image cannot be read, its files are damaged: .*build the set ag"):
        read_image(back[2].image)
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / shard.name).write_bytes(stored[:-70_000])
    with pytest.raises(ImageError, match=r"train\[0\].image cannot be read, its files are damaged"):
        read_image(Record(copy, "train", 0, "image"))


@pytest.mark.slow
def test_threads_and_spawned_processes_read_the_same(laboratory: Listing, tmp_path: Path) -> None:
    back = read_built(build(laboratory, tmp_path, progress=False).folder)
    images = [row.image for row in back.rows if isinstance(row.image, Record)]
    expected = [read_record(image) for image in images]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(read_record, images * 20)) == expected * 20
    with multiprocessing.get_context("spawn").Pool(2) as processes:
        assert processes.map(read_record, images) == expected


def test_names_that_tfds_takes() -> None:
    assert [dataset_name(name) for name in ("jiangxi_tecom", "Hospital A-2", "2021 smears", "Łódź", "..")] == [
        "jiangxi_tecom",
        "Hospital_A_2",
        "set_2021_smears",
        "d",
        "set",
    ]
    assert [split_name(name) for name in ("", "train", "hold-out", "All", "test_a")] == [
        "train",
        "train",
        "hold_out",
        "all_cells",
        "test_a",
    ]


def _matek(folder: Path, count: int = 3) -> Path:
    for label in ("BAS", "NGS"):
        for number in range(count):
            path = folder / f"AML-Cytomorphology_LMU/{label}/{label}_{number:04d}.tiff"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(RNG.integers(0, 256, (18, 20, 3), dtype=np.uint8)).save(path)
    return folder


def test_published_set_through_tfds_and_through_us_is_the_same(tmp_path: Path) -> None:
    import dorl_jax.data.tfds_builders  # noqa: F401

    archive = _matek(tmp_path / "downloads")
    ours = build_set(find_set("matek19"), archive, tmp_path / "ours", progress=False)
    builder = tfds.builder("matek19", data_dir=tmp_path / "theirs", file_format="array_record")
    assert "download AML-Cytomorphology_LMU from The Cancer Imaging Archive" in builder.MANUAL_DOWNLOAD_INSTRUCTIONS
    config = tfds.download.DownloadConfig(manual_dir=archive)
    builder.download_and_prepare(download_config=config)
    assert "10.7937/tcia.2019.36f5o9ld" in builder.info.citation
    assert builder.info.as_proto.redistribution_info.license == "CC BY 3.0"
    for data_dir, folder in ((tmp_path / "ours", ours.folder), (tmp_path / "theirs", Path(builder.data_dir))):
        source = tfds.data_source("matek19", split="train", data_dir=data_dir)
        listing = read_built(folder)
        assert [row.file for row in listing.rows] == [f"{c}/{c}_{n:04d}.tiff" for c in ("BAS", "NGS") for n in range(3)]
        assert listing.words == find_set("matek19").words
        for example, row in zip(source, listing.rows, strict=True):
            expected = read_image(archive / "AML-Cytomorphology_LMU" / row.file)
            np.testing.assert_array_equal(example["image"], expected)
            np.testing.assert_array_equal(pixels(row.image), expected)
            assert builder.info.features["label"].int2str(example["label"]) == row.label


def test_tfds_builder_unpacks_archives(tmp_path: Path) -> None:
    import dorl_jax.data.tfds_builders  # noqa: F401

    made = tmp_path / "made/PBC_dataset_normal_DIB/basophil"
    made.mkdir(parents=True)
    Image.fromarray(RNG.integers(0, 256, (18, 20, 3), dtype=np.uint8)).save(made / "BA_1.jpg")
    (tmp_path / "manual").mkdir()
    shutil.make_archive(str(tmp_path / "manual/PBC_dataset_normal_DIB"), "zip", tmp_path / "made")
    builder = tfds.builder("acevedo20", data_dir=tmp_path / "data")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=tmp_path / "manual"))
    (row,) = read_built(Path(builder.data_dir)).rows
    assert (row.file, row.label) == ("basophil/BA_1.jpg", "BA")
    assert isinstance(row.image, Record)
    assert read_record(row.image) == (made / "BA_1.jpg").read_bytes()
    ours = build_set(find_set("acevedo20"), tmp_path / "manual", tmp_path / "ours", progress=False)
    assert [row.file for row in read_built(ours.folder).rows] == ["basophil/BA_1.jpg"]


def test_all_sets_have_builders() -> None:
    from dorl_jax.data.sets import SETS
    from dorl_jax.data.tfds_builders import BUILDERS

    assert list(BUILDERS) == list(SETS)
    assert set(BUILDERS) <= set(tfds.list_builders(with_community_datasets=False))


WITHOUT_TENSORFLOW = """
    import sys
    from pathlib import Path
    import dorl_jax.data.laboratory, dorl_jax.data.manifest, dorl_jax.data.sets, dorl_jax.data.built
    assert "tensorflow_datasets" not in sys.modules
    import tensorflow_datasets as tfds
    import dorl_jax.data.tfds_builders
    from dorl_jax.data.built import read_built, read_record
    folder = Path(sys.argv[1])
    builder = tfds.builder("matek19", data_dir=folder / "out")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=folder))
    source = tfds.data_source("matek19", split="train", data_dir=folder / "out")
    print(len(source), source[0]["image"].shape)
    print(len(read_record(read_built(Path(builder.data_dir)).rows[0].image)) > 0)
    print([name for name in sys.modules if name.split(".")[0] in ("tensorflow", "jax")])
"""


@pytest.mark.slow
def test_no_tensorflow_and_no_jax(tmp_path: Path) -> None:
    code = [sys.executable, "-c", textwrap.dedent(WITHOUT_TENSORFLOW), str(_matek(tmp_path))]
    done = subprocess.run(code, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-3:] == ["6 (18, 20, 3)", "True", "[]"]


@pytest.mark.slow
def test_importing_the_package_leaves_tfds_alone() -> None:
    code = (
        "import sys, dorl_jax, dorl_jax.data.manifest, dorl_jax.data.sets; print('tensorflow_datasets' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.strip() == "False"


def test_images_of_one_size(laboratory: Listing, tmp_path: Path) -> None:
    built = build(laboratory, tmp_path / "out", size=16, progress=False)
    listing = read_built(built.folder)
    assert listing.notes == ("A remark.", "The built set holds its images at 16 x 16 pixels.")
    for row, stored in zip(laboratory.rows, listing.rows, strict=True):
        np.testing.assert_array_equal(pixels(stored.image), resize_image(original(row), 16))
        assert (row.mask is None) == (stored.mask is None)
        if row.mask is not None and stored.mask is not None:
            np.testing.assert_array_equal(read_mask(stored.mask), resize_mask(read_mask(row.mask), 16))
    assert not build(laboratory, tmp_path / "out", size=16, progress=False).new
    for other in (None, 20):
        with pytest.raises(InputError, match="holds its images at another size"):
            build(laboratory, tmp_path / "out", size=other, progress=False)
