"""Batches for the stages: deterministic, restorable, split over processes, prepared by worker processes (Grain)."""

import signal
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Literal

import grain
import numpy as np
import pyarrow as pa
from absl import flags
from jaxtyping import Bool, Int, UInt8

from dorl_jax.data.augment import Augmentation
from dorl_jax.data.augment import augment as augment_cell
from dorl_jax.data.images import Resize, resize_image, resize_mask
from dorl_jax.data.light import Light, in_light
from dorl_jax.data.manifest import Cell, read_pair
from dorl_jax.data.pictures import FilePictures, Pictures, as_read
from dorl_jax.data.pool import start_worker, worker_count
from dorl_jax.data.sources import ImageSource, parse_quickly, source_text
from dorl_jax.errors import InputError, name_some

Balance = Literal["none", "laboratory", "class", "laboratory_and_class"]
_USUAL = Augmentation()
# Threads that read where there are no worker processes.
_THREADS = 2
# Bytes of an array that worker processes hand over in shared memory.
_LEAST_SHARED = 1 << 15


@dataclass(frozen=True)
class Share:
    """The part of the data that one process of a run over several hosts reads.

    Attributes:
      index: of the process, 0..count - 1.
      count: number of processes.
    """

    index: int = 0
    count: int = 1


WHOLE = Share()


class Batches(Iterator[dict[str, np.ndarray]]):
    """Endless batches of rows, each process its share of them.

    The state is the number of rows that all processes together have read: it can be restored with another number of
    workers and, on each process alike, with another number of processes.
    """

    def __init__(self, rows: grain.MapDataset, batch_size: int, workers: int = 0, share: Share = WHOLE) -> None:
        """Nothing is read, and no worker started, before the first batch is asked for.

        Args:
          rows: endless.
          batch_size: over all processes, a multiple of their number.
          workers: see `worker_count`.
          share: of this process.
        """
        self._rows, self._batch_size, self._workers, self._share = rows, batch_size, workers, share
        self._place = 0
        self._iterator: grain.DatasetIterator | None = None
        self._closing: weakref.finalize | None = None

    def __next__(self) -> dict[str, np.ndarray]:
        if self._iterator is None:
            # Blocks, not every so many rows: the shares behind each other are the batch in the order of one process.
            blocks = self._rows[self._place :].batch(self._batch_size // self._share.count, drop_remainder=True)
            self._iterator = _ahead(blocks[self._share.index :: self._share.count], self._workers)
            # Workers end with this object, or before the interpreter does.
            self._closing = weakref.finalize(self, self._iterator.close)
        batch = _own(next(self._iterator))
        self._place += self._batch_size
        return batch

    def get_state(self) -> dict[str, int]:
        """The position, as plain values."""
        return {"row": self._place}

    def set_state(self, state: Mapping[str, int]) -> None:
        """Go on from a position that `get_state` told."""
        self.close()
        self._place = state["row"]

    def close(self) -> None:
        """End the workers. The next batch starts them again."""
        if self._closing is not None:
            self._closing()
        self._iterator = self._closing = None


def balance_groups(cells: Sequence[Cell], balance: Balance) -> list[str] | None:
    """The group of each cell that takes turns with the others, or None where all cells are alike."""
    if balance == "none":
        return None
    if balance == "laboratory":
        return [cell.laboratory for cell in cells]
    if balance == "class":
        return [cell.label for cell in cells]
    return [f"{cell.laboratory}/{cell.label}" for cell in cells]


def segmentation_batches(
    cells: Sequence[Cell],
    image_size: int,
    batch_size: int,
    seed: int,
    *,
    augmentation: Augmentation = _USUAL,
    balance: Balance = "none",
    resize: Resize = "bilinear",
    light: Light = "as_is",
    workers: int = 0,
    share: Share = WHOLE,
) -> Batches:
    """Endless batches of images and masks.

    Every cell comes once an epoch, each epoch in another order; a batch may span two epochs, so that no cell
    is left out and fewer cells than `batch_size` will do. The order and the augmentation follow from `seed`
    and the position alone, whatever the number of workers and of processes: `get_state` and `set_state` continue bit
    for bit, also with other numbers of them. Call `close()` on the iterator when it is done with.

    Args:
      cells: each with a mask.
      image_size: side of the square that images and masks are resized to, in pixels.
      batch_size: cells a batch, over all processes.
      seed: 0..2**32 - 1.
      augmentation: how images and masks are changed, anew each time.
      balance: "none" takes all cells alike; otherwise laboratories, classes, or the classes of each laboratory take
        turns, each with epochs of its own, so that a batch holds them in equal shares.
      resize: see `resize_image`.
      light: see `in_light`.
      workers: processes that prepare batches ahead; 0 prepares them in threads of this one, -1 see `worker_count`.
      share: the part of each batch that is returned.

    Returns:
      An iterator of `{"image": uint8 (B, S, S, 3), "mask": uint8 (B, S, S), 1 on the cell, "place": int32 (B,), the
      place in `cells`}`, with B the share of `batch_size`.

    Raises:
      InputError: no cells, cells without a mask, or a batch that cannot be shared evenly; ImageError on a file that
        does not open, when it is met.
    """
    if not cells:
        raise InputError("no cells to train the segmentation on")
    bare = [cell.id for cell in cells if cell.mask is None]
    if bare:
        raise InputError(f"{len(bare)} cells have no mask to train the segmentation on: {name_some(bare)}")
    prepare = _PreparePair(CellSources(cells), image_size, augmentation, resize, light)
    rows = _shuffled(len(cells), balance_groups(cells, balance), seed).random_map(prepare, seed=_derive(seed, 1))
    return _endless(rows, batch_size, workers, share)


def image_batches(
    cells: Sequence[Cell],
    image_size: int,
    batch_size: int,
    *,
    resize: Resize = "bilinear",
    light: Light = "as_is",
    originals: bool = True,
    workers: int = 0,
    share: Share = WHOLE,
) -> Iterator[dict[str, Any]]:
    """Every image once, in order, in batches of one shape.

    Args:
      cells: masks are not read.
      image_size: side of the square that images are resized to, in pixels.
      batch_size: cells a batch. The last batch is filled up with copies of the last cell.
      resize: see `resize_image`.
      light: see `in_light`.
      originals: hand out the images at their own size, too. They are most of what worker processes have to hand over.
      workers: processes that decode ahead; 0 decodes in threads of this one, -1 see `worker_count`.
      share: the part of the cells that is returned: of n cells and k processes, process i has those from i n / k up to
        (i + 1) n / k, rounded down.

    Returns:
      An iterator of `{"index": int64 (B,), "valid": bool (B,), "image": uint8 (B, S, S, 3), "originals":
      [...]}`: the place in `cells`, False where a row only fills up, the resized image, and the images at
      their own size, in that light, uint8 (h, w, 3) each, of the valid rows alone (with `originals`).

    Raises:
      ImageError: a file that does not open, when it is met.
    """
    first = share.index * len(cells) // share.count
    last = (share.index + 1) * len(cells) // share.count
    pictures = FilePictures(CellSources(cells, masks=False))
    return picture_batches(
        pictures,
        image_size,
        batch_size,
        range(first, last),
        resize=resize,
        light=light,
        originals=originals,
        workers=workers,
    )


def picture_batches(
    pictures: Pictures,
    image_size: int,
    batch_size: int,
    places: range,
    *,
    numbers: Sequence[int] | None = None,
    resize: Resize = "bilinear",
    light: Light = "as_is",
    originals: bool = True,
    strict: bool = True,
    workers: int = 0,
) -> Iterator[dict[str, Any]]:
    """Pictures in order, in batches of one shape, as `image_batches`.

    Args:
      pictures: with workers, what can be pickled.
      image_size, batch_size, resize, light, originals, workers: see `image_batches`.
      places: those of the pictures that are wanted, in steps of 1. Batch 0 begins with the first.
      numbers: of the batches that are wanted; None for all.
      strict: False for a picture that cannot be read to take its place as a black one, with the reason.

    Returns:
      An iterator of what `image_batches` gives, and "reason": text (n,), why a valid row has no picture; empty where it
      has.

    Raises:
      ImageError: with `strict`, a picture that cannot be read, when it is met.
    """
    count = -(-len(places) // batch_size)
    chosen = np.arange(count) if numbers is None else np.asarray(numbers, np.int64)
    if not len(chosen):
        return
    prepare = _PrepareImages(pictures, image_size, batch_size, places, chosen, resize, light, originals, strict)
    # Workers that run out of data leave shared memory behind: let them go on to empty batches until they are closed.
    with closing(_ahead(grain.MapDataset.range(sys.maxsize).map(prepare), workers)) as iterator:
        for _ in range(len(chosen)):
            batch: dict[str, Any] = dict(_own(next(iterator)))
            if originals:
                pixels, shapes = batch.pop("pixels"), batch.pop("shapes")
                parts = np.split(pixels, np.cumsum(shapes.prod(1))[:-1])
                batch["originals"] = [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]
            yield batch


def array_batches(
    arrays: Mapping[str, Any],
    batch_size: int,
    seed: int,
    groups: Int[np.ndarray, " n"] | Sequence[int | str] | None = None,
    *,
    whole_batches: bool = False,
    change: Callable[[dict[str, np.ndarray], np.random.Generator], dict[str, np.ndarray]] | None = None,
    workers: int = 0,
    share: Share = WHOLE,
) -> Batches:
    """Endless shuffled batches of the rows of arrays; restorable and shared like `segmentation_batches`.

    Args:
      arrays: name -> anything with a length and rows by whole number, memory-mapped arrays included. With workers, what
        can be pickled.
      batch_size: rows a batch, over all processes.
      seed: 0..2**32 - 1.
      groups: a number or name a row, the domain for instance. The groups then take turns, each with epochs of
        its own, so that every batch holds all groups in equal shares. None takes all rows alike.
      whole_batches: the groups take turns batch by batch instead: each batch is of one group.
      change: gives a row as it goes into a batch, changed at random, anew each time; with workers, what can be pickled.
      workers: processes that read batches ahead; 0 reads in threads of this one, -1 see `worker_count`.
      share: the part of each batch that is returned.

    Returns:
      An iterator of name -> (B, ...).

    Raises:
      InputError: no rows, lengths that differ, or a batch that cannot be shared evenly.
    """
    lengths = {name: len(array) for name, array in arrays.items()}
    if groups is not None:
        lengths["groups"] = len(groups)
    if len(set(lengths.values())) != 1:
        listed = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise InputError(f"arrays of differing lengths: {listed}")
    count = next(iter(lengths.values()))
    if not count:
        raise InputError("no rows to make batches of")
    order = _shuffled(count, groups, seed, batch_size if whole_batches else 1)
    if change is None:
        rows = order.map(_PrepareRow(arrays))
    else:
        rows = order.random_map(_ChangeRow(arrays, change), seed=_derive(seed, 1))
    return _endless(rows, batch_size, workers, share)


class CellSources:
    """Where images and masks are, packed: a million paths take 100 bytes each, and so does a copy in each worker."""

    def __init__(self, cells: Sequence[Cell], masks: bool = True) -> None:
        self._images = pa.array([source_text(cell.image) for cell in cells], pa.large_string())
        self._masks = pa.array([_mask_text(cell) for cell in cells], pa.large_string()) if masks else None

    def __len__(self) -> int:
        return len(self._images)

    def source(self, place: int) -> str | ImageSource:
        return parse_quickly(self._images[place].as_py())

    def mask(self, place: int) -> str | ImageSource:
        assert self._masks is not None, "made without masks"
        return parse_quickly(self._masks[place].as_py())


def _mask_text(cell: Cell) -> str:
    assert cell.mask is not None, "checked by segmentation_batches"
    return source_text(cell.mask)


# Classes, not closures: worker processes import this module instead of being sent its code.
class _PreparePair:
    def __init__(
        self, sources: CellSources, image_size: int, augmentation: Augmentation, resize: Resize, light: Light
    ) -> None:
        self._sources, self._size, self._augmentation = sources, image_size, augmentation
        self._resize, self._light = resize, light

    def __call__(self, place: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        image, mask = self.resized(place)
        image, mask = augment_cell(image, mask, rng, self._augmentation)
        return {"image": image, "mask": mask.view(np.uint8), "place": np.asarray(place, np.int32)}

    def resized(self, place: int) -> tuple[UInt8[np.ndarray, "s s 3"], Bool[np.ndarray, "s s"]]:
        image, mask = read_pair(self._sources.source(place), self._sources.mask(place))
        return resize_image(in_light(image, self._light), self._size, self._resize), resize_mask(mask, self._size)


class _PrepareImages:
    def __init__(
        self,
        pictures: Pictures,
        image_size: int,
        batch_size: int,
        places: range,
        numbers: np.ndarray,
        resize: Resize,
        light: Light,
        originals: bool,
        strict: bool,
    ) -> None:
        self._pictures, self._size, self._batch = pictures, image_size, batch_size
        self._resize, self._light = resize, light
        self._places, self._numbers, self._originals, self._strict = places, numbers, originals, strict

    def __call__(self, turn: int) -> dict[str, Any]:
        if turn >= len(self._numbers):
            return {"valid": np.zeros(self._batch, bool)}
        places = self._places.start + int(self._numbers[turn]) * self._batch + np.arange(self._batch)
        valid = places < self._places.stop
        images = np.empty((self._batch, self._size, self._size, 3), np.uint8)
        originals, reasons = [], []
        for row, place in enumerate(places[valid].tolist()):
            image, reason = (self._pictures.read(place), "") if self._strict else as_read(self._pictures, place)
            image = in_light(image, self._light)
            resize_image(image, self._size, self._resize, out=images[row])
            reasons.append(reason)
            if self._originals:
                originals.append(image)
        images[valid.sum() :] = images[valid.sum() - 1]
        batch_of = {
            "index": np.minimum(places, self._places.stop - 1).astype(np.int64),
            "valid": valid,
            "image": images,
            "reason": np.array(reasons),
        }
        if self._originals:
            # One array, for each would be a piece of shared memory of its own.
            batch_of["pixels"] = np.concatenate([original.ravel() for original in originals])
            batch_of["shapes"] = np.array([original.shape for original in originals])
        return batch_of


class _PrepareRow:
    def __init__(self, arrays: Mapping[str, Any]) -> None:
        self._arrays = dict(arrays)

    def __call__(self, index: int) -> dict[str, np.ndarray]:
        return {name: np.asarray(array[index]) for name, array in self._arrays.items()}


class _ChangeRow:
    def __init__(self, arrays: Mapping[str, Any], change: Callable[..., dict[str, np.ndarray]]) -> None:
        self._read, self._change = _PrepareRow(arrays), change

    def __call__(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return self._change(self._read(index), rng)


def _shuffled(rows: int, groups: Sequence[Any] | np.ndarray | None, seed: int, turn: int = 1) -> grain.MapDataset:
    """Row numbers without end: all of them every epoch, or the groups in turn, so many rows at a time."""
    if groups is None:
        return grain.MapDataset.range(rows).shuffle(seed=_derive(seed, 0)).repeat()
    names, place = np.unique(np.asarray(groups), return_inverse=True)
    parts = [
        grain.MapDataset.source(np.flatnonzero(place == group).tolist()).shuffle(seed=_derive(seed, 0, group)).repeat()
        for group in range(len(names))
    ]
    return grain.MapDataset.range(sys.maxsize).map(_Turns(parts, turn))


class _Turns:
    """Rows of several groups, so many of each in turn; each group goes on where its last turn ended."""

    def __init__(self, groups: Sequence[grain.MapDataset], turn: int) -> None:
        self._groups, self._turn = groups, turn

    def __call__(self, place: int) -> int:
        block, row = divmod(place, self._turn)
        cycle, group = divmod(block, len(self._groups))
        return self._groups[group][cycle * self._turn + row]


def _derive(seed: int, *path: int) -> int:
    """A seed of its own for each random step, 0..2**32 - 1."""
    return int(np.random.SeedSequence((seed, *path)).generate_state(1)[0])


def _endless(rows: grain.MapDataset, batch_size: int, workers: int, share: Share) -> Batches:
    if batch_size % share.count:
        raise InputError(f"batches of {batch_size} cannot be shared by {share.count} processes: take a multiple")
    return Batches(rows, batch_size, workers, share)


def _ahead(batches: grain.MapDataset, workers: int) -> grain.DatasetIterator:
    """The batches in order, prepared by worker processes, or by threads if there are none."""
    count = worker_count(workers)
    if not count:
        return iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=2 * _THREADS)))
    if not flags.FLAGS.is_parsed():
        # Grain reads its absl flags when it starts a worker, and programs that are not absl's never parse them.
        flags.FLAGS.mark_as_parsed()
    # A worker is one thread: several would only wait for each other.
    read = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    processes = grain.MultiprocessingOptions(num_workers=count, per_worker_buffer_size=2)
    # Small arrays go with the message: a piece of shared memory costs more than their copy.
    options = grain.experimental.DatasetOptions(min_shm_size=_LEAST_SHARED)
    dataset = grain.experimental.WithOptionsIterDataset(batches.to_iter_dataset(read), options)
    return iter(dataset.mp_prefetch(processes, _start_reader))


def _start_reader(index: int, count: int) -> None:
    """See `start_worker`. Ctrl-C, which a terminal sends to all of its processes, is for the one that closes this."""
    start_worker(index, count)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _own(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A copy of arrays that came in memory shared with a worker: it is scarce in containers, so give it back soon."""
    return {name: np.array(array) for name, array in batch.items()}
