"""Directories of tags, as TIFF files and EXIF blocks have them."""

import struct
from dataclasses import dataclass

from dorl_jax.data.formats.facts import Unreadable, broken

ORIENTATION = 274
_MP_PICTURES = 0xB001

# Bytes of a value by the number of its type (TIFF 6.0, BigTIFF).
_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_WHOLE_NUMBERS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
# More tags, or more strips, than any writer makes; read one by one, they would take their time.
_MOST_ENTRIES = 2**12
_MOST_VALUES = 2**20


@dataclass(frozen=True)
class Directory:
    """The tags of one page.

    Attributes:
      order: "<" or ">", as in the module `struct`.
      big: a BigTIFF, with places of 8 bytes.
      at: where the directory starts.
      entries: tag -> its entry as stored.
      values: tag -> its values, of the tags that are whole numbers.
      next: where the next page's directory is, 0 after the last.
    """

    order: str
    big: bool
    at: int
    entries: dict[int, bytes]
    values: dict[int, tuple[int, ...]]
    next: int

    def all(self, tag: int, default: tuple[int, ...] = ()) -> tuple[int, ...]:
        """The values of a tag. Raises `Unreadable` where it is there, but its values are no whole numbers."""
        if tag in self.entries and tag not in self.values:
            raise broken(f"tag {tag} is of a wrong type")
        return self.values.get(tag, default)

    def one(self, tag: int, default: int | None = None) -> int:
        """The only value of a tag. Raises `Unreadable` where there are none (and no default) or more."""
        values = self.all(tag, () if default is None else (default,))
        if len(values) != 1:
            raise broken(f"tag {tag} has {len(values)} values")
        return values[0]


def is_tiff(data: bytes) -> bool:
    return data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def first_directory(data: bytes, strict: bool = True) -> Directory:
    """Raises `Unreadable` where it, or (if `strict`) what its tags refer to, is not within the data."""
    order = "<" if data[:1] == b"I" else ">"
    big = b"+" in data[2:4]
    try:
        if big and struct.unpack_from(order + "HH", data, 4) != (8, 0):
            raise broken("a BigTIFF file whose places do not take 8 bytes")
        (at,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
    except struct.error as error:
        raise broken("the TIFF file is cut short") from error
    return read_directory(data, order, big, at, strict)


def read_directory(data: bytes, order: str, big: bool, at: int, strict: bool = True) -> Directory:
    """Raises `Unreadable` as `first_directory`; not `strict`, tags that refer to nothing are left out."""
    count_format, entry_format, place_format, room = ("Q", "HHQ", "Q", 8) if big else ("H", "HHI", "I", 4)
    head, entry_size = struct.calcsize(order + count_format), struct.calcsize(order + entry_format) + room
    entries: dict[int, bytes] = {}
    values: dict[int, tuple[int, ...]] = {}
    try:
        (count,) = struct.unpack_from(order + count_format, data, at)
        if count > _MOST_ENTRIES:
            raise broken(f"a page of {count} tags")
        for place in range(at + head, at + head + count * entry_size, entry_size):
            tag, kind, number = struct.unpack_from(order + entry_format, data, place)
            size = number * _BYTES.get(kind, 0)
            start = place + entry_size - room
            if size > room:
                (start,) = struct.unpack_from(order + place_format, data, start)
            if start + size > len(data):
                if not strict:
                    continue
                raise broken(f"the TIFF file is cut short: tag {tag} lies beyond its end")
            if tag in entries:
                raise broken(f"tag {tag} comes twice")
            entries[tag] = data[place : place + entry_size]
            if kind in _WHOLE_NUMBERS and number <= _MOST_VALUES:
                values[tag] = struct.unpack_from(f"{order}{number}{_WHOLE_NUMBERS[kind]}", data, start)
        (after,) = struct.unpack_from(order + place_format, data, at + head + count * entry_size)
    except (struct.error, OverflowError) as error:
        raise broken("the TIFF file is cut short") from error
    return Directory(order, big, at, entries, values, after)


def exif_orientation(block: bytes) -> int:
    """The orientation in an EXIF block, 1..8; 1 (upright) where there is none or the block is broken."""
    return _tag(block.removeprefix(b"Exif\0\0"), ORIENTATION, range(1, 9))


def pictures_in_index(block: bytes) -> int:
    """How many pictures a multi-picture file (CIPA DC-007) announces, 1 where its index is broken."""
    return _tag(block, _MP_PICTURES, range(1, 2**16))


def _tag(block: bytes, tag: int, allowed: range) -> int:
    if not is_tiff(block):
        return 1
    try:
        values = first_directory(block, strict=False).values.get(tag, ())
    except Unreadable:
        return 1
    return values[0] if len(values) == 1 and values[0] in allowed else 1
