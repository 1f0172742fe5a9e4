"""DoRL as one thing: images in, one vector a cell out."""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import numpy as np
import pyarrow as pa
from flax import nnx
from jaxtyping import Bool, Float32, UInt8
from tqdm.auto import tqdm

from dorl_jax import __version__, config
from dorl_jax.data.image_lists import ImageList, open_images
from dorl_jax.data.loader import picture_batches
from dorl_jax.data.pictures import ArrayPictures, FilePictures, Pictures
from dorl_jax.embedding.engine import Engine, Rows
from dorl_jax.embedding.table import vectors_table
from dorl_jax.errors import InputError, name_some, suggest
from dorl_jax.models import Cae, LoraSam
from dorl_jax.models.compute import round_kernels, set_compute
from dorl_jax.models.layers import AnyArray
from dorl_jax.models.lora import forget_unmerged
from dorl_jax.stages.extract import ExtractSettings
from dorl_jax.stages.segment import segment_pictures
from dorl_jax.training.checkpoints import load_model

Dtype = Literal["float32", "bfloat16"]


class DoRL:
    """The two models of a run, and how images are prepared for them (Li et al., arXiv 2408.07467).

        dorl = DoRL.load("runs/mine")
        vectors = dorl.embed("cells/**/*.png")

    Attributes:
      lora_sam: the segmenter, its LoRA merged.
      cae: the autoencoder.
      zoom: side of the window whose features are taken, over the longer side of the cell; 0 for the whole image.
      parity: crop as the released code does.
    """

    def __init__(
        self,
        lora_sam: LoraSam,
        cae: Cae,
        *,
        zoom: float = 0.0,
        parity: bool = False,
        weights: Mapping[str, str] | None = None,
    ) -> None:
        """Put the two together; the LoRA of the segmenter is merged in place.

        Args:
          lora_sam, cae, zoom, parity: see the class.
          weights: `weights_fingerprint` of "segmenter" and "autoencoder" as they were trained, for models that have
            been merged or cut down since; by default taken of the models given.

        Raises:
          InputError: an autoencoder for features of another shape.
        """
        encoder = lora_sam.config.encoder
        if (cae.config.grid, cae.config.width) != (encoder.grid[0], encoder.width):
            raise InputError(
                f"the autoencoder reads features {cae.config.grid} x {cae.config.grid} x {cae.config.width}, the "
                f"segmenter gives {encoder.grid[0]} x {encoder.grid[1]} x {encoder.width}: they are of different runs"
            )
        if weights is None:
            weights = {"segmenter": weights_fingerprint(lora_sam), "autoencoder": weights_fingerprint(cae)}
        self._weights = dict(weights)
        self.lora_sam, self.cae, self.zoom, self.parity = lora_sam.merge(), cae, zoom, parity
        self._engines: dict[Any, Engine] = {}
        self._only: Dtype | None = None

    @classmethod
    def load(cls, run: str | Path, *, only: Dtype | None = None) -> "DoRL":
        """Of a run folder in which both models have been trained.

        Args:
          run: the folder.
          only: embed in this type and no other. What vectors of it do not need is let go: in float32 a quarter of the
            memory that both models take, in bfloat16 six tenths. Otherwise the models stay whole.

        Raises:
          InputError: no run, or one in which a model is missing; an unknown type.
        """
        if only is not None:
            _check_dtype("only", only)
        run = Path(run)
        # Not the settings of all stages: they would bring in scikit-learn, plots and more.
        settings = config.load_section(ExtractSettings, settings_of(run), "extract")
        for stage in ("finetune_sam", "train_cae"):
            model = run / stage / "model"
            if not (model / "model.json").is_file():
                raise InputError(
                    f"{run} is not trained to its end: no model at {model}; `dorl-jax run --run {run}` goes on with it"
                )
        # The larger first, and the second when the first has let go of what it does not need: the peak is lower.
        cae = load_model(run / "train_cae" / "model", Cae)
        weights = {"autoencoder": weights_fingerprint(cae)}
        if only is not None:
            round_kernels(set_compute(cae.keep_encoders(), dtype=only))
        segmenter = load_model(run / "finetune_sam" / "model", LoraSam)
        weights["segmenter"] = weights_fingerprint(segmenter)
        if only is not None:
            forget_unmerged(segmenter.merge())
            round_kernels(set_compute(segmenter, dtype=only))
        dorl = cls(segmenter, cae, zoom=settings.zoom, parity=settings.parity, weights=weights)
        dorl._only = only
        return dorl

    @property
    def side(self) -> int:
        """Of the square, in pixels, that images are resized to."""
        return self.lora_sam.config.encoder.side

    @property
    def width(self) -> int:
        """Numbers in a vector."""
        return self.cae.config.vector_size

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """What decides a vector beside the image and the type of the arithmetic: weights, preprocessing, version."""
        return {
            "version": __version__,
            "weights": self._weights,
            "side": self.side,
            "resize": self.lora_sam.config.resize,
            "light": self.lora_sam.config.light,
            "zoom": self.zoom,
            "parity": self.parity,
            "vector": list(self.cae.config.vector),
            "parts": self.cae.config.part_sizes,
        }

    def embed(
        self,
        images: "Images",
        *,
        batch_size: int = 16,
        dtype: Dtype = "float32",
        workers: int = -1,
        progress: bool = False,
    ) -> Float32[np.ndarray, "n d"]:
        """One vector an image.

        Args:
          images: arrays, uint8 (h, w, 3), RGB, of any sizes, or one array (n, h, w, 3); or what `open_images` takes: a
            folder, a pattern, a table, an archive, or several files, which may be there more than once.
          batch_size: images a step, over all devices of this process.
          dtype: of the arithmetic.
          workers: processes that decode files and cut out cells; 0 for threads, -1 for half the cores.
          progress: show a bar.

        Raises:
          InputError: an image that cannot be read, by name; `embed_table` gives the others and the reason.
        """
        if not isinstance(images, ImageList | str | os.PathLike):
            images = list(images)
        paths = _paths(images)
        if paths is not None and len(once := list(dict.fromkeys(paths))) < len(paths):
            # Drawn with repeats, as in a bootstrap: each file is embedded once.
            vectors = self.embed(once, batch_size=batch_size, dtype=dtype, workers=workers, progress=progress)
            place = {path: number for number, path in enumerate(once)}
            return vectors[[place[path] for path in paths]]
        table = self.embed_table(images, batch_size=batch_size, dtype=dtype, workers=workers, progress=progress)
        failed = table.filter(pa.compute.is_valid(table["reason"]))
        if len(failed):
            some = name_some(f"{row['id']} ({row['reason']})" for row in failed.select(["id", "reason"]).to_pylist())
            raise InputError(f"{len(failed)} of {len(table)} images give no vector: {some}")
        if not len(table):
            return np.zeros((0, self.width), np.float32)
        vectors = pa.concat_arrays([chunk.flatten() for chunk in table["vector"].chunks])
        return vectors.to_numpy(zero_copy_only=False).reshape(len(table), self.width)

    def embed_table(
        self,
        images: "Images",
        *,
        batch_size: int = 16,
        dtype: Dtype = "float32",
        workers: int = -1,
        progress: bool = False,
    ) -> pa.Table:
        """As `embed`, as a table with a row an image, in their order; see `embedding.table` for its columns.

        Its ids are unique: a file is there once.
        """
        listed, pictures = _as_pictures(images)
        workers = 0 if isinstance(pictures, ArrayPictures) else workers
        engine = self.engine(batch_size, dtype, workers)
        batches = picture_batches(
            pictures,
            self.side,
            batch_size,
            range(len(pictures)),
            resize=self.lora_sam.config.resize,
            light=self.lora_sam.config.light,
            originals=engine.needs_originals,
            strict=False,
            workers=workers,
        )
        tables = []
        with tqdm(total=len(pictures), desc="embedding", unit="image", disable=not progress) as bar:
            for rows in engine.run(batches):
                first, last = int(rows.index[0]), int(rows.index[-1]) + 1
                tables.append(vectors_table(listed[first:last], rows.arrays, dict(_failed(rows))))
                bar.update(len(rows.index))
        return pa.concat_tables(tables) if tables else vectors_table(listed, _nothing(self.width), {})

    def masks(
        self, images: "Images", *, batch_size: int = 16, workers: int = -1
    ) -> Iterator[tuple[UInt8[np.ndarray, "h w 3"], Bool[np.ndarray, "h w"]]]:
        """(image, mask) of every image, at its own size; the mask is True on the cell, the largest part found.

        The image is in the light that the segmenter looks at it in (see `data.light.in_light`).

        Raises:
          ImageError: an image that cannot be read, when it is met.
        """
        _, pictures = _as_pictures(images)
        workers = 0 if isinstance(pictures, ArrayPictures) else workers
        for _, image, mask in segment_pictures(self.lora_sam, pictures, batch_size, workers=workers):
            yield image, mask

    def engine(self, batch_size: int, dtype: Dtype = "float32", workers: int = 0) -> Engine:
        """What computes; made once for each set of arguments, as it holds compiled programs.

        Raises:
          InputError: a batch that the devices of this process cannot share; an unknown type, or another than the
            models were loaded for.
        """
        _check_dtype("dtype", dtype)
        if self._only not in (None, dtype):
            raise InputError(f"these models were loaded for {self._only} only: load them again to embed in {dtype}")
        key = (batch_size, dtype, workers)
        if key not in self._engines:
            self._engines[key] = Engine(
                self.lora_sam,
                self.cae,
                batch_size=batch_size,
                zoom=self.zoom,
                parity=self.parity,
                dtype=dtype,
                workers=workers,
            )
        return self._engines[key]


Images = str | Path | ImageList | AnyArray | Sequence[str | Path] | Sequence[AnyArray]
"""What `DoRL.embed` takes."""


def settings_of(run: Path) -> Path:
    """The settings file of a run.

    Raises:
      InputError: there is none.
    """
    path = run / config.SETTINGS_FILE
    if not path.is_file():
        raise InputError(f"no run at {run}: {path.name} is missing; name the folder that `dorl-jax run` made")
    return path


def weights_fingerprint(model: nnx.Module) -> str:
    """Short hash of all numbers of a model and of their names."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(nnx.state(model))):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        digest.update(array.view(np.uint8).data)
    return digest.hexdigest()[:16]


def _as_pictures(images: Any) -> tuple[ImageList, Pictures]:
    if isinstance(images, ImageList):
        return images, FilePictures(images)
    if isinstance(images, str | os.PathLike):
        listed = open_images(Path(images) if isinstance(images, os.PathLike) else images)
        return listed, FilePictures(listed)
    arrays = list(images)
    paths = _paths(arrays)
    if paths is not None:
        listed = open_images(paths)
        return listed, FilePictures(listed)
    return ImageList([str(place) for place in range(len(arrays))]), ArrayPictures(arrays)


def _paths(images: Any) -> list[str] | None:
    """The names, where images are given as a list of files."""
    if isinstance(images, ImageList | str | os.PathLike):
        return None
    named = [isinstance(image, str | os.PathLike) for image in images]
    if not any(named):
        return None
    if not all(named):
        raise InputError("images are given as names of files or as arrays, not as both: open the files first")
    return [os.fspath(image) for image in images]


def _check_dtype(name: str, dtype: str) -> None:
    known = get_args(Dtype)
    if dtype not in known:
        raise InputError(f"{name} = {dtype!r}{suggest(dtype, known)}: it may be {' or '.join(known)}")


def _failed(rows: Rows) -> Iterator[tuple[int, str]]:
    return ((row, str(reason)) for row, reason in enumerate(rows.reason) if reason)


def _nothing(width: int) -> dict[str, np.ndarray]:
    return {"vector": np.zeros((0, width), np.float32), "empty": np.zeros(0, bool)}
