"""Tar archives as they lie: where each member's bytes are, and those bytes, read without unpacking.

The formats are those of POSIX.1-1988 (ustar), POSIX.1-2001 (pax) and GNU tar, as far as names and sizes of
plain files go.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from dorl_jax.data.formats.facts import Unreadable
from dorl_jax.data.sources import TarMember
from dorl_jax.errors import InputError

_BLOCK = 512
_PLAIN = (b"0", b"\0", b"7")
_LONG_NAME, _PAX, _SPARSE = b"L", b"x", b"S"
# The target of a link and what is said of all members to come: nothing that is asked for.
_PASSED_OVER = (b"K", b"g")
# Other kinds that no data follows, whatever their size says: links, devices, folders and pipes.
_LINKS = (b"1", b"2")
_WITHOUT_DATA = (*_LINKS, b"3", b"4", b"5", b"6")
# Of a name or a pax header. Real ones have a few hundred bytes.
_MOST_ABOUT_ONE = 1 << 20
_COMPRESSED = ((b"\x1f\x8b", "gzip"), (b"BZh", "bzip2"), (b"\xfd7zXZ\0", "xz"), (b"\x28\xb5\x2f\xfd", "zstd"))
_CHANGED = "is no longer where it was: the archive was changed since it was listed, or is damaged"


class TarEntry(NamedTuple):
    """A plain file in an archive: its name, the offset of its first byte, and its size in bytes."""

    name: str
    offset: int
    size: int


def tar_entries(path: Path, links: list[str] | None = None) -> Iterator[TarEntry]:
    """The plain files of an archive, in its order. Only headers are read.

    Folders, links and devices are passed over. As `tar` does, it stops at the first empty block.

    Args:
      path: of the archive.
      links: the names of links, hard and symbolic, are put behind it.

    Raises:
      InputError: no file, a compressed archive, no archive, or one that is damaged or cut short.
    """
    try:
        with path.open("rb") as file:
            yield from _entries(file, os.fstat(file.fileno()).st_size, [] if links is None else links)
    except Unreadable as error:
        raise InputError(f"{path} {error}") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


def read_tar_member(member: TarMember) -> bytes:
    """All bytes of a member.

    Raises:
      Unreadable: the archive has no such member at that place any more.
      OSError: the archive cannot be opened.
    """
    file = os.open(member.path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    try:
        os.lseek(file, member.offset - _BLOCK, os.SEEK_SET)
        data = read_fully(file, _BLOCK + member.size)
    finally:
        os.close(file)
    header = data[:_BLOCK]
    if len(data) < _BLOCK + member.size:
        raise Unreadable(_CHANGED)
    if not _is_header(header) or _number(header[124:136]) != member.size:
        raise Unreadable(_CHANGED)
    return data[_BLOCK:]


def read_fully(file: int, size: int) -> bytes:
    """So many bytes from here on; fewer only at the end of the file."""
    data = os.read(file, size)
    parts = [data]
    missing = size - len(data)
    while missing and parts[-1]:
        parts.append(os.read(file, missing))
        missing -= len(parts[-1])
    return data if len(parts) == 1 else b"".join(parts)


def _entries(file: BinaryIO, length: int, links: list[str]) -> Iterator[TarEntry]:
    place = 0
    name: str | None = None
    size: int | None = None
    while True:
        file.seek(place)
        header = file.read(_BLOCK)
        if place == 0:
            _check_beginning(header)
        if not header or header == bytes(_BLOCK):
            return
        if len(header) < _BLOCK:
            raise Unreadable(f"is cut short: a header is missing at byte {place}")
        if not _is_header(header):
            raise Unreadable(f"is damaged: no header at byte {place}")
        kind = header[156:157]
        stored = _number(header[124:136])
        start = place + _BLOCK
        if kind in _LINKS:
            links.append(name or _name(header))
        if kind in _WITHOUT_DATA:
            place, name, size = start, None, None
            continue
        length_here = stored if size is None else size
        if start + length_here > length:
            raise Unreadable(f"is cut short: {_name(header)} ends at byte {start + length_here} of {length}")
        place = start + -(-length_here // _BLOCK) * _BLOCK
        if kind in (_LONG_NAME, _PAX):
            if length_here > _MOST_ABOUT_ONE:
                raise Unreadable(f"is damaged: a name of {length_here} bytes at byte {start}")
            about = file.read(length_here)
            if kind == _LONG_NAME:
                name = _text(about.split(b"\0", 1)[0])
            else:
                told = _pax(about, start)
                name = told.get("path", name)
                size = int(told["size"]) if told.get("size", "").isdecimal() else size
                if any(key.startswith("GNU.sparse") for key in told):
                    raise Unreadable(f"has a sparse file at byte {start}, which is not read: write it without --sparse")
            continue
        if kind in _PASSED_OVER:
            continue
        if kind == _SPARSE:
            raise Unreadable(
                f"has a sparse file, {name or _name(header)}, which is not read: write it without --sparse"
            )
        found = name or _name(header)
        if kind in _PLAIN and not found.endswith("/"):
            if stored != length_here:
                raise Unreadable(f"gives {found} two sizes, {stored} and {length_here}: write it anew with tar")
            yield TarEntry(found, start, length_here)
        name, size = None, None


def _check_beginning(header: bytes) -> None:
    for beginning, kind in _COMPRESSED:
        if header.startswith(beginning):
            raise Unreadable(
                f"is compressed ({kind}), so that its images cannot be read in any order: decompress it to a .tar"
            )
    if header[:_BLOCK] != bytes(_BLOCK) and not _is_header(header):
        raise Unreadable("is no tar archive")


def _is_header(header: bytes) -> bool:
    """Whether the block's checksum is right: the sum of its bytes, those of the checksum as spaces."""
    if len(header) < _BLOCK:
        return False
    said = header[148:156].strip(b" \0")
    if not said or said.strip(b"01234567"):
        return False
    total = sum(header) - sum(header[148:156]) + 8 * 32
    if int(said, 8) == total:
        return True
    # Old programs added the bytes as signed numbers.
    return int(said, 8) == total - 256 * sum(byte > 127 for byte in header[:148] + header[156:])


def _number(text: bytes) -> int:
    """Octal digits, or, where those do not suffice, 0x80 and the number in base 256."""
    if text[0] == 0x80:
        return int.from_bytes(text[1:], "big")
    digits = text.split(b"\0", 1)[0].strip()
    if digits.strip(b"01234567"):
        raise Unreadable(f"is damaged: {text!r} is no size")
    return int(digits or b"0", 8)


def _name(header: bytes) -> str:
    name = header[:100].split(b"\0", 1)[0]
    if header[257:263] == b"ustar\0" and header[345] != 0:
        name = header[345:500].split(b"\0", 1)[0] + b"/" + name
    return _text(name)


def _pax(data: bytes, place: int) -> dict[str, str]:
    """The records "<length> <key>=<value>\\n" of an extended header."""
    told = {}
    while data.strip(b"\0"):
        digits, _, _ = data.partition(b" ")
        length = int(digits) if digits.isdigit() else 0
        key, equal, value = data[len(digits) + 1 : length - 1].partition(b"=")
        if not length or length > len(data) or not equal:
            raise Unreadable(f"is damaged: the extended header at byte {place} cannot be read")
        told[_text(key)] = _text(value)
        data = data[length:]
    return told


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        # Names in other encodings are told apart, and shown as best can be.
        return data.decode("latin-1")
