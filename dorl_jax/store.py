"""Arrays of many cells on disk: written shard by shard, read by memory map, tied to what made them.

A store is a folder with `store.json` (its signature and the ids of its cells) and one folder a shard of `.npy` files.
A shard appears by a rename, whole or not at all; writing again into the same store goes on behind the last one.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from dorl_jax.errors import InputError
from dorl_jax.files import write_text

_INDEX = "store.json"
_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def fingerprint(*parts: Any) -> str:
    """Short hash of plain values (as JSON)."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


class StoreWriter:
    """Writes a store."""

    def __init__(self, folder: Path, ids: Sequence[str], signature: Mapping[str, Any], shard_size: int = 256) -> None:
        """Open a new store, or one to go on with.

        Args:
          folder: of the store.
          ids: of all cells, in order.
          signature: plain values that tell what the arrays were made with (weights, preprocessing, version).
          shard_size: cells a shard.

        Raises:
          InputError: there is a store of other cells or of another signature.
        """
        self._folder = folder
        index = {"signature": dict(signature), "shard_size": shard_size, "ids": list(ids)}
        path = folder / _INDEX
        if path.is_file():
            there = _read_index(folder)
            for part in ("signature", "ids", "shard_size"):
                if there[part] != json.loads(json.dumps(index[part])):
                    raise InputError(f"the store {folder} was made with another {part}: remove it or write elsewhere")
        else:
            write_text(path, json.dumps(index))
        self._shards = [range(i, min(i + shard_size, len(ids))) for i in range(0, len(ids), shard_size)]

    def missing(self) -> Iterator[tuple[int, range]]:
        """Number and cells (by place) of every shard that is not there yet."""
        for number, cells in enumerate(self._shards):
            if not _shard_folder(self._folder, number).is_dir():
                yield number, cells

    def write(self, number: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Write one shard; `arrays` have one row a cell."""
        final = _shard_folder(self._folder, number)
        partial = final.with_name(f"{final.name}.{os.getpid()}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        for name, array in arrays.items():
            if len(array) != len(self._shards[number]):
                raise ValueError(f"{name}: {len(array)} rows for {len(self._shards[number])} cells")
            if array.dtype == _BFLOAT16:  # the .npy format has no such type
                np.save(partial / f"{name}.bfloat16.npy", array.view(np.uint16))
            else:
                np.save(partial / f"{name}.npy", array)
        partial.replace(final)


class Store:
    """A finished store, read by memory map: `store["feature"][i]` touches one row of one file."""

    def __init__(self, folder: Path) -> None:
        """Open.

        Raises:
          InputError: no store, or one with shards missing or torn; the message names the shard.
        """
        index = _read_index(folder)
        self._folder = folder
        self.ids: list[str] = index["ids"]
        self.signature: dict[str, Any] = index["signature"]
        shards = range(-(-len(self.ids) // index["shard_size"]))
        self._fields: dict[str, Rows] = {}
        parts: dict[str, list[np.ndarray]] = {}
        for number in shards:
            shard = _shard_folder(folder, number)
            if not shard.is_dir():
                raise InputError(f"the store {folder} is not finished ({shard.name} is missing): run `extract` again")
            for path in sorted(shard.glob("*.npy")):
                name, array = _open(path)
                parts.setdefault(name, []).append(array)
        for name, arrays in parts.items():
            self._fields[name] = Rows(arrays, index["shard_size"])
            if len(self._fields[name]) != len(self.ids):
                raise InputError(
                    f"the store {folder} has {len(self._fields[name])} rows of {name!r}, not {len(self.ids)}"
                )

    def require_ids(self, ids: Sequence[str]) -> None:
        """Refuse a store of other cells, or of the same in another order.

        Raises:
          InputError: it is one.
        """
        if self.ids != list(ids):
            raise InputError(f"the store {self._folder} holds other cells than this run: run `extract` again")

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, name: str) -> "Rows":
        if name not in self._fields:
            raise InputError(f"the store has no field {name!r}; there are: {', '.join(self._fields)}")
        return self._fields[name]


class Rows:
    """The rows of one field over all shards."""

    def __init__(self, parts: Sequence[np.ndarray], shard_size: int) -> None:
        self._parts, self._shard_size = parts, shard_size

    def __len__(self) -> int:
        return sum(len(part) for part in self._parts)

    def __getitem__(self, index: int) -> np.ndarray:
        shard, row = divmod(int(index), self._shard_size)
        return np.asarray(self._parts[shard][row])


class Places:
    """Some of the rows of an array, in an order of their own; nothing is copied."""

    def __init__(self, rows: Any, places: Sequence[int]) -> None:
        self._rows, self._places = rows, np.asarray(places, np.int64)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> np.ndarray:
        return np.asarray(self._rows[int(self._places[index])])


def _shard_folder(folder: Path, number: int) -> Path:
    return folder / f"shard_{number:05d}"


def _read_index(folder: Path) -> dict[str, Any]:
    path = folder / _INDEX
    if not path.is_file():
        raise InputError(f"no store at {folder}: {_INDEX} is missing")
    try:
        index = json.loads(path.read_text())
        return {name: index[name] for name in ("ids", "signature", "shard_size")}
    except (json.JSONDecodeError, KeyError) as error:
        raise InputError(f"{path} is damaged: {error!r}") from error


def _open(path: Path) -> tuple[str, np.ndarray]:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise InputError(f"{path} is damaged ({error}): remove {path.parent} and run `extract` again") from error
    name = path.name.removesuffix(".npy")
    if name.endswith(".bfloat16"):
        return name.removesuffix(".bfloat16"), array.view(_BFLOAT16)
    return name, array
