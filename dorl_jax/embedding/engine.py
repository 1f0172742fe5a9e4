"""Batches of images to rows of arrays: several in flight, one compiled shape, results fetched behind the work."""

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from dorl_jax.compiling import compiler_options
from dorl_jax.data.cut import CutCells, cut_cells
from dorl_jax.data.pool import buffered, worker_pool
from dorl_jax.data.views import small_crop
from dorl_jax.embedding.occupancy import Occupancy
from dorl_jax.errors import InputError
from dorl_jax.models import Cae, CaeConfig, LoraSam
from dorl_jax.models.compute import round_kernels, set_compute
from dorl_jax.parallel import batch_sharding, on_every_device

# Batches that are under way at each step: computed, cut out, computed again.
_AHEAD = 2

Program = Callable[..., Any]


@dataclass(frozen=True)
class Rows:
    """What came of a batch.

    Attributes:
      index: place of each image, (n,).
      reason: why there is nothing of an image, (n,); empty where there is.
      arrays: name -> (n, ...); see `Engine`.
    """

    index: np.ndarray
    reason: np.ndarray
    arrays: dict[str, np.ndarray] = field(default_factory=dict)


class Engine:
    """Computes of every image its vector, or what the autoencoder trains on.

    With an autoencoder `run` gives "vector" (n, d) and "empty" (n,), True where no mask was found; without one
    "feature" (n, grid, grid, C), "crop" (n, S, S, 3), "foreground" (n, grid, grid), "area" (n,) and "empty" (see
    `dorl_jax.data.cut.CutCells`).

    One program goes from an image to its vector where nothing has to be cut out. Otherwise one finds the mask, worker
    processes cut out what is needed of the cell (the window around it, the cell alone on grey, its share of each
    token), and a second one computes the vector. The devices of this process share every batch.

    Attributes:
      occupancy: how much of its time the device waited, in the last `run`.
    """

    def __init__(
        self,
        segmenter: LoraSam,
        cae: Cae | None,
        *,
        batch_size: int,
        zoom: float = 0.0,
        parity: bool = False,
        dtype: Literal["float32", "bfloat16"] = "float32",
        workers: int = 0,
    ) -> None:
        """Put the models on all local devices; they themselves stay as they are.

        Args:
          segmenter: with its LoRA merged, best.
          cae: the autoencoder, or None for what it trains on.
          batch_size: images a step, over all devices of this process.
          zoom, parity: see `cut.cut_cells`.
          dtype: of the arithmetic.
          workers: processes that cut out cells (see `pool.worker_count`).

        Raises:
          InputError: a batch that the devices cannot share, or an autoencoder for other features.
        """
        devices = jax.local_devices()
        if batch_size < 1 or batch_size % len(devices):
            raise InputError(f"batch_size = {batch_size}: take a multiple of the {len(devices)} devices here")
        config = segmenter.config.encoder
        self._grid, self._side = config.grid[0], config.side
        if cae is not None and (cae.config.grid, cae.config.width) != (self._grid, config.width):
            raise InputError(
                f"the autoencoder reads features {cae.config.grid} x {cae.config.grid} x {cae.config.width}, the "
                f"segmenter gives {self._grid} x {self._grid} x {config.width}: the two are of different runs"
            )
        self._crop_size = CaeConfig(grid=self._grid).image_size
        self._batch_size, self._zoom, self._parity, self._workers = batch_size, zoom, parity, workers
        self._resize = segmenter.config.resize
        self._vectors = cae is not None
        self._second: Program | None
        program = _programs(_computing_in((segmenter, cae), dtype), Mesh(np.array(devices), ("data",)))
        self._cuts = cae is None or zoom > 0 or cae.config.needs_mask
        self._small_size = cae.config.crop_size if cae is not None else 0
        if cae is None:
            self._first, self._second = program(_features_and_margins), program(_features)
        elif not self._cuts:
            self._first, self._second = program(_vector_and_empty), None
        else:
            self._first = program(_features_and_margins if not zoom else _margins)
            self._second = program(_vector if zoom else _vector_of_features)
        self.occupancy = Occupancy()

    def run(self, batches: Iterator[Mapping[str, Any]]) -> Iterator[Rows]:
        """Rows of every batch, in order.

        Args:
          batches: of `loader.picture_batches`, of this engine's batch size; with "originals" where there is anything to
            be cut out (`needs_originals`).
        """
        # Of this run alone until its end: another thread may be at one of its own.
        occupancy = Occupancy()
        with ExitStack() as stack:
            stack.callback(setattr, self, "occupancy", occupancy)
            fetcher = stack.enter_context(ThreadPoolExecutor(1, "fetch"))
            start = partial(self._start, fetcher, occupancy)
            first = ((batch, *start(self._first, batch["image"])) for batch in batches)
            if not self._cuts:
                for batch, _, future in buffered(first, _AHEAD):
                    yield _rows(batch, dict(zip(("vector", "empty"), future.result(), strict=True)))
                return
            pool = stack.enter_context(worker_pool(self._workers))
            cut = (self._cut(pool, batch, results, future) for batch, results, future in buffered(first, 1))
            second = (
                (batch, features, cells, self._again(start, features, cells))
                for batch, features, cells in ((b, f, cutting.result()) for b, f, cutting in buffered(cut, 1))
            )
            for batch, features, cells, again in buffered(second, 1):
                result = jax.device_get(features) if again is None else again.result()[0]
                if self._vectors:
                    yield _rows(batch, {"vector": result, "empty": cells.empty})
                else:
                    arrays = {"crop": cells.crops, "foreground": cells.foreground, "area": cells.areas}
                    yield _rows(batch, {"feature": result, **arrays, "empty": cells.empty})

    @property
    def needs_originals(self) -> bool:
        """Whether batches need the images at their own size."""
        return self._cuts

    @cached_property
    def seconds_a_batch(self) -> float:
        """How long the device takes for one, measured once, on grey images, after compiling everything."""
        count, grid = self._batch_size, self._grid
        images = np.full((count, self._side, self._side, 3), 128, np.uint8)
        foreground = np.full((count, grid, grid), 255, np.uint8)
        crops = np.full((count, self._small_size, self._small_size, 3), 128, np.uint8)
        areas = np.ones(count, np.float32)

        def once() -> None:
            results = jax.block_until_ready(self._first(images))
            if self._second is not None and (self._vectors or self._zoom):
                seen = images if self._zoom else results[0]
                jax.block_until_ready(self._second(seen, foreground, crops, areas))

        once()
        start = time.perf_counter()
        once()
        return time.perf_counter() - start

    def _start(
        self, fetcher: ThreadPoolExecutor, occupancy: Occupancy, program: Program, *arrays: Any
    ) -> tuple[Any, Future[Any]]:
        """Hand a program to the device: its results there, and a future of the last two on the host."""
        occupancy.begin()
        results = program(*arrays)
        return results, fetcher.submit(self._fetch, results, occupancy)

    def _fetch(self, results: tuple[Any, ...], occupancy: Occupancy) -> Any:
        jax.block_until_ready(results)
        occupancy.end()
        # Features stay: a program that follows may need them, or nobody does.
        return jax.device_get(results[1:] if self._cuts and len(results) > 1 else results)

    def _cut(
        self, pool: Any, batch: Mapping[str, Any], results: tuple[Any, ...], future: Future[Any]
    ) -> tuple[Mapping[str, Any], Any, Future[CutCells]]:
        margins = future.result()[0][: len(batch["originals"])]
        cutting = pool.submit(
            cut_cells,
            batch["originals"],
            margins,
            self._crop_size,
            self._grid,
            parity=self._parity,
            zoom=self._zoom,
            view_size=self._side,
            resize=self._resize,
        )
        return batch, results[0] if len(results) > 1 else None, cutting

    def _again(self, start: Callable[..., Any], features: Any, cells: CutCells) -> Future[Any] | None:
        """What was cut out, filled up to the compiled shape, through the second program."""
        if not self._vectors and cells.views is None:
            return None
        crops = np.empty((len(cells.crops), 0, 0, 3), np.uint8)
        if self._small_size:
            crops = np.stack([small_crop(crop, self._small_size) for crop in cells.crops])
        seen = features if cells.views is None else self._filled(cells.views)
        cut = (self._filled(array) for array in (cells.foreground, crops, cells.areas))
        return start(self._second, seen, *cut)[1]

    def _filled(self, array: np.ndarray) -> np.ndarray:
        missing = self._batch_size - len(array)
        return np.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1), mode="edge") if missing else array


def _rows(batch: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Rows:
    count = int(batch["valid"].sum())
    reason = batch["reason"].copy()
    arrays = {name: array[:count] for name, array in arrays.items()}
    for name in ("vector", "feature"):
        if name in arrays:
            # Text of any length: an array of text has the length of its longest.
            broken = ~np.isfinite(arrays[name].astype(np.float32)).reshape(count, -1).all(axis=1)
            reason = np.where((reason == "") & broken, "the model's numbers are not finite", reason)
    return Rows(batch["index"][:count], reason, dict(arrays))


def _computing_in(models: tuple[LoraSam, Cae | None], dtype: str) -> tuple[LoraSam, Cae | None]:
    """Models of the same weights that compute in `dtype`; for bf16 matrices are cast once, not in every step."""
    graph, state = nnx.split(models)
    # Mapped, for the variables themselves would be shared with the user's models.
    own: Any = nnx.merge(graph, jax.tree.map(lambda array: array, state))
    for model in own:
        if model is not None:
            set_compute(model, dtype=dtype)
            round_kernels(model)
    return own


def _programs(models: tuple[LoraSam, Cae | None], mesh: Mesh) -> Callable[[Callable[..., Any]], Program]:
    """What compiles a function of models and images: weights whole on all devices, images spread over them."""
    graph, state = nnx.split(models)
    rows = batch_sharding(mesh)
    state = jax.device_put(state, on_every_device(mesh))

    def compiled(function: Callable[..., Any]) -> Program:
        program = jax.jit(
            lambda state, *arrays: function(nnx.merge(graph, state), *arrays), compiler_options=compiler_options()
        )
        return lambda *arrays: program(state, *(jax.device_put(array, rows) for array in arrays))

    return compiled


def _features_and_margins(models: tuple[LoraSam, None], images: Any) -> Any:
    out = models[0](images)
    return out["feature"], _margin(out)


def _margins(models: tuple[LoraSam, Cae], images: Any) -> Any:
    return (_margin(models[0](images)),)


def _features(models: tuple[LoraSam, None], images: Any, foreground: Any, crops: Any, areas: Any) -> Any:
    return (models[0].sam.encode_image(images)["tokens"],)


def _vector(models: tuple[LoraSam, Cae], images: Any, foreground: Any, crops: Any, areas: Any) -> Any:
    features = models[0].sam.encode_image(images)["tokens"]
    return _vector_of_features(models, features, foreground, crops, areas)


def _vector_of_features(models: tuple[LoraSam, Cae], features: Any, foreground: Any, crops: Any, areas: Any) -> Any:
    foreground, crops = (array.astype(jnp.float32) / 255 for array in (foreground, crops))
    return (models[1].encode(features, foreground, crops, areas).astype(jnp.float32),)


def _vector_and_empty(models: tuple[LoraSam, Cae], images: Any) -> Any:
    out = models[0](images)
    vector = models[1].encode(out["feature"]).astype(jnp.float32)
    return vector, (_margin(out) <= 0).all(axis=(1, 2))


def _margin(out: Mapping[str, Any]) -> Any:
    """How much more a pixel is cell than background, (B, 4h, 4w)."""
    logits = out["low_res_logits"].astype(jnp.float32)
    return logits[..., 1] - logits[..., 0]
