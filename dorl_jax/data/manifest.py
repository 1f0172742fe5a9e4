"""What a data set is: cells of several laboratories, their images, masks and common classes."""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, UInt8
from tqdm import tqdm

from dorl_jax.data.cell_tables import read_cell_table, write_cell_table
from dorl_jax.data.images import (
    MASK_THRESHOLD,
    SMALLEST_SIDE,
    ImageError,
    read_image,
    read_image_with_facts,
    read_mask,
    read_mask_values,
)
from dorl_jax.data.laboratory import no_laboratory, open_laboratories, open_laboratory, same_name
from dorl_jax.data.listing import Listing, Row
from dorl_jax.data.sources import ImageSource, parse_source, source_text
from dorl_jax.data.tables import LABELS_FILE
from dorl_jax.data.taxonomy import Taxonomy
from dorl_jax.errors import InputError, name_some
from dorl_jax.files import replacing


@dataclass(frozen=True)
class Cell:
    """One labelled image.

    Attributes:
      id: `"<laboratory>/<file>"`, unique in a manifest.
      laboratory: where the image comes from; the name of its folder.
      image: where it is; an absolute path, or a part of a picture or data set.
      mask: the same, or None.
      label: the common class.
      group: patient or slide, "" if unknown.
      split: as published, "" if there is none.
    """

    id: str
    laboratory: str
    image: ImageSource
    mask: ImageSource | None
    label: str
    group: str = ""
    split: str = ""

    @property
    def whole_group(self) -> str:
        """The group with its laboratory, whose name another laboratory may give, too; "" if unknown."""
        return f"{self.laboratory}/{self.group}" if self.group else ""


@dataclass(frozen=True)
class Manifest:
    """The cells of a run.

    Attributes:
      cells: laboratory by laboratory, each in the order of its CSV.
      laboratories: in the order of their cells; a domain's number is its place here.
      classes: the taxonomy's; a class's number is its place here. Not each need have cells.
      dropped: raw label -> number of cells that the taxonomy leaves out.
      folders: laboratory -> its folder's name, where that is another.
    """

    cells: tuple[Cell, ...]
    laboratories: tuple[str, ...]
    classes: tuple[str, ...]
    dropped: Mapping[str, int]
    folders: Mapping[str, str] = field(default_factory=dict)

    def named(self, name: str) -> str:
        """The laboratory of that name, or in the folder of that name, in either spelling of accents.

        Raises:
          InputError: no such laboratory.
        """
        for known in (*((one, one) for one in self.laboratories), *((self.folders[one], one) for one in self.folders)):
            if same_name(known[0], name):
                return known[1]
        raise no_laboratory(name, self.laboratories)

    def of(self, laboratory: str) -> tuple[Cell, ...]:
        """The cells of one laboratory.

        Raises:
          InputError: no such laboratory.
        """
        if laboratory not in self.laboratories:
            raise no_laboratory(laboratory, self.laboratories)
        return tuple(cell for cell in self.cells if cell.laboratory == laboratory)

    def without(self, laboratories: Sequence[str]) -> "Manifest":
        """The cells of all other laboratories.

        Raises:
          InputError: no such laboratory, or none is left.
        """
        gone = {self.named(name) for name in laboratories}
        left = tuple(name for name in self.laboratories if name not in gone)
        if not left:
            raise InputError(f"no laboratory is left without {name_some(laboratories)}")
        return replace(self, cells=tuple(cell for cell in self.cells if cell.laboratory in left), laboratories=left)

    def counts(self) -> dict[str, dict[str, int]]:
        """Laboratory -> class -> number of cells, zeros included."""
        counts = {laboratory: dict.fromkeys(self.classes, 0) for laboratory in self.laboratories}
        for cell in self.cells:
            counts[cell.laboratory][cell.label] += 1
        return counts


@dataclass(frozen=True)
class Failure:
    """A cell that cannot be used: its id, its image, and the reason in one line."""

    id: str
    image: ImageSource
    reason: str


def read_laboratory(path: Path, taxonomy: Taxonomy) -> Manifest:
    """The cells of one laboratory (see `laboratory.open_laboratory`, `make_manifest`)."""
    return make_manifest([open_laboratory(path)], taxonomy)


def read_laboratories(root: Path, names: Sequence[str], taxonomy: Taxonomy) -> Manifest:
    """The cells of several laboratories (see `laboratory.open_laboratories`, `make_manifest`)."""
    return make_manifest(open_laboratories(root, names), taxonomy)


def make_manifest(listings: Sequence[Listing], taxonomy: Taxonomy) -> Manifest:
    """The cells of laboratories under common classes.

    Rows that repeat another are left out. Images are not opened: see `check_cells`.

    Args:
      listings: a laboratory each.
      taxonomy: from labels to common classes, behind the words of the laboratories.

    Raises:
      InputError: unknown labels, all of which are named; a missing image or mask file, or a laboratory without a cell;
        the message names the row.
    """
    _refuse_unknown(listings, taxonomy)
    cells: list[Cell] = []
    dropped: Counter[str] = Counter()
    for listing in listings:
        own: Counter[str] = Counter()
        before = len(cells)
        for row in listing.rows:
            if row.duplicate_of:
                continue
            label = resolve_label(row, listing, taxonomy)
            if label is None:
                own[row.label] += 1
                continue
            for kind, source in (("image", row.image), ("mask", row.mask)):
                if isinstance(source, Path) and not source.is_file():
                    raise InputError(f"{row.where}: no {kind} file at {source}")
            id = f"{listing.name}/{row.file}"
            cells.append(Cell(id, listing.name, row.image, row.mask, label, row.group, row.split))
        if len(cells) == before:
            labels = name_some(own) or "none"
            raise InputError(
                f"{listing.name}: no cell left of {len(listing.rows)} rows "
                f"(labels dropped: {labels}; duplicates of another: {listing.duplicates})"
            )
        dropped += own
    names = tuple(listing.name for listing in listings)
    folders = {listing.name: listing.folder for listing in listings if listing.folder}
    return Manifest(tuple(cells), names, taxonomy.classes, dict(dropped), folders)


def _refuse_unknown(listings: Sequence[Listing], taxonomy: Taxonomy) -> None:
    # One at a time, a laboratory of fifteen unknown words would take fifteen attempts.
    seen: set[tuple[str, str]] = set()
    unknown: list[str] = []
    first = ""
    for listing in listings:
        for row in listing.rows:
            if row.duplicate_of or (listing.name, row.label) in seen:
                continue
            seen.add((listing.name, row.label))
            try:
                resolve_label(row, listing, taxonomy)
            except InputError as error:
                first = first or str(error)
                unknown.append(f"{row.label!r} of {listing.name}")
    if unknown:
        others = f"; not known either: {name_some(unknown[1:], 10)}" if len(unknown) > 1 else ""
        raise InputError(f"{first}; laboratory.toml maps or drops labels of one laboratory{others}")


def resolve_label(row: Row, listing: Listing, taxonomy: Taxonomy) -> str | None:
    """The common class of a row, or None where its cell is left out.

    Raises:
      InputError: the label is unknown; the message names the row and the nearest known label.
    """
    word = listing.words.get(row.label, row.label)
    if not word:
        return None
    try:
        return taxonomy.resolve(word)
    except InputError as error:
        where = row.where
        if row.label in listing.told_by:
            where = f"{listing.told_by[row.label]}: [labels] {row.label!r} = {word!r}"
        raise InputError(f"{where}: {error}") from error


def save_cells(manifest: Manifest, path: Path) -> None:
    """Write the manifest as one Parquet file, atomically; what is not a cell goes into its metadata."""
    path = Path(path)
    cells = manifest.cells
    columns = {
        "id": [cell.id for cell in cells],
        "laboratory": [cell.laboratory for cell in cells],
        "image": [source_text(cell.image) for cell in cells],
        "mask": [source_text(cell.mask) if cell.mask else None for cell in cells],
        "label": [cell.label for cell in cells],
        "group": [cell.group for cell in cells],
        "split": [cell.split for cell in cells],
    }
    rest = {
        "laboratories": manifest.laboratories,
        "classes": manifest.classes,
        "dropped": dict(manifest.dropped),
        "folders": dict(manifest.folders),
    }
    with replacing(path) as partial:
        write_cell_table(partial, columns, _SCHEMA, rest)


def load_cells(path: Path) -> Manifest:
    """The manifest that `save_cells` wrote.

    Raises:
      InputError: no such file, or not one of ours.
    """
    if not Path(path).is_file():
        raise InputError(f"no list of cells at {path}")
    table, rest = read_cell_table(path, _SCHEMA)
    cells = tuple(
        Cell(id, laboratory, parse_source(image), None if mask is None else parse_source(mask), *rest_of_cell)
        for id, laboratory, image, mask, *rest_of_cell in zip(*table.to_pydict().values(), strict=True)
    )
    # What was written before there were folders has none.
    folders = rest.get("folders", {})
    return Manifest(cells, tuple(rest["laboratories"]), tuple(rest["classes"]), rest["dropped"], folders)


@dataclass(frozen=True)
class Checked:
    """What came of reading every cell once.

    Attributes:
      accepted: the manifest without the cells that cannot be used; a laboratory without a usable cell goes, too.
      failures: the others, in the manifest's order.
      notes: what reading did that one might not expect ("first of 3 pages") -> number of images.
    """

    accepted: Manifest
    failures: tuple[Failure, ...]
    notes: Mapping[str, int]


def check_cells(manifest: Manifest, progress: bool = True) -> Checked:
    """Decode every image and mask once, and part the usable cells from the others.

    A cell fails when its image or mask is unreadable, a side of the image is under 16 pixels, the mask has
    another size than the image, or the mask is empty.

    Args:
      manifest: the cells.
      progress: show a bar with rate and time left.
    """
    with ThreadPoolExecutor() as pool:
        checked = pool.map(_check, manifest.cells)
        results = list(tqdm(checked, "checking images", len(manifest.cells), unit="cell", disable=not progress))
    failures = tuple(
        Failure(cell.id, cell.image, reason)
        for cell, (reason, _) in zip(manifest.cells, results, strict=True)
        if reason is not None
    )
    failed = {failure.id for failure in failures}
    notes = Counter(note for _, found in results for note in found)
    return Checked(_keep(manifest, lambda cell: cell.id not in failed), failures, dict(notes))


def read_cell(cell: Cell) -> tuple[UInt8[np.ndarray, "h w 3"], Bool[np.ndarray, "h w"] | None]:
    """The image and the mask of a cell at their own size.

    Raises:
      ImageError: a file that does not open, or a mask of another size than the image.
    """
    if cell.mask is None:
        return read_image(cell.image), None
    return read_pair(cell.image, cell.mask)


def why_unusable(
    image_source: ImageSource,
    image: UInt8[np.ndarray, "h w 3"],
    mask_source: ImageSource | None,
    values: UInt8[np.ndarray, "h2 w2"] | None,
) -> str | None:
    """Why a cell that can be read cannot be used, in one line, or None.

    Args:
      image_source, mask_source: what the reason calls them.
      image: as read.
      values: of the mask, as `images.read_mask_values` gives them; None if there is none.
    """
    height, width = image.shape[:2]
    if values is not None and values.shape != image.shape[:2]:
        return _other_size(image_source, image, mask_source, values)
    if min(height, width) < SMALLEST_SIDE:
        return f"{image_source} has {width} x {height} pixels; a side needs at least {SMALLEST_SIDE}"
    if values is not None and (top := int(values.max())) <= MASK_THRESHOLD:
        reason = f"the mask {mask_source} is empty: no pixel above {MASK_THRESHOLD} (128 is cytoplasm, 255 nucleus)"
        # 1 for the cell, or 1 and 2 for cytoplasm and nucleus, are numbers of classes.
        return f"{reason}; values up to {top}: multiply by {255 // top}" if 0 < top <= 2 else reason
    return None


def read_pair(
    image_source: str | ImageSource, mask_source: str | ImageSource
) -> tuple[UInt8[np.ndarray, "h w 3"], Bool[np.ndarray, "h w"]]:
    """An image and its mask at their own size.

    Raises:
      ImageError: a file that does not open, or a mask of another size than the image.
    """
    image, mask = read_image(image_source), read_mask(mask_source)
    if mask.shape != image.shape[:2]:
        raise ImageError(_other_size(image_source, image, mask_source, mask))
    return image, mask


def require_usable(listed: Manifest, checked: Checked) -> None:
    """Refuse a check that left nothing of a laboratory.

    Args:
      listed: what was checked.
      checked: what came of it.

    Raises:
      InputError: names the laboratory, and the commonest of the reasons.
    """
    for name in listed.laboratories:
        if name in checked.accepted.laboratories:
            continue
        failures = [failure for failure in checked.failures if failure.id.startswith(f"{name}/")]
        # Reasons of one kind differ by the file they name and its numbers.
        kinds = [re.sub(r"\S*[\d/]\S*", "", failure.reason) for failure in failures]
        kind, count = Counter(kinds).most_common(1)[0]
        raise InputError(
            f"no cell of {name} can be used: {failures[kinds.index(kind)].reason} (so with {count} of {len(failures)} "
            "cells); mend them, or leave the laboratory out (data.laboratories names those to read)"
        )


def few_cells(manifest: Manifest, least: int = 5) -> tuple[tuple[str, str, int], ...]:
    """Laboratory, class and count where a laboratory has some cells of a class, but fewer than `least`."""
    return tuple(
        (laboratory, label, count)
        for laboratory, counts in manifest.counts().items()
        for label, count in counts.items()
        if 0 < count < least
    )


def require_laboratories(manifest: Manifest, least: int = 2) -> None:
    """Refuse a manifest with fewer than `least` laboratories.

    Raises:
      InputError: names the laboratories there are.
    """
    if len(manifest.laboratories) < least:
        raise InputError(
            f"{least} laboratories are needed to compare across them, and there is only "
            f"{', '.join(manifest.laboratories) or 'none'}: add a folder with a {LABELS_FILE}; "
            "evaluate.leave_one_out = false tests within one"
        )


_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("laboratory", pa.string(), nullable=False),
        pa.field("image", pa.string(), nullable=False),
        pa.field("mask", pa.string()),
        pa.field("label", pa.string(), nullable=False),
        pa.field("group", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
    ]
)


def _check(cell: Cell) -> tuple[str | None, tuple[str, ...]]:
    """Why the cell cannot be used, or None, and what there is to say of its image."""
    try:
        image, facts = read_image_with_facts(cell.image)
        values = None if cell.mask is None else read_mask_values(cell.mask)
    except ImageError as error:
        return str(error), ()
    return why_unusable(cell.image, image, cell.mask, values), facts.notes


def _other_size(image_source: Any, image: np.ndarray, mask_source: Any, mask: np.ndarray) -> str:
    return (
        f"the mask {mask_source} has {mask.shape[1]} x {mask.shape[0]} pixels, "
        f"its image {image_source} {image.shape[1]} x {image.shape[0]}"
    )


def _keep(manifest: Manifest, wanted: Callable[[Cell], bool]) -> Manifest:
    cells = tuple(cell for cell in manifest.cells if wanted(cell))
    left = {cell.laboratory for cell in cells}
    laboratories = tuple(name for name in manifest.laboratories if name in left)
    return replace(manifest, cells=cells, laboratories=laboratories)
