"""Batches for the stages: deterministic, restorable, read ahead by threads (Grain)."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np
from jaxtyping import Bool, Int, UInt8

from dorl_jax.data.augment import augment as augment_cell
from dorl_jax.data.images import read_image, resize_image, resize_mask
from dorl_jax.data.manifest import Cell, read_cell
from dorl_jax.errors import InputError, name_some


def segmentation_batches(
    cells: Sequence[Cell],
    image_size: int,
    batch_size: int,
    seed: int,
    *,
    augment: bool = True,
    stain: float = 1.0,
    balance_laboratories: bool = False,
    workers: int = 0,
    cache_bytes: int = 2**31,
) -> grain.DatasetIterator:
    """Endless batches of images and masks.

    Every cell comes once an epoch, each epoch in another order; a batch may span two epochs, so that no cell
    is left out and fewer cells than `batch_size` will do. The order and the augmentation follow from `seed`
    and the position alone: `get_state` and `set_state` continue bit for bit.

    Args:
      cells: each with a mask.
      image_size: side of the square that images and masks are resized to, in pixels.
      batch_size: cells a batch.
      seed: 0..2**32 - 1.
      augment: turn, flip, rotate and zoom at random (see `augment.augment`).
      stain: strength of the random stain; only with `augment`.
      balance_laboratories: take the laboratories in turn, each with epochs of its own, instead of all cells
        alike.
      workers: threads that prepare batches ahead; 0 prepares each when it is asked for.
      cache_bytes: memory for resized images and masks; what does not fit is decoded again.

    Returns:
      An iterator of `{"image": uint8 (B, S, S, 3), "mask": uint8 (B, S, S), 1 on the cell}`.

    Raises:
      InputError: no cells, or cells without a mask; ImageError on a file that does not open, when it is met.
    """
    if not cells:
        raise InputError("no cells to train the segmentation on")
    bare = [cell.id for cell in cells if cell.mask is None]
    if bare:
        raise InputError(f"{len(bare)} cells have no mask to train the segmentation on: {name_some(bare)}")
    resized = _ResizedCells(cells, image_size, cache_bytes)
    groups = [cell.laboratory for cell in cells] if balance_laboratories else None

    def prepare(index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        image, mask = resized[index]
        if augment:
            image, mask = augment_cell(image, mask, rng, stain=stain)
        return {"image": image, "mask": mask.astype(np.uint8)}

    batches = (
        _shuffled(len(cells), groups, seed)
        .random_map(prepare, seed=_derive(seed, 1))
        .batch(batch_size, drop_remainder=True)
    )
    return _iterate(batches, workers)


def image_batches(
    cells: Sequence[Cell], image_size: int, batch_size: int, *, workers: int = 0
) -> Iterator[dict[str, Any]]:
    """Every image once, in order, in batches of one shape.

    Args:
      cells: masks are not read.
      image_size: side of the square that images are resized to, in pixels.
      batch_size: cells a batch. The last batch is filled up with copies of the last cell.
      workers: threads that decode ahead; 0 decodes each batch when it is asked for.

    Returns:
      An iterator of `{"index": int32 (B,), "valid": bool (B,), "image": uint8 (B, S, S, 3), "originals":
      [...]}`: the place in `cells`, False where a row only fills up, the resized image, and the images at
      their own size, uint8 (h, w, 3) each, of the valid rows alone.

    Raises:
      ImageError: a file that does not open, when it is met.
    """

    def prepare(batch: int) -> dict[str, Any]:
        places = np.arange(batch * batch_size, (batch + 1) * batch_size)
        valid = places < len(cells)
        originals = [read_image(cells[place].image) for place in places[valid]]
        images = [resize_image(image, image_size) for image in originals]
        images += images[-1:] * (batch_size - len(images))
        return {
            "index": np.minimum(places, len(cells) - 1).astype(np.int32),
            "valid": valid,
            "image": np.stack(images),
            "originals": originals,
        }

    batches = -(-len(cells) // batch_size)
    if not batches:
        return iter(())
    return _iterate(grain.MapDataset.range(batches).map(prepare), workers)


def array_batches(
    arrays: Mapping[str, Any],
    batch_size: int,
    seed: int,
    groups: Int[np.ndarray, " n"] | Sequence[int] | None = None,
    *,
    workers: int = 0,
) -> grain.DatasetIterator:
    """Endless shuffled batches of the rows of arrays; restorable like `segmentation_batches`.

    Args:
      arrays: name -> anything with a length and rows by whole number, memory-mapped arrays included.
      batch_size: rows a batch.
      seed: 0..2**32 - 1.
      groups: a whole number a row, the domain for instance. The groups then take turns, each with epochs of
        its own, so that every batch holds all groups in equal shares. None takes all rows alike.
      workers: threads that read batches ahead; 0 reads each when it is asked for.

    Returns:
      An iterator of name -> (B, ...).

    Raises:
      InputError: no rows, or lengths that differ.
    """
    lengths = {name: len(array) for name, array in arrays.items()}
    if groups is not None:
        lengths["groups"] = len(groups)
    if len(set(lengths.values())) != 1:
        listed = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise InputError(f"arrays of differing lengths: {listed}")
    rows = next(iter(lengths.values()))
    if not rows:
        raise InputError("no rows to make batches of")

    def prepare(index: int) -> dict[str, np.ndarray]:
        return {name: np.asarray(array[index]) for name, array in arrays.items()}

    return _iterate(_shuffled(rows, groups, seed).map(prepare).batch(batch_size, drop_remainder=True), workers)


class _ResizedCells:
    """Images and masks by index at one size, kept in memory up to a bound; threads may share it."""

    def __init__(self, cells: Sequence[Cell], image_size: int, most_bytes: int) -> None:
        self._cells = cells
        self._size = image_size
        self._kept: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._free_bytes = most_bytes
        self._lock = threading.Lock()

    def __getitem__(self, index: int) -> tuple[UInt8[np.ndarray, "s s 3"], Bool[np.ndarray, "s s"]]:
        if index in self._kept:
            return self._kept[index]
        image, mask = read_cell(self._cells[index])
        assert mask is not None, "segmentation_batches refuses cells without a mask"
        pair = resize_image(image, self._size), resize_mask(mask, self._size)
        size = pair[0].nbytes + pair[1].nbytes
        with self._lock:
            # Another thread may have been as quick.
            if index not in self._kept and size <= self._free_bytes:
                self._free_bytes -= size
                self._kept[index] = pair
        return pair


def _shuffled(rows: int, groups: Sequence[Any] | np.ndarray | None, seed: int) -> grain.MapDataset:
    """Row numbers without end: all of them every epoch, or group by group in turn."""
    if groups is None:
        return grain.MapDataset.range(rows).shuffle(seed=_derive(seed, 0)).repeat()
    names, place = np.unique(np.asarray(groups), return_inverse=True)
    parts = [
        grain.MapDataset.source(np.flatnonzero(place == group).tolist()).shuffle(seed=_derive(seed, 0, group)).repeat()
        for group in range(len(names))
    ]
    return grain.MapDataset.mix(parts)


def _derive(seed: int, *path: int) -> int:
    """A seed of its own for each random step, 0..2**32 - 1."""
    return int(np.random.SeedSequence((seed, *path)).generate_state(1)[0])


def _iterate(batches: grain.MapDataset, workers: int) -> grain.DatasetIterator:
    options = grain.ReadOptions(num_threads=workers, prefetch_buffer_size=2 * workers)
    return iter(batches.to_iter_dataset(options))
