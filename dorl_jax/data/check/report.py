"""What a check came to, as plain values."""

from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from dorl_jax.data.check.colours import Look

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Problem:
    """Something the reader should know.

    Attributes:
      severity: "error": cells that cannot be used, or results that would be wrong; "warning": look at it; "note": good
        to know.
      what: a sentence without its full stop.
      advice: what to do, the same; "" if nothing.
    """

    severity: Severity
    what: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.what}; {self.advice}" if self.advice else self.what


@dataclass(frozen=True)
class Unusable:
    """An image or mask that cannot be used, and why."""

    file: str
    reason: str


@dataclass(frozen=True)
class MaskSummary:
    """The masks of a laboratory.

    Attributes:
      count: cells with a mask that can be used.
      coverage: share of the image that is cell: least, lower quartile, median, upper quartile, most.
      touching: masks that touch the border of their image.
      all_corners: masks whose cell covers the four corners of the image.
      in_pieces: masks of several pieces; the largest counts.
      stray: masks with values other than 0, 128 and 255.
      with_nucleus: masks that tell the nucleus.
    """

    count: int
    coverage: tuple[float, float, float, float, float]
    touching: int
    all_corners: int
    in_pieces: int
    stray: int
    with_nucleus: int


@dataclass(frozen=True)
class LaboratoryReport:
    """One laboratory.

    Attributes:
      name: its name.
      rows: images listed.
      declared: rows of these that are listed as duplicates, and left out.
      labels: its own labels -> images.
      classes: common classes -> images, zeros included.
      dropped, unmapped: its own labels outside the classes -> images.
      nearest: unmapped label -> the nearest label that is known, "" if none is near.
      groups: patients or slides; 0 if none is told.
      splits: as published -> images; empty if there are none.
      smallest, median, largest: width and height by the number of pixels.
      kinds: format, mode and bits -> images.
      used_bits: 12 or 14 where no image of 16 bits has a larger value; 0 otherwise.
      notes: what reading did that one might not expect -> images.
      unusable: images and masks that cannot be used.
      masks: None if there are none.
      colours: the mean look of its images; None if none can be read.
      histogram: of each channel, shares of the pixels in equal bins.
    """

    name: str
    rows: int
    declared: int
    labels: dict[str, int]
    classes: dict[str, int]
    dropped: dict[str, int]
    unmapped: dict[str, int]
    nearest: dict[str, str]
    groups: int
    splits: dict[str, int]
    smallest: tuple[int, int]
    median: tuple[int, int]
    largest: tuple[int, int]
    kinds: dict[str, int]
    used_bits: int
    notes: dict[str, int]
    unusable: tuple[Unusable, ...]
    masks: MaskSummary | None
    colours: Look | None
    histogram: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Copies:
    """Images of one cell.

    Attributes:
      cells: "laboratory/file" of each.
      labels: the laboratories' own, of each.
      exact: all have the same pixels.
      distance: the largest of the pairs that tie them together (see `copies.Pair`); 0 for the same pixels.
    """

    cells: tuple[str, ...]
    labels: tuple[str, ...]
    exact: bool
    distance: float

    @property
    def laboratories(self) -> tuple[str, ...]:
        """Of each cell."""
        return tuple(cell.split("/", 1)[0] for cell in self.cells)


@dataclass(frozen=True)
class Leak:
    """What is on both sides of a published split: a group ("patient 7") or copies, with the splits it is in."""

    laboratory: str
    what: str
    splits: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """All that was found.

    Attributes:
      taxonomy: its name.
      classes: the common classes.
      laboratories: one each.
      copies: images of one cell, those of several laboratories first.
      leaks: what lies on both sides of a split.
      torn: of the groups of several cells, and of the copies, how many five random folds are expected to tear apart.
      colour_distances: laboratory, laboratory, Delta E (CIE 1976) between their mean colours.
      problems: worst first.
    """

    taxonomy: str
    classes: tuple[str, ...]
    laboratories: tuple[LaboratoryReport, ...]
    copies: tuple[Copies, ...]
    leaks: tuple[Leak, ...]
    torn: tuple[float, float]
    colour_distances: tuple[tuple[str, str, float], ...]
    problems: tuple[Problem, ...]

    @property
    def errors(self) -> tuple[Problem, ...]:
        """The problems that are errors."""
        return tuple(problem for problem in self.problems if problem.severity == "error")

    @property
    def summary(self) -> str:
        """One sentence."""
        images = sum(laboratory.rows for laboratory in self.laboratories)
        counts = [
            f"{number} {kind}{'' if number == 1 else 's'}"
            for kind in ("error", "warning", "note")
            if (number := sum(problem.severity == kind for problem in self.problems))
        ]
        plural = "y" if len(self.laboratories) == 1 else "ies"
        found = ", ".join(counts) or "nothing to remark"
        return f"{images} images of {len(self.laboratories)} laborator{plural}: {found}"

    def as_tree(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return msgspec.to_builtins(self)
