"""Building data sets: a listing's images in ArrayRecord files that TFDS reads.

It imports TensorFlow Datasets, which is slow, and is itself imported only where a set is built.
"""

import logging
import os
import re
import shutil
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds
from tqdm import tqdm

from dorl_jax.data.built import INFO_FILE, About, LeftOut, Masks, StoredCell, about_set, unpack_folder, write_cells
from dorl_jax.data.encoding import encode_image, encode_mask
from dorl_jax.data.images import SMALLEST_SIDE, ImageError, inspect_image
from dorl_jax.data.listing import Listing, Row
from dorl_jax.data.pool import buffered
from dorl_jax.data.sets.base import DataSet
from dorl_jax.data.sources import ImageSource, Part, TarMember, ZipMember
from dorl_jax.errors import InputError, name_some

logger = logging.getLogger(__name__)

# A shard's cells are held in memory until it is written.
_SHARD_BYTES = 2**27
# Without a split of its own a set is what TFDS users expect.
_DEFAULT_SPLIT = "train"


def prepare(
    listing: Listing,
    out: Path,
    *,
    about: About,
    version: str,
    masks: Masks | None,
    size: int | None,
    strict: bool,
    progress: bool,
    workers: int | None,
) -> tuple[Path, bool]:
    """The folder of a listing's data set, and whether it is new (see `built.build`)."""
    labels = tuple(listing.words)
    if any(row.label not in listing.words for row in listing.rows):
        labels = tuple(sorted({row.label for row in listing.rows}))
    builder_class = _subclass(
        ListingBuilder,
        dataset_name(listing.name),
        skip_registration=True,
        VERSION=_version(version),
        about=about,
        labels=labels,
        masks=masks or _masks_of(listing),
        listing=listing,
        size=size,
        strict=strict,
        progress=progress,
        workers=workers,
    )
    builder = builder_class(data_dir=os.path.abspath(out))
    folder = Path(builder.data_dir)
    new = not (folder / INFO_FILE).is_file()
    if new:
        try:
            builder.download_and_prepare()
        except RuntimeError as error:
            if "; writing " not in str(error):  # of ArrayRecord's writer, where a file cannot grow
                raise
            raise InputError(f"{folder} cannot be written: {error}; make room, or choose another folder") from error
        # What killed builds left behind. One that still runs beside could not end well: the folder is there.
        for partial in folder.parent.glob(f"incomplete.*_{folder.name}"):
            shutil.rmtree(partial)
    return folder, new


class CellBuilder(tfds.core.ShardBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Writes a listing as a TFDS data set, shard by shard and in its order.

    It is a `ShardBasedBuilder` because a `GeneratorBasedBuilder` needs TensorFlow for more than 1000 MiB, even where
    nothing is shuffled (TFDS 4.9.10, core/shuffle.py).
    """

    about: ClassVar[About]
    labels: ClassVar[tuple[str, ...]]
    masks: ClassVar[Masks]
    size: ClassVar[int | None] = None
    strict: ClassVar[bool] = False
    progress: ClassVar[bool] = True
    workers: ClassVar[int | None] = None

    def __init__(self, *, file_format: Any = None, **settings: Any) -> None:
        # TFDS would take TFRecord, which needs TensorFlow.
        super().__init__(file_format=file_format or "array_record", **settings)

    def make_listing(self, dl_manager: Any) -> Listing:
        """The rows to store."""
        raise NotImplementedError

    def _info(self) -> Any:
        features: dict[str, Any] = {
            "image": tfds.features.Image(shape=(None, None, 3), doc="RGB"),
            "label": tfds.features.ClassLabel(names=list(self.labels), doc="the laboratory's own word"),
            "file": tfds.features.Text(doc="name in the laboratory"),
            "group": tfds.features.Text(doc="patient or slide, empty if unknown"),
            "split_name": tfds.features.Text(doc="split as published, empty if there is none"),
            "duplicate_of": tfds.features.Text(doc="the file that this one repeats, empty if none"),
        }
        if self.masks != "none":
            mask = tfds.features.Image(shape=(None, None, 1), doc="0 background, 128 cytoplasm, 255 nucleus")
            features["mask"] = mask if self.masks == "all" else tfds.features.Sequence(mask, doc="one mask, or none")
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.about.description,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
            homepage=self.about.homepage,
            citation=self.about.citation,
            license=self.about.licence,
            disable_shuffling=True,
        )

    def _shard_iterators_per_split(self, dl_manager: Any) -> Mapping[str, Sequence[Callable[[], Iterator[Any]]]]:
        self._listing = self.make_listing(dl_manager)
        self._cells: dict[int, StoredCell] = {}
        self._left_out: dict[int, LeftOut] = {}
        self._bar = tqdm(
            total=len(self._listing.rows), desc=f"building {self.name}", unit="cell", disable=not self.progress
        )
        split_of: dict[str, list[int]] = {}
        for number, row in enumerate(self._listing.rows):
            split_of.setdefault(split_name(row.split), []).append(number)
        self._places = dict.fromkeys(split_of, 0)
        return {
            split: [self._shard(split, numbers) for numbers in _shards(numbers, self._listing.rows, self.size)]
            for split, numbers in split_of.items()
        }

    def _download_and_prepare(self, dl_manager: Any, download_config: Any = None) -> None:
        super()._download_and_prepare(dl_manager, download_config)
        self._bar.close()
        if not self._cells:
            reasons = name_some((item.reason for item in self._left_out.values()), 3)
            raise InputError(f"{self._listing.name}: none of {len(self._left_out)} images can be stored: {reasons}")
        # `data_dir` is the folder that TFDS renames when all is well.
        write_cells(
            Path(self.data_dir),
            self._listing,
            [self._cells[number] for number in sorted(self._cells)],
            [self._left_out[number] for number in sorted(self._left_out)],
            self.size,
        )

    def _shard(self, split: str, numbers: Sequence[int]) -> Callable[[], Iterator[tuple[int, dict[str, Any]]]]:
        def examples() -> Iterator[tuple[int, dict[str, Any]]]:
            rows = self._listing.rows
            workers = self.workers or min(os.cpu_count() or 1, 8)
            for number, encoded in _ahead(numbers, lambda number: _encode(rows[number], self.size), workers):
                self._bar.update()
                row = rows[number]
                try:
                    image, mask = encoded.result()
                except ImageError as error:
                    if self.strict:
                        raise InputError(f"{row.file} cannot be stored: {error}") from error
                    self._left_out[number] = LeftOut(row.file, str(row.image), str(error))
                    continue
                self._cells[number] = StoredCell(split, self._places[split], row)
                self._places[split] += 1
                yield number, self._example(row, image, mask)

        return examples

    def _example(self, row: Row, image: bytes, mask: bytes | None) -> dict[str, Any]:
        example = {
            "image": image,
            "label": row.label,
            "file": row.file,
            "group": row.group,
            "split_name": row.split,
            "duplicate_of": row.duplicate_of,
        }
        if self.masks == "all":
            if mask is None:
                raise InputError(f"{row.file} has no mask, and the data set is to have one for every cell")
            return example | {"mask": mask}
        if self.masks == "some":
            return example | {"mask": [] if mask is None else [mask]}
        return example

    # TFDS prints these; our bar and the caller's words say the same.
    def _log_download_bytes(self) -> None:
        logger.info("building %s in %s", self.name, self.data_dir)

    def _log_download_done(self) -> None:
        logger.info("built %s", self.data_dir)


class ListingBuilder(CellBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Builds a listing that is there already."""

    listing: ClassVar[Listing]

    def make_listing(self, dl_manager: Any) -> Listing:
        return self.listing


class SetBuilder(CellBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Builds a published data set from its archive in `manual_dir`."""

    data_set: ClassVar[DataSet]

    def make_listing(self, dl_manager: Any) -> Listing:
        # Not by `dl_manager.extract`, which needs TensorFlow.
        unpack_to = unpack_folder(Path(os.fspath(self.data_dir_root)), self.data_set)
        return self.data_set.read(Path(os.fspath(dl_manager.manual_dir)), unpack_to=unpack_to)


def register_set(data_set: DataSet, module: str) -> type[SetBuilder]:
    """A TFDS builder for a published data set, known to TFDS by the name of the set.

    Args:
      data_set: from `sets.SETS`.
      module: name of the module that will hold the class.
    """
    return _subclass(
        SetBuilder,
        data_set.name,
        __module__=module,
        VERSION=_version(data_set.version),
        MANUAL_DOWNLOAD_INSTRUCTIONS=f"{data_set.title}\n{data_set.homepage}\n{data_set.get}",
        about=about_set(data_set),
        labels=tuple(data_set.words),
        masks=data_set.masks,
        data_set=data_set,
    )


def dataset_name(name: str) -> str:
    """A laboratory's name as TFDS takes it: letters, digits and underscores, a letter first."""
    plain = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_")
    return plain if plain[:1].isalpha() else f"set_{plain}".rstrip("_")


def split_name(name: str) -> str:
    """A laboratory's split as TFDS takes it; `train` where there is none."""
    plain = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_") or _DEFAULT_SPLIT
    # Reserved by TFDS.
    return "all_cells" if plain.lower() == "all" else plain


def _subclass(base: type, name: str, skip_registration: bool = False, **attributes: Any) -> Any:
    keywords = {"skip_registration": True} if skip_registration else {}
    class_name = "".join(part.capitalize() for part in name.split("_"))
    return types.new_class(class_name, (base,), keywords, lambda body: body.update(name=name, **attributes))


def _version(version: str) -> Any:
    if re.fullmatch(r"\d+\.\d+\.\d+", version) is None:
        raise InputError(f"version {version!r} is not of the form 1.0.0")
    return tfds.core.Version(version)


def _masks_of(listing: Listing) -> Masks:
    with_mask = sum(row.mask is not None for row in listing.rows)
    return "none" if not with_mask else "all" if with_mask == len(listing.rows) else "some"


def _encode(row: Row, size: int | None) -> tuple[bytes, bytes | None]:
    """The image and the mask as they are stored. Raises `ImageError` as the encoders, and see `_check_sides`."""
    if size:
        _check_sides(row)
    return encode_image(row.image, size), None if row.mask is None else encode_mask(row.mask, size)


def _check_sides(row: Row) -> None:
    """Raises `ImageError` on what no reader could refuse any more once image and mask have been brought to one size."""
    image = inspect_image(row.image)
    if min(image.width, image.height) < SMALLEST_SIDE:
        raise ImageError(
            f"{row.image} has {image.width} x {image.height} pixels; a side needs at least {SMALLEST_SIDE}"
        )
    if row.mask is None:
        return
    mask = inspect_image(row.mask)
    if (mask.width, mask.height) != (image.width, image.height):
        raise ImageError(
            f"the mask {row.mask} has {mask.width} x {mask.height} pixels, its image {row.image} "
            f"{image.width} x {image.height}"
        )


def _ahead(numbers: Sequence[int], work: Callable[[int], Any], workers: int) -> Iterator[tuple[int, Future[Any]]]:
    """The work's results in order, with a bounded number under way."""
    with ThreadPoolExecutor(workers) as pool:
        try:
            yield from buffered(((number, pool.submit(work, number)) for number in numbers), 4 * workers)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _shards(numbers: Sequence[int], rows: Sequence[Row], side: int | None) -> list[list[int]]:
    """Consecutive rows, as many as fill a shard."""
    shards: list[list[int]] = [[]]
    filled = 0
    for number in numbers:
        size = 3 * side**2 if side else _size(rows[number].image)
        if shards[-1] and filled + size > _SHARD_BYTES:
            shards.append([])
            filled = 0
        shards[-1].append(number)
        filled += size
    return shards


def _size(source: ImageSource) -> int:
    """About how many bytes an image takes."""
    if isinstance(source, Path):
        stored_as_it_is = source.suffix.lower() in (".jpg", ".jpeg", ".bmp")
        return source.stat().st_size * (1 if stored_as_it_is else 4) if source.is_file() else 0
    if isinstance(source, TarMember | ZipMember):
        return 4 * source.size
    return 3 * source.width * source.height if isinstance(source, Part) else 2**18
