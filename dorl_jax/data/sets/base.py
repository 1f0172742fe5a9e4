"""What a published data set is: its terms, where to get it, and how its archive is read as it was published."""

import logging
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dorl_jax.data.listing import Listing, Row
from dorl_jax.data.sets.archives import archives_in, not_unpacked, unpack
from dorl_jax.errors import InputError, name_some

logger = logging.getLogger(__name__)

# Folders to look in -> the rows, and remarks.
Reader = Callable[[Sequence[Path]], tuple[list[Row], list[str]]]


@dataclass(frozen=True)
class DataSet:
    """A published (or private, but often named) set of blood cells.

    Attributes:
      name: by which it is asked for, and the name of its TFDS builder.
      title: of the data set or its article.
      citation: BibTeX; "" if nothing is to be cited.
      licence: as stated by those who publish it; "" if it could not be found out.
      homepage: where it is described.
      get: what to download, and what it unpacks to.
      download_urls: direct addresses of the archives, where there are stable ones.
      reader: lists the rows of the unpacked archive.
      words: every raw label -> the word that taxonomies know; "" leaves its cells out.
      expected: split ("" where there is none) -> raw label -> published number. Splits and labels whose number could
        not be found out are absent and not compared.
      counted: what `expected` counts, "rows" or "groups" (fields of view, where one shows several cells).
      masks: whether none, some or all of its cells have masks.
      private: whether it cannot be downloaded.
      version: of the rows that come of it; it changes when the reader gives other rows.
    """

    name: str
    title: str
    homepage: str
    get: str
    reader: Reader
    words: Mapping[str, str]
    citation: str = ""
    licence: str = ""
    download_urls: tuple[str, ...] = ()
    expected: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    counted: Literal["rows", "groups"] = "rows"
    masks: Literal["none", "some", "all"] = "none"
    private: bool = False
    version: str = "1.0.0"

    def read(
        self,
        path: Path,
        *,
        unpack_to: Path | None = None,
        strict: bool = False,
    ) -> Listing:
        """The images of an archive of this set.

        Args:
          path: the folder that the archive was unpacked to, one above or below it, a folder of .zip archives as they
            were downloaded, or one such archive. What is unpacked already is not unpacked again.
          unpack_to: folder for what is in .zip archives.
          strict: refuse an archive whose numbers of images differ from the published ones, in place of a warning.

        Raises:
          InputError: no images of this set, a label that contradicts itself or is unknown, archives without a place to
            unpack them, a .rar archive, or (`strict`) differences to the published numbers.
        """
        path = Path(os.path.abspath(path))
        if not path.exists():
            raise InputError(f"no folder or archive at {path}; {self.name}: {self.get}")
        rows, notes = self.reader([path]) if path.is_dir() else ([], [])
        zips, others = archives_in(path)
        if others and not rows:
            raise InputError(f"{others[0]} is packed: unpack it first; only .zip archives are unpacked here")
        zips = not_unpacked(zips, path if path.is_dir() else path.parent)
        if zips and unpack_to is not None:
            roots = [path] if path.is_dir() else []
            unpacked = [unpack(archive, unpack_to) for archive in zips]
            # What was unpacked below `path` is found there.
            rows, notes = self.reader([*roots, *(folder for folder in unpacked if not folder.is_relative_to(path))])
        elif zips and not rows:
            raise InputError(
                f"{zips[0]} is packed: unpack it, or build the set, which unpacks it on the way ({self.name})"
            )
        elif zips:
            notes = [
                *notes,
                f"Not unpacked, so that their images are missing: {name_some(path.name for path in zips)}.",
            ]
            logger.warning("%s: %s", path, notes[-1])
        if not rows:
            raise InputError(f"no image of {self.name} in {path}: {self.get}")
        _refuse_repeats(rows)
        listing = Listing(self.name, tuple(rows), self.words, tuple(notes))
        differences = count_differences(listing, self)
        if differences:
            table = differences_table(differences)
            if strict:
                raise InputError(f"{path} is not {self.name} as published:\n{table}")
            logger.warning("%s is not %s as published:\n%s", path, self.name, table)
            remark = f"{len(differences)} labels do not have their published number of {self._unit} (see the log)."
            listing = Listing(self.name, listing.rows, self.words, (*notes, remark))
        return listing

    @property
    def _unit(self) -> str:
        return "images" if self.counted == "rows" else "fields"


@dataclass(frozen=True)
class Difference:
    """A label whose number is not the published one."""

    split: str
    label: str
    expected: int
    found: int


def count_differences(listing: Listing, data_set: DataSet) -> tuple[Difference, ...]:
    """Where the numbers of a listing differ from the published ones, in the order of `data_set.expected`."""
    found: Counter[tuple[str, str]] = Counter()
    seen: set[str] = set()
    for row in listing.rows:
        if data_set.counted == "groups":
            if row.group in seen:
                continue
            seen.add(row.group)
        found[row.split, row.label] += 1
    return tuple(
        Difference(split, label, number, found[split, label])
        for split, labels in data_set.expected.items()
        for label, number in labels.items()
        if found[split, label] != number
    )


def differences_table(differences: Sequence[Difference]) -> str:
    """The differences as a table of text."""
    names = [f"{item.split}/{item.label}" if item.split else item.label for item in differences]
    width = max(len("label"), *(len(name) for name in names))
    lines = [f"{'label':<{width}}  published  found"]
    lines += [
        f"{name:<{width}}  {item.expected:>9}  {item.found:>5}" for name, item in zip(names, differences, strict=True)
    ]
    return "\n".join(lines)


def _refuse_repeats(rows: Sequence[Row]) -> None:
    first: dict[str, Row] = {}
    for row in rows:
        if row.file in first:
            raise InputError(
                f"{row.where} and {first[row.file].where} are both {row.file}: the archive is there twice; "
                "name the folder of one of them"
            )
        first[row.file] = row
