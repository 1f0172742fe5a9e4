"""DoRL's cross-domain autoencoder into `dorl_jax.models.Cae`."""

import math

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike

from dorl_jax.errors import InputError
from dorl_jax.models import Cae, CaeConfig
from dorl_jax.models.variants import VARIANTS
from weights_conversion.key_map import Rule, load, module_rules, norm_rules, unload
from weights_conversion.layouts import CONV_TRANSPOSE, UNBATCHED, UNBATCHED_SECOND
from weights_conversion.report import Row
from weights_conversion.sources import (
    StateDict,
    Tensors,
    common_length,
    count_parts,
    drop_prefix,
    open_state_dict,
    shape_of,
)


def _blocks(part: str) -> list[Rule]:
    source, target = f"{part}.transformer.{{}}", f"{part}.blocks.{{}}"
    return [
        *norm_rules(f"{source}.norm1", f"{target}.norm1"),
        *module_rules(f"{source}.attn.qkv", f"{target}.attn.qkv", bias=False),
        *module_rules(f"{source}.attn.proj", f"{target}.attn.proj"),
        *norm_rules(f"{source}.norm2", f"{target}.norm2"),
        *module_rules(f"{source}.mlp.fc1", f"{target}.mlp.lin1"),
        *module_rules(f"{source}.mlp.fc2", f"{target}.mlp.lin2"),
    ]


def _head() -> list[Rule]:
    # Layers 0, 2, 4, 6, 8 of the original's Sequential, ReLUs between them.
    rules = []
    for index in range(5):
        rules += module_rules(f"decoder.head.{2 * index}", f"image_head.layers.{index}", CONV_TRANSPOSE)
    return rules


CAE_RULES = (
    Rule("encoder.cls_token", "encoder.cls_token", UNBATCHED),
    Rule("encoder.pos_embedding", "encoder.pos_embedding", UNBATCHED_SECOND),
    *_blocks("encoder"),
    *norm_rules("encoder.layer_norm", "encoder.norm"),
    Rule("decoder.mask_token", "decoder.mask_token", UNBATCHED),
    Rule("decoder.pos_embedding", "decoder.pos_embedding", UNBATCHED_SECOND),
    *_blocks("decoder"),
    *_head(),
    *module_rules("decoder.Linear", "projector"),
)

_HEADS = {config.width: config.heads for config in map(CaeConfig.preset, VARIANTS)}


def convert_cae(
    state_dict: StateDict,
    *,
    heads: int | None = None,
    mesh: Mesh | None = None,
    dtype: DTypeLike = jnp.float32,
    report: list[Row] | None = None,
) -> Cae:
    """DoRL's autoencoder as a `Cae`; its shape is read off the tensors.

    Args:
      state_dict: path or mapping (see `open_state_dict`); a common prefix "module." or "cae." is dropped.
      heads: attention heads, which no tensor shows; needed where the width is that of no variant (see `CaeConfig`).
      mesh: devices to spread the parameters over (see `parallel.parameter_sharding`); None for the default device.
      dtype: of the model's arithmetic; its parameters are fp32.
      report: gets a row for every tensor (see `report.format_report`).

    Raises:
      InputError: not such a state dict; heads that are not known, or do not divide the width.
    """
    source = drop_prefix(open_state_dict(state_dict), "cae.")
    config = _read_config(source, heads)
    return load(lambda rngs: Cae(config, rngs=rngs, dtype=dtype), source, CAE_RULES, mesh=mesh, report=report)


def export_cae(model: Cae, *, report: list[Row] | None = None) -> dict[str, np.ndarray]:
    """The state dict of a `Cae`, for the original PyTorch code: `convert_cae` backwards, to the last bit.

    Raises:
      InputError: the model standardises features, or has a pixel encoder, which the original has no place for.
    """
    if model.config.feature_mean:
        raise InputError(
            "this autoencoder standardises the channels of its features, which the original code does not: there its "
            "weights would give other vectors. Train one with train_cae.standardise = false"
        )
    return unload(model, CAE_RULES, report=report)


def _read_config(source: Tensors, heads: int | None) -> CaeConfig:
    def shape(name: str, axes: int) -> tuple[int, ...]:
        return shape_of(source, name, axes, "DoRL's autoencoder")

    tokens = shape("encoder.pos_embedding", 3)[0]
    width = common_length(source, r"encoder\..*norm\d?\.(weight|bias)")
    if not width:
        raise InputError("not a state dict of DoRL's autoencoder: no norms, such as encoder.layer_norm.weight")
    grid = math.isqrt(tokens)
    if grid**2 != tokens:
        raise InputError(f"encoder.pos_embedding has {tokens} tokens, which is no square grid")
    channels = [shape(f"decoder.head.{2 * index}.bias", 1)[0] for index in range(4)]
    return CaeConfig(
        width=width,
        grid=grid,
        encoder_depth=count_parts(source, r"encoder\.transformer\.(\d+)\."),
        decoder_depth=count_parts(source, r"decoder\.transformer\.(\d+)\."),
        heads=_heads(width, heads),
        projection=shape("decoder.Linear.bias", 1)[0],
        head_channels=(channels[0], channels[1], channels[2], channels[3]),
    )


def _heads(width: int, heads: int | None) -> int:
    found = _HEADS.get(width) if heads is None else heads
    if found is None:
        raise InputError(f"no tensor shows how many attention heads an autoencoder of width {width} has: give heads")
    if found < 1 or width % found:
        raise InputError(f"the autoencoder is {width} wide, which {found} heads do not divide: give other heads")
    return found
