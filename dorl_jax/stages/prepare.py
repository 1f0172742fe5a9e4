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
    laboratories: tuple[str, ...] = setting((), "sub-folders to read; empty for all")
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


def prepare(out: Path, settings: DataSettings, *, progress: bool = True) -> Manifest:
    """Read and check the laboratories.

    Writes `cells.parquet` and `failures.csv` (id, image, reason) into `out`; synthetic cells go to `out/synthetic`.

    Raises:
      InputError: bad settings, tables or labels, fewer than two laboratories, one of which
        nothing can be used, or (`strict`) a file that cannot be used.
    """
    if settings.source == "synthetic":
        root = out / "synthetic"
        if not root.is_dir():
            write_laboratories(root, settings.synthetic_cells, settings.synthetic_laboratories, settings.synthetic_seed)
    elif settings.root:
        root = expand_path(settings.root, "data.root")
    else:
        raise InputError("data.source = 'folder' needs data.root: the folder of the laboratories")
    listings = open_laboratories(root, settings.laboratories)
    listed = make_manifest(listings, load_taxonomy(settings.taxonomy))
    require_laboratories(listed)
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
