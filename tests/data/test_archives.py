"""Members of tar and zip archives, read in place, against Python's own readers of archives."""

import io
import os
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from dorl_jax.data.formats.facts import Unreadable
from dorl_jax.data.images import ImageError, inspect_image, read_image
from dorl_jax.data.sources import TarMember, ZipMember
from dorl_jax.data.tar_files import read_tar_member, tar_entries
from dorl_jax.data.zip_files import read_zip_member, zip_members
from dorl_jax.errors import InputError

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
NAMES = ("a.png", "folder/b#1 %.png", "grün/ 細胞.png", "deep/" * 30 + "c.png", "n" * 95 + ".png", "ö" * 45, "d")


def write_tar(path: Path, files: dict[str, bytes], kind: str = "pax") -> None:
    with tarfile.open(path, "w", format=FORMATS[kind]) as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


def png(value: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((5, 7, 3), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


def read_all_of_tar(path: Path) -> list[tuple[str, bytes]]:
    return [(name, read_tar_member(TarMember(path, offset, size, name))) for name, offset, size in tar_entries(path)]


def by_tarfile(path: Path) -> list[tuple[str, bytes]]:
    with tarfile.open(path) as archive:
        return [(entry.name, archive.extractfile(entry).read()) for entry in archive if entry.isreg()]  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", FORMATS)
def test_tar_members_are_those_of_tarfile(tmp_path: Path, kind: str) -> None:
    files = {name: os.urandom(size) for name, size in zip(NAMES, (0, 1, 511, 512, 513, 4000, 70_000), strict=True)}
    with tarfile.open(tmp_path / "a.tar", "w", format=FORMATS[kind]) as archive:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
            # Between the files, links to them; some have long names and targets.
            link = tarfile.TarInfo(f"link to {name}"[:90])
            link.type, link.linkname = (tarfile.SYMTYPE, name) if len(name) % 2 else (tarfile.LNKTYPE, name)
            if kind == "ustar":
                link.linkname = "a.png"
            archive.addfile(link)
    found = read_all_of_tar(tmp_path / "a.tar")
    assert found == by_tarfile(tmp_path / "a.tar")
    assert found == list(files.items())


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1), st.binary())),
    st.sampled_from(["gnu", "pax"]),
)
def test_any_names_and_bytes_come_back(tmp_path: Path, files: list[tuple[str, bytes]], kind: str) -> None:
    path = tmp_path / "any.tar"
    with tarfile.open(path, "w", format=FORMATS[kind]) as archive:
        for name, data in files:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    assert read_all_of_tar(path) == by_tarfile(path) == files


def test_sizes_in_base_256(tmp_path: Path) -> None:
    """As GNU tar writes those of 8 GiB and more."""
    write_tar(tmp_path / "a.tar", {"a": b"x" * 600, "b": b"y"})
    data = bytearray((tmp_path / "a.tar").read_bytes())
    data[124:136] = b"\x80" + (600).to_bytes(11, "big")
    data[148:156] = b" " * 8
    data[148:156] = f"{sum(data[:512]):06o}\0 ".encode()
    (tmp_path / "b.tar").write_bytes(data)
    assert read_all_of_tar(tmp_path / "b.tar") == by_tarfile(tmp_path / "b.tar") == [("a", b"x" * 600), ("b", b"y")]


def test_an_empty_tar_and_one_without_its_end(tmp_path: Path) -> None:
    write_tar(tmp_path / "none.tar", {})
    assert not list(tar_entries(tmp_path / "none.tar"))
    write_tar(tmp_path / "a.tar", {"a": b"x" * 512})
    (tmp_path / "b.tar").write_bytes((tmp_path / "a.tar").read_bytes()[:1024])
    assert read_all_of_tar(tmp_path / "b.tar") == [("a", b"x" * 512)]


@pytest.mark.parametrize(
    ("kind", "mode"), [("gzip", "w:gz"), ("bzip2", "w:bz2"), ("xz", "w:xz")], ids=["gzip", "bzip2", "xz"]
)
def test_a_compressed_tar_is_refused_whatever_its_name(tmp_path: Path, kind: str, mode: str) -> None:
    with tarfile.open(tmp_path / "a.tar", mode):  # type: ignore[call-overload]
        pass
    with pytest.raises(InputError, match=rf"a\.tar is compressed \({kind}\).*decompress it"):
        list(tar_entries(tmp_path / "a.tar"))


def test_damaged_tars_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    write_tar(path, {"a": b"x" * 600, "b": b"y" * 600})
    whole = path.read_bytes()
    for spoilt, said in [
        (whole[:2100], "is cut short: b ends at byte 2648 of 2100"),
        (whole[:1700], "is cut short: a header is missing at byte 1536"),
        (whole[:1540] + b"?" + whole[1541:], "is damaged: no header at byte 1536"),
        (b"?" + whole[1:], "is no tar archive"),
        (png(3) + whole, "is no tar archive"),
        (whole[:1536] + bytes(1) + whole[1536:], "is damaged: no header at byte 1536"),
    ]:
        path.write_bytes(spoilt)
        with pytest.raises(InputError, match=f"a.tar {said}"):
            list(tar_entries(path))
    with pytest.raises(InputError, match="none.tar cannot be read: No such file"):
        list(tar_entries(tmp_path / "none.tar"))


def test_a_tar_that_was_changed_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    write_tar(path, {"a.png": png(1), "b.png": png(2)})
    members = [TarMember(path, offset, size, name) for name, offset, size in tar_entries(path)]
    np.testing.assert_array_equal(read_image(members[1]), np.full((5, 7, 3), 2))
    # What was at its place is another file now, is in the middle of one, or is behind the end.
    for files in ({"x.png": png(3) * 9, "b.png": png(2)}, {"x": bytes(5000)}, {"x": b""}):
        write_tar(path, files)
        with pytest.raises(ImageError, match=r"b\.png in .*a\.tar is no longer where it was"):
            read_image(members[1])
    path.unlink()
    with pytest.raises(ImageError, match=r"no archive at .*a\.tar"):
        read_image(members[1])


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_zip_members_are_those_of_zipfile(tmp_path: Path, method: int) -> None:
    path = tmp_path / "a.zip"
    files = {
        name: os.urandom(size) + bytes(size) for name, size in zip(NAMES, (0, 1, 9, 99, 0, 4000, 70_000), strict=True)
    }
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.mkdir("empty folder")
        for name, data in files.items():
            archive.writestr(name, data)
    members = list(zip_members(path))
    assert {member.name: read_zip_member(member) for member in members} == files
    assert {member.method for member in members} <= {0, method}


def test_zips_written_without_seeking_and_behind_other_bytes(tmp_path: Path) -> None:
    class Pipe(io.RawIOBase):
        """A file that only takes bytes: sizes then follow the data."""

        def __init__(self) -> None:
            self.data = bytearray()

        def writable(self) -> bool:
            return True

        def write(self, data) -> int:
            self.data += data
            return len(data)

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as archive:  # type: ignore[arg-type]
        with archive.open("a", "w", force_zip64=True) as file:
            file.write(b"x" * 5000)
        archive.writestr("b", b"y" * 70)
    path = tmp_path / "a.zip"
    path.write_bytes(b"#!/bin/sh\n" + pipe.data)
    assert [read_zip_member(member) for member in zip_members(path)] == [b"x" * 5000, b"y" * 70]


def test_zips_that_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a.png", b"x" * 100)
    with pytest.raises(InputError, match=r"a\.png in .*a\.zip is packed by method 14: write the archive with deflate"):
        list(zip_members(path))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.png", b"x" * 100)
    data = bytearray(path.read_bytes())
    central = data.index(b"PK\1\2")
    struct.pack_into("<H", data, central + 8, 1)
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"a\.zip is encrypted \(a\.png\)"):
        list(zip_members(path))
    path.write_bytes(data[:-30])
    with pytest.raises(InputError, match=r"a\.zip is no whole zip archive"):
        list(zip_members(path))
    with pytest.raises(InputError, match=r"none\.zip cannot be read"):
        list(zip_members(tmp_path / "none.zip"))


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_any_damaged_byte_of_a_zip_member_is_noticed(tmp_path: Path, method: int) -> None:
    path = tmp_path / "a.zip"
    data = b"".join(bytes([place]) * 3 for place in range(80))
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("a", data)
    (member,) = zip_members(path)
    whole = path.read_bytes()
    start = member.header + 30 + len("a")
    for place in range(start, start + member.packed):
        spoilt = bytearray(whole)
        spoilt[place] ^= 0x40
        path.write_bytes(spoilt)
        with pytest.raises(Unreadable, match="is damaged"):
            read_zip_member(member)
    path.write_bytes(whole[: start + 5])
    with pytest.raises(Unreadable, match="is damaged"):
        read_zip_member(member)
    path.write_bytes(whole[::-1])
    with pytest.raises(Unreadable, match="is no longer where it was"):
        read_zip_member(member)


def test_a_zip_member_unpacks_to_no_more_than_it_announced(tmp_path: Path) -> None:
    packed = zlib.compress(bytes(1 << 22), wbits=-15)
    path = tmp_path / "bomb.zip"
    path.write_bytes(b"PK\3\4" + bytes(26) + packed)
    with pytest.raises(Unreadable, match="is damaged"):
        read_zip_member(ZipMember(path, 0, len(packed), 100, 8, zlib.crc32(bytes(100)), "a"))


def test_images_in_archives_are_read_and_errors_name_them(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"good.png": png(9), "cut.png": png(9)[:40]})
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("good.png", png(8))
        archive.writestr("no.png", b"no image")
    good, cut = (
        TarMember(tmp_path / "a.tar", offset, size, name) for name, offset, size in tar_entries(tmp_path / "a.tar")
    )
    np.testing.assert_array_equal(read_image(good), np.full((5, 7, 3), 9))
    assert (inspect_image(good).width, inspect_image(good).height) == (7, 5)
    with pytest.raises(ImageError, match=r"cut\.png in .*a\.tar is a broken or truncated image"):
        read_image(cut)
    good, no = zip_members(tmp_path / "a.zip")
    np.testing.assert_array_equal(read_image(good), np.full((5, 7, 3), 8))
    with pytest.raises(ImageError, match=r"no\.png in .*a\.zip is no BMP"):
        read_image(no)
    with pytest.raises(ImageError, match=r"huge in .* bytes, more than"):
        read_image(TarMember(tmp_path / "a.tar", 512, 1 << 40, "huge"))
