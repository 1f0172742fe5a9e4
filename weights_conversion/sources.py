"""Read a state dict from a file or a mapping. Nothing is ever unpickled but tensors."""

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dorl_jax.errors import InputError

StateDict = str | os.PathLike[str] | Mapping[str, Any]


def read_state_dict(source: StateDict) -> dict[str, np.ndarray]:
    """Tensors by name, as NumPy arrays.

    Args:
      source: a path (`.safetensors`; `.pth`, `.pt`, `.mdl`, `.bin` with the `convert` extra), or a mapping from name
        to array (NumPy, JAX or PyTorch). A checkpoint that holds its tensors under "state_dict" or "model" is
        unwrapped; a prefix "module." that every name carries is dropped.

    Raises:
      InputError: no such file, another kind of file, a file that holds anything but tensors, torch not installed.
    """
    named = source if isinstance(source, Mapping) else _read_file(Path(source))
    for wrapper in ("state_dict", "model"):
        if isinstance(named.get(wrapper), Mapping):
            named = named[wrapper]
    arrays = {}
    for name, value in named.items():
        if hasattr(value, "detach"):  # a PyTorch tensor
            value = value.detach().cpu().numpy()
        array = np.asarray(value)
        if array.dtype == object:
            raise InputError(f"{name!r} in the state dict is not an array but {type(value).__name__}")
        arrays[name] = array
    return drop_prefix(arrays, "module.")


def drop_prefix(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The arrays without a prefix that all their names carry."""
    if arrays and all(name.startswith(prefix) for name in arrays):
        return {name.removeprefix(prefix): array for name, array in arrays.items()}
    return arrays


def _read_file(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise InputError(f"no checkpoint at {path}")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise InputError(f"{path} is not a safetensors file: {error}") from error
    if path.suffix not in (".pth", ".pt", ".mdl", ".bin"):
        raise InputError(f"{path}: expected a .pth, .pt, .mdl, .bin or .safetensors file")
    try:
        import torch
    except ImportError as error:
        raise InputError(
            f"reading {path} needs PyTorch: pip install 'dorl-jax[convert]', or convert the file to .safetensors"
        ) from error
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{path} is not a checkpoint of tensors alone: {first_line}") from error
    if not isinstance(loaded, Mapping):
        raise InputError(f"{path} holds a {type(loaded).__name__}, not a state dict")
    return loaded
