"""Position tables of the image encoder, brought to another image size."""

from dataclasses import replace
from functools import partial

import jax
import numpy as np

from dorl_jax.models.image_encoder import ImageEncoderConfig
from weights_conversion.sources import Tensor, Tensors


def resize_positions(source: Tensors, config: ImageEncoderConfig) -> Tensors:
    """Position tables resized to the configured grid, as SAMed and DoRL do it: bilinearly, without antialias.

    The absolute table goes to the token grid; the relative ones of the global blocks, chosen by index, to
    `2 * rows - 1` and `2 * columns - 1` entries. Windowed blocks keep theirs.
    """
    rows, columns = config.grid
    resized = dict(source)
    table = resized.get("image_encoder.pos_embed")
    if table is not None and len(table.shape) == 4:  # of other axes: a mismatch that the loading reports
        resized["image_encoder.pos_embed"] = _resized(table, (table.shape[0], rows, columns, table.shape[-1]))
    for block in config.global_blocks:
        for axis, side in (("h", rows), ("w", columns)):
            name = f"image_encoder.blocks.{block}.attn.rel_pos_{axis}"
            table = resized.get(name)
            if table is not None and len(table.shape) == 2:
                resized[name] = _resized(table, (2 * side - 1, table.shape[-1]))
    return resized


def _resized(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    if tensor.shape == shape:
        return tensor
    return replace(tensor, shape=shape, read=partial(_resize, tensor, shape), was=tensor.shape)


def _resize(tensor: Tensor, shape: tuple[int, ...]) -> np.ndarray:
    return np.asarray(jax.image.resize(tensor.read(), shape, "bilinear", antialias=False))
