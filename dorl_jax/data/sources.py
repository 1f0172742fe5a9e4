"""Where the bytes of an image are: a file, a part of a picture in a file, or a record of a built data set."""

import re
from dataclasses import dataclass
from pathlib import Path

_PART = re.compile(r"(?P<path>.+)#xywh=(?P<x>\d+),(?P<y>\d+),(?P<width>\d+),(?P<height>\d+)", re.DOTALL)
_RECORD = re.compile(r"(?P<folder>.+)#(?P<split>[\w.-]+)\[(?P<place>\d+)\]\.(?P<field>\w+)", re.DOTALL)


@dataclass(frozen=True)
class Part:
    """A rectangle of a picture that shows more than one cell.

    Attributes:
      path: of the picture.
      x, y: left and upper edge in pixels, counted from 0.
      width, height: in pixels.
    """

    path: Path
    x: int
    y: int
    width: int
    height: int

    def __str__(self) -> str:
        # A media fragment (W3C, Media Fragments URI 1.0).
        return f"{self.path}#xywh={self.x},{self.y},{self.width},{self.height}"


@dataclass(frozen=True)
class Record:
    """An image inside a built data set (see `dorl_jax.data.built`).

    Attributes:
      folder: of the built set, with its version.
      split: name of the split.
      place: number of the example in the split, from 0.
      field: which of its images, "image" or "mask".
    """

    folder: Path
    split: str
    place: int
    field: str

    def __str__(self) -> str:
        return f"{self.folder}#{self.split}[{self.place}].{self.field}"


ImageSource = Path | Part | Record


def parse_source(text: str) -> ImageSource:
    """The source that `str` turned into text."""
    if match := _RECORD.fullmatch(text):
        return Record(Path(match["folder"]), match["split"], int(match["place"]), match["field"])
    if match := _PART.fullmatch(text):
        x, y, width, height = (int(match[name]) for name in ("x", "y", "width", "height"))
        return Part(Path(match["path"]), x, y, width, height)
    return Path(text)
