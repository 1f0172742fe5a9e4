"""What a laboratory has, in its own words: its images, its labels, before any taxonomy."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain

from dorl_jax.data.sources import ImageSource
from dorl_jax.errors import InputError


@dataclass(frozen=True)
class Row:
    """One image as the laboratory lists it.

    Attributes:
      file: its name in the laboratory, unique there; parts are separated by "/".
      image: where it is.
      label: the laboratory's own word.
      mask: where its mask is, or None.
      group: patient or slide, "" if unknown. Cells of one group are never independent.
      split: as published ("train", "test"), "" if there is none.
      duplicate_of: the file that this one repeats, "" if none; such rows are left out of a manifest.
      where: how messages call the row, "labels.csv, line 3".
    """

    file: str
    image: ImageSource
    label: str
    mask: ImageSource | None = None
    group: str = ""
    split: str = ""
    duplicate_of: str = ""
    where: str = ""


@dataclass(frozen=True)
class Listing:
    """The images of one laboratory.

    Attributes:
      name: of the laboratory.
      rows: in the laboratory's order.
      words: the laboratory's label -> the word that a taxonomy knows, where they differ; "" leaves its cells out.
      notes: remarks for the reader of a report, a sentence each.
      told_by: label -> the laboratory file that gave its word; a published set gives the others.
      folder: name of the folder it was found in, where that is another than `name`; "" otherwise.
    """

    name: str
    rows: tuple[Row, ...]
    words: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    told_by: Mapping[str, str] = field(default_factory=dict)
    folder: str = ""

    @property
    def duplicates(self) -> int:
        """How many rows are left out because they repeat another."""
        return sum(bool(row.duplicate_of) for row in self.rows)

    def __post_init__(self) -> None:
        """Raises `InputError` on a name that no list of cells could hold."""
        texts = (text for row in self.rows for text in (row.file, str(row.image), str(row.mask)))
        try:
            for text in chain([self.name], texts):
                text.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"{error.object!r} is no name in UTF-8: rename the file, or convert the names of the folder (convmv)"
            ) from error
