"""`dorl-jax convert`: checkpoints of PyTorch code into ours, and back."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from dorl_jax.config import SETTINGS_FILE
from dorl_jax.errors import InputError
from dorl_jax.models import (
    DORL_PIXEL_MEAN,
    DORL_PIXEL_STD,
    SAM_PIXEL_MEAN,
    SAM_PIXEL_STD,
    Cae,
    ConvAutoencoder,
    LoraSam,
    Sam,
    SamConfig,
)
from dorl_jax.models.sam import ImageSize
from dorl_jax.training.checkpoints import load_any_model, save_model
from weights_conversion.cae import convert_cae, export_cae
from weights_conversion.conv_autoencoder import convert_conv_autoencoder, export_conv_autoencoder
from weights_conversion.files import WRITTEN, write_state_dict
from weights_conversion.kinds import kind_of
from weights_conversion.lora_sam import convert_lora_sam, export_lora_sam
from weights_conversion.report import Row, format_report
from weights_conversion.sam import NAMES, convert_sam, export_sam
from weights_conversion.sources import open_state_dict

_ABOUT = "Checkpoints of PyTorch code into a model folder of dorl_jax, and back."
_EPILOG = """\
examples:
  dorl-jax convert sam_vit_b_01ec64.pth --check
  dorl-jax convert sam_vit_b_01ec64.pth --image-size 224 --to sam_224
  dorl-jax convert sam_vit_b_01ec64.pth --lora dorl_lora.pth --to lora_sam
  dorl-jax convert facebook/sam-vit-base/ --to sam_vit_b.safetensors --names official
  dorl-jax convert runs/mine/finetune_sam/model --to lora.pth --sam-to sam.pth
  dorl-jax convert runs/mine/train_cae/model --to cae.mdl
"""


# Options that say what a SAM checkpoint, and a LoRA file, shall become; of a model folder that is settled.
_FOR_CHECKPOINTS = ("lora", "variant", "image_size", "decoder_heads")
_FOR_LORA = ("rank", "blocks")


def add_parser(commands: Any) -> None:
    """Add the command to those of `dorl-jax`."""
    parser = commands.add_parser(
        "convert",
        help=_ABOUT,
        description=_ABOUT,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "source",
        type=Path,
        help="SAM checkpoint (official, or a file or folder of Hugging Face's), autoencoder (DoRL's or BC-SAM's), "
        "or a model folder of dorl_jax",
    )
    parser.add_argument(
        "--lora", type=Path, metavar="FILE", help="LoRA file of SAMed's or DoRL's, for a SAM checkpoint"
    )
    parser.add_argument(
        "--to", type=Path, metavar="OUT", help=f"model folder to write, or a file ({', '.join(WRITTEN)})"
    )
    parser.add_argument("--check", action="store_true", help="print what becomes of every tensor")
    parser.add_argument("--variant", help="vit_b, vit_l or vit_h; an error if the tensors are of another")
    parser.add_argument(
        "--image-size",
        type=_image_size,
        metavar="SIDE|HxW",
        help="input in pixels, to which position tables are resized; default: the checkpoint's own, 224 with --lora",
    )
    parser.add_argument("--rank", type=int, help="of the LoRA file; an error if it is of another")
    parser.add_argument("--blocks", type=_numbers, metavar="I,J,...", help="blocks a LoRA file of only some belongs to")
    parser.add_argument("--decoder-heads", type=int, help="attention heads of SAM's mask decoder, if not 8")
    parser.add_argument("--heads", type=int, help="attention heads of an autoencoder, if not those of its SAM")
    parser.add_argument(
        "--names", choices=NAMES, help=f"of the tensors of a SAM that is written to a file; default: {NAMES[0]}"
    )
    parser.add_argument("--merge", action="store_true", help="write a LoRA-SAM as one SAM checkpoint, LoRA merged in")
    parser.add_argument(
        "--sam-to", type=Path, metavar="OUT", help="file for the SAM that a LoRA file, written to --to, belongs to"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what is at --to or --sam-to")


def run(options: argparse.Namespace) -> None:
    """Do what the command line says, and print what was done.

    Raises:
      InputError: options that do not go together, or bad input (see the `convert_...` and `export_...` functions).
    """
    if options.to is None and not options.check:
        raise InputError("say where to write with --to OUT, or only look with --check")
    into_file = options.to is not None and options.to.suffix in WRITTEN
    _check_places(options, into_file)
    rows: list[Row] = []
    if (options.source / SETTINGS_FILE).is_file():
        segmenter, autoencoder = (options.source / stage / "model" for stage in ("finetune_sam", "train_cae"))
        raise InputError(
            f"{options.source} is the folder of a run: give one of its models, {segmenter} or {autoencoder}"
        )
    from_folder = (options.source / "model.json").is_file()
    if from_folder:
        _refuse(options, (*_FOR_CHECKPOINTS, *_FOR_LORA, "heads"), f"the model folder {options.source}")
    model = load_any_model(options.source) if from_folder else _convert(options, rows)
    print(f"{options.source}: {_describe(model)}")
    if into_file or (options.to is None and from_folder):
        _export(model, options, rows)
    elif options.to is not None:
        save_model(options.to, model)
    if options.check:
        print(format_report(rows))
    for path in (options.to, options.sam_to):
        if path is not None:
            print(f"wrote {path}")


def _check_places(options: argparse.Namespace, into_file: bool) -> None:
    """Refuse what could not be written, before anything is read."""
    if options.sam_to is not None and options.to is None:
        raise InputError("--sam-to is for the SAM of a LoRA file: say where that goes, too, with --to FILE")
    if options.to is not None and not into_file and (options.sam_to or options.merge or options.names):
        raise InputError(f"--sam-to, --merge and --names are for files, but {options.to} is a folder")
    if options.sam_to is not None and options.sam_to.suffix not in WRITTEN:
        raise InputError(f"--sam-to {options.sam_to}: expected a name that ends in {', '.join(WRITTEN)}")
    if options.sam_to is not None and options.sam_to.absolute() == options.to.absolute():
        raise InputError(f"--to and --sam-to are both {options.to}: the LoRA file and its SAM are two files")
    for path, file in ((options.to, into_file), (options.sam_to, True)):
        if path is None or not path.exists():
            continue
        if file and path.is_dir():
            raise InputError(f"{path} is a folder, but its name is that of a file: choose another")
        if not file and not path.is_dir():
            raise InputError(f"{path} is a file, and would be a folder: choose another, or end it in {WRITTEN[0]}")
        if not options.overwrite:
            raise InputError(f"{path} exists already: choose another, or say --overwrite")


def _convert(options: argparse.Namespace, rows: list[Row]) -> nnx.Module:
    kind = kind_of(list(open_state_dict(options.source)))  # the names alone: the tensors are freed at once
    _refuse_unused(options, kind)
    if kind == "lora":
        raise InputError(
            f"{options.source} is a LoRA file: give the SAM checkpoint it belongs to, and --lora {options.source}"
        )
    if kind == "cae":
        return convert_cae(options.source, heads=options.heads, report=rows)
    if kind == "conv-autoencoder":
        return convert_conv_autoencoder(options.source, report=rows)
    common: dict[str, Any] = {"variant": options.variant, "decoder_heads": options.decoder_heads, "report": rows}
    if options.lora is None:
        return convert_sam(options.source, image_size=options.image_size, **common)
    return convert_lora_sam(
        options.source,
        options.lora,
        image_size=options.image_size or 224,
        rank=options.rank,
        blocks=options.blocks,
        **common,
    )


def _refuse_unused(options: argparse.Namespace, kind: str) -> None:
    unused = _FOR_CHECKPOINTS if kind != "sam" else ()
    unused = unused if options.lora else (*unused, *_FOR_LORA)
    unused = (*unused, "heads") if kind != "cae" else unused
    _refuse(options, unused, f"what {options.source} holds")


def _refuse(options: argparse.Namespace, names: Sequence[str], what: str) -> None:
    for name in names:
        if getattr(options, name) is not None:
            raise InputError(f"--{name.replace('_', '-')} is not for {what}: leave it out")


def _export(model: nnx.Module, options: argparse.Namespace, rows: list[Row]) -> None:
    into_lora = isinstance(model, LoraSam) and not options.merge and model.config.encoder.lora is not None
    if options.sam_to is not None and not into_lora:
        raise InputError("--sam-to goes with a LoRA file, which is written for a LoRA-SAM without --merge")
    if options.merge and not isinstance(model, LoraSam):
        raise InputError(f"--merge is for a LoRA-SAM, not for a {type(model).__name__}: leave it out")
    if options.names and (into_lora or not isinstance(model, Sam | LoraSam)):
        raise InputError("--names is for a SAM; LoRA files and autoencoders have one set of names: leave it out")
    names = options.names or NAMES[0]
    if isinstance(model, LoraSam) and into_lora:
        sam, tensors = export_lora_sam(model, report=rows)
        if options.sam_to is not None:
            write_state_dict(sam, options.sam_to)
    elif isinstance(model, LoraSam):
        tensors = export_sam(model.merge().sam, names, report=rows)
    elif isinstance(model, Sam):
        tensors = export_sam(model, names, report=rows)
    elif isinstance(model, Cae):
        tensors = export_cae(model, report=rows)
    elif isinstance(model, ConvAutoencoder):
        tensors = export_conv_autoencoder(model, report=rows)
    if options.to is not None:
        write_state_dict(tensors, options.to)
    if isinstance(model, Sam | LoraSam):
        _tell_statistics(model.config, into_lora=into_lora)


def _tell_statistics(config: SamConfig, *, into_lora: bool) -> None:
    """Say what no checkpoint holds, where the code that reads it would take something else."""
    usual = (DORL_PIXEL_MEAN, DORL_PIXEL_STD) if into_lora else (SAM_PIXEL_MEAN, SAM_PIXEL_STD)
    for name, values, theirs in zip(("mean", "std"), (config.pixel_mean, config.pixel_std), usual, strict=True):
        if values != theirs:
            listed = ", ".join(f"{value:.6g}" for value in values)
            print(f"not in the file: pixel_{name} = ({listed}), which the code that reads it has to be given")
    if config.light != "as_is":
        print(f"not in the file: the light of images is changed first (light = {config.light!r})")


def _describe(model: nnx.Module) -> str:
    count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model)))
    config: Any = model.config  # type: ignore[attr-defined]
    if not isinstance(model, Sam | LoraSam):
        return f"{type(model).__name__}, {count:,} numbers"
    encoder = config.encoder
    height, width = encoder.image_shape
    lora = "" if encoder.lora is None else f", LoRA of rank {encoder.lora.rank} on {', '.join(encoder.lora.targets)}"
    return (
        f"{type(model).__name__}, {encoder.depth} blocks of width {encoder.width}, patches of {encoder.patch_size}, "
        f"input {height} x {width}, {config.decoder.multimask_outputs + 1} mask tokens{lora}, {count:,} numbers"
    )


def _image_size(text: str) -> ImageSize:
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: expected a side such as 224, or HEIGHTxWIDTH")
    return int(match[1]) if match[2] is None else (int(match[1]), int(match[2]))


def _numbers(text: str) -> Sequence[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: expected numbers with commas between them") from error
