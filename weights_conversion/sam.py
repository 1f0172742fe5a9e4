"""Segment Anything checkpoints into `dorl_jax.models.Sam`, and back."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike

from dorl_jax.errors import InputError, suggest
from dorl_jax.models import Sam
from dorl_jax.models.lora import has_lora, is_merged
from dorl_jax.models.sam import ImageSize
from weights_conversion.hugging_face import as_official, from_official, is_hugging_face, settings_beside
from weights_conversion.key_map import load, unload
from weights_conversion.positions import resize_positions
from weights_conversion.report import Row
from weights_conversion.sam_config import read_sam_config
from weights_conversion.sam_rules import SAM_RULES
from weights_conversion.sources import StateDict, Tensors, open_state_dict

NAMES = ("official", "huggingface")


def convert_sam(
    state_dict: StateDict,
    variant: str | None = None,
    image_size: ImageSize | None = None,
    *,
    decoder_heads: int | None = None,
    mesh: Mesh | None = None,
    dtype: DTypeLike = jnp.float32,
    report: list[Row] | None = None,
) -> Sam:
    """A SAM checkpoint, official or Hugging Face's, as a `Sam`.

    Its shape is read off the tensors: ViT-B, L, H, or any other.

    Args:
      state_dict: path, folder or mapping (see `open_state_dict`).
      variant: "vit_b", "vit_l" or "vit_h", if it shall be checked.
      image_size: the model's input size, a side or (height, width), multiples of the patch size; position tables are
        resized to it. None for the checkpoint's own, 1024 in the official ones.
      decoder_heads: attention heads of the mask decoder, which no tensor shows; None for what the `config.json` of a
        Hugging Face folder says, else 8.
      mesh: devices to spread the parameters over (see `parallel.parameter_sharding`); None for the default device.
      dtype: of the model's arithmetic; its parameters are fp32.
      report: gets a row for every tensor (see `report.format_report`).

    Raises:
      InputError: the state dict is no SAM, or of another variant; a tensor is missing, unknown, or does not fit.
    """
    source, spell, known = open_sam(state_dict, decoder_heads)
    config = read_sam_config(source, variant, image_size, **known)
    source = resize_positions(source, config.encoder)
    return load(
        lambda rngs: Sam(config, rngs=rngs, dtype=dtype), source, SAM_RULES, spell=spell, mesh=mesh, report=report
    )


def open_sam(
    state_dict: StateDict, decoder_heads: int | None = None
) -> tuple[Tensors, Callable[[str], str], dict[str, Any]]:
    """The tensors under official names, what the file calls each, and the decoder's settings that no tensor shows."""
    source = open_state_dict(state_dict)
    known: dict[str, Any] = {} if decoder_heads is None else {"heads": decoder_heads}
    if not is_hugging_face(source):
        return source, str, known
    return *as_official(source), settings_beside(state_dict) | known


def export_sam(model: Sam, names: str = "official", *, report: list[Row] | None = None) -> dict[str, np.ndarray]:
    """The state dict of a SAM, for the original PyTorch code: `convert_sam` backwards, to the last bit.

    A LoRA that is merged into the weights goes with them.

    Args:
      model: also the `.sam` of a `LoraSam`.
      names: "official", or "huggingface" for those of `transformers.SamModel`.

    Raises:
      InputError: no such names; the model has LoRA updates that are not merged.
    """
    if names not in NAMES:
        raise InputError(f"no names {names!r}{suggest(names, NAMES)}; known: {', '.join(NAMES)}")
    if has_lora(model) and not is_merged(model):
        raise InputError("the model has LoRA updates, which a SAM checkpoint has no place for: call merge() first")
    rows: list[Row] = []
    tensors = unload(model, SAM_RULES, leave_out=_of_lora, report=rows)
    if names == "huggingface":
        depth = model.config.decoder.iou_depth
        tensors = {from_official(name, depth): tensor for name, tensor in tensors.items()}
        rows = [replace(row, source=from_official(row.source, depth)) for row in rows]
    if report is not None:
        report += rows
    return tensors


def _of_lora(path: str) -> bool:
    return "lora" in path.split(".") or path.endswith(".unmerged")
