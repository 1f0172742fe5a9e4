"""Images to vectors, or to what an autoencoder learns from: shard by shard, so that nothing done is lost or torn.

A job can be killed at any moment and goes on where it was; many processes can share it.
"""

import logging
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pyarrow.parquet as pq
from tqdm.auto import tqdm

from dorl_jax.data.image_lists import ImageList
from dorl_jax.data.loader import picture_batches
from dorl_jax.data.pictures import FilePictures, as_read
from dorl_jax.data.pool import worker_count
from dorl_jax.dorl import DoRL, Dtype
from dorl_jax.embedding.engine import Engine
from dorl_jax.embedding.shards import batches_of, joined, whole_batches
from dorl_jax.embedding.table import (
    OWN,
    count_failed,
    first_reason,
    images_table,
    read_provenance,
    rewrite_columns,
    write_vectors,
)
from dorl_jax.errors import InputError, name_some
from dorl_jax.files import replacing
from dorl_jax.locks import locked
from dorl_jax.models import LoraSam
from dorl_jax.store import Store, StoreWriter, differences

logger = logging.getLogger(__name__)

IMAGES = "images.parquet"
"""In the store that `extract_images` writes."""

_DOING = {"embed": "embedding", "extract": "extracting"}
# Images that are read to tell how long all will take.
_PROBED = 8


@dataclass(frozen=True)
class EmbedJob:
    """How a set of images is embedded or extracted.

    Attributes:
      batch_size: images a step, over all devices of a process.
      dtype: of the arithmetic.
      workers: processes that decode; see `pool.worker_count`.
      shard_size: images a shard, rounded up to whole batches: a kill loses what has been done of one.
      strict: fail on an image that cannot be read, rather than to write down why.
      process, processes: the number of this process, from 0, and how many share the work; each takes every
        `processes`-th shard that is missing.
    """

    batch_size: int = 16
    dtype: Dtype = "float32"
    workers: int = -1
    shard_size: int = 512
    strict: bool = False
    process: int = 0
    processes: int = 1


@dataclass(frozen=True)
class Done:
    """What a process did.

    Attributes:
      images: how many it embedded now.
      seconds: for that, starting up and compiling left out.
      idle_share: of that time, how much of it the devices waited, 0..1.
      failed: images of all that have no vector; 0 until the file is there.
      finished: whether the file is there; otherwise other processes have shards to do.
    """

    images: int
    seconds: float
    idle_share: float
    failed: int
    finished: bool


def embed_images(dorl: DoRL, images: ImageList, out: Path, job: EmbedJob, *, progress: bool = True) -> Done:
    """Write the vectors of all images into `out` (see `embedding.table`), in the order of `images`.

    While it lasts, `out` with ".parts" behind its name holds the shards that are done; the same call goes on with them,
    with any number of processes, and the file comes out the same to the last byte. The process that finds all shards
    done writes the file and removes them.

    Raises:
      InputError: no images, or none at a time, `out` is of other images or was made otherwise, another process is at it
        alone, or, with `strict`, an image that cannot be read.
    """
    _check(images, job)
    if out.suffix != ".parquet":
        raise InputError(f"{out}: vectors are written as .parquet; `dorl-jax export` makes other kinds of it")
    made_by = {**dorl.provenance, **_made_by(images, job)}
    if out.exists():
        changed = differences(read_provenance(out), made_by)
        if changed:
            raise InputError(f"{out} is there, made with another {name_some(changed)}: remove it or write elsewhere")
        logger.info("%s is there already", out)
        if rewrite_columns(images, out):
            logger.info("the vectors are kept, what is known of the images had changed and is written anew")
        return _refuse_failed(out, Done(0, 0.0, 0.0, count_failed(out), True), job.strict)
    dropped = [name for name in images.columns.column_names if name in OWN and name != "id"]
    if dropped:
        logger.warning(
            "%s of the images is left out, for %s has columns of its own of this name: rename to keep it",
            name_some(dropped),
            out.name,
        )
    parts = out.with_name(out.name + ".parts")
    with locked(parts / "writing.lock", shared=job.processes > 1):
        done = _do_missing(
            lambda: dorl.engine(job.batch_size, job.dtype, job.workers),
            dorl.lora_sam,
            images,
            parts,
            made_by,
            job,
            what="embed",
            progress=progress,
        )
    return _refuse_failed(out, _finish(images, out, parts, made_by, done), job.strict)


def _refuse_failed(out: Path, done: Done, strict: bool) -> Done:
    """With `strict`, refuse what an earlier call without it has left out."""
    if strict and done.failed:
        raise InputError(f"{out} is whole, but {done.failed} images have no vector; the first: {first_reason(out)}")
    return done


def extract_images(
    segmenter: LoraSam,
    images: ImageList,
    out: Path,
    job: EmbedJob,
    *,
    zoom: float,
    parity: bool,
    kept: Dtype,
    made_by: Mapping[str, Any],
    progress: bool = True,
) -> Done:
    """Write what an autoencoder learns from into the store `out` (see `store`), in the order of `images`.

    Fields "feature", "crop", "foreground", "area" and "empty" as the stage `extract` writes them; `out/images.parquet`
    tells of every image its "id", the columns that came along ("laboratory", "label", ..), "source", and in "reason"
    why there is nothing of it, or null. The same call goes on with the shards that are missing, with any number of
    processes.

    Args:
      segmenter: its LoRA merged, best.
      images: where they are.
      out: folder.
      job: how; `job.dtype` is that of the arithmetic.
      zoom, parity: see `cut.cut_cells`.
      kept: type in which features are kept.
      made_by: what else decides the features (see `DoRL.provenance`).
      progress: show a bar.

    Raises:
      InputError: as `embed_images`.
    """
    _check(images, job)
    if out.suffix == ".parquet" or out.is_file():
        raise InputError(f"{out}: features are written into a folder; name one")
    made_by = {**made_by, **_made_by(images, job), "kept": kept, "zoom": zoom, "parity": parity}
    dtype = np.dtype(ml_dtypes.bfloat16) if kept == "bfloat16" else np.dtype(np.float32)

    def engine() -> Engine:
        return Engine(
            segmenter,
            None,
            batch_size=job.batch_size,
            zoom=zoom,
            parity=parity,
            dtype=job.dtype,
            workers=job.workers,
        )

    with locked(out / "writing.lock", shared=job.processes > 1):
        done = _do_missing(
            engine, segmenter, images, out, made_by, job, what="extract", field=("feature", dtype), progress=progress
        )
    if not done.finished:
        logger.info("other processes have shards to do")
        return done
    failed = Store(out).failed
    # Each process that ends writes it anew, for columns may have changed since; but one after the other.
    with locked(out / "finishing.lock", wait=True), replacing(out / IMAGES) as partial:
        pq.write_table(images_table(images, failed), partial)
    return replace(done, failed=len(failed))


def _check(images: ImageList, job: EmbedJob) -> None:
    if not len(images):
        raise InputError("no images to embed")
    for name, value in (("batch_size", job.batch_size), ("shard_size", job.shard_size)):
        if value < 1:
            raise InputError(f"{name} = {value}: at least 1 is needed")
    if not 0 <= job.process < job.processes:
        raise InputError(f"process {job.process} of {job.processes}: expected 0 to {job.processes - 1}")


def _made_by(images: ImageList, job: EmbedJob) -> dict[str, Any]:
    return {
        "dtype": job.dtype,
        "batch_size": job.batch_size,
        "images": images.fingerprint(),
        "jax": jax.__version__,
        "platform": jax.default_backend(),
    }


def _do_missing(
    make_engine: Callable[[], Engine],
    segmenter: LoraSam,
    images: ImageList,
    parts: Path,
    made_by: Mapping[str, Any],
    job: EmbedJob,
    *,
    what: str,
    field: tuple[str, np.dtype] | None = None,
    progress: bool,
) -> Done:
    """The shards of a store that are missing; one of the fields may be kept in a type of its own."""
    shard_size = whole_batches(job.shard_size, job.batch_size)
    writer = StoreWriter(parts, images.ids, made_by, shard_size, redo=f"run `dorl-jax {what}` again")
    if job.processes == 1:
        writer.clean()
    missing = writer.missing(job.process, job.processes)
    total = sum(len(places) for _, places in missing)
    if not total:
        return Done(0, 0.0, 0.0, 0, writer.complete)
    if total < len(images):
        logger.info("%d of %d images are left for this process", total, len(images))
    engine = make_engine()
    _predict(engine, images, missing[0][1].start, total, job)
    batches = picture_batches(
        FilePictures(images),
        segmenter.config.encoder.side,
        job.batch_size,
        range(len(images)),
        numbers=[number for shard in missing for number in batches_of(shard, shard_size, job.batch_size)],
        resize=segmenter.config.resize,
        light=segmenter.config.light,
        originals=engine.needs_originals,
        strict=job.strict,
        workers=job.workers,
    )
    start = time.perf_counter()
    with tqdm(total=total, desc=_DOING[what], unit="image", disable=not progress) as bar:
        for number, rows in joined(engine.run(batches), missing, shard_size, job.batch_size, bar):
            failed = {row: str(reason) for row, reason in enumerate(rows.reason) if reason}
            if field is not None:
                rows.arrays[field[0]] = rows.arrays[field[0]].astype(field[1])
            writer.write(number, rows.arrays, failed)
    seconds = time.perf_counter() - start
    return Done(total, seconds, engine.occupancy.idle_share, 0, writer.complete)


def _predict(engine: Engine, images: ImageList, first: int, total: int, job: EmbedJob) -> None:
    """Say how long it will take, before it begins."""
    device = engine.seconds_a_batch / job.batch_size
    pictures = FilePictures(images)
    start = time.perf_counter()
    probed = range(first, min(first + _PROBED, len(images)))
    for place in probed:
        as_read(pictures, place)
    reading = (time.perf_counter() - start) / len(probed) / max(1, worker_count(job.workers))
    slower = "the device" if device > reading else "reading them"
    logger.info(
        "%d images will take about %s (%.4g images/s, by %s)",
        total,
        tqdm.format_interval(total * max(device, reading)),
        1 / max(device, reading),
        slower,
    )


def _finish(images: ImageList, out: Path, parts: Path, made_by: Mapping[str, Any], done: Done) -> Done:
    if not done.finished:
        logger.info("other processes have shards to do; the last one to end writes %s", out)
        return done
    with locked(parts / "finishing.lock", wait=True):
        if not out.exists():
            write_vectors(Store(parts), images, out, made_by)
    shutil.rmtree(parts, ignore_errors=True)
    return replace(done, failed=count_failed(out))
