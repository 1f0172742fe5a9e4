"""State dicts into files that PyTorch code reads."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dorl_jax.errors import InputError
from dorl_jax.files import replacing
from weights_conversion.sources import TORCH_SUFFIXES

WRITTEN = (".safetensors", *TORCH_SUFFIXES)


def write_state_dict(tensors: Mapping[str, np.ndarray], path: Path) -> None:
    """Write tensors by name, whole or not at all.

    Args:
      tensors: for instance from `export_sam`.
      path: `.safetensors`, which needs no PyTorch, or `.pth`, `.pt`, `.mdl`, `.bin` with the `convert` extra.

    Raises:
      InputError: another kind of file; torch not installed.
    """
    if path.suffix not in WRITTEN:
        raise InputError(f"{path}: expected a name that ends in {', '.join(WRITTEN)}")
    if path.suffix == ".safetensors":
        from safetensors.numpy import save_file

        with replacing(path) as partial:
            save_file(dict(tensors), partial, metadata={"format": "pt"})
        return
    try:
        import torch
    except ImportError as error:
        raise InputError(
            f"writing {path} needs PyTorch: pip install 'dorl-jax[convert]', or write .safetensors"
        ) from error
    # torch refuses read-only memory, such as that of a JAX array
    named = {name: torch.from_numpy(np.array(array)) for name, array in tensors.items()}
    with replacing(path) as partial:
        torch.save(named, partial)
