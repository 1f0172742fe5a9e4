"""Weights made by rule from their names, for the comparison with recorded outputs of the original code.

The rule belongs to the golden files: each tensor is drawn from a generator seeded with its own name.
"""

import json
import zlib
from pathlib import Path

import numpy as np

_UNSCALED = ("embedding", "_token", "no_mask", "not_a_point")
_TWO_MASK = ("mask_tokens", "output_hypernetworks_mlps", "iou_prediction_head")


def rule_made(name: str, shape: tuple[int, ...], seed: int = 1) -> np.ndarray:
    """The tensor of that name."""
    z = np.random.RandomState(zlib.crc32(f"{seed}:{name}".encode())).standard_normal(shape).astype(np.float32)
    last = name.rsplit(".", 1)[-1]
    if "running_var" in name:
        value = 1 + 0.1 * np.abs(z)
    elif "running_mean" in name:
        value = 0.1 * z
    elif "num_batches_tracked" in name:
        return np.ones(shape, np.int64)
    elif "gaussian_matrix" in name:
        value = z
    elif last == "bias":
        value = 0.02 * z
    elif len(shape) == 1 and last == "weight":
        value = 1 + 0.05 * z
    elif len(shape) >= 2 and last == "weight" and not any(part in name for part in _UNSCALED):
        value = z / np.sqrt(np.prod(shape[1:]))
    elif "rel_pos" in name:
        value = 0.1 * z
    else:
        value = 0.5 * z
    return value.astype(np.float32)


def sam_state_dict(folder: Path, variant: str = "vit_b") -> dict[str, np.ndarray]:
    """An official SAM checkpoint at 1024 pixels."""
    return {name: rule_made(name, shape) for name, shape in sam_shapes(folder, variant).items()}


def sam_shapes(folder: Path, variant: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of an official SAM checkpoint."""
    shapes = json.loads((folder / "sam_state_dict_keys.json").read_text())[variant]
    return {name: tuple(shape) for name, shape in shapes.items()}


def lora_state_dict(
    folder: Path, variant: str = "vit_b", rank: int = 4, *, own_names: bool = False
) -> dict[str, np.ndarray]:
    """DoRL's LoRA file: the matrices, the prompt encoder and a mask decoder of two masks."""
    shapes = sam_shapes(folder, variant)
    tensors = {}
    for name, full_shape in shapes.items():
        if not name.startswith(("prompt_encoder.", "mask_decoder.")):
            continue
        shape = two_mask_shape(name, full_shape)
        if shape is not None:
            own = own_names or any(part in name for part in _TWO_MASK)
            tensors[name] = rule_made(f"dorl.{name}" if own else name, shape)
    width, depth = (
        shapes["image_encoder.pos_embed"][-1],
        sum("norm1.weight" in n for n in shapes if "blocks" in n),
    )
    for index in range(2 * depth):
        tensors[f"w_a_{index:03d}"] = rule_made(f"w_a_{index:03d}.weight", (rank, width))
        tensors[f"w_b_{index:03d}"] = np.float32(0.3) * rule_made(f"w_b_{index:03d}.weight", (width, rank))
    return tensors


def two_mask_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Shape of a mask decoder tensor with two masks in place of four; None if it is not there."""
    if "output_hypernetworks_mlps.2" in name or "output_hypernetworks_mlps.3" in name:
        return None
    if "mask_tokens" in name or "iou_prediction_head.layers.2" in name:
        return (2, *shape[1:])
    return shape


def at_224_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of an image encoder tensor at 224 pixels."""
    if name.endswith("pos_embed"):
        return (1, 14, 14, shape[-1])
    if "rel_pos" in name:
        return (27, shape[-1])
    return shape


def scaled(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Weights of the attention between tokens and image divided by the root of their inputs, as all others are."""
    return {
        name: value / np.float32(np.sqrt(value.shape[1])) if "attn_" in name and value.ndim == 2 else value
        for name, value in tensors.items()
    }


def cae_state_dict(folder: Path) -> dict[str, np.ndarray]:
    """DoRL's autoencoder."""
    shapes = json.loads((folder / "cae_state_dict_keys.json").read_text())
    return {name.removeprefix("cae."): rule_made(name, tuple(shape)) for name, shape in shapes.items()}


def conv_autoencoder_state_dict(folder: Path) -> dict[str, np.ndarray]:
    """BC-SAM's autoencoder."""
    shapes = json.loads((folder / "bcsam_state_dict_keys.json").read_text())
    return {name: rule_made(name, tuple(shape)) for name, shape in shapes.items()}


def deviation(actual: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference over the largest magnitude of the expected array."""
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    return float(np.abs(np.asarray(actual) - expected).max() / np.abs(expected).max())


def standard_normal(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Input arrays that the golden files name by their seed."""
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


def as_nhwc(array: np.ndarray) -> np.ndarray:
    """(B, C, H, W) -> (B, H, W, C)."""
    return np.moveaxis(array, 1, -1)
