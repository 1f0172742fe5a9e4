"""Zip archives as they lie: where each member's bytes are, and those bytes, read without unpacking the rest."""

import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from dorl_jax.data.formats.facts import Unreadable
from dorl_jax.data.sources import ZipMember
from dorl_jax.data.tar_files import read_fully
from dorl_jax.errors import InputError

STORED, DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
_LOCAL_HEADER = struct.Struct("<4s22xHH")
_ENCRYPTED = 1
_CHANGED = "is no longer where it was: the archive was changed since it was listed, or is damaged"


def zip_members(path: Path) -> Iterator[ZipMember]:
    """The files of an archive, in the order of its central directory; nothing else of it is read.

    Raises:
      InputError: no file, no zip archive or a damaged one, or members that are encrypted or packed by another method
        than deflate.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except (zipfile.BadZipFile, struct.error, ValueError, NotImplementedError) as error:
        raise InputError(f"{path} is no whole zip archive: {error}") from error
    for entry in entries:
        if entry.is_dir():
            continue
        if entry.flag_bits & _ENCRYPTED:
            raise InputError(f"{path} is encrypted ({entry.filename}): unpack it, or write it without a password")
        if entry.compress_type not in (STORED, DEFLATED):
            raise InputError(
                f"{entry.filename} in {path} is packed by method {entry.compress_type}: write the archive "
                "with deflate, or stored"
            )
        yield ZipMember(
            path,
            entry.header_offset,
            entry.compress_size,
            entry.file_size,
            entry.compress_type,
            entry.CRC,
            entry.filename,
        )


def read_zip_member(member: ZipMember) -> bytes:
    """All bytes of a member, checked against its checksum.

    Raises:
      Unreadable: the archive has no such member at that place any more, or it is damaged.
      OSError: the archive cannot be opened.
    """
    file = os.open(member.path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    try:
        os.lseek(file, member.header, os.SEEK_SET)
        header = read_fully(file, _LOCAL_HEADER.size)
        if len(header) < _LOCAL_HEADER.size:
            raise Unreadable(_CHANGED)
        signature, name, extra = _LOCAL_HEADER.unpack(header)
        if signature != b"PK\3\4":
            raise Unreadable(_CHANGED)
        os.lseek(file, name + extra, os.SEEK_CUR)
        data = read_fully(file, member.packed)
    finally:
        os.close(file)
    if member.method == DEFLATED:
        inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            # No more than was announced, whatever it would unpack to.
            data = inflate.decompress(data, member.size + 1)
        except zlib.error as error:
            raise Unreadable(f"is damaged: {error}") from error
    if len(data) != member.size or zlib.crc32(data) != member.checksum:
        raise Unreadable("is damaged: its checksum is another")
    return data
