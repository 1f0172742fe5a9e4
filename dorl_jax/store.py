"""Arrays of many cells on disk: written shard by shard, read by memory map, tied to what made them.

A store is a folder with `store.json` (what made it), `ids.parquet` (its cells) and a folder for each shard, of `.npy`
files and `shard.json` (their checksums, and the cells that failed). A shard appears by a rename, whole or not at all;
writing again into the same store goes on with the shards that are missing or damaged. Several processes may write
different shards of one store at the same time.
"""

import hashlib
import json
import logging
import math
import os
import shutil
import uuid
import zlib
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from tokenize import TokenError
from typing import Any, Literal, NamedTuple

import ml_dtypes
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dorl_jax.errors import InputError, name_some
from dorl_jax.files import replacing, write_text
from dorl_jax.locks import locked

logger = logging.getLogger(__name__)

_INDEX, _IDS, _SHARD = "store.json", "ids.parquet", "shard.json"
_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
# Bytes of a file that are read at once for its checksum.
_PIECE = 1 << 22
# Files of a field that stay mapped. The system allows a process 65530 maps, and a store may have more files.
_MAPPED = 1024


class _Damaged(InputError):
    """What a file of a store holds is not what was written, or it is gone: writing it again helps."""


class _File(NamedTuple):
    """Where the rows of one field of one shard are. Nothing is open."""

    path: str
    dtype: np.dtype
    shape: tuple[int, ...]
    order: Literal["C", "F"]
    offset: int


def fingerprint(*parts: Any) -> str:
    """Short hash of plain values (as JSON)."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def fingerprint_texts(texts: Iterable[str]) -> str:
    """Short hash of any number of texts, one after the other."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(f"{len(text)}:{text}".encode())
    return digest.hexdigest()[:16]


class StoreWriter:
    """Writes a store."""

    def __init__(
        self,
        folder: Path,
        ids: Sequence[str] | pa.Array,
        signature: Mapping[str, Any],
        shard_size: int = 256,
        *,
        redo: str = "run the same command again",
    ) -> None:
        """Open a new store, or one to go on with.

        Args:
          folder: of the store.
          ids: of all cells, in order.
          signature: plain values that tell what the arrays were made with (weights, preprocessing, version).
          shard_size: cells a shard.
          redo: what a message about something missing tells the user to do.

        Raises:
          InputError: there is a store of other cells or of another signature.
        """
        if shard_size < 1:
            raise ValueError(f"shards of {shard_size} cells: take 1 or more")
        self._folder = folder
        packed = ids if isinstance(ids, pa.Array) else pa.array(ids, pa.large_string())
        hashed = fingerprint_texts(id.as_py() for id in packed)
        index = {
            "signature": dict(signature),
            "shard_size": shard_size,
            "cells": len(packed),
            "ids": hashed,
            "redo": redo,
        }
        index = json.loads(json.dumps(index))
        with locked(folder / "index.lock", wait=True):
            if is_store(folder):
                _refuse_another(folder, index)
            else:
                with replacing(folder / _IDS) as partial:
                    pq.write_table(pa.table({"id": packed}), partial)
                write_text(folder / _INDEX, json.dumps(index, indent=1) + "\n")
        count = len(packed)
        self._shards = [range(i, min(i + shard_size, count)) for i in range(0, count, shard_size)]

    def missing(self, index: int = 0, count: int = 1) -> list[tuple[int, range]]:
        """Number and cells (by place) of every shard that is not there yet; damaged ones are removed, and are missing.

        All bytes of the shards that are there are read.

        Args:
          index, count: of several processes that share the work, the number of this one (from 0) and how many there
            are; it gets every `count`-th shard.
        """
        found = []
        for number in range(index, len(self._shards), count):
            shard = _shard_folder(self._folder, number)
            if shard.is_dir() and (problem := _problem(shard)):
                logger.warning("%s is damaged (%s) and is done again", shard, problem)
                shutil.rmtree(shard)
            if not shard.is_dir():
                found.append((number, self._shards[number]))
        return found

    @property
    def complete(self) -> bool:
        """Whether every shard is there, whoever wrote it."""
        return all(_shard_folder(self._folder, number).is_dir() for number in range(len(self._shards)))

    def write(self, number: int, arrays: Mapping[str, np.ndarray], failed: Mapping[int, str] | None = None) -> None:
        """Write one shard.

        Args:
          number: of the shard.
          arrays: one row a cell; those of a failed cell are without meaning.
          failed: row in the shard -> why there is nothing of that cell.
        """
        final = _shard_folder(self._folder, number)
        # A name of its own: another process, on another machine too, may be at the same shard.
        partial = final.with_name(f"{final.name}.{uuid.uuid4().hex[:12]}.partial")
        partial.mkdir()
        for name, array in arrays.items():
            if len(array) != len(self._shards[number]):
                raise ValueError(f"{name}: {len(array)} rows for {len(self._shards[number])} cells")
            if array.dtype == _BFLOAT16:  # the .npy format has no such type
                _save(partial / f"{name}.bfloat16.npy", array.view(np.uint16))
            else:
                _save(partial / f"{name}.npy", array)
        files = {path.name: _checksum(path) for path in sorted(partial.glob("*.npy"))}
        reasons = {str(row): reason for row, reason in sorted((failed or {}).items())}
        write_text(partial / _SHARD, json.dumps({"files": files, "failed": reasons}, indent=1) + "\n")
        try:
            partial.replace(final)
        except OSError:
            shutil.rmtree(partial)
            if not final.is_dir():
                raise
            # Another process was first, with the same bytes.

    def clean(self) -> None:
        """Remove what killed processes left behind; only where no other process is writing."""
        for partial in self._folder.glob("shard_*.partial"):
            shutil.rmtree(partial, ignore_errors=True)


class Store:
    """A finished store, read by memory map: `store["feature"][i]` touches one row of one file.

    Attributes:
      signature: what the arrays were made with.
      shards: how many there are.
    """

    def __init__(self, folder: Path, expected: Mapping[str, Any] | None = None) -> None:
        """Open.

        Args:
          folder: of the store.
          expected: parts of the signature that must be so; None to take whatever is there.

        Raises:
          InputError: no store, one of another signature, or one with shards missing or torn; the message names the
            shard. Checksums are not compared: see `verify`.
        """
        index = _read_index(folder)
        self._folder, self._index = folder, index
        self.signature: dict[str, Any] = index["signature"]
        for name, value in (expected or {}).items():
            if self.signature.get(name) != value:
                raise InputError(
                    f"the store {folder} was made with {name} = {self.signature.get(name)!r}, not {value!r}"
                )
        self.shards = -(-index["cells"] // index["shard_size"])
        self._ids: list[str] | None = None
        self._fields: dict[str, Rows] = {}
        self.failed: dict[int, str] = {}
        files: dict[str, list[_File]] = {}
        for number in range(self.shards):
            shard = _shard_folder(folder, number)
            if not shard.is_dir():
                raise InputError(f"the store {folder} is not finished ({shard.name} is missing): {index['redo']}")
            described = _read_shard(shard, index["redo"])
            for row, reason in described["failed"].items():
                self.failed[number * index["shard_size"] + int(row)] = reason
            for file in described["files"]:
                name, found = _read_header(shard / file, index["redo"])
                files.setdefault(name, []).append(found)
        for name, own in files.items():
            self._fields[name] = Rows(own, index["shard_size"])
            if len(self._fields[name]) != len(self):
                raise InputError(f"the store {folder} has {len(self._fields[name])} rows of {name!r}, not {len(self)}")

    def __len__(self) -> int:
        return self._index["cells"]

    @property
    def ids(self) -> list[str]:
        """Of all cells, in order."""
        if self._ids is None:
            self._ids = pq.ParquetFile(self._folder / _IDS).read().column("id").to_pylist()
        return self._ids

    def require_ids(self, ids: Sequence[str]) -> None:
        """Refuse a store of other cells, or of the same in another order.

        Raises:
          InputError: it is one.
        """
        if self.ids != list(ids):
            raise InputError(f"the store {self._folder} holds other cells than this run: run `extract` again")

    def verify(self) -> None:
        """Read everything and compare with its checksums.

        Raises:
          InputError: damaged shards; the message names them.
        """
        shards = [_shard_folder(self._folder, number) for number in range(self.shards)]
        damaged = [f"{shard.name} ({problem})" for shard in shards if (problem := _problem(shard))]
        if damaged:
            raise InputError(f"the store {self._folder} is damaged: {name_some(damaged)}; {self._index['redo']}")

    def __getitem__(self, name: str) -> "Rows":
        if name not in self._fields:
            raise InputError(
                f"the store {self._folder} has no field {name!r}, only {', '.join(self._fields)}: if an older version "
                f"wrote it, remove it, and {self._index['redo']}"
            )
        return self._fields[name]


class Rows:
    """The rows of one field over all shards; a file is mapped when a row of it is first asked for."""

    def __init__(self, files: Sequence[_File], shard_size: int) -> None:
        self._files, self._shard_size = files, shard_size
        self._mapped = lru_cache(_MAPPED)(_map)

    def __reduce__(self) -> tuple[Any, ...]:
        # A worker process gets the names of the files, not what is in them.
        return Rows, (self._files, self._shard_size)

    def __len__(self) -> int:
        return sum(file.shape[0] for file in self._files)

    def __getitem__(self, index: int) -> np.ndarray:
        shard, row = divmod(int(index), self._shard_size)
        return np.asarray(self._mapped(self._files[shard])[row])

    def shard(self, number: int) -> np.ndarray:
        """All rows of one shard."""
        return self._mapped(self._files[number])


class Places:
    """Some of the rows of an array, in an order of their own; nothing is copied."""

    def __init__(self, rows: Any, places: Sequence[int]) -> None:
        self._rows, self._places = rows, np.asarray(places, np.int64)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> np.ndarray:
        return np.asarray(self._rows[int(self._places[index])])


def _save(path: Path, array: np.ndarray) -> None:
    try:
        np.save(path, array)
    except OSError as error:
        if error.filename is not None:
            raise
        # NumPy tells how much was written, neither where nor why.
        raise OSError(f"{path} could not be written, as where the disk is full ({error})") from error


def _shard_folder(folder: Path, number: int) -> Path:
    return folder / f"shard_{number:05d}"


def is_store(folder: Path) -> bool:
    """Whether there is a store, whole or not."""
    return (folder / _INDEX).is_file()


def _refuse_another(folder: Path, index: Mapping[str, Any]) -> None:
    there = _read_index(folder)
    changed = differences(there["signature"], index["signature"])
    if there["ids"] != index["ids"]:
        changed.append(f"ids (of {there['cells']} cells, now {index['cells']})")
    if there["shard_size"] != index["shard_size"]:
        changed.append(f"shard_size ({there['shard_size']}, now {index['shard_size']})")
    if changed:
        raise InputError(f"the store {folder} was made with another {name_some(changed)}: remove it or write elsewhere")


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What two sets of plain values differ in, each with both values."""
    names = sorted(old.keys() | new.keys())
    return [f"{name} ({old.get(name)}, now {new.get(name)})" for name in names if old.get(name) != new.get(name)]


def _read_index(folder: Path) -> dict[str, Any]:
    if not is_store(folder):
        raise InputError(f"no store at {folder}: {_INDEX} is missing")
    return _read_json(folder / _INDEX, ("cells", "ids", "signature", "shard_size", "redo"), "remove the folder")


def _read_shard(shard: Path, redo: str) -> dict[str, Any]:
    return _read_json(shard / _SHARD, ("files", "failed"), redo)


def _read_json(path: Path, names: Sequence[str], redo: str) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
        return {name: found[name] for name in names}
    except (FileNotFoundError, json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise _Damaged(f"{path} is damaged ({error!r}): {redo}") from error
    except OSError as error:  # of the system, as where too many files are open
        raise InputError(f"{path} cannot be read: {error}") from error


def _checksum(path: Path) -> list[int]:
    """Bytes and CRC-32."""
    size = checksum = 0
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            size, checksum = size + len(piece), zlib.crc32(piece, checksum)
    return [size, checksum]


def _problem(shard: Path) -> str:
    """What is wrong with a shard; empty for nothing."""
    try:
        described = _read_shard(shard, "")
    except _Damaged:
        return f"{_SHARD} cannot be read"
    for name, expected in described["files"].items():
        path = shard / name
        if not path.is_file():
            return f"{name} is missing"
        try:
            found = _checksum(path)
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error}") from error
        if found != expected:
            return f"{name} has another checksum"
    return ""


def _read_header(path: Path, redo: str) -> tuple[str, _File]:
    """Name of the field, and where its rows are."""
    try:
        with path.open("rb") as file:
            if np.lib.format.read_magic(file) != (1, 0):
                raise ValueError("not the version of .npy that is written")
            shape, columns_first, dtype = np.lib.format.read_array_header_1_0(file)
            offset, size = file.tell(), os.fstat(file.fileno()).st_size
        if size != offset + math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{size} bytes, which do not hold {shape} of {dtype}")
    except (FileNotFoundError, ValueError, EOFError, SyntaxError, TokenError) as error:
        raise _Damaged(f"{path} is damaged ({error}): {redo}") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    name = path.name.removesuffix(".npy")
    if name.endswith(".bfloat16"):
        name, dtype = name.removesuffix(".bfloat16"), _BFLOAT16
    return name, _File(str(path), dtype, shape, "F" if columns_first else "C", offset)


def _map(file: _File) -> np.ndarray:
    """The rows, read only.

    By Arrow, whose maps outlive the closing of their file. NumPy's keep a descriptor each, of which a process may have
    1024, and rows that are still in use keep their maps.
    """
    try:
        with pa.memory_map(file.path) as opened:
            return np.ndarray(file.shape, file.dtype, opened.read_buffer(), file.offset, order=file.order)
    except (OSError, TypeError) as error:  # removed or cut off meanwhile, or the system refuses
        raise InputError(f"{file.path} cannot be read any more: {error}") from error
