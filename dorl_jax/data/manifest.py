"""What a data set is: cells of several laboratories, their images, masks and common classes."""

import csv
import json
import os
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, UInt8
from tqdm import tqdm

from dorl_jax.data.images import ImageError, read_image, read_mask
from dorl_jax.data.taxonomy import Taxonomy
from dorl_jax.errors import InputError, name_some, suggest
from dorl_jax.files import replacing

LABELS_FILE = "labels.csv"
SMALLEST_SIDE = 16


@dataclass(frozen=True)
class Cell:
    """One labelled image.

    Attributes:
      id: `"<laboratory>/<file>"`, unique in a manifest.
      laboratory: where the image comes from; the name of its folder.
      image: absolute path.
      mask: absolute path, or None.
      label: the common class.
    """

    id: str
    laboratory: str
    image: Path
    mask: Path | None
    label: str


@dataclass(frozen=True)
class Manifest:
    """The cells of a run.

    Attributes:
      cells: laboratory by laboratory, each in the order of its CSV.
      laboratories: in the order of their cells; a domain's number is its place here.
      classes: the taxonomy's; a class's number is its place here. Not each need have cells.
      dropped: raw label -> number of cells that the taxonomy leaves out.
    """

    cells: tuple[Cell, ...]
    laboratories: tuple[str, ...]
    classes: tuple[str, ...]
    dropped: Mapping[str, int]

    def of(self, laboratory: str) -> tuple[Cell, ...]:
        """The cells of one laboratory.

        Raises:
          InputError: no such laboratory.
        """
        if laboratory not in self.laboratories:
            raise _no_laboratory(laboratory, self.laboratories)
        return tuple(cell for cell in self.cells if cell.laboratory == laboratory)

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
    image: Path
    reason: str


def read_laboratory(folder: Path, taxonomy: Taxonomy, *, label_column: str = "class") -> Manifest:
    """The cells that `folder/labels.csv` lists.

    Columns: `file` and `class` (see `label_column`), optionally `mask` and `duplicate_of`; others are
    ignored. Paths are relative to the folder. A row with a `duplicate_of` is left out, an empty `mask` means
    none. Images are not opened: see `check_cells`.

    Args:
      folder: its name is the laboratory's.
      taxonomy: from raw labels to common classes.
      label_column: where the raw label stands.

    Raises:
      InputError: no CSV, no rows, a missing column, an unknown label, a missing image or mask file, a file
        listed twice, or no cell left.
    """
    table = Path(folder) / LABELS_FILE
    if not table.is_file():
        raise InputError(f"no {LABELS_FILE} in {folder}: a laboratory is a folder with that file")
    folder = Path(os.path.abspath(folder))
    cells: list[Cell] = []
    dropped: Counter[str] = Counter()
    line_of: dict[Path, int] = {}
    rows = _rows(table, ("file", label_column))
    for line, row in rows:
        where = f"{table}, line {line}"
        file, raw = row["file"], row[label_column]
        if not file or not raw:
            raise InputError(f"{where}: empty {'file' if not file else label_column}")
        if row.get("duplicate_of"):
            continue
        image = Path(os.path.normpath(folder / file))
        if image in line_of:
            raise InputError(f"{where}: {file} is listed already in line {line_of[image]}; leave one out")
        line_of[image] = line
        try:
            label = taxonomy.resolve(raw)
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
        if label is None:
            dropped[raw] += 1
            continue
        mask = Path(os.path.normpath(folder / row["mask"])) if row.get("mask") else None
        for kind, path in (("image", image), ("mask", mask)):
            if path is not None and not path.is_file():
                raise InputError(f"{where}: no {kind} file at {path}")
        cells.append(Cell(f"{folder.name}/{Path(file).as_posix()}", folder.name, image, mask, label))
    if not cells:
        labels = name_some(dropped) or "none"
        raise InputError(f"{table}: no cell left of {len(rows)} rows (labels dropped: {labels})")
    return Manifest(tuple(cells), (folder.name,), taxonomy.classes, dict(dropped))


def read_laboratories(root: Path, names: Sequence[str], taxonomy: Taxonomy, *, label_column: str = "class") -> Manifest:
    """The cells of several laboratories, each a sub-folder of `root` (see `read_laboratory`).

    Args:
      root: the folder that holds the laboratories.
      names: sub-folders, in the wanted order; none means every one with a `labels.csv`, in alphabetical
        order.
      taxonomy: from raw labels to common classes.
      label_column: where the raw label stands.

    Raises:
      InputError: no such folder, an unknown or repeated laboratory, or what `read_laboratory` refuses.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"no data folder at {root}")
    found = sorted(path.parent.name for path in root.glob(f"*/{LABELS_FILE}"))
    if not found:
        raise InputError(f"no laboratory in {root}: none of its folders has a {LABELS_FILE}")
    for name in names:
        if name not in found:
            raise _no_laboratory(name, found)
    if len(set(names)) < len(names):
        raise InputError(f"a laboratory is named twice: {', '.join(names)}")
    parts = [read_laboratory(root / name, taxonomy, label_column=label_column) for name in names or found]
    return Manifest(
        cells=tuple(cell for part in parts for cell in part.cells),
        laboratories=tuple(part.laboratories[0] for part in parts),
        classes=taxonomy.classes,
        dropped=dict(sum((Counter(part.dropped) for part in parts), Counter())),
    )


def save_cells(manifest: Manifest, path: Path) -> None:
    """Write the manifest as one Parquet file, atomically; what is not a cell goes into its metadata."""
    path = Path(path)
    cells = manifest.cells
    columns = {
        "id": [cell.id for cell in cells],
        "laboratory": [cell.laboratory for cell in cells],
        "image": [str(cell.image) for cell in cells],
        "mask": [str(cell.mask) if cell.mask else None for cell in cells],
        "label": [cell.label for cell in cells],
    }
    rest = {
        "laboratories": manifest.laboratories,
        "classes": manifest.classes,
        "dropped": dict(manifest.dropped),
    }
    table = pa.table(columns, schema=_SCHEMA.with_metadata({_METADATA_KEY: json.dumps(rest)}))
    with replacing(path) as partial:
        pq.write_table(table, partial)


def load_cells(path: Path) -> Manifest:
    """The manifest that `save_cells` wrote.

    Raises:
      InputError: no such file, or not one of ours.
    """
    if not Path(path).is_file():
        raise InputError(f"no list of cells at {path}")
    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path} is no Parquet file: {error}") from error
    if not table.schema.equals(_SCHEMA) or _METADATA_KEY not in (table.schema.metadata or {}):
        raise InputError(f"{path} is no list of cells: it has the columns {', '.join(table.column_names)}")
    rest = json.loads(table.schema.metadata[_METADATA_KEY])
    cells = tuple(
        Cell(id, laboratory, Path(image), None if mask is None else Path(mask), label)
        for id, laboratory, image, mask, label in zip(*table.to_pydict().values(), strict=True)
    )
    return Manifest(cells, tuple(rest["laboratories"]), tuple(rest["classes"]), rest["dropped"])


def check_cells(manifest: Manifest, progress: bool = True) -> tuple[Manifest, tuple[Failure, ...]]:
    """Decode every image and mask once, and part the usable cells from the others.

    A cell fails when its image or mask is unreadable, a side of the image is under 16 pixels, the mask has
    another size than the image, or the mask is empty.

    Args:
      manifest: the cells.
      progress: show a bar with rate and time left.

    Returns:
      The manifest without the failing cells (a laboratory without a usable cell goes too), and the failures
      in the manifest's order.
    """
    with ThreadPoolExecutor() as pool:
        checked = pool.map(_reason, manifest.cells)
        bar = tqdm(checked, "checking images", len(manifest.cells), unit="cell", disable=not progress)
        reasons = list(bar)
    failures = tuple(
        Failure(cell.id, cell.image, reason)
        for cell, reason in zip(manifest.cells, reasons, strict=True)
        if reason is not None
    )
    failed = {failure.id for failure in failures}
    return _keep(manifest, lambda cell: cell.id not in failed), failures


def read_cell(cell: Cell) -> tuple[UInt8[np.ndarray, "h w 3"], Bool[np.ndarray, "h w"] | None]:
    """The image and the mask of a cell at their own size.

    Raises:
      ImageError: a file that does not open, or a mask of another size than the image.
    """
    image = read_image(cell.image)
    if cell.mask is None:
        return image, None
    mask = read_mask(cell.mask)
    if mask.shape != image.shape[:2]:
        raise ImageError(
            f"the mask {cell.mask} has {mask.shape[1]} x {mask.shape[0]} pixels, "
            f"its image {cell.image} {image.shape[1]} x {image.shape[0]}"
        )
    return image, mask


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
            f"{', '.join(manifest.laboratories) or 'none'}: add a folder with a {LABELS_FILE}"
        )


_METADATA_KEY = b"dorl_jax"
_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("laboratory", pa.string(), nullable=False),
        pa.field("image", pa.string(), nullable=False),
        pa.field("mask", pa.string()),
        pa.field("label", pa.string(), nullable=False),
    ]
)


def _rows(table: Path, required: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """Line number and stripped values of every row; an absent trailing value is empty."""
    try:
        # utf-8-sig: spreadsheets put a byte-order mark first.
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restval="", strict=True)
            columns = [name.strip() for name in reader.fieldnames or ()]
            for name in required:
                if name not in columns:
                    listed = ", ".join(columns) or "none"
                    raise InputError(f"{table}: no column {name!r}{suggest(name, columns)}; there are: {listed}")
            reader.fieldnames = columns
            rows = [(reader.line_num, row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{table} is not a readable CSV file in UTF-8: {error}") from error
    if not rows:
        raise InputError(f"{table} has no rows")
    for line, row in rows:
        if None in row:
            raise InputError(f"{table}, line {line}: more values than the {len(columns)} columns")
    return [(line, {key: value.strip() for key, value in row.items()}) for line, row in rows]


def _reason(cell: Cell) -> str | None:
    """Why the cell cannot be used, or None."""
    try:
        image, mask = read_cell(cell)
    except ImageError as error:
        return str(error)
    height, width = image.shape[:2]
    if min(height, width) < SMALLEST_SIDE:
        return f"{cell.image} has {width} x {height} pixels; a side needs at least {SMALLEST_SIDE}"
    if mask is not None and not mask.any():
        return f"the mask {cell.mask} is empty: no pixel above 64 (128 is cytoplasm, 255 nucleus)"
    return None


def _keep(manifest: Manifest, wanted: Callable[[Cell], bool]) -> Manifest:
    cells = tuple(cell for cell in manifest.cells if wanted(cell))
    left = {cell.laboratory for cell in cells}
    laboratories = tuple(name for name in manifest.laboratories if name in left)
    return Manifest(cells, laboratories, manifest.classes, manifest.dropped)


def _no_laboratory(name: str, known: Collection[str]) -> InputError:
    return InputError(f"no laboratory {name!r}{suggest(name, known)}; there are: {name_some(known, 20)}")
