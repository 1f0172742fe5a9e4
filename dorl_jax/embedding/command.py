"""`dorl-jax embed IMAGES --model RUN --out vectors.parquet`: images from anywhere to one vector each."""

import argparse
import logging
from pathlib import Path

import jax
from tqdm.auto import tqdm

from dorl_jax.allocator import return_freed_memory
from dorl_jax.data.image_lists import open_images
from dorl_jax.dorl import DoRL
from dorl_jax.embedding.job import Done, EmbedJob, embed_images
from dorl_jax.errors import InputError
from dorl_jax.parallel import initialise

logger = logging.getLogger("dorl_jax")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the stage `embed` takes when it is given images rather than a run's own cells."""
    group = parser.add_argument_group("images of your own", "one vector an image; shares may be done by many processes")
    group.add_argument(
        "images",
        nargs="*",
        metavar="IMAGES",
        help="a folder, files, a pattern, a table or list of paths, a laboratory, a built set, tar or zip",
    )
    group.add_argument("--model", type=Path, metavar="RUN", help="folder of the run whose models are used")
    group.add_argument("--out", type=Path, metavar="FILE", help="where the vectors go; .parquet")
    group.add_argument("--column", metavar="NAME", help="of a table, the column of paths")
    group.add_argument("--id-column", metavar="NAME", help="of a table, the column of unique names")
    group.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the arithmetic")
    group.add_argument(
        "--workers", type=int, default=-1, help="processes that decode; 0 for threads, -1 for half the cores"
    )
    group.add_argument("--shard-size", type=int, default=512, help="images that a kill may lose (default: 512)")
    group.add_argument("--strict", action="store_true", help="stop at an image that cannot be read")


def run(options: argparse.Namespace) -> None:
    """Embed what the command line names.

    Raises:
      InputError: something is missing on the command line, or what `embed_images` refuses.
    """
    for name in ("model", "out"):
        if getattr(options, name) is None:
            raise InputError(f"embed IMAGES needs --{name}: dorl-jax embed IMAGES --model RUN --out vectors.parquet")
    for name in ("config", "run", "redo"):
        if getattr(options, name) is not None:
            raise InputError(f"embed IMAGES takes no --{name}; the model is named by --model RUN")
    if options.coordinator is not None:
        raise InputError("embed IMAGES needs no --coordinator: the processes do not talk to each other")
    process, processes = options.process or 0, options.processes or 1
    if options.distributed:
        initialise()
        process, processes = jax.process_index(), jax.process_count()
    images = open_images([str(name) for name in options.images], column=options.column, id_column=options.id_column)
    for note in images.notes:
        logger.info("%s", note)
    job = EmbedJob(
        batch_size=int(options.setting_batch_size or EmbedJob.batch_size),
        dtype=options.dtype,
        workers=options.workers,
        shard_size=options.shard_size,
        strict=options.strict,
        process=process,
        processes=processes,
    )
    return_freed_memory()
    done = embed_images(DoRL.load(options.model, only=job.dtype), images, options.out, job, progress=not options.quiet)
    print(_told(done, options.out))


def _told(done: Done, out: Path) -> str:
    lines = []
    if done.images:
        rate = done.images / done.seconds
        lines.append(
            f"{done.images} images in {tqdm.format_interval(done.seconds)} ({rate:.4g} images/s); "
            f"the device waited {done.idle_share:.1%} of it."
        )
    if done.failed:
        lines.append(f"{done.failed} images have no vector; the column `reason` tells why.")
    lines.append(f"The vectors: {out}" if done.finished else "Other processes have shards to do.")
    return "\n".join(lines)
