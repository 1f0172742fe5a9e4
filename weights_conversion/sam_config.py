"""The shape of a SAM, read off its tensors (official names).

Every figure comes from many tensors, or from one that has a single axis, so that one damaged tensor does not change
the shape that is read: the loading then names that tensor and not all others.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from dorl_jax.errors import InputError
from dorl_jax.models import ImageEncoderConfig, MaskDecoderConfig, SamConfig
from dorl_jax.models.sam import ImageSize
from dorl_jax.models.variants import VARIANTS, require_variant
from weights_conversion.sources import Tensors, common_length, count_parts

_ENCODER, _DECODER = "image_encoder", "mask_decoder"


def read_sam_config(
    source: Tensors, variant: str | None = None, image_size: ImageSize | None = None, **decoder: Any
) -> SamConfig:
    """The shape of the model that these tensors are of.

    Args:
      source: an official SAM checkpoint.
      variant: what the caller takes it for.
      image_size: side of the input, or height and width; None for what the position table was made for.
      decoder: fields of `MaskDecoderConfig` that no tensor shows (`heads`, `epsilon`).

    Raises:
      InputError: not a SAM; another variant than said; a size for which the global blocks would have to be known.
    """
    if variant is not None:
        require_variant(variant)
    encoder = _read_encoder(source)
    found = _preset_of(encoder)
    if variant is not None and variant != found:
        of = f"of {found}" if found else "of no known variant"
        raise InputError(
            f"the tensors are {of} (width {encoder.width}, {encoder.depth} blocks, {encoder.heads} heads), "
            f"not of {variant}: leave the variant out, or give another checkpoint"
        )
    encoder = _with_global_blocks(source, encoder, found)
    if image_size is not None:
        encoder = _at_size(encoder, image_size, certain=found is not None)
    hidden = common_length(source, r"prompt_encoder\.mask_downscaling\.(3\.bias|4\.weight|4\.bias)") or 16
    shape = replace(_read_decoder(source, encoder.out_channels), **decoder)
    inner = encoder.out_channels // shape.downsample
    if shape.heads < 1 or inner % shape.heads:
        raise InputError(
            f"the mask decoder's attention is {inner} wide, which {shape.heads} heads do not divide: give decoder_heads"
        )
    return SamConfig(encoder, shape, hidden)


def count_masks(source: Tensors) -> int:
    """Mask tokens of a decoder: the single mask and the others."""
    return count_parts(source, rf"{_DECODER}\.output_hypernetworks_mlps\.(\d+)\.")


def _read_encoder(source: Tensors) -> ImageEncoderConfig:
    depth = count_parts(source, rf"{_ENCODER}\.blocks\.(\d+)\.")
    width = common_length(source, rf"{_ENCODER}\.blocks\.\d+\.norm[12]\.(weight|bias)")
    hidden = common_length(source, rf"{_ENCODER}\.blocks\.\d+\.mlp\.lin1\.bias")
    size = _commonest(shape[1] for shape in _position_shapes(source).values())
    table = source.get(f"{_ENCODER}.pos_embed")
    if not (depth and width and hidden and size and width % size == 0) or table is None:
        raise InputError(
            "not a SAM checkpoint: expected tensors named as in the official ones (image_encoder.pos_embed, "
            "image_encoder.blocks.0.attn.qkv.weight, ...) or Hugging Face's (vision_encoder.pos_embed, ...)"
        )
    patch = _patch_size(source)
    grid = table.shape[1:3] if len(table.shape) == 4 else (64, 64)
    return ImageEncoderConfig(
        image_size=_square_as_side(grid[0] * patch, grid[1] * patch),
        patch_size=patch,
        width=width,
        depth=depth,
        heads=width // size,
        global_blocks=(),
        out_channels=common_length(source, rf"{_ENCODER}\.neck\.[13]\.(weight|bias)") or 256,
        mlp_hidden=None if hidden == 4 * width else hidden,
    )


def _patch_size(source: Tensors) -> int:
    kernel = source.get(f"{_ENCODER}.patch_embed.proj.weight")
    return 16 if kernel is None else Counter(kernel.shape).most_common(1)[0][0]  # (width, 3, patch, patch)


def _position_shapes(source: Tensors) -> dict[tuple[int, str], tuple[int, int]]:
    """(block, axis) -> shape of its table of relative positions."""
    shapes = {}
    for name, tensor in source.items():
        match = re.fullmatch(rf"{_ENCODER}\.blocks\.(\d+)\.attn\.rel_pos_([hw])", name)
        if match and len(tensor.shape) == 2:
            shapes[int(match[1]), match[2]] = (tensor.shape[0], tensor.shape[1])
    return shapes


def _preset_of(encoder: ImageEncoderConfig) -> str | None:
    for name in VARIANTS:
        preset = SamConfig.preset(name).encoder
        if all(getattr(preset, part) == getattr(encoder, part) for part in ("width", "depth", "heads", "patch_size")):
            return name
    return None


def _with_global_blocks(source: Tensors, encoder: ImageEncoderConfig, preset: str | None) -> ImageEncoderConfig:
    """Which blocks attend over the whole grid: by index in a known variant, else those with tables as long as that."""
    if preset is not None:
        known = SamConfig.preset(preset).encoder
        return replace(encoder, global_blocks=known.global_blocks, window=known.window)
    size, grid = encoder.width // encoder.heads, dict(zip("hw", encoder.grid, strict=True))
    # side of the grid or window that each table is for, where it is not that of the grid
    other = {
        place: (length + 1) // 2
        for place, (length, columns) in _position_shapes(source).items()
        if columns == size and length != 2 * grid[place[1]] - 1
    }
    windowed = {block for block, _ in other}
    every = tuple(block for block in range(encoder.depth) if block not in windowed)
    return replace(encoder, global_blocks=every, window=_commonest(other.values()) or encoder.window)


def _at_size(encoder: ImageEncoderConfig, size: ImageSize, *, certain: bool) -> ImageEncoderConfig:
    try:
        resized = replace(encoder, image_size=size)
    except ValueError as error:
        raise InputError(str(error)) from error
    if resized.grid != encoder.grid and not certain and len(encoder.global_blocks) == encoder.depth:
        raise InputError(
            "every block of this checkpoint has a position table for its whole grid, so its windowed blocks, if it has "
            f"any, cannot be told from the global ones: it can be loaded at {encoder.image_size} pixels only"
        )
    return resized


def _read_decoder(source: Tensors, channels: int) -> MaskDecoderConfig:
    default = MaskDecoderConfig()
    layer, iou = rf"{_DECODER}\.transformer\.layers\.\d+", rf"{_DECODER}\.iou_prediction_head\.layers"
    inner = common_length(source, rf"{layer}\.cross_attn_\w+\.[qkv]_proj\.bias")
    iou_depth = count_parts(source, rf"{iou}\.(\d+)\.") or default.iou_depth
    iou_hidden = common_length(source, rf"{iou}\.[0-{max(iou_depth - 2, 0)}]\.bias") or channels
    return MaskDecoderConfig(
        multimask_outputs=max(count_masks(source) - 1, 0) or default.multimask_outputs,
        depth=count_parts(source, rf"{_DECODER}\.transformer\.layers\.(\d+)\.") or default.depth,
        hidden=common_length(source, rf"{layer}\.mlp\.lin1\.bias") or default.hidden,
        downsample=max(channels // inner, 1) if inner else default.downsample,
        iou_depth=iou_depth,
        iou_hidden=None if iou_hidden == channels else iou_hidden,
    )


def _square_as_side(height: int, width: int) -> ImageSize:
    return height if height == width else (height, width)


def _commonest(values: Iterable[int]) -> int:
    counted = Counter(values).most_common(1)
    return counted[0][0] if counted else 0
