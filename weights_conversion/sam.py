"""Official Segment Anything checkpoints into `dorl_jax.models.Sam` and `LoraSam`."""

import re
from collections.abc import Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from dorl_jax.errors import InputError
from dorl_jax.models import DORL_PIXEL_MEAN, DORL_PIXEL_STD, LoraConfig, LoraSam, Sam, SamConfig
from dorl_jax.models.sam import ImageSize
from weights_conversion.key_map import (
    Rule,
    conv,
    conv_transpose,
    linear,
    load,
    module_rules,
    norm_rules,
    patches,
)
from weights_conversion.sources import StateDict, read_state_dict

_BLOCK = r"image_encoder\.blocks\.(\d+)"
_LAYER = r"mask_decoder\.transformer\.layers\.(\d+)"
_ATTENTIONS = ("self_attn", "cross_attn_token_to_image", "cross_attn_image_to_token")


def _image_encoder_rules() -> list[Rule]:
    block = "image_encoder.blocks.{0}"
    return [
        Rule(r"image_encoder\.pos_embed", "image_encoder.pos_embed", lambda x: x[0]),
        *module_rules(r"image_encoder\.patch_embed\.proj", "image_encoder.patch_embed", patches),
        *norm_rules(rf"{_BLOCK}\.norm1", f"{block}.norm1"),
        Rule(rf"{_BLOCK}\.attn\.rel_pos_h", f"{block}.attn.rel_pos_h"),
        Rule(rf"{_BLOCK}\.attn\.rel_pos_w", f"{block}.attn.rel_pos_w"),
        *module_rules(rf"{_BLOCK}\.attn\.qkv", f"{block}.attn.qkv"),
        *module_rules(rf"{_BLOCK}\.attn\.proj", f"{block}.attn.proj"),
        *norm_rules(rf"{_BLOCK}\.norm2", f"{block}.norm2"),
        *module_rules(rf"{_BLOCK}\.mlp\.lin1", f"{block}.mlp.lin1"),
        *module_rules(rf"{_BLOCK}\.mlp\.lin2", f"{block}.mlp.lin2"),
        *module_rules(r"image_encoder\.neck\.0", "image_encoder.neck.conv1", bias=False),
        *norm_rules(r"image_encoder\.neck\.1", "image_encoder.neck.norm1"),
        Rule(r"image_encoder\.neck\.2\.weight", "image_encoder.neck.conv2.kernel", conv),
        *norm_rules(r"image_encoder\.neck\.3", "image_encoder.neck.norm2"),
    ]


def _prompt_encoder_rules() -> list[Rule]:
    source, target = r"prompt_encoder\.mask_downscaling", "prompt_encoder.mask_downscaling"
    return [
        Rule(
            r"prompt_encoder\.pe_layer\.positional_encoding_gaussian_matrix",
            "prompt_encoder.position_encoding.gaussian_matrix",
        ),
        Rule(r"prompt_encoder\.point_embeddings\.(\d)\.weight", "prompt_encoder.point_embeddings.{0}"),
        Rule(r"prompt_encoder\.not_a_point_embed\.weight", "prompt_encoder.not_a_point_embed"),
        Rule(r"prompt_encoder\.no_mask_embed\.weight", "prompt_encoder.no_mask_embed"),
        *module_rules(rf"{source}\.0", f"{target}.conv1", patches),
        *norm_rules(rf"{source}\.1", f"{target}.norm1"),
        *module_rules(rf"{source}\.3", f"{target}.conv2", patches),
        *norm_rules(rf"{source}\.4", f"{target}.norm2"),
        *module_rules(rf"{source}\.6", f"{target}.conv3"),
    ]


def _mask_decoder_rules() -> list[Rule]:
    rules = [
        Rule(r"mask_decoder\.iou_token\.weight", "mask_decoder.iou_token"),
        Rule(r"mask_decoder\.mask_tokens\.weight", "mask_decoder.mask_tokens"),
        *module_rules(r"mask_decoder\.output_upscaling\.0", "mask_decoder.upscale1", conv_transpose),
        *norm_rules(r"mask_decoder\.output_upscaling\.1", "mask_decoder.upscale_norm"),
        *module_rules(r"mask_decoder\.output_upscaling\.3", "mask_decoder.upscale2", conv_transpose),
        *module_rules(
            r"mask_decoder\.output_hypernetworks_mlps\.(\d+)\.layers\.(\d+)",
            "mask_decoder.hypernetworks.{0}.layers.{1}",
        ),
        *module_rules(
            r"mask_decoder\.iou_prediction_head\.layers\.(\d+)", "mask_decoder.iou_prediction_head.layers.{0}"
        ),
        *module_rules(rf"{_LAYER}\.mlp\.lin1", "mask_decoder.transformer.layers.{0}.mlp.lin1"),
        *module_rules(rf"{_LAYER}\.mlp\.lin2", "mask_decoder.transformer.layers.{0}.mlp.lin2"),
        *norm_rules(r"mask_decoder\.transformer\.norm_final_attn", "mask_decoder.transformer.norm_final_attn"),
    ]
    for norm in ("norm1", "norm2", "norm3", "norm4"):
        rules += norm_rules(rf"{_LAYER}\.{norm}", f"mask_decoder.transformer.layers.{{0}}.{norm}")
    for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
        for attention in _ATTENTIONS:
            rules += module_rules(
                rf"{_LAYER}\.{attention}\.{projection}",
                f"mask_decoder.transformer.layers.{{0}}.{attention}.{projection}",
            )
        final = "final_attn_token_to_image"
        rules += module_rules(
            rf"mask_decoder\.transformer\.{final}\.{projection}",
            f"mask_decoder.transformer.{final}.{projection}",
        )
    return rules


SAM_RULES = (*_image_encoder_rules(), *_prompt_encoder_rules(), *_mask_decoder_rules())

# In DoRL's LoRA file entry 2i is block i's q and 2i + 1 its v; the names are rewritten to these before mapping.
LORA_RULES = tuple(
    Rule(rf"lora\.(\d+)\.{part}\.{matrix}", f"image_encoder.blocks.{{0}}.attn.qkv.lora.{part}.{matrix}", linear)
    for part in "qv"
    for matrix in "ab"
)

# What starts fresh when a SAM checkpoint becomes a LoRA-SAM: its mask tokens are other masks than ours.
_FRESH_SOURCE = r"mask_decoder\.(mask_tokens|output_hypernetworks_mlps|iou_prediction_head)\..*"
_FRESH_TARGET = re.compile(r".*(mask_decoder\.(mask_tokens|hypernetworks|iou_prediction_head)|\.lora)\b.*")
_DECODERS = r"(prompt_encoder|mask_decoder)\..*"


def convert_sam(
    state_dict: StateDict, variant: str, image_size: ImageSize = 1024, *, dtype: DTypeLike = jnp.float32
) -> Sam:
    """An official SAM checkpoint as a `Sam`.

    Args:
      state_dict: path or mapping (see `read_state_dict`).
      variant: "vit_b", "vit_l" or "vit_h".
      image_size: the model's input size; position tables are resized to it.
      dtype: of the model's arithmetic; its parameters are fp32.

    Raises:
      InputError: the state dict does not match the variant.
    """
    config = SamConfig.preset(variant, image_size)
    source = resize_positions(read_state_dict(state_dict), config)
    return load(lambda: Sam(config, rngs=nnx.Rngs(0), dtype=dtype), source, SAM_RULES)


def convert_lora_sam(
    sam_state_dict: StateDict,
    lora_state_dict: StateDict | None = None,
    variant: str = "vit_b",
    image_size: ImageSize = 224,
    rank: int = 4,
    pixel_mean: Sequence[float] | np.ndarray = DORL_PIXEL_MEAN,
    pixel_std: Sequence[float] | np.ndarray = DORL_PIXEL_STD,
    *,
    seed: int = 0,
    dtype: DTypeLike = jnp.float32,
) -> LoraSam:
    """A SAM checkpoint with a LoRA file of DoRL's, as a `LoraSam`.

    Args:
      sam_state_dict: SAM checkpoint, path or mapping (see `read_state_dict`). With a LoRA file only its image encoder
        is used.
      lora_state_dict: DoRL's LoRA file: `w_a_NNN`, `w_b_NNN` and all tensors of the prompt encoder and mask decoder.
        None starts a fine-tuning: LoRA, mask tokens, hypernetworks and IoU head get fresh values.
      variant: "vit_b", "vit_l" or "vit_h".
      image_size: the model's input size; position tables are resized to it.
      rank: of the LoRA matrices.
      pixel_mean, pixel_std: statistics of the input (RGB, 0..255) the LoRA was trained with.
      seed: of the fresh values.
      dtype: of the model's arithmetic; its parameters are fp32.

    Raises:
      InputError: a state dict does not match the variant or the rank.
    """
    config = SamConfig.preset(variant, image_size)
    config = replace(config, pixel_mean=_channels(pixel_mean), pixel_std=_channels(pixel_std))
    source = resize_positions(read_state_dict(sam_state_dict), config)
    rules = [replace(rule, target=f"sam.{rule.target}") for rule in (*SAM_RULES, *LORA_RULES)]

    def make() -> LoraSam:
        return LoraSam(config, LoraConfig(rank) if rank else None, rngs=nnx.Rngs(seed), dtype=dtype)

    if lora_state_dict is None:
        return load(make, source, rules, ignore=[_FRESH_SOURCE], fresh=lambda p: bool(_FRESH_TARGET.fullmatch(p)))
    encoder = {name: array for name, array in source.items() if not re.fullmatch(_DECODERS, name)}
    return load(make, encoder | _plain_lora_names(read_state_dict(lora_state_dict)), rules)


def _channels(values: Sequence[float] | np.ndarray) -> tuple[float, float, float]:
    if len(values) != 3:
        raise InputError(f"pixel statistics are three numbers, for red, green and blue; got {len(values)}")
    return float(values[0]), float(values[1]), float(values[2])


def _plain_lora_names(lora: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`w_a_005` -> `lora.2.v.a`; other names stay."""

    def rename(name: str) -> str:
        match = re.fullmatch(r"w_([ab])_(\d+)(\.weight)?", name)
        if match is None:
            return name
        index = int(match.group(2))
        return f"lora.{index // 2}.{'qv'[index % 2]}.{match.group(1)}"

    if not any(rename(name) != name for name in lora):
        raise InputError("the LoRA state dict has no tensor named w_a_NNN or w_b_NNN")
    return {rename(name): array for name, array in lora.items()}


def resize_positions(source: dict[str, np.ndarray], config: SamConfig) -> dict[str, np.ndarray]:
    """Position tables resized to the configured image size, as SAMed and DoRL do it, bilinearly without antialias.

    The absolute table goes to the token grid; the relative ones of the global blocks (chosen by index) to
    `2 * grid - 1` entries. Windowed blocks keep theirs.
    """
    grid = config.encoder.grid
    resized = dict(source)
    name = "image_encoder.pos_embed"
    if name in source and source[name].ndim == 4:
        resized[name] = _resize(source[name], (1, *grid, source[name].shape[-1]))
    for block in config.encoder.global_blocks:
        for axis, side in zip("hw", grid, strict=True):
            name = f"image_encoder.blocks.{block}.attn.rel_pos_{axis}"
            if name in source and source[name].ndim == 2:
                resized[name] = _resize(source[name], (2 * side - 1, source[name].shape[-1]))
    return resized


def _resize(table: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if table.shape == shape:
        return table
    return np.asarray(jax.image.resize(table, shape, "bilinear", antialias=False))
