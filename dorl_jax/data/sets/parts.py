"""Cells cut out of fields of view."""

from dataclasses import dataclass
from pathlib import Path

from dorl_jax.data.sources import Part

# On every side, as a share of the longer side of the cell: the window becomes 1.25 times the cell.
_MARGIN = 0.125


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels; `right` and `bottom` are excluded."""

    left: int
    top: int
    right: int
    bottom: int

    def with_margin(self, frame: "Box") -> "Box":
        """The box and an eighth of its longer side around it, as far as `frame` goes."""
        margin = round(_MARGIN * max(self.right - self.left, self.bottom - self.top))
        return Box(
            max(self.left - margin, frame.left),
            max(self.top - margin, frame.top),
            min(self.right + margin, frame.right),
            min(self.bottom + margin, frame.bottom),
        )

    def of(self, path: Path, shift: tuple[int, int] = (0, 0)) -> Part:
        """This part of a picture whose upper left pixel is at `shift` (x, y) in the coordinates of the box."""
        x, y = shift
        return Part(path, self.left - x, self.top - y, self.right - self.left, self.bottom - self.top)
