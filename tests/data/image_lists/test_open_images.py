"""Images from anywhere: what is listed, how it is named, and what is refused."""

import csv
import io
import json
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dorl_jax.data.built import build
from dorl_jax.data.image_lists import ImageList, open_images
from dorl_jax.data.images import read_image
from dorl_jax.data.laboratory import open_laboratory
from dorl_jax.data.manifest import read_laboratories, save_cells
from dorl_jax.data.sources import Part, Record
from dorl_jax.data.taxonomy import Taxonomy
from dorl_jax.errors import InputError

ODD = ("a#1.png", "b #xywh=1,2,3,4.png", "grün 細胞.png", "100%25.png", "d#tar=5,6:/e.png", "#zip=1,2,3,8,4:/f.png")


def picture(value: int) -> np.ndarray:
    return np.full((4, 6, 3), value, np.uint8)


def png(value: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture(value)).save(file, "PNG")
    return file.getvalue()


def write(folder: Path, *names: str) -> Path:
    """Pictures of these names, each of its place's grey; of other names an empty file."""
    for value, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(value) if name.lower().endswith("png") else b"")
    return folder


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def greys(images: ImageList) -> list[int]:
    """What `picture` was given for each image."""
    return [int(read_image(images.source(place))[0, 0, 0]) for place in range(len(images))]


def ids(images: ImageList) -> list[str]:
    return images.ids.to_pylist()


# Folders and patterns


def test_a_folder_at_any_depth_in_natural_order(tmp_path: Path) -> None:
    write(tmp_path, "c10.png", "c9.PNG", "z/a/2.png", "z/1.png", "b/10.png", "b/9.png", "b/09.png", "notes.md", "x.db")
    write(tmp_path, ".hidden.png", ".cache/a.png", "__MACOSX/b.png", "Thumbs.db")
    images = open_images(tmp_path)
    assert ids(images) == ["c9.PNG", "c10.png", "b/09.png", "b/9.png", "b/10.png", "z/1.png", "z/a/2.png"]
    assert greys(images) == [1, 0, 6, 5, 4, 3, 2]
    assert images.notes == (f"2 files of {tmp_path} are not taken for images: 1 .md, 1 .db.",)
    assert images.columns.num_rows == 7
    assert not images.columns.column_names


def test_odd_names_in_folders_and_archives(tmp_path: Path) -> None:
    write(tmp_path / "folder", *ODD)
    images = open_images(tmp_path / "folder")
    order = [ODD.index(name) for name in ids(images)]
    assert sorted(order) == list(range(len(ODD)))
    assert greys(images) == order
    files = {name: png(value) for value, name in enumerate(ODD)}
    write_tar(tmp_path / "#tar=1,2:a.tar", files)
    with zipfile.ZipFile(tmp_path / "a #zip=1.zip", "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    for name in ("#tar=1,2:a.tar", "a #zip=1.zip"):
        images = open_images(tmp_path / name)
        assert (ids(images), greys(images)) == (list(ODD), list(range(len(ODD))))


def test_links_are_followed_but_not_round_in_circles(tmp_path: Path) -> None:
    write(tmp_path / "there", "1.png")
    here = write(tmp_path / "here", "0.png")
    (here / "there").symlink_to(tmp_path / "there")
    (here / "again").symlink_to(here)
    assert ids(open_images(here)) == ["0.png", "there/1.png"]
    assert ids(open_images(f"{here}/**/*.png")) == ["0.png", "there/1.png"]
    # A folder that is named is read, be it a link.
    assert ids(open_images(f"{here}/again/*.png")) == ["0.png"]


def test_masks_beside_images_are_not_images(tmp_path: Path) -> None:
    write(tmp_path, "lab/images/1.png", "lab/masks/1.png", "other/masks/2.png")
    images = open_images(tmp_path)
    assert ids(images) == ["lab/images/1.png", "other/masks/2.png"]
    assert images.notes == ("Folders beside one of images are not read: lab/masks.",)


def test_a_pattern_names_as_its_folder_does(tmp_path: Path) -> None:
    write(tmp_path, "a/10.png", "a/9.png", "b/1.png", "b/1.txt", "2.png")
    assert ids(open_images(f"{tmp_path}/**/*.png")) == ["2.png", "a/9.png", "a/10.png", "b/1.png"]
    assert ids(open_images(f"{tmp_path}/b/*")) == ["1.png"]
    assert greys(open_images(f"{tmp_path}/[ab]/?.png")) == [1, 2]
    assert ids(open_images(f"{tmp_path}/[ab]")) == ["a/9.png", "a/10.png", "b/1.png"]
    assert ids(open_images(tmp_path / "{b,a}")) == ["b/1.png", "a/9.png", "a/10.png"]


def test_a_name_that_exists_is_no_pattern(tmp_path: Path) -> None:
    write(tmp_path, "[a]/{1,2}.png", "a/3.png")
    assert ids(open_images(tmp_path / "[a]")) == ["{1,2}.png"]
    assert ids(open_images(tmp_path / "[a]" / "{1,2}.png")) == ["{1,2}.png"]


def test_an_image_and_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "a/1.png", "b/1.png", "b/2.png")
    write_tar(tmp_path / "t.tar", {"1.png": png(7)})
    monkeypatch.chdir(tmp_path)
    assert ids(open_images("a/1.png")) == ["1.png"]
    assert ids(open_images(["b/2.png", tmp_path / "a/1.png"])) == ["b/2.png", "a/1.png"]
    images = open_images(["b/2.png", "t.tar", "a/1.png", "b/1.png"])
    assert ids(images) == ["b/2.png", "t.tar/1.png", "a/1.png", "b/1.png"]
    assert greys(images) == [2, 7, 0, 1]
    with pytest.raises(InputError, match=r"ids must be unique; there more than once: 1\.png"):
        open_images(["a/1.png", "a/1.png"])


# Tables and lists


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_table(tmp_path: Path, delimiter: str) -> None:
    write(tmp_path / "in", "a, b.png", "007.png", "c#1.png")
    rows = [["Path", "number", "laboratory"], ["in/a, b.png", "007", "x"], ["in/007.png", "", "y"]]
    rows.append([str(tmp_path / "in/c#1.png"), "1e5", "x;,\ty"])
    with (tmp_path / "t.csv").open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    images = open_images(tmp_path / "t.csv")
    assert greys(images) == [0, 1, 2]
    assert ids(images) == [row[0] for row in rows[1:]]
    assert images.columns.to_pydict() == {"number": ["007", "", "1e5"], "laboratory": ["x", "y", "x;,\ty"]}
    named = open_images(tmp_path / "t.csv", column="Path", id_column="laboratory")
    assert ids(named) == ["x", "y", "x;,\ty"]


def test_a_table_of_rectangles(tmp_path: Path) -> None:
    field = np.arange(20 * 30 * 3).reshape(20, 30, 3).astype(np.uint8)
    Image.fromarray(field).save(tmp_path / "field.png")
    (tmp_path / "cells.csv").write_text('id,image\n1,"field.png#xywh=2,3,10,7"\n2,"field.png#xywh=0,0,5,5"\n')
    images = open_images(tmp_path / "cells.csv")
    assert ids(images) == ["1", "2"]
    assert images.source(0) == Part(tmp_path / "field.png", 2, 3, 10, 7)
    np.testing.assert_array_equal(read_image(images.source(0)), field[3:10, 2:12])


def test_a_parquet_of_paths_keeps_types(tmp_path: Path) -> None:
    write(tmp_path, "1.png", "2.png")
    table = {"id": [7, 8], "file": pa.array(["2.png", "1.png"]).dictionary_encode(), "size": [1.5, None]}
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    images = open_images(tmp_path / "t.parquet")
    assert (ids(images), greys(images)) == (["7", "8"], [1, 0])
    assert images.columns.to_pydict() == {"size": [1.5, None]}
    assert images.columns.schema.field("size").type == pa.float64()


def test_the_cells_of_a_run(smears: Path, five: Taxonomy, tmp_path: Path) -> None:
    manifest = read_laboratories(smears, (), five)
    save_cells(manifest, tmp_path / "cells.parquet")
    images = open_images(tmp_path / "cells.parquet")
    assert ids(images) == [cell.id for cell in manifest.cells]
    assert [str(images.source(place)) for place in range(len(images))] == [str(cell.image) for cell in manifest.cells]
    assert images.columns["label"].to_pylist() == [cell.label for cell in manifest.cells]


def test_a_list_of_paths(tmp_path: Path) -> None:
    write(tmp_path, "a 1.png", "b/#2.png")
    (tmp_path / "b/list.txt").write_bytes(b"#2.png\r\n\r\n../a 1.png\n")
    images = open_images(tmp_path / "b/list.txt")
    assert (ids(images), greys(images)) == (["#2.png", "../a 1.png"], [1, 0])


def test_tables_that_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "1.png")

    def refused(text: str, said: str, **columns: str) -> None:
        (tmp_path / "t.csv").write_text(text)
        with pytest.raises(InputError, match=said):
            open_images(tmp_path / "t.csv", **columns)

    refused("cell,class\n1.png,x\n", "has no column of paths by a usual name.*there are: cell, class")
    refused("file\n1.png\n", r"no column 'files' \(did you mean 'file'\?\); there are: file", column="files")
    refused("file\n1.png\n", "no column 'name'; there are: file", id_column="name")
    refused("file\n", "has no rows")
    refused("file,id\n1.png,a\n,b\n", "row 2 has an empty path")
    refused("file\nx/1.png\nx/2.png\n", r"x/1\.png and the 1 after it are not there; paths are relative")
    refused("file\ns3://a/1.png\n", "s3://a/1.png is an address")
    refused("file,file\n1.png,1.png\n", "two columns 'file'")
    refused("file,id\n1.png\n", "not a readable CSV")
    refused("file,id\n1.png,a\n1.png, \n", "row 2 has no id")
    refused("file,id\n1.png,a\n1.png,a\n", "ids must be unique; there more than once: a")
    pq.write_table(pa.table({"image": [{"bytes": b"x"}]}), tmp_path / "t.parquet")
    with pytest.raises(InputError, match=r"column 'image' holds struct.*, no paths"):
        open_images(tmp_path / "t.parquet")
    with pytest.raises(InputError, match="a column is given"):
        open_images(tmp_path / "1.png", column="file")
    (tmp_path / "e.txt").write_text("\n")
    with pytest.raises(InputError, match="lists no image"):
        open_images(tmp_path / "e.txt")


def test_single_missing_files_are_left_to_the_reader(tmp_path: Path) -> None:
    write(tmp_path, "1.png")
    (tmp_path / "t.csv").write_text("file\nnone.png\n1.png\n")
    assert len(open_images(tmp_path / "t.csv")) == 2


# Archives


def test_webdataset_samples(tmp_path: Path) -> None:
    files = {
        "./a/001.jpg.txt": b"of no image",
        "./a/1.cls": b" 3\n",
        "./a/1.png": png(0),
        "./a/1.json": json.dumps({"laboratory": "x", "label": "not this", "box": [1, 2], "age": 3}).encode(),
        "./a/2.mask.png": png(99),
        "./a/2.png": png(1),
        "./a/._2.png": b"",
        "./b/1.png": png(2),
        "./b/1.txt": "grün".encode(),
        "./b/1.json": json.dumps({"age": "old"}).encode(),
        "./c/slide.1.png": png(3),
        "./c/slide.2.png": png(4),
    }
    images = open_images(write_tar(tmp_path / "cells.tar", files))
    assert ids(images) == ["a/1.png", "a/2.png", "b/1.png", "c/slide.1.png", "c/slide.2.png"]
    assert greys(images) == [0, 1, 2, 3, 4]
    assert images.columns.to_pydict() == {
        "label": ["3", None, None, None, None],
        "laboratory": ["x", None, None, None, None],
        "box": ["[1, 2]", None, None, None, None],
        "age": ["3", None, "old", None, None],
        "text": [None, None, "grün", None, None],
    }
    assert images.notes == (f"2 files in {tmp_path / 'cells.tar'} are not taken for images: 1 .txt, 1 .mask.png.",)


def test_links_in_a_tar_are_not_lost_without_a_word(tmp_path: Path) -> None:
    """As `tar` writes a folder whose files are linked from elsewhere, or twice."""
    write(tmp_path, "a.png", "b.png")
    (tmp_path / "soft.png").symlink_to("a.png")
    os.link(tmp_path / "b.png", tmp_path / f"hard{'_' * 120}.png")
    (tmp_path / "text").symlink_to("a.png")
    with tarfile.open(tmp_path / "cells.tar", "w") as archive:
        for path in sorted(tmp_path.iterdir()):
            if path.name != "cells.tar":
                archive.add(path, path.name)
    with tarfile.open(tmp_path / "links.tar", "w") as archive:
        archive.add(tmp_path / "soft.png", "soft.png")
    images = open_images(tmp_path / "cells.tar")
    assert ids(images) == ["a.png", "b.png"]
    told = "links (tar --dereference --hard-dereference writes the files themselves)"
    assert images.notes == (f"2 files in {tmp_path / 'cells.tar'} are not taken for images: 2 {told}.",)
    with pytest.raises(InputError, match=r"no image in .*links\.tar: .*there are only: 1 links \(tar --dereference"):
        open_images(tmp_path / "links.tar")


def test_shards_by_numbers_and_by_pattern(tmp_path: Path) -> None:
    for number in (8, 9, 10, 11):
        files = {f"{place}.png": png(10 * number + place) for place in range(2)}
        if number == 9:
            files["1.cls"] = b"x"
        write_tar(tmp_path / f"s/cells-{number:03}.tar", files)
    images = open_images(f"{tmp_path}/s/cells-{{009..011}}.tar")
    assert ids(images) == [f"cells-{number}.tar/{place}.png" for number in ("009", "010", "011") for place in (0, 1)]
    assert greys(images) == [90, 91, 100, 101, 110, 111]
    assert images.columns["label"].to_pylist() == [None, "x", None, None, None, None]
    assert greys(open_images(f"{tmp_path}/s/*.tar"))[:3] == [80, 81, 90]
    assert ids(open_images(f"{tmp_path}/s/cells-00[9].tar")) == ["cells-009.tar/0.png", "cells-009.tar/1.png"]
    assert greys(open_images(f"{tmp_path}/s/cells-0{{11..10}}.tar")) == [110, 111, 100, 101]
    assert greys(open_images(f"{tmp_path}/{{s}}/cells-{{009,01?}}.tar".replace("{s}", "s")))[::2] == [90, 100, 110]
    with pytest.raises(InputError, match=r"nothing at .*cells-012\.tar, which cells-\{009\.\.012\}\.tar names"):
        open_images(f"{tmp_path}/s/cells-{{009..012}}.tar")
    with pytest.raises(InputError, match=r"\{9\} in a pattern is neither a range"):
        open_images(f"{tmp_path}/s/cells-{{9}}.tar")


def test_archives_that_are_refused(tmp_path: Path) -> None:
    shared = {"s.1.png": png(0), "s.2.png": png(1), "s.cls": b"1"}
    with pytest.raises(InputError, match=r"s\.1\.png, s\.2\.png share s\.cls, and it cannot be told whose"):
        open_images(write_tar(tmp_path / "a.tar", shared))
    for name, data, said in [("json", b"[1]", "no object"), ("json", b"{", "is no JSON"), ("cls", b"\xff", "no text")]:
        with pytest.raises(InputError, match=rf"1\.{name} in .*a\.tar .*{said}"):
            open_images(write_tar(tmp_path / "a.tar", {"1.png": png(0), f"1.{name}": data}))
    with pytest.raises(InputError, match=r"no image in .*a\.tar: looked for \.bmp.*there are only: 2 \.npy, 1 \.cls"):
        open_images(write_tar(tmp_path / "a.tar", {"1.npy": b"", "2.npy": b"", "2.cls": b""}))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("readme.md", "")
    with pytest.raises(InputError, match=r"no image in .*a\.zip: .*there are only: 1 \.md"):
        open_images(tmp_path / "a.zip")
    for name in ("a.tar.gz", "b.tgz", "c.tar.zst"):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(InputError, match=f"{name} is a compressed tar.*decompress it"):
            open_images(tmp_path / name)


# Laboratories and built sets


def test_laboratories_are_named_as_the_cells_of_a_run(smears: Path, five: Taxonomy) -> None:
    manifest = read_laboratories(smears, (), five)
    images = open_images(smears)
    assert ids(images) == [cell.id for cell in manifest.cells]
    assert [str(images.source(place)) for place in range(len(images))] == [str(cell.image) for cell in manifest.cells]
    assert images.columns["laboratory"].to_pylist() == [cell.laboratory for cell in manifest.cells]
    one = manifest.laboratories[1]
    assert ids(open_images(smears / one)) == [cell.id for cell in manifest.of(one)]


def test_a_folder_for_each_class_is_a_laboratory_where_a_file_says_so(tmp_path: Path) -> None:
    cells = tmp_path / "cells"
    write(cells, "b/monocyte/1.png", "b/neutrophil/2.png", "c/images/monocyte/3.png")
    for folder in (cells, cells / "b", cells / "c"):
        assert not open_images(folder).columns.column_names
    (cells / "b" / "laboratory.toml").write_text("")
    images = open_images(cells / "b")
    assert ids(images) == ["b/monocyte/1.png", "b/neutrophil/2.png"]
    assert images.columns["label"].to_pylist() == ["monocyte", "neutrophil"]
    # beside one that says so
    assert open_images(cells).columns["laboratory"].to_pylist() == ["b", "b", "c"]
    assert not open_images(cells / "c").columns.column_names


def test_a_table_without_classes_is_named_itself(tmp_path: Path) -> None:
    folder = write(tmp_path / "lab", "images/1.png")
    (folder / "labels.csv").write_text("file,mask\nimages/1.png,\n")
    with pytest.raises(InputError, match="no column 'class'.* laboratory.toml .* give the table itself: ") as caught:
        open_images(folder)
    table, option, column = str(caught.value).rpartition("itself: ")[2].split()
    assert option == "--column"
    assert ids(open_images(table, column=column)) == ["images/1.png"]
    # whose paths would lead elsewhere
    (tmp_path / "laboratory.toml").write_text('root = "lab"\ntable = "../other.csv"\n')
    (tmp_path / "other.csv").write_text("file\nimages/1.png\n")
    with pytest.raises(InputError, match=r"no column 'class'.* what it is called$"):
        open_images(tmp_path)


def test_rows_that_repeat_another_are_left_out(make_laboratory: Callable[..., Path]) -> None:
    rows = [{"file": "1.png", "class": "monocyte", "duplicate_of": ""}]
    rows.append({"file": "2.png", "class": "odd word", "duplicate_of": "1.png"})
    rows.append({"file": "3.png", "class": "odd word", "duplicate_of": ""})
    images = open_images(make_laboratory(rows))
    assert ids(images) == ["lab/1.png", "lab/3.png"]
    assert images.columns["label"].to_pylist() == ["monocyte", "odd word"]
    assert images.notes == ("1 rows that repeat another are left out.",)


def test_a_built_set(smears: Path, tmp_path: Path) -> None:
    listing = open_laboratory(next(path for path in sorted(smears.iterdir()) if path.is_dir()))
    build(listing, tmp_path, progress=False, workers=1)
    for place in (tmp_path, tmp_path / listing.name, tmp_path / listing.name / "1.0.0"):
        images = open_images(place)
        assert ids(images) == [f"{listing.name}/{row.file}" for row in listing.rows]
        assert isinstance(images.source(3), Record)
        np.testing.assert_array_equal(read_image(images.source(3)), read_image(listing.rows[3].image))
        assert images.columns["label"].to_pylist() == [row.label for row in listing.rows]


# What is nowhere


def test_nothing_found_says_what_there_is(tmp_path: Path) -> None:
    write(tmp_path / "cells", "a.dcm", "b.dcm", "c/d.md")
    (tmp_path / "empty").mkdir()
    for what, said in [
        (tmp_path / "cell", r"nothing at .*/cell \(did you mean 'cells'\?\)"),
        (tmp_path / "cells", r"no image in .*looked for \.bmp, .*; there are only: 2 \.dcm, 1 \.md"),
        (tmp_path / "empty", r"no image in .*there is no other file either"),
        (tmp_path / "cells/*.png", r"no file matches .*\*\.png in .*cells, where there are only: 2 \.dcm, 1 folders"),
        (tmp_path / "cells/*.dcm", r"no image matches .*there are only: 2 \.dcm"),
        (tmp_path / "no/*.png", r"no file matches .*there is no folder .*/no"),
        (tmp_path / "cells/a.dcm", r"a\.dcm is of no kind that is read: an image \(\.bmp.*an archive \(\.tar, \.zip\)"),
        ([], "no images given"),
    ]:
        with pytest.raises(InputError, match=said):
            open_images(what)  # type: ignore[arg-type]


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\xff.png")).write_bytes(b"")
    with pytest.raises(InputError, match=r"udcff\.png' is no name in UTF-8: rename the file"):
        open_images(tmp_path)


# The list itself


def test_slices_and_copies_hold_the_same(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_tar(tmp_path / f"{name}.tar", {f"{place}.png": png(place) for place in range(5)} | {"4.cls": b"x"})
    write(tmp_path, "p/1.png")
    for whole in (open_images(str(tmp_path / "*.tar")), open_images(tmp_path / "p")):
        for first, last in [(0, len(whole)), (3, 8), (2, 2), (-2, 99), (6, 5)]:
            part = pickle.loads(pickle.dumps(whole[first:last]))  # noqa: S301
            places = range(len(whole))[first:last]
            assert len(part) == len(places)
            assert ids(part) == [whole.id(place) for place in places]
            assert [part.source(place) for place in range(len(part))] == [whole.source(place) for place in places]
            assert part.columns.equals(whole.columns.slice(places.start, len(places)))
            assert part.columns.num_rows == len(part)


def test_fingerprints_tell_names_and_places() -> None:
    base = ImageList(["a", "bc"], ["/x/1", "/x/2"])
    same = ImageList(["a", "bc"], ["1", "2"], beginnings=("/x/",))
    longer = ImageList(["z", "a", "bc"], ["0", "1", "2"], beginnings=("/", "/x/"), beginning=[0, 1, 1])
    assert base.fingerprint() == same.fingerprint() == longer[1:].fingerprint()
    others = [
        ImageList(["ab", "c"], ["/x/1", "/x/2"]),
        ImageList(["bc", "a"], ["/x/2", "/x/1"]),
        ImageList(["a", "bc"], ["/x/1", "/x/3"]),
        ImageList(["a"], ["/x/1"]),
    ]
    assert len({base.fingerprint(), *(other.fingerprint() for other in others)}) == 5


def test_a_hundred_thousand_images_take_a_hundred_bytes_each(tmp_path: Path) -> None:
    """From a folder's names, and from an archive's members; a slice is pickled alone."""
    count = 100_000
    before = pa.total_allocated_bytes()
    names = ImageList((f"class/slide_{place:06}.png" for place in range(count)), beginnings=("/data/cells/",))
    shard = ImageList(
        (f"cells-{place // 1000:03}.tar/{place:06}.png" for place in range(count)),
        (f"#tar={place * 60_000},{59_000}:{place:06}.png" for place in range(count)),
        beginnings=[f"/data/cells-{number:03}.tar" for number in range(100)],
        beginning=(place // 1000 for place in range(count)),
    )
    assert pa.total_allocated_bytes() - before <= names.nbytes + shard.nbytes + 65536 * 8
    assert names.nbytes / count < 40
    assert shard.nbytes / count < 110
    assert shard.source_text(54_321) == "/data/cells-054.tar#tar=3259260000,59000:054321.png"
    assert len(pickle.dumps(shard[500:600])) < 100 * 110 + 5000
