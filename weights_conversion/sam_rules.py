"""The names of official Segment Anything checkpoints, those of SAMed's and DoRL's LoRA files, and ours."""

from weights_conversion.key_map import Rule, module_rules, norm_rules
from weights_conversion.layouts import (
    CONV,
    CONV_TRANSPOSE,
    LINEAR,
    PAIR_PATCHES,
    POINTWISE,
    RGB_PATCHES,
    UNBATCHED,
)


def _image_encoder() -> list[Rule]:
    block, neck = "image_encoder.blocks.{}", "image_encoder.neck"
    return [
        Rule("image_encoder.pos_embed", "image_encoder.pos_embed", UNBATCHED),
        *module_rules("image_encoder.patch_embed.proj", "image_encoder.patch_embed", RGB_PATCHES),
        *norm_rules(f"{block}.norm1", f"{block}.norm1"),
        Rule(f"{block}.attn.rel_pos_h", f"{block}.attn.rel_pos_h"),
        Rule(f"{block}.attn.rel_pos_w", f"{block}.attn.rel_pos_w"),
        *module_rules(f"{block}.attn.qkv", f"{block}.attn.qkv"),
        *module_rules(f"{block}.attn.proj", f"{block}.attn.proj"),
        *norm_rules(f"{block}.norm2", f"{block}.norm2"),
        *module_rules(f"{block}.mlp.lin1", f"{block}.mlp.lin1"),
        *module_rules(f"{block}.mlp.lin2", f"{block}.mlp.lin2"),
        *module_rules(f"{neck}.0", f"{neck}.conv1", POINTWISE, bias=False),
        *norm_rules(f"{neck}.1", f"{neck}.norm1"),
        *module_rules(f"{neck}.2", f"{neck}.conv2", CONV, bias=False),
        *norm_rules(f"{neck}.3", f"{neck}.norm2"),
    ]


def _prompt_encoder() -> list[Rule]:
    part, masks = "prompt_encoder", "prompt_encoder.mask_downscaling"
    return [
        Rule(f"{part}.pe_layer.positional_encoding_gaussian_matrix", f"{part}.position_encoding.gaussian_matrix"),
        Rule(f"{part}.point_embeddings.{{}}.weight", f"{part}.point_embeddings.{{}}"),
        Rule(f"{part}.not_a_point_embed.weight", f"{part}.not_a_point_embed"),
        Rule(f"{part}.no_mask_embed.weight", f"{part}.no_mask_embed"),
        *module_rules(f"{masks}.0", f"{masks}.conv1", PAIR_PATCHES),
        *norm_rules(f"{masks}.1", f"{masks}.norm1"),
        *module_rules(f"{masks}.3", f"{masks}.conv2", PAIR_PATCHES),
        *norm_rules(f"{masks}.4", f"{masks}.norm2"),
        *module_rules(f"{masks}.6", f"{masks}.conv3", POINTWISE),
    ]


def _mask_decoder() -> list[Rule]:
    part, layer = "mask_decoder", "mask_decoder.transformer.layers.{}"
    attentions = [
        *(f"{layer}.{kind}" for kind in ("self_attn", "cross_attn_token_to_image", "cross_attn_image_to_token")),
        f"{part}.transformer.final_attn_token_to_image",
    ]
    norms = [*(f"{layer}.norm{index}" for index in (1, 2, 3, 4)), f"{part}.transformer.norm_final_attn"]
    projections = [f"{attention}.{kind}_proj" for attention in attentions for kind in ("q", "k", "v", "out")]
    return [
        Rule(f"{part}.iou_token.weight", f"{part}.iou_token"),
        Rule(f"{part}.mask_tokens.weight", f"{part}.mask_tokens"),
        *module_rules(f"{part}.output_upscaling.0", f"{part}.upscale1", CONV_TRANSPOSE),
        *norm_rules(f"{part}.output_upscaling.1", f"{part}.upscale_norm"),
        *module_rules(f"{part}.output_upscaling.3", f"{part}.upscale2", CONV_TRANSPOSE),
        *module_rules(f"{part}.output_hypernetworks_mlps.{{}}.layers.{{}}", f"{part}.hypernetworks.{{}}.layers.{{}}"),
        *module_rules(f"{part}.iou_prediction_head.layers.{{}}", f"{part}.iou_prediction_head.layers.{{}}"),
        *(rule for name in projections for rule in module_rules(name, name)),
        *(rule for name in (f"{layer}.mlp.lin1", f"{layer}.mlp.lin2") for rule in module_rules(name, name)),
        *(rule for name in norms for rule in norm_rules(name, name)),
    ]


SAM_RULES = (*_image_encoder(), *_prompt_encoder(), *_mask_decoder())

# A LoRA file numbers its matrices; `lora_names.py` writes the block and the part into the name before these apply.
LORA_RULES = tuple(
    Rule(f"lora.{{}}.{part}.{matrix}", f"image_encoder.blocks.{{}}.attn.qkv.lora.{part}.{matrix}", LINEAR)
    for part in "qv"
    for matrix in "ab"
)
