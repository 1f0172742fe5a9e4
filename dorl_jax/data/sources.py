"""Where the bytes of an image are: a file, a part of a picture in a file, a record of a built data set, or a member of
an archive; and how each is written as text."""

import re
from dataclasses import dataclass
from pathlib import Path

_PART = re.compile(r"(?P<path>.+)#xywh=(?P<x>\d+),(?P<y>\d+),(?P<width>\d+),(?P<height>\d+)", re.DOTALL)
_RECORD = re.compile(r"(?P<folder>.+)#(?P<split>[\w.-]+)\[(?P<place>\d+)\]\.(?P<field>\w+)", re.DOTALL)
_TAR = re.compile(r"(?P<path>.+)#tar=(?P<numbers>\d+,\d+):(?P<name>[^#]*)", re.DOTALL)
_ZIP = re.compile(r"(?P<path>.+)#zip=(?P<numbers>\d+,\d+,\d+,\d+,\d+):(?P<name>[^#]*)", re.DOTALL)


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


@dataclass(frozen=True)
class TarMember:
    """A file inside a tar archive that is not compressed (see `dorl_jax.data.tar_files`).

    Attributes:
      path: of the archive.
      offset: of its first byte in the archive; the 512 bytes of its header come just before.
      size: in bytes.
      name: in the archive.
    """

    path: Path
    offset: int
    size: int
    name: str

    def __str__(self) -> str:
        return f"{self.path}#tar={self.offset},{self.size}:{_escaped(self.name)}"


@dataclass(frozen=True)
class ZipMember:
    """A file inside a zip archive (see `dorl_jax.data.zip_files`).

    Attributes:
      path: of the archive.
      header: where its local header begins in the archive.
      packed: bytes it takes in the archive.
      size: bytes of the file itself.
      method: 0 stored, 8 deflated.
      checksum: CRC-32 of the file itself.
      name: in the archive.
    """

    path: Path
    header: int
    packed: int
    size: int
    method: int
    checksum: int
    name: str

    def __str__(self) -> str:
        numbers = f"{self.header},{self.packed},{self.size},{self.method},{self.checksum}"
        return f"{self.path}#zip={numbers}:{_escaped(self.name)}"


ImageSource = Path | Part | Record | TarMember | ZipMember


def source_text(source: ImageSource) -> str:
    """The text that `parse_source` reads back.

    It is `str(source)`; the name of a file that looks like another kind of source gets a "#" behind it.
    """
    text = str(source)
    return f"{text}#" if isinstance(source, Path) and "#" in text and parse_source(text) != source else text


def parse_source(text: str) -> ImageSource:
    """The source that `source_text` turned into text."""
    if text.endswith("#"):
        return Path(text[:-1])
    if match := _RECORD.fullmatch(text):
        return Record(Path(match["folder"]), match["split"], int(match["place"]), match["field"])
    if match := _PART.fullmatch(text):
        x, y, width, height = (int(match[name]) for name in ("x", "y", "width", "height"))
        return Part(Path(match["path"]), x, y, width, height)
    if match := _TAR.fullmatch(text):
        offset, size = map(int, match["numbers"].split(","))
        return TarMember(Path(match["path"]), offset, size, _plain(match["name"]))
    if match := _ZIP.fullmatch(text):
        header, packed, size, method, checksum = map(int, match["numbers"].split(","))
        return ZipMember(Path(match["path"]), header, packed, size, method, checksum, _plain(match["name"]))
    return Path(text)


def parse_quickly(text: str) -> str | ImageSource:
    """As `parse_source`, but a plain file stays text: making a `Path` of it takes longer than opening it."""
    return parse_source(text) if "#" in text else text


def _escaped(name: str) -> str:
    """A name without "#", so that the last one in a text is where the archive's path ends."""
    return name.replace("%", "%25").replace("#", "%23")


def _plain(name: str) -> str:
    return name.replace("%23", "#").replace("%25", "%")
