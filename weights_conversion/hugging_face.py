"""Names of `transformers.SamModel` into those of the official Segment Anything checkpoints, and back.

Only the names differ: every array, the fused qkv included, is the same in both.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from dorl_jax.errors import InputError
from weights_conversion.sources import StateDict, Tensors

HYPERNETWORK_DEPTH = 3
IOU_DEPTH = 3

# The position encoding is one matrix that two modules of SamModel share: files hold it under one name or both.
SHARED = "shared_image_embedding.positional_embedding"
TIED = "prompt_encoder.shared_embedding.positional_embedding"

# Official name, Hugging Face's. "#" is a number, "*" weight or bias.
_TABLE = (
    ("image_encoder.pos_embed", "vision_encoder.pos_embed"),
    ("image_encoder.patch_embed.proj.*", "vision_encoder.patch_embed.projection.*"),
    ("image_encoder.blocks.#.norm1.*", "vision_encoder.layers.#.layer_norm1.*"),
    ("image_encoder.blocks.#.attn.qkv.*", "vision_encoder.layers.#.attn.qkv.*"),
    ("image_encoder.blocks.#.attn.proj.*", "vision_encoder.layers.#.attn.proj.*"),
    ("image_encoder.blocks.#.attn.rel_pos_h", "vision_encoder.layers.#.attn.rel_pos_h"),
    ("image_encoder.blocks.#.attn.rel_pos_w", "vision_encoder.layers.#.attn.rel_pos_w"),
    ("image_encoder.blocks.#.norm2.*", "vision_encoder.layers.#.layer_norm2.*"),
    ("image_encoder.blocks.#.mlp.lin1.*", "vision_encoder.layers.#.mlp.lin1.*"),
    ("image_encoder.blocks.#.mlp.lin2.*", "vision_encoder.layers.#.mlp.lin2.*"),
    ("image_encoder.neck.0.weight", "vision_encoder.neck.conv1.weight"),
    ("image_encoder.neck.1.*", "vision_encoder.neck.layer_norm1.*"),
    ("image_encoder.neck.2.weight", "vision_encoder.neck.conv2.weight"),
    ("image_encoder.neck.3.*", "vision_encoder.neck.layer_norm2.*"),
    ("prompt_encoder.pe_layer.positional_encoding_gaussian_matrix", SHARED),
    ("prompt_encoder.pe_layer.positional_encoding_gaussian_matrix", TIED),
    ("prompt_encoder.point_embeddings.#.weight", "prompt_encoder.point_embed.#.weight"),
    ("prompt_encoder.not_a_point_embed.weight", "prompt_encoder.not_a_point_embed.weight"),
    ("prompt_encoder.no_mask_embed.weight", "prompt_encoder.no_mask_embed.weight"),
    ("prompt_encoder.mask_downscaling.0.*", "prompt_encoder.mask_embed.conv1.*"),
    ("prompt_encoder.mask_downscaling.1.*", "prompt_encoder.mask_embed.layer_norm1.*"),
    ("prompt_encoder.mask_downscaling.3.*", "prompt_encoder.mask_embed.conv2.*"),
    ("prompt_encoder.mask_downscaling.4.*", "prompt_encoder.mask_embed.layer_norm2.*"),
    ("prompt_encoder.mask_downscaling.6.*", "prompt_encoder.mask_embed.conv3.*"),
    ("mask_decoder.iou_token.weight", "mask_decoder.iou_token.weight"),
    ("mask_decoder.mask_tokens.weight", "mask_decoder.mask_tokens.weight"),
    *(
        (f"mask_decoder.transformer.{attention}.{part}.*",) * 2
        for attention in (
            "layers.#.self_attn",
            "layers.#.cross_attn_token_to_image",
            "layers.#.cross_attn_image_to_token",
            "final_attn_token_to_image",
        )
        for part in ("q_proj", "k_proj", "v_proj", "out_proj")
    ),
    *(
        (f"mask_decoder.transformer.layers.#.norm{i}.*", f"mask_decoder.transformer.layers.#.layer_norm{i}.*")
        for i in (1, 2, 3, 4)
    ),
    ("mask_decoder.transformer.layers.#.mlp.lin1.*",) * 2,
    ("mask_decoder.transformer.layers.#.mlp.lin2.*",) * 2,
    ("mask_decoder.transformer.norm_final_attn.*", "mask_decoder.transformer.layer_norm_final_attn.*"),
    ("mask_decoder.output_upscaling.0.*", "mask_decoder.upscale_conv1.*"),
    ("mask_decoder.output_upscaling.1.*", "mask_decoder.upscale_layer_norm.*"),
    ("mask_decoder.output_upscaling.3.*", "mask_decoder.upscale_conv2.*"),
)


def is_hugging_face(names: Iterable[str]) -> bool:
    """Whether these are names of `SamModel` (or of its vision encoder alone), not official ones."""
    return any(name.startswith(("vision_encoder.", "shared_image_embedding.")) for name in names)


def to_official(name: str, iou_depth: int = IOU_DEPTH) -> str | None:
    """The official name of a tensor of `SamModel`; None if it has no such tensor.

    Args:
      name: Hugging Face's. Both names of the shared position encoding have the same official one.
      iou_depth: layers of the head that predicts the IoU, at least 2. The last is "proj_out" in Hugging Face's names
        and carries its number in the official ones.
    """
    return _renamed(name, [(theirs, official) for official, theirs in _table(iou_depth)])


def from_official(name: str, iou_depth: int = IOU_DEPTH) -> str:
    """The name in `SamModel` of a tensor of the official model: the inverse of `to_official`.

    Args:
      name: the official one.
      iou_depth: layers of the head that predicts the IoU, at least 2.

    Raises:
      InputError: the official model has no such tensor.
    """
    renamed = _renamed(name, _table(iou_depth))
    if renamed is None:
        raise InputError(f"{name!r} is no tensor of an official Segment Anything checkpoint")
    return renamed


def as_official(tensors: Tensors) -> tuple[Tensors, Callable[[str], str]]:
    """A state dict of `SamModel` under official names, and what it calls each; a name it does not have is kept.

    Raises:
      InputError: two different position encodings.
    """
    if SHARED in tensors and TIED in tensors and not np.array_equal(tensors[SHARED].read(), tensors[TIED].read()):
        raise InputError(f"{SHARED} and {TIED} are one matrix in SamModel, but differ here")
    depth = 2 + sum(
        re.fullmatch(r"mask_decoder\.iou_prediction_head\.layers\.\d+\.weight", name) is not None for name in tensors
    )
    names = {to_official(name, depth) or name: name for name in tensors if name != TIED or SHARED not in tensors}
    renamed = {official: tensors[name] for official, name in names.items()}
    return renamed, lambda official: names.get(official) or from_official(official, depth)


def settings_beside(source: StateDict) -> dict[str, Any]:
    """What no tensor shows of the mask decoder, from the `config.json` beside the weights if there is one."""
    settings = {"heads": 8, "epsilon": 1e-6}  # SamModel's own defaults
    if isinstance(source, Mapping):
        return settings
    path = Path(source) / "config.json" if Path(source).is_dir() else Path(source).with_name("config.json")
    if not path.is_file():
        return settings
    try:
        decoder = json.loads(path.read_text(encoding="utf-8")).get("mask_decoder_config", {})
        heads, epsilon = decoder.get("num_attention_heads", 8), decoder.get("layer_norm_eps", 1e-6)
        return {"heads": int(heads), "epsilon": float(epsilon)}
    except (ValueError, AttributeError, TypeError) as error:
        raise InputError(f"{path} is not the configuration of a SamModel: {error!r}") from error


@cache
def _table(iou_depth: int) -> tuple[tuple[str, str], ...]:
    hypernetworks = _perceptron("mask_decoder.output_hypernetworks_mlps.#", HYPERNETWORK_DEPTH)
    return (*_TABLE, *hypernetworks, *_perceptron("mask_decoder.iou_prediction_head", iou_depth))


def _perceptron(name: str, depth: int) -> list[tuple[str, str]]:
    """First and last layer have names of their own in `SamModel`, and those between are counted from 0."""
    if depth < 2:
        raise ValueError(f"a head of SamModel has at least 2 layers, not {depth}")
    theirs = ["proj_in", *(f"layers.{index}" for index in range(depth - 2)), "proj_out"]
    return [(f"{name}.layers.{index}.*", f"{name}.{their}.*") for index, their in enumerate(theirs)]


def _renamed(name: str, table: Iterable[tuple[str, str]]) -> str | None:
    for source, target in table:
        match = _pattern(source).fullmatch(name)
        if match:
            return re.sub(r"[#*]", "{}", target).format(*match.groups())
    return None


@cache
def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.escape(template).replace(r"\#", r"(\d+)").replace(r"\*", "(weight|bias)"))
