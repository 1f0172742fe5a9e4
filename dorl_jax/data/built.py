"""Built data sets: folders of ArrayRecord files that TFDS reads, too, with a list of their cells beside.

A built set is `<folder>/<name>/<version>/` with `dataset_info.json` and the shards as TensorFlow Datasets (TFDS) lays
them out, and two files of ours: `cells.parquet`, a row for each cell, so that a set is listed without opening a record,
and `failures.csv`, the images that were left out. TensorFlow is not needed to read or write it; TFDS is imported where
something is built.
"""

import csv
import json
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from dorl_jax.data.cell_tables import read_cell_table, write_cell_table
from dorl_jax.data.images import ImageError
from dorl_jax.data.listing import Listing, Row
from dorl_jax.data.sets.base import DataSet
from dorl_jax.data.sources import Record
from dorl_jax.errors import InputError

INFO_FILE = "dataset_info.json"
CELLS_FILE = "cells.parquet"
FAILURES_FILE = "failures.csv"

# Which of a set's cells have masks.
Masks = Literal["none", "some", "all"]

_FORMAT = 1
_STORED = "The built set holds its images at"
_TEXTS = ("file", "label", "group", "split_name", "duplicate_of")
_SCHEMA = pa.schema(
    [
        pa.field("split", pa.string(), nullable=False),
        pa.field("place", pa.int64(), nullable=False),
        *(pa.field(name, pa.string(), nullable=False) for name in _TEXTS),
        pa.field("has_mask", pa.bool_(), nullable=False),
    ]
)


@dataclass(frozen=True)
class StoredCell:
    """A cell of a built set: the split of TFDS it lies in, its place there, and what the laboratory says of it."""

    split: str
    place: int
    row: Row


@dataclass(frozen=True)
class LeftOut:
    """An image that was not stored: its file, where it was, and the reason in one line."""

    file: str
    image: str
    reason: str


@dataclass(frozen=True)
class About:
    """What TFDS tells of a data set.

    Attributes:
      description: a sentence or more.
      citation: BibTeX.
      homepage: an address.
      licence: its name.
    """

    description: str = "Images of blood cells."
    citation: str = ""
    homepage: str = ""
    licence: str = ""


@dataclass(frozen=True)
class Built:
    """A data set on disk.

    Attributes:
      folder: with the name and version; what `read_built` reads.
      cells: number of cells stored.
      left_out: images that could not be stored; also in `failures.csv`.
      new: False where it had been there.
    """

    folder: Path
    cells: int
    left_out: tuple[LeftOut, ...]
    new: bool


def build(
    listing: Listing,
    out: Path,
    *,
    about: About | None = None,
    version: str = "1.0.0",
    masks: Masks | None = None,
    size: int | None = None,
    strict: bool = False,
    progress: bool = True,
    workers: int | None = None,
) -> Built:
    """Store the images, masks and labels of a laboratory as a data set of its name in `out`.

    The folder appears when all is written. What is there already, of the same rows, is left as it is.

    Args:
      listing: the laboratory; the order of its rows is kept.
      out: folder of data sets (`data_dir` of TFDS).
      about: for readers of the set.
      version: three numbers.
      masks: whether none, some or all of the cells have masks; by default what the rows say.
      size: store images and masks at this side of a square in pixels (`images.resize_image`), which is read fastest;
        None at their own size, which crops need.
      strict: stop at an image or mask that cannot be read instead of leaving it out.
      progress: show a bar with rate and time left.
      workers: threads that read and encode; by default one for each processor, at most 8.

    Raises:
      InputError: a listing without rows, or one that differs from what is there under this name and version; no
        image that can be read, or (`strict`) one that cannot; a full disk.
    """
    from dorl_jax.data.building import prepare

    if not listing.rows:
        raise InputError(f"{listing.name} has no images to build a data set of")
    folder, new = prepare(
        listing,
        out,
        about=about or About(),
        version=version,
        masks=masks,
        size=size,
        strict=strict,
        progress=progress,
        workers=workers,
    )
    stored = read_built(folder)
    left_out = read_left_out(folder)
    if not new:
        _refuse_another(folder, stored, listing, size, {item.file for item in left_out})
    return Built(folder, len(stored.rows), left_out, new)


def _refuse_another(folder: Path, stored: Listing, listing: Listing, size: int | None, left_out: Set[str]) -> None:
    """Raises `InputError` where what was built before is not of this listing as it is now."""
    mend = "remove it, or build in another folder"
    if stored.name != listing.name:
        raise InputError(
            f"{folder} holds the laboratory {stored.name!r}, not {listing.name!r}: in the folder's name, which takes "
            "letters a to z, digits and underscores, they are the same; call one otherwise (name in laboratory.toml), "
            "or build in another folder"
        )
    if _size_note(size) != next((note for note in stored.notes if note.startswith(_STORED)), ""):
        raise InputError(f"{folder} holds its images at another size: {mend}")
    if {row.file for row in stored.rows} | left_out != {row.file for row in listing.rows}:
        raise InputError(f"{folder} holds other files than {listing.name} has now: {mend}")
    now = Counter(_told(row) for row in listing.rows if row.file not in left_out)
    for row in stored.rows:
        if not now[_told(row)]:
            raise InputError(
                f"{folder} holds {row.file} with another label, group, split, mask or original than {listing.name} "
                f"tells now: {mend}"
            )
    if dict(stored.words) != dict(listing.words):
        raise InputError(f"{folder} has labels that mean something else than those of {listing.name} now: {mend}")


def _told(row: Row) -> tuple[str, str, str, str, str, bool]:
    """What a laboratory says of an image."""
    return row.file, row.label, row.group, row.split, row.duplicate_of, row.mask is not None


def build_set(
    data_set: DataSet,
    path: Path,
    out: Path,
    *,
    size: int | None = None,
    strict: bool = False,
    progress: bool = True,
    workers: int | None = None,
) -> Built:
    """Build a published data set from its archive.

    Args:
      data_set: which one (`sets.find_set`).
      path: its archive, unpacked or as .zip files (see `DataSet.read`), which are unpacked in `out/downloads`.
      out, size, progress, workers: as for `build`.
      strict: stop at images that cannot be read, and at numbers that differ from the published ones.

    Raises:
      InputError: what `DataSet.read` or `build` refuse.
    """
    return build(
        data_set.read(path, unpack_to=unpack_folder(out, data_set), strict=strict),
        out,
        about=about_set(data_set),
        version=data_set.version,
        masks=data_set.masks,
        size=size,
        strict=strict,
        progress=progress,
        workers=workers,
    )


def unpack_folder(out: Path, data_set: DataSet) -> Path:
    """Where the archives of a set are unpacked; it may be removed when the set is built."""
    return out / "downloads" / "extracted" / data_set.name


def about_set(data_set: DataSet) -> About:
    """What TFDS tells of a published set."""
    return About(f"{data_set.title}.", data_set.citation, data_set.homepage, data_set.licence)


def read_built(folder: Path) -> Listing:
    """The laboratory in a built data set, in the order in which it was listed; no image is opened.

    Args:
      folder: with the version, `<out>/<name>/1.0.0`.

    Returns:
      A listing whose images and masks are records of the set (see `read_record`).

    Raises:
      InputError: no built set there, one without a list of cells (TFDS itself made it), or a damaged one.
    """
    folder = Path(folder).absolute()
    lengths = _shard_lengths(folder)
    path = folder / CELLS_FILE
    if not path.is_file():
        raise InputError(f"{folder} has no {CELLS_FILE}: it was not built by dorl_jax; build it again")
    table, about = read_cell_table(path, _SCHEMA)
    if about["format"] != _FORMAT:
        raise InputError(
            f"{path} was written by another version of dorl_jax (format {about['format']}): build it again"
        )
    columns = [table.column(name).to_pylist() for name in _SCHEMA.names]
    found = Counter(columns[0])
    for split in {*found, *lengths}:
        if found[split] != sum(lengths.get(split, ())):
            raise InputError(
                f"{folder} is damaged: {found[split]} cells of split {split} are listed and "
                f"{sum(lengths.get(split, ()))} stored; build it again"
            )
    rows = tuple(
        Row(
            file=file,
            image=Record(folder, split, place, "image"),
            label=label,
            mask=Record(folder, split, place, "mask") if has_mask else None,
            group=group,
            split=split_name,
            duplicate_of=duplicate_of,
            where=f"{folder}: {file}",
        )
        for split, place, file, label, group, split_name, duplicate_of, has_mask in zip(*columns, strict=True)
    )
    notes = [*about["notes"], *filter(None, [_size_note(about["size"])])]
    return Listing(about["name"], rows, about["words"], tuple(notes))


def _size_note(size: int | None) -> str:
    return f"{_STORED} {size} x {size} pixels." if size else ""


def read_left_out(folder: Path) -> tuple[LeftOut, ...]:
    """The images that could not be stored when the set was built."""
    with (folder / FAILURES_FILE).open(encoding="utf-8", newline="") as file:
        return tuple(LeftOut(**row) for row in csv.DictReader(file))


def read_record(record: Record) -> bytes:
    """The stored file of an image or mask: a JPEG, BMP or PNG.

    Files stay open for the next call, in each process of its own; threads may read at the same time.

    Raises:
      ImageError: no such set, split, place or field, or a damaged file.
    """
    from tensorflow_datasets.proto import tf_example_pb2

    try:
        source = _open(str(record.folder), record.split)
        if not 0 <= record.place < len(source):
            raise InputError(f"{record}: the split has {len(source)} cells")
        example = tf_example_pb2.Example.FromString(source[record.place])
    except InputError as error:
        raise ImageError(str(error)) from error
    except RuntimeError as error:  # ArrayRecord checks what it reads against checksums
        reason = " ".join(str(error).split())
        raise ImageError(f"{record} cannot be read, its files are damaged: {reason}; build the set again") from error
    features = example.features.feature
    values = features[record.field].bytes_list.value if record.field in features else ()
    if not values:
        raise ImageError(f"{record}: the cell has no {record.field}")
    return values[0]


def write_cells(
    folder: Path,
    listing: Listing,
    cells: Sequence[StoredCell],
    left_out: Sequence[LeftOut],
    size: int | None = None,
) -> None:
    """Write the list of cells, and of those left out, into the folder of a set that is being built."""
    rows = [cell.row for cell in cells]
    columns: dict[str, Any] = {
        "split": [cell.split for cell in cells],
        "place": [cell.place for cell in cells],
        "file": [row.file for row in rows],
        "label": [row.label for row in rows],
        "group": [row.group for row in rows],
        "split_name": [row.split for row in rows],
        "duplicate_of": [row.duplicate_of for row in rows],
        "has_mask": [row.mask is not None for row in rows],
    }
    about = {
        "format": _FORMAT,
        "name": listing.name,
        "words": dict(listing.words),
        "notes": listing.notes,
        "size": size,
    }
    write_cell_table(folder / CELLS_FILE, columns, _SCHEMA, about)
    with (folder / FAILURES_FILE).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "image", "reason"])
        writer.writerows([item.file, item.image, item.reason] for item in left_out)


def _shard_lengths(folder: Path) -> Mapping[str, Sequence[int]]:
    """Split -> number of cells in each of its shards, as TFDS wrote it down."""
    path = folder / INFO_FILE
    if not path.is_file():
        inner = sorted(folder.glob(f"*/{INFO_FILE}")) if folder.is_dir() else []
        hint = f"; give the folder of its version: {inner[-1].parent}" if inner else ""
        raise InputError(f"no built data set at {folder}{hint}")
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
        return {split["name"]: [int(length) for length in split["shardLengths"]] for split in info.get("splits", ())}
    except (ValueError, KeyError) as error:
        raise InputError(f"{path} is no description of a data set: {error}") from error


@lru_cache(maxsize=64)
def _open(folder: str, split: str) -> Any:
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    lengths = _shard_lengths(Path(folder))
    if split not in lengths:
        raise InputError(f"{folder} has no split {split!r}; there are: {', '.join(lengths) or 'none'}")
    shards = sorted(Path(folder).glob(f"*-{split}.array_record-*-of-*"))
    if len(shards) != len(lengths[split]):
        raise InputError(
            f"{folder} is damaged: {len(shards)} of {len(lengths[split])} files of split {split} are there; "
            "build it again"
        )
    return ArrayRecordDataSource([str(shard) for shard in shards])
