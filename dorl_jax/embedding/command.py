"""`dorl-jax embed IMAGES` and `extract IMAGES`: images from anywhere to vectors, or to what the CAE learns from."""

import argparse
import logging
from dataclasses import replace
from pathlib import Path

import jax
from tqdm.auto import tqdm

from dorl_jax import __version__, config
from dorl_jax.allocator import return_freed_memory
from dorl_jax.data.image_lists import ImageList, open_images
from dorl_jax.dorl import DoRL, settings_of, weights_fingerprint
from dorl_jax.embedding.job import IMAGES, Done, EmbedJob, embed_images, extract_images
from dorl_jax.errors import InputError
from dorl_jax.models import LoraSam
from dorl_jax.models.lora import forget_unmerged
from dorl_jax.parallel import initialise
from dorl_jax.stages.extract import ExtractSettings
from dorl_jax.training.checkpoints import load_model

logger = logging.getLogger("dorl_jax")

_FORMS = {
    "embed": "dorl-jax embed IMAGES --model RUN --out vectors.parquet",
    "extract": "dorl-jax extract IMAGES --model RUN --out FOLDER",
}


def add_arguments(parser: argparse.ArgumentParser, stage: str) -> None:
    """What the stages `embed` and `extract` take when they are given images rather than a run's own cells."""
    each = "features, crop and mask of every image, in a store"
    if stage == "embed":  # whose setting above is of a run's own cells
        each = f"one vector an image, {EmbedJob.batch_size} images a step unless --batch-size says otherwise"
    group = parser.add_argument_group("images of your own", f"{each}; shares may be done by many processes")
    group.add_argument(
        "images",
        nargs="*",
        metavar="IMAGES",
        help="a folder, files, a pattern, a table or list of paths, a laboratory, a built set, tar or zip",
    )
    group.add_argument("--model", type=Path, metavar="RUN", help="folder of the run whose models are used")
    if stage == "embed":
        group.add_argument("--out", type=Path, metavar="FILE", help="where the vectors go; .parquet")
    else:
        group.add_argument("--out", type=Path, metavar="FOLDER", help="where the features go")
    group.add_argument("--column", metavar="NAME", help="of a table, the column of paths")
    group.add_argument("--id-column", metavar="NAME", help="of a table, the column of unique names")
    group.add_argument("--strict", action="store_true", help="stop at an image that cannot be read")
    if stage == "extract":  # the others are settings of the stage
        return
    group.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="of the arithmetic (default: float32)"
    )
    group.add_argument(
        "--workers", type=int, default=-1, help="processes that decode; 0 for threads, -1 for half the cores"
    )
    group.add_argument("--shard-size", type=int, default=512, help="images that a kill may lose (default: 512)")


def run(options: argparse.Namespace) -> None:
    """Embed or extract what the command line names.

    Raises:
      InputError: something is missing on the command line, or what `embed_images` and `extract_images` refuse.
    """
    stage = options.stage
    for name in ("model", "out"):
        if getattr(options, name) is None:
            raise InputError(f"{stage} IMAGES needs --{name}: {_FORMS[stage]}")
    for name in ("config", "run", "redo"):
        if getattr(options, name) is not None:
            raise InputError(f"{stage} IMAGES takes no --{name}; the model is named by --model RUN")
    if options.set:
        raise InputError(f"{stage} IMAGES takes no --set: its settings are options of their own, see {stage} --help")
    if options.coordinator is not None:
        raise InputError(f"{stage} IMAGES needs no --coordinator: the processes do not talk to each other")
    process, processes = options.process or 0, options.processes or 1
    if options.distributed:
        initialise()
        process, processes = jax.process_index(), jax.process_count()
    images = open_images([str(name) for name in options.images], column=options.column, id_column=options.id_column)
    for note in images.notes:
        logger.info("%s", note)
    return_freed_memory()
    job = EmbedJob(strict=options.strict, process=process, processes=processes)
    (_embed if stage == "embed" else _extract)(options, images, job)


def _embed(options: argparse.Namespace, images: ImageList, job: EmbedJob) -> None:
    job = replace(
        job,
        batch_size=_count("--batch-size", given) if (given := options.setting_batch_size) else job.batch_size,
        dtype=options.dtype,
        workers=options.workers,
        shard_size=_count("--shard-size", options.shard_size),
    )
    done = embed_images(DoRL.load(options.model, only=job.dtype), images, options.out, job, progress=not options.quiet)
    print(_told(done, "vector", f"The vectors: {options.out}"))


def _count(option: str, given: str | int) -> int:
    try:
        number = int(given)
    except ValueError:
        number = 0
    if number < 1:
        raise InputError(f"{option} {given}: take a whole number, 1 or more")
    return number


def _extract(options: argparse.Namespace, images: ImageList, job: EmbedJob) -> None:
    given = {name: value for name, value in vars(options).items() if name.startswith("setting_") and value is not None}
    settings = config.load_section(
        ExtractSettings,
        settings_of(options.model),
        "extract",
        {name.removeprefix("setting_"): value for name, value in given.items()},
    )
    job = replace(job, batch_size=settings.batch_size, workers=settings.workers, shard_size=settings.shard_size)
    segmenter = load_model(options.model / "finetune_sam" / "model", LoraSam)
    weights = weights_fingerprint(segmenter)
    forget_unmerged(segmenter.merge())
    made_by = {
        "version": __version__,
        "weights": {"segmenter": weights},
        "side": segmenter.config.encoder.side,
        "resize": segmenter.config.resize,
        "light": segmenter.config.light,
    }
    done = extract_images(
        segmenter,
        images,
        options.out,
        job,
        zoom=settings.zoom,
        parity=settings.parity,
        kept=settings.dtype,
        made_by=made_by,
        progress=not options.quiet,
    )
    print(_told(done, "features", f"The features: {options.out}, their images: {options.out / IMAGES}"))


def _told(done: Done, what: str, where: str) -> str:
    lines = []
    if done.images:
        rate = done.images / done.seconds
        lines.append(
            f"{done.images} images in {tqdm.format_interval(done.seconds)} ({rate:.4g} images/s); "
            f"the device waited {done.idle_share:.1%} of it."
        )
    if done.failed:
        lines.append(f"{done.failed} images have no {what}; the column `reason` tells why.")
    lines.append(where if done.finished else "Other processes have shards to do.")
    return "\n".join(lines)
