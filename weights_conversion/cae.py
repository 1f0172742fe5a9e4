"""DoRL's cross-domain autoencoder into `dorl_jax.models.Cae`."""

import math
import re

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from dorl_jax.errors import InputError
from dorl_jax.models import Cae, CaeConfig
from weights_conversion.key_map import Rule, conv_transpose, load, module_rules, norm_rules
from weights_conversion.sources import StateDict, drop_prefix, read_state_dict


def _block_rules(part: str) -> list[Rule]:
    source, target = rf"{part}\.transformer\.(\d+)", f"{part}.blocks.{{0}}"
    return [
        *norm_rules(rf"{source}\.norm1", f"{target}.norm1"),
        *module_rules(rf"{source}\.attn\.qkv", f"{target}.attn.qkv", bias=False),
        *module_rules(rf"{source}\.attn\.proj", f"{target}.attn.proj"),
        *norm_rules(rf"{source}\.norm2", f"{target}.norm2"),
        *module_rules(rf"{source}\.mlp\.fc1", f"{target}.mlp.lin1"),
        *module_rules(rf"{source}\.mlp\.fc2", f"{target}.mlp.lin2"),
    ]


def _head_rules() -> list[Rule]:
    # Layers 0, 2, 4, 6, 8 of the original's Sequential, ReLUs between them.
    rules = []
    for index in range(5):
        rules += module_rules(rf"decoder\.head\.{2 * index}", f"image_head.layers.{index}", conv_transpose)
    return rules


CAE_RULES = (
    Rule(r"encoder\.cls_token", "encoder.cls_token", lambda x: x[0]),
    Rule(r"encoder\.pos_embedding", "encoder.pos_embedding", lambda x: x[:, 0]),
    *_block_rules("encoder"),
    *norm_rules(r"encoder\.layer_norm", "encoder.norm"),
    Rule(r"decoder\.mask_token", "decoder.mask_token", lambda x: x[0]),
    Rule(r"decoder\.pos_embedding", "decoder.pos_embedding", lambda x: x[:, 0]),
    *_block_rules("decoder"),
    *_head_rules(),
    *module_rules(r"decoder\.Linear", "projector"),
)

_HEADS = {768: 12, 1024: 16, 1280: 16}


def convert_cae(state_dict: StateDict, *, heads: int | None = None, dtype: DTypeLike = jnp.float32) -> Cae:
    """DoRL's autoencoder as a `Cae`; its shape is read off the tensors.

    Args:
      state_dict: path or mapping (see `read_state_dict`); a common prefix "module." or "cae." is dropped.
      heads: attention heads, which no tensor shows; by default as in the SAM of that width, else one for 64 channels.
      dtype: of the model's arithmetic; its parameters are fp32.

    Raises:
      InputError: not such a state dict.
    """
    source = drop_prefix(read_state_dict(state_dict), "cae.")
    config = _read_config(source, heads)
    return load(lambda: Cae(config, rngs=nnx.Rngs(0), dtype=dtype), source, CAE_RULES)


def _read_config(source: dict[str, np.ndarray], heads: int | None) -> CaeConfig:
    def shape(name: str) -> tuple[int, ...]:
        if name not in source:
            raise InputError(f"not an autoencoder's state dict: no tensor {name!r}")
        return source[name].shape

    tokens, width = shape("encoder.pos_embedding")[0], shape("encoder.cls_token")[-1]
    grid = math.isqrt(tokens)
    if grid**2 != tokens:
        raise InputError(f"encoder.pos_embedding has {tokens} tokens, which is no square grid")
    channels = [shape(f"decoder.head.{2 * index}.weight")[1] for index in range(4)]
    return CaeConfig(
        width=width,
        grid=grid,
        encoder_depth=_depth(source, "encoder"),
        decoder_depth=_depth(source, "decoder"),
        heads=heads or _HEADS.get(width) or max(1, width // 64),
        projection=shape("decoder.Linear.weight")[0],
        head_channels=(channels[0], channels[1], channels[2], channels[3]),
    )


def _depth(source: dict[str, np.ndarray], part: str) -> int:
    blocks = {match.group(1) for name in source if (match := re.match(rf"{part}\.transformer\.(\d+)\.", name))}
    return max((int(block) + 1 for block in blocks), default=0)
