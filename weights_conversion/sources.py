"""Read a state dict from a file, a folder or a mapping, tensor by tensor. Nothing is ever unpickled but tensors."""

import json
import os
import pickle
import re
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from dorl_jax.errors import InputError, name_some

StateDict = str | os.PathLike[str] | Mapping[str, Any]

TORCH_SUFFIXES = (".pth", ".pt", ".mdl", ".bin")
# What a folder from the Hugging Face hub holds, the first of these that is there.
_IN_FOLDERS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
# What `torch.load` raises where bytes of a file are wrong or missing.
_OF_DAMAGED_FILES = (
    pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, AttributeError,
    AssertionError, struct.error,
)  # fmt: skip
_SAFETENSORS_TYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64"}


@dataclass(frozen=True)
class Tensor:
    """A tensor of a state dict, read when it is needed, so that never more than one is in memory twice.

    Attributes:
      shape: its axes.
      dtype: name of its type, as NumPy's, or "bfloat16".
      read: gives the values.
      was: its shape in the state dict, if it has been resized since.
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]
    was: tuple[int, ...] | None = None


Tensors = dict[str, Tensor]


def read_state_dict(source: StateDict) -> dict[str, np.ndarray]:
    """All tensors by name, as NumPy arrays: `open_state_dict`, read.

    Raises:
      InputError: as `open_state_dict`; a type NumPy has not.
    """
    return {name: tensor.read() for name, tensor in open_state_dict(source).items()}


def open_state_dict(source: StateDict) -> Tensors:
    """Tensors by name, not read yet.

    Args:
      source: a path (`.safetensors`; `.pth`, `.pt`, `.mdl`, `.bin` with the `convert` extra), a folder as the Hugging
        Face hub has them, or a mapping from name to array (NumPy, JAX or PyTorch). A checkpoint that holds its tensors
        under "state_dict" or "model" is unwrapped; a prefix "module." that every name carries is dropped.

    Raises:
      InputError: no such file, another kind of file, a file that holds anything but tensors, torch not installed.
    """
    tensors = _from_mapping(source) if isinstance(source, Mapping) else _open(Path(source))
    if not tensors:
        raise InputError("the state dict is empty" if isinstance(source, Mapping) else f"{source} holds no tensor")
    return drop_prefix(tensors, "module.")


def drop_prefix(tensors: Tensors, prefix: str) -> Tensors:
    """The tensors without a prefix that all their names carry."""
    if tensors and all(name.startswith(prefix) for name in tensors):
        return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def shape_of(tensors: Tensors, name: str, axes: int, what: str) -> tuple[int, ...]:
    """Shape of a tensor that a model of that name must have.

    Raises:
      InputError: there is none of that name, or it has another number of axes.
    """
    if name not in tensors:
        raise InputError(f"not a state dict of {what}: no tensor {name!r}")
    shape = tensors[name].shape
    if len(shape) != axes:
        raise InputError(f"{name} has shape {shape}, expected {axes} axes")
    return shape


def common_length(tensors: Tensors, pattern: str) -> int:
    """The commonest length of the tensors of one axis whose names match; 0 if there are none.

    Many are asked so that one damaged tensor does not change the shape that is read off a state dict.
    """
    lengths = Counter(
        tensor.shape[0] for name, tensor in tensors.items() if len(tensor.shape) == 1 and re.fullmatch(pattern, name)
    )
    return lengths.most_common(1)[0][0] if lengths else 0


def count_parts(names: Iterable[str], pattern: str) -> int:
    """How many numbered parts (`blocks.0`, `blocks.1`, ...) there are.

    A part of which most is missing does not count, so that a stray tensor is reported as such, and a lost one too.

    Args:
      names: of tensors.
      pattern: regular expression of the beginning of a name, with the number as its group.
    """
    found = Counter(int(match[1]) for name in names if (match := re.match(pattern, name)))
    whole = max(found.values(), default=0)
    return max((number + 1 for number, count in found.items() if 2 * count >= whole), default=0)


def _from_mapping(named: Mapping[Any, Any]) -> Tensors:
    for wrapper in ("state_dict", "model"):
        if isinstance(named.get(wrapper), Mapping):
            named = named[wrapper]
    for name in named:
        if not isinstance(name, str):
            raise InputError(f"{name!r} in the state dict is no name: it is {type(name).__name__}, expected text")
    return {name: _tensor(name, value) for name, value in named.items()}


def _tensor(name: str, value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value
    if hasattr(value, "detach"):  # a PyTorch tensor
        return Tensor(tuple(value.shape), str(value.dtype).removeprefix("torch."), partial(_from_torch, name, value))
    try:
        array = value if hasattr(value, "dtype") and hasattr(value, "shape") else np.asarray(value)
    except ValueError as error:  # a list of lists that are not of one length
        raise InputError(f"{name!r} in the state dict is not an array: {error}") from error
    if array.dtype == object:
        raise InputError(f"{name!r} in the state dict is not an array but {type(value).__name__}")
    return Tensor(tuple(array.shape), str(array.dtype), lambda: np.asarray(array))


def _from_torch(name: str, tensor: Any) -> np.ndarray:
    if tensor.is_meta:
        raise InputError(f"{name} is on PyTorch's device 'meta' and has no values: load the weights first")
    if str(tensor.layout) != "torch.strided":
        raise InputError(f"{name} is sparse ({tensor.layout}): give tensor.to_dense()")
    try:
        return tensor.detach().cpu().numpy()
    except TypeError as error:  # bfloat16 and the like
        raise InputError(f"{name} is of type {tensor.dtype}, which NumPy has not: cast it to float32 first") from error


def _open(path: Path) -> Tensors:
    if path.is_dir():
        return _open_folder(path)
    if not path.is_file():
        raise InputError(f"no checkpoint at {path}")
    if path.suffix == ".safetensors":
        return _open_safetensors(path)
    if path.suffix in TORCH_SUFFIXES:
        return _from_mapping(_load_torch(path))
    raise InputError(f"{path}: expected a {', '.join(TORCH_SUFFIXES)} or .safetensors file")


def _open_folder(folder: Path) -> Tensors:
    found = next((folder / name for name in _IN_FOLDERS if (folder / name).is_file()), None)
    if found is None:
        raise InputError(f"no checkpoint in the folder {folder}: expected one of {', '.join(_IN_FOLDERS)}")
    if found.suffix != ".json":
        return _open(found)
    try:
        places = msgspec.convert(json.loads(found.read_text(encoding="utf-8"))["weight_map"], dict[str, str])
    except (ValueError, KeyError, TypeError, msgspec.ValidationError) as error:
        raise InputError(f"{found} is not an index of a checkpoint in parts: {error!r}") from error
    tensors: Tensors = {}
    for file in sorted(set(places.values())):
        if Path(file).name != file:
            raise InputError(f"{found} points outside its folder: {file}")
        tensors |= _open(folder / file)
    _same_names(found, places, tensors)
    return tensors


def _same_names(index: Path, listed: Iterable[str], found: Iterable[str]) -> None:
    differing = set(listed) ^ set(found)
    if differing:
        raise InputError(f"{index} and the files it names disagree on {name_some(sorted(differing))}")


def _open_safetensors(path: Path) -> Tensors:
    from safetensors import SafetensorError, safe_open

    tensors = {}
    try:
        with safe_open(path, "np") as file:
            for name in file.keys():  # noqa: SIM118 - no mapping
                part = file.get_slice(name)
                kind = _SAFETENSORS_TYPES.get(part.get_dtype(), part.get_dtype())
                tensors[name] = Tensor(tuple(part.get_shape()), kind, partial(_read_safetensor, path, name, kind))
    except SafetensorError as error:
        raise InputError(f"{path} is not a safetensors file: {error}") from error
    return tensors


def _read_safetensor(path: Path, name: str, kind: str) -> np.ndarray:
    # Opened anew each time: the pages of an open file count as memory of this process until it is closed.
    from safetensors import safe_open

    if kind == "bfloat16":
        raise InputError(f"{name} in {path} is of type bfloat16, which NumPy has not: cast it to float32 first")
    with safe_open(path, "np") as file:
        return file.get_tensor(name)


def _load_torch(path: Path) -> Mapping[Any, Any]:
    try:
        import torch
    except ImportError as error:
        raise InputError(
            f"reading {path} needs PyTorch: pip install 'dorl-jax[convert]', or convert the file to .safetensors"
        ) from error
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except _OF_DAMAGED_FILES as error:
        raise InputError(f"{path} {_why_unread(path, error)}") from error
    if not isinstance(loaded, Mapping):
        raise InputError(f"{path} holds a {type(loaded).__name__}, not a state dict")
    return loaded


def _why_unread(path: Path, error: Exception) -> str:
    """What is wrong with a file that PyTorch refuses: its own words advise to unpickle it all the same."""
    with path.open("rb") as file:
        beginning = file.read(2)
    if not beginning.startswith((b"PK", b"\x80")):
        return "is no file that torch.save wrote, perhaps a page that came in its place: download it again"
    if not isinstance(error, pickle.UnpicklingError):
        return "is not whole, or no file that torch.save wrote: download or copy it again"
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    what = f": it names {found[1]}, which would be run" if found else ""
    return f"is not a checkpoint of tensors alone{what}. Save the state dict by itself, with PyTorch"
