"""A list of images that stays small: a million of them take about 100 MB, and so does a copy in each worker."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dorl_jax.data.sources import ImageSource, parse_quickly
from dorl_jax.errors import InputError, name_some

_TEXT = pa.large_string()
_HASHED_AT_ONCE = 1 << 16


class ImageList:
    """Images in an order: their names, where their bytes are, and what else is known of them.

    A slice shares its memory with the whole; pickled, it is sent alone.

    Attributes:
      notes: remarks on what was not taken, a sentence each.
    """

    def __init__(
        self,
        ids: Iterable[str],
        sources: Iterable[str] | None = None,
        *,
        beginnings: Sequence[str] = ("",),
        beginning: Iterable[int] | None = None,
        columns: Mapping[str, Iterable[Any]] | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        """A list from what each image's source is as text (`sources.source_text`).

        Args:
          ids: names.
          sources: the texts, without their beginnings; None where they are the names.
          beginnings: what many texts begin with, the folder for instance; kept once.
          beginning: for each image, which of them; None where there is one for all.
          columns: what else is known, each as long as `ids`.
          notes: see above.

        Raises:
          InputError: an id that is there twice, or a name that is no text.
        """
        self._ids = _texts(ids)
        self._rest = self._ids if sources is None else _texts(sources)
        self._beginnings = tuple(beginnings)
        self._beginning = None if beginning is None else _array(beginning, pa.int32())
        self._columns = {name: _array(values) for name, values in (columns or {}).items()}
        self.notes = tuple(notes)
        for name, array in self._arrays().items():
            if len(array) != len(self._ids):
                raise ValueError(f"{len(self._ids)} names, but {len(array)} of {name}")
        _refuse_repeats(self._ids)

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, chosen: slice) -> "ImageList":
        """The images of a slice, in steps of 1."""
        first, last, step = chosen.indices(len(self))
        if step != 1:
            raise ValueError(f"an image list is sliced in steps of 1, not {step}")
        return self._with({name: array.slice(first, max(last - first, 0)) for name, array in self._arrays().items()})

    @property
    def ids(self) -> pa.LargeStringArray:
        """The unique names, in order."""
        return self._ids

    @property
    def columns(self) -> pa.Table:
        """One row an image, with what came along: laboratory, label, ..."""
        # A table made of no columns would have no rows.
        return pa.table({"": self._ids, **self._columns}).select([*self._columns])

    def id(self, place: int) -> str:
        """The name of the image at a place, 0..len - 1."""
        return self._ids[place].as_py()

    def source(self, place: int) -> str | ImageSource:
        """Where the image at a place is, as `images.read_image` takes it; a plain file is its path as text."""
        return parse_quickly(self.source_text(place))

    def source_text(self, place: int) -> str:
        """The same as text (`sources.parse_source`)."""
        beginning = 0 if self._beginning is None else self._beginning[place].as_py()
        return self._beginnings[beginning] + self._rest[place].as_py()

    @property
    def nbytes(self) -> int:
        """Bytes that names and sources take, columns left out."""
        arrays = {id(array): array for array in (self._ids, self._rest, self._beginning) if array is not None}
        return sum(array.nbytes for array in arrays.values())

    def fingerprint(self) -> str:
        """A SHA-256 of the names and of where the bytes are, the same for equal lists however they were made."""
        digest = hashlib.sha256()
        for first in range(0, len(self), _HASHED_AT_ONCE):
            places = range(first, min(first + _HASHED_AT_ONCE, len(self)))
            for texts in ([self.id(place) for place in places], [self.source_text(place) for place in places]):
                encoded = [text.encode() for text in texts]
                # The lengths, too: else "ab", "c" were the same as "a", "bc".
                digest.update(np.array([len(text) for text in encoded], "<i8").tobytes())
                digest.update(b"".join(encoded))
        return digest.hexdigest()

    def __getstate__(self) -> dict[str, Any]:
        arrays = self._arrays()
        # Arrow pickles all that a slice is a part of; what is concatenated is a copy of the slice.
        return self._with({name: pa.concat_arrays([array]) for name, array in arrays.items()}).__dict__

    def _arrays(self) -> dict[str, pa.Array]:
        arrays = {"_ids": self._ids, **{f"column {name}": array for name, array in self._columns.items()}}
        if self._rest is not self._ids:
            arrays["_rest"] = self._rest
        if self._beginning is not None:
            arrays["_beginning"] = self._beginning
        return arrays

    def _with(self, arrays: Mapping[str, pa.Array]) -> "ImageList":
        """This list with other arrays in place of `_arrays()`."""
        made = ImageList.__new__(ImageList)
        made._ids = arrays["_ids"]
        made._rest = arrays.get("_rest", arrays["_ids"])
        made._beginnings, made._beginning = self._beginnings, arrays.get("_beginning")
        made._columns = {name: arrays[f"column {name}"] for name in self._columns}
        made.notes = self.notes
        return made


def join(lists: Sequence[ImageList], prefixes: Sequence[str]) -> ImageList:
    """The lists behind each other, each name behind its list's prefix; columns that a list lacks are null in it.

    Raises:
      InputError: an id that is there twice, or a column that is of one kind here and of another there.
    """
    if len(lists) == 1 and not prefixes[0]:
        return lists[0]
    ids = [
        pc.binary_join_element_wise(pa.scalar(prefix, _TEXT), item.ids, pa.scalar("", _TEXT))
        for item, prefix in zip(lists, prefixes, strict=True)
    ]
    texts = (item.source_text(place) for item in lists for place in range(len(item)))
    beginnings, beginning, rest = folders_apart(texts)
    names = list(dict.fromkeys(name for item in lists for name in item.columns.column_names))
    return ImageList(
        pa.concat_arrays(ids),
        rest,
        beginnings=beginnings,
        beginning=beginning,
        columns={name: _joined(name, lists) for name in names},
        notes=[note for item in lists for note in item.notes],
    )


def _joined(name: str, lists: Sequence[ImageList]) -> pa.Array:
    tables = [
        item.columns.select([name]) if name in item.columns.column_names else pa.table({name: pa.nulls(len(item))})
        for item in lists
    ]
    try:
        return pa.concat_tables(tables, promote_options="permissive").column(0).combine_chunks()
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise InputError(f"the columns {name!r} do not fit together: {error}") from error


def folders_apart(texts: Iterable[str]) -> tuple[list[str], list[int], list[str]]:
    """The folders (or archives) that source texts begin with, which of them each has, and the rest of each."""
    number: dict[str, int] = {}
    beginning, rest = [], []
    for text in texts:
        # Of an archive's member, all before the "#" is common; slashes behind it part nothing.
        end = text.find("#") if "#" in text else text.rfind("/") + 1
        beginning.append(number.setdefault(text[:end], len(number)))
        rest.append(text[end:])
    return list(number), beginning, rest


def _texts(texts: Iterable[str]) -> pa.LargeStringArray:
    try:
        return _array(texts, _TEXT)
    except UnicodeEncodeError as error:
        raise InputError(
            f"{error.object!r} is no name in UTF-8: rename the file, or convert the names of the folder (convmv)"
        ) from error


def _array(values: Iterable[Any], kind: pa.DataType | None = None) -> pa.Array:
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    if isinstance(values, pa.Array):
        return values if kind is None or values.type == kind else values.cast(kind)
    return pa.array(values if isinstance(values, Sequence) else list(values), kind)


def _refuse_repeats(ids: pa.LargeStringArray) -> None:
    if ids.null_count:
        raise InputError(f"{ids.null_count} images have no id")
    if pc.count_distinct(ids).as_py() == len(ids):
        return
    counts = pc.value_counts(ids)
    often = counts.filter(pc.greater(counts.field("counts"), 1)).field("values").to_pylist()
    raise InputError(f"ids must be unique; there more than once: {name_some(often)}")
