"""Stage 1: which cells a run works on. Laboratories -> the accepted cells and the ones left out, with reasons."""

import csv
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dorl_jax.config import Settings, expand_path, setting
from dorl_jax.data.laboratory import open_laboratories
from dorl_jax.data.listing import Listing
from dorl_jax.data.manifest import (
    Failure,
    Manifest,
    check_cells,
    few_cells,
    load_cells,
    make_manifest,
    require_laboratories,
    require_usable,
    save_cells,
)
from dorl_jax.data.synthetic import write_laboratories
from dorl_jax.data.taxonomy import load_taxonomy
from dorl_jax.errors import InputError, name_some
from dorl_jax.files import replacing

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataSettings(Settings):
    """The cells of a run."""

    source: Literal["synthetic", "folder"] = setting(
        "synthetic", "'folder' reads `root`; 'synthetic' draws cells of laboratories that do not exist"
    )
    root: str = setting(
        "",
        "folder of laboratories, in any form that `dorl-jax data check` takes; ${NAME} is an environment variable",
    )
    laboratories: tuple[str, ...] = setting(
        (), "laboratories to read, by sub-folder or by the name in its laboratory file; empty for all"
    )
    unseen: tuple[str, ...] = setting(
        (), "laboratories of which no training sees anything: their cells are embedded and tested only"
    )
    taxonomy: str = setting("five_classes", "common classes: five_classes, thirteen_classes, or a TOML file")
    strict: bool = setting(False, "stop at files that cannot be used instead of leaving them out")
    synthetic_laboratories: int = setting(2, "number of synthetic laboratories", least=1)
    synthetic_cells: int = setting(24, "synthetic cells of each class in each laboratory", least=1)
    synthetic_seed: int = setting(0, "seed of the synthetic cells", least=0)

    def __post_init__(self) -> None:
        """Refuse, besides, a folder that would not be read: the run would be one of drawn cells.

        Raises:
          InputError: see `Settings`; a `root` beside `source = "synthetic"`.
        """
        super().__post_init__()
        if self.root and self.source == "synthetic":
            raise InputError(
                f"root = {self.root!r} is not read with source = 'synthetic', the default: add source = 'folder', or "
                "leave root out"
            )


def prepare(out: Path, settings: DataSettings, *, least: int = 2, progress: bool = True) -> Manifest:
    """Read and check the laboratories.

    Writes `cells.parquet` and `failures.csv` (id, image, reason) into `out`; synthetic cells go to `out/synthetic`.

    Args:
      out: folder.
      settings: which cells.
      least: laboratories that there have to be.
      progress: show a bar.

    Raises:
      InputError: bad settings, tables or labels, fewer than `least` laboratories, one without a cell that can
        be used, or (`strict`) a file that cannot be used.
    """
    root = _root(out, settings)
    if settings.source == "synthetic" and not root.is_dir():
        write_laboratories(root, settings.synthetic_cells, settings.synthetic_laboratories, settings.synthetic_seed)
    listings = open_laboratories(root, settings.laboratories)
    listed = make_manifest(listings, load_taxonomy(settings.taxonomy))
    require_laboratories(listed, least)
    listed.without(settings.unseen)  # a wrong name is told before anything is read
    _tell(listings)
    checked = check_cells(listed, progress)
    # Before anything is written: the folder takes settings that do without the laboratory.
    require_usable(listed, checked)
    accepted, failures = checked.accepted, checked.failures
    _write_failures(out / "failures.csv", failures)
    if failures:
        reasons = name_some((failure.reason for failure in failures), 3)
        if settings.strict:
            raise InputError(f"{len(failures)} cells cannot be used: {reasons}")
        logger.warning("left out %d of %d cells (listed in %s): %s", len(failures), len(listed.cells), out, reasons)
    for note, count in checked.notes.items():
        logger.warning("%d images: %s", count, note)
    for laboratory, label, count in few_cells(accepted):
        logger.warning("%s has %d cells of class %s: too few for every fold to hold one", laboratory, count, label)
    if accepted.dropped:
        dropped = (f"{count} {label}" for label, count in accepted.dropped.items())
        logger.info("outside the classes of %s: %s", settings.taxonomy, name_some(dropped, 20))
    save_cells(accepted, out / "cells.parquet")
    counts = ", ".join(f"{name} {sum(row.values())}" for name, row in accepted.counts().items())
    logger.info("%d cells: %s", len(accepted.cells), counts)
    return accepted


def changes(out: Path, settings: DataSettings) -> str:
    """How the laboratories differ from what `prepare` found; "" where they do not, or are not there any more.

    Tables and folders are read, no images. A cell that could not be used is no change, whatever became of it.

    Args:
      out: what `prepare` wrote.
      settings: its settings.
    """
    try:
        root = _root(out, settings)
    except InputError:  # the environment variable in it is not set where the data are not
        return ""
    if settings.source == "synthetic" or not root.is_dir() or not any(root.iterdir()):
        return ""
    try:
        listed = make_manifest(open_laboratories(root, settings.laboratories), load_taxonomy(settings.taxonomy))
    except InputError as error:
        return f"they cannot be read as they are: {error}"
    was = {cell.id: cell for cell in load_cells(out / "cells.parquet").cells}
    now = {cell.id: cell for cell in listed.cells}
    both = [(was[id], now[id]) for id in was.keys() & now.keys()]
    counts = {
        "added": len(now.keys() - was.keys() - _left_out(out / "failures.csv")),
        "gone": len(was.keys() - now.keys()),
        "of another class": sum(one.label != other.label for one, other in both),
        "of another group": sum(one.group != other.group for one, other in both),
        "of another split": sum(one.split != other.split for one, other in both),
        # Where all was moved to another disk, the masks were, too.
        "with another mask": sum(one.image == other.image and one.mask != other.mask for one, other in both),
    }
    return ", ".join(f"{count} cells {what}" for what, count in counts.items() if count)


def _root(out: Path, settings: DataSettings) -> Path:
    """The folder of the laboratories."""
    if settings.source == "synthetic":
        return out / "synthetic"
    if not settings.root:
        raise InputError("data.source = 'folder' needs data.root: the folder of the laboratories")
    return expand_path(settings.root, "data.root")


def _tell(listings: Sequence[Listing]) -> None:
    """What reading the laboratories found out."""
    for listing in listings:
        for note in listing.notes:
            logger.warning("%s: %s", listing.name, note)
        if listing.duplicates:
            logger.info("%s: %d rows are left out as duplicates of another", listing.name, listing.duplicates)


def _write_failures(path: Path, failures: tuple[Failure, ...]) -> None:
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "image", "reason"])
        writer.writerows([failure.id, failure.image, failure.reason] for failure in failures)


def _left_out(path: Path) -> set[str]:
    """The ids in the file that `_write_failures` wrote."""
    if not path.is_file():
        return set()
    with path.open(newline="", encoding="utf-8") as file:
        return {row["id"] for row in csv.DictReader(file)}
