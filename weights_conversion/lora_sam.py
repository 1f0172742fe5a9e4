"""SAMed's and DoRL's LoRA files, with the SAM they adapt, into `dorl_jax.models.LoraSam`, and back."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike

from dorl_jax.errors import InputError
from dorl_jax.models import DORL_PIXEL_MEAN, DORL_PIXEL_STD, LoraConfig, LoraSam
from dorl_jax.models.lora import is_merged
from dorl_jax.models.sam import ImageSize
from weights_conversion.key_map import load, under, unload
from weights_conversion.positions import resize_positions
from weights_conversion.report import Row
from weights_conversion.sam import open_sam
from weights_conversion.sam_config import count_masks, read_sam_config
from weights_conversion.sam_rules import LORA_RULES, SAM_RULES
from weights_conversion.sources import StateDict, Tensors, open_state_dict

_RULES = under("sam", (*SAM_RULES, *LORA_RULES))
_PARTS = "qv"  # of a block, in the order of the file
_MATRIX = re.compile(r"w_([ab])_(\d+)(?:\.weight)?")
_PLACE = re.compile(r"lora\.(\d+)\.([qv])\.([ab])")

# What starts fresh when a SAM checkpoint becomes a LoRA-SAM: its mask tokens are other masks than ours.
_FRESH_SOURCE = re.compile(r"mask_decoder\.(mask_tokens|output_hypernetworks_mlps|iou_prediction_head)\..*")
_FRESH_TARGET = re.compile(r"sam\.(mask_decoder\.(mask_tokens|hypernetworks|iou_prediction_head)|.*\.lora)\b.*")
_DECODERS = ("prompt_encoder.", "mask_decoder.")


class LoraFiles(NamedTuple):
    """What the original code loads a LoRA-SAM from: a SAM checkpoint and a LoRA file."""

    sam: dict[str, np.ndarray]
    lora: dict[str, np.ndarray]


def convert_lora_sam(
    sam_state_dict: StateDict,
    lora_state_dict: StateDict | None = None,
    variant: str | None = None,
    image_size: ImageSize | None = 224,
    rank: int | None = None,
    pixel_mean: Sequence[float] | np.ndarray = DORL_PIXEL_MEAN,
    pixel_std: Sequence[float] | np.ndarray = DORL_PIXEL_STD,
    *,
    resize: Literal["bilinear", "cv2_bilinear"] = "cv2_bilinear",
    light: Literal["as_is", "white_patch"] = "as_is",
    lora: LoraConfig | None = None,
    blocks: Sequence[int] | None = None,
    decoder_heads: int | None = None,
    seed: int = 0,
    mesh: Mesh | None = None,
    dtype: DTypeLike = jnp.float32,
    report: list[Row] | None = None,
) -> LoraSam:
    """A SAM checkpoint with a LoRA file of SAMed's or DoRL's, as a `LoraSam`.

    Args:
      sam_state_dict: SAM checkpoint, official or Hugging Face's (see `open_state_dict`). With a LoRA file only its
        image encoder is used.
      lora_state_dict: LoRA file: `w_a_NNN`, `w_b_NNN` and all tensors of the prompt encoder and mask decoder. None
        starts a fine-tuning: LoRA, mask tokens, hypernetworks and IoU head get fresh values.
      variant: "vit_b", "vit_l" or "vit_h", if it shall be checked.
      image_size: the model's input size, a side or (height, width); position tables are resized to it. None for the
        checkpoint's own.
      rank: of the LoRA matrices. With a LoRA file it is read off, and checked against this if given; without one None
        is 4 and 0 is no LoRA.
      pixel_mean, pixel_std: statistics of the input (RGB, 0..255) the LoRA was trained with.
      resize: how the images the LoRA was trained with were brought to size (see `data.images.resize_image`); the
        original's by default.
      light: what is done about the light of images (see `data.light.in_light`).
      lora: without a LoRA file, the LoRA to start with, in place of `rank`.
      blocks: the blocks the file's matrices belong to, in its order; needed if it does not have two pairs a block.
      decoder_heads: see `convert_sam`.
      seed: of the fresh values.
      mesh, dtype, report: see `convert_sam`.

    Raises:
      InputError: a state dict does not match the model, the variant or the rank.
    """
    source, spell, known = open_sam(sam_state_dict, decoder_heads)
    rows: list[Row] = []
    if lora_state_dict is None:
        config = read_sam_config(source, variant, image_size, **known)
        lora, classes = _starting_lora(lora, rank), 2
    else:
        if lora is not None:
            raise InputError("a LoRA file says itself what its LoRA is: leave `lora` out")
        rows = [
            Row(spell(name), tensor.shape, "", None, "ignored: the LoRA file has its own")
            for name, tensor in source.items()
            if name.startswith(_DECODERS)
        ]
        known.pop("epsilon", None)  # of Hugging Face's decoder; the one in the LoRA file is of the official code
        tuned = open_state_dict(lora_state_dict)
        source = {name: tensor for name, tensor in source.items() if not name.startswith(_DECODERS)} | tuned
        config = read_sam_config(source, variant, image_size, **known)
        lora, classes = _read_lora(tuned, config.encoder.depth, rank, blocks), count_masks(tuned) or 2
        source, spell = _with_places(source, lora.blocks or range(config.encoder.depth), spell)
        del tuned  # what is read is freed as it goes
    mean, std = _channels(pixel_mean), _channels(pixel_std)
    config = replace(config, pixel_mean=mean, pixel_std=std, resize=resize, light=light)
    source = resize_positions(source, config.encoder)
    starting = lora_state_dict is None
    model = load(
        lambda rngs: LoraSam(config, lora, classes=classes, rngs=rngs, dtype=dtype),
        source,
        _RULES,
        ignore=lambda name: starting and _FRESH_SOURCE.fullmatch(name) is not None,
        fresh=lambda path: starting and _FRESH_TARGET.fullmatch(path) is not None,
        seed=seed,
        spell=spell,
        mesh=mesh,
        report=rows,
    )
    if report is not None:
        report.extend(rows)
    return model


def _channels(values: Sequence[float] | np.ndarray) -> tuple[float, float, float]:
    if len(values) != 3:
        raise InputError(f"pixel statistics are three numbers, for red, green and blue; got {len(values)}")
    return float(values[0]), float(values[1]), float(values[2])


def _starting_lora(lora: LoraConfig | None, rank: int | None) -> LoraConfig | None:
    if lora is not None:
        if rank not in (None, lora.rank):
            raise InputError(f"rank {rank} and a LoRA of rank {lora.rank} contradict each other: give one of them")
        return lora
    return None if rank == 0 else LoraConfig(4 if rank is None else rank)


def _read_lora(tuned: Tensors, depth: int, rank: int | None, blocks: Sequence[int] | None) -> LoraConfig:
    """Rank and blocks of a LoRA file."""
    matrices = {name: match for name in tuned if (match := _MATRIX.fullmatch(name))}
    if not matrices:
        raise InputError("the LoRA state dict has no tensor named w_a_NNN or w_b_NNN")
    ranks = Counter(tuned[name].shape[0 if match[1] == "a" else -1] for name, match in matrices.items())
    found = ranks.most_common(1)[0][0]
    if rank is not None and rank != found:
        raise InputError(f"the LoRA file is of rank {found}, not {rank}: leave the rank out, or give another file")
    if blocks is not None and (len(set(blocks)) < len(blocks) or not set(blocks) <= set(range(depth))):
        listed = ", ".join(map(str, blocks))
        raise InputError(f"blocks are counted from 0 to {depth - 1} here, each named once, not {listed}")
    numbers = {int(match[2]) for match in matrices.values()}
    if blocks is None and numbers == set(range(len(numbers))) and len(numbers) < 2 * depth:
        raise InputError(
            f"the LoRA file has {len(numbers)} pairs of matrices, for {len(numbers) // 2} of the {depth} blocks: "
            "say which with blocks=..."
        )
    return LoraConfig(found, blocks=None if blocks is None else tuple(blocks))


def _with_places(
    source: Tensors, blocks: Sequence[int], spell: Callable[[str], str]
) -> tuple[Tensors, Callable[[str], str]]:
    """`w_a_005` -> `lora.2.v.a`, with how to call them in messages; a number too high for the blocks stays."""
    originals = {}
    for name in source:
        match = _MATRIX.fullmatch(name)
        if match and int(match[2]) < 2 * len(blocks):
            index = int(match[2])
            originals[f"lora.{blocks[index // 2]}.{_PARTS[index % 2]}.{match[1]}"] = name
    renamed = {name: place for place, name in originals.items()}

    def call(name: str) -> str:
        if name in originals:
            return originals[name]
        return _matrix_name(name, blocks) if _PLACE.fullmatch(name) else name if name in source else spell(name)

    return {renamed.get(name, name): tensor for name, tensor in source.items()}, call


def _matrix_name(place: str, blocks: Sequence[int]) -> str:
    """`lora.2.v.a` -> `w_a_005`."""
    block, part, matrix = _PLACE.fullmatch(place).groups()  # type: ignore[union-attr]
    return f"w_{matrix}_{2 * list(blocks).index(int(block)) + _PARTS.index(part):03d}"


def export_lora_sam(model: LoraSam, *, report: list[Row] | None = None) -> LoraFiles:
    """What the original code needs to run a LoRA-SAM: `convert_lora_sam` backwards, to the last bit.

    The LoRA file has the matrices, numbered as SAMed and DoRL number them, the prompt encoder and the mask decoder. The
    SAM checkpoint has the weights that the LoRA adapts, its position tables at the model's size.

    Raises:
      InputError: the LoRA has another form than theirs (q and v, not scaled), or is merged, or there is none.
    """
    lora = model.config.encoder.lora
    if lora is None:
        raise InputError("the model has no LoRA: write it as a SAM checkpoint, export_sam(model.sam)")
    if is_merged(model):
        raise InputError("the LoRA is merged into the weights: call unmerge() first, or export_sam(model.sam)")
    if lora.targets != tuple(_PARTS) or lora.scale != 1:
        raise InputError(
            f"a LoRA file has updates of q and v without alpha, but this model's are of {', '.join(lora.targets)} "
            f"scaled by {lora.scale:g}: call merge() and write it as a SAM checkpoint, export_sam(model.sam)"
        )
    blocks = lora.blocks or range(model.config.encoder.depth)
    rows: list[Row] = []
    tensors = unload(model, _RULES, report=rows)
    if report is not None:
        names = {name: _matrix_name(name, blocks) for name in tensors if _PLACE.fullmatch(name)}
        report += [replace(row, source=names.get(row.source, row.source)) for row in rows]
    sam = {name: tensor for name, tensor in tensors.items() if not _PLACE.fullmatch(name)}
    matrices = {_matrix_name(name, blocks): tensor for name, tensor in tensors.items() if _PLACE.fullmatch(name)}
    decoders = {name: tensor for name, tensor in sam.items() if name.startswith(_DECODERS)}
    return LoraFiles(sam, dict(sorted(matrices.items())) | decoders)
