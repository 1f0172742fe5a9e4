"""Images that a table or a list of paths names."""

import csv
import os
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from dorl_jax.data.image_lists.packed import ImageList, folders_apart
from dorl_jax.data.sources import Record, parse_source, source_text
from dorl_jax.data.tables import opened_csv
from dorl_jax.errors import InputError, suggest

# Names of the column of paths, the likeliest first.
PATH_COLUMNS = (
    "image",
    "path",
    "file",
    "filename",
    "file_name",
    "image_path",
    "filepath",
    "file_path",
    "img",
    "images",
)
ID_COLUMN = "id"
_DELIMITERS = (",", ";", "\t")
# So many files are looked for, to tell a wrong folder from a few missing files.
_LOOKED_FOR = 100


def table_images(path: Path, column: str | None = None, id_column: str | None = None) -> ImageList:
    """The images that a CSV (or TSV) or Parquet file lists.

    Their paths are relative to the table's folder, or absolute; a rectangle of a picture
    (`field.png#xywh=10,20,64,64`) and whatever else `sources.parse_source` reads will do. Single missing files are
    left to those who read them.

    Args:
      path: an absolute path.
      column: that of the paths; by default the first of `PATH_COLUMNS`, in whatever case, that holds text.
      id_column: that of the names; by default `id`, or where there is none the paths as they are written.

    Returns:
      The list, whose `columns` are the table's others. Those of a CSV are text.

    Raises:
      InputError: no readable table, no rows, no such column, an empty path, or none of the first files is there.
    """
    table = _read_parquet(path) if path.suffix.lower() == ".parquet" else _read_csv(path)
    if not table.num_rows:
        raise InputError(f"{path} has no rows")
    column = column or _find_column(table, path)
    paths = _text_column(table, column, path)
    id_column = id_column or (ID_COLUMN if ID_COLUMN in table.column_names and column != ID_COLUMN else None)
    ids = paths if id_column is None else _names(table, id_column, path)
    others = {name: table[name] for name in table.column_names if name not in (column, id_column)}
    return _listed(path, paths.to_pylist(), ids, others, f"{path}, column {column!r}")


def text_images(path: Path) -> ImageList:
    """The images that a text file lists, a path a line; relative to its folder, or absolute.

    Raises:
      InputError: no text in UTF-8, no line, or none of the first files is there.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no text in UTF-8: {error}") from error
    names = [line for line in (line.rstrip("\r") for line in lines) if line.strip()]
    if not names:
        raise InputError(f"{path} lists no image: it takes a path a line")
    return _listed(path, names, names, {}, str(path))


def _listed(
    table: Path, paths: list[str], ids: pa.ChunkedArray | Sequence[str], columns: dict, where: str
) -> ImageList:
    folder = str(table.parent)
    for place, text in enumerate(paths):
        if not text or not text.strip():
            raise InputError(f"{where}: row {place + 1} has an empty path")
        if "://" in text:
            raise InputError(f"{where}: {text} is an address; only files of this machine are read: download them first")
    texts = [_absolute(text, folder) for text in paths]
    _refuse_nowhere(texts[:_LOOKED_FOR], where, folder)
    beginnings, beginning, rest = folders_apart(texts)
    return ImageList(ids, rest, beginnings=beginnings, beginning=beginning, columns=columns)


def _absolute(text: str, folder: str) -> str:
    if "#" not in text:
        return os.path.normpath(os.path.join(folder, text))
    # Joined as text: what is behind the "#" is no path.
    return source_text(parse_source(text if os.path.isabs(text) else f"{folder}/{text}"))


def _refuse_nowhere(texts: Sequence[str], where: str, folder: str) -> None:
    for text in texts:
        source = parse_source(text)
        file = source if isinstance(source, Path) else source.folder if isinstance(source, Record) else source.path
        if file.exists():
            return
    several = f" and the {len(texts) - 1} after it are" if len(texts) > 1 else " is"
    raise InputError(f"{where}: {texts[0]}{several} not there; paths are relative to the table's folder, {folder}")


def _find_column(table: pa.Table, path: Path) -> str:
    by_name = {name.lower().strip(): name for name in reversed(table.column_names)}
    found = [by_name[name] for name in PATH_COLUMNS if name in by_name]
    for name in found:
        if _is_text(table[name].type):
            return name
    if found:
        raise InputError(
            f"{path}: column {found[0]!r} holds {table[found[0]].type}, no paths: give the column that holds paths, "
            "or write the images to files"
        )
    listed = ", ".join(table.column_names)
    raise InputError(
        f"{path} has no column of paths by a usual name ({', '.join(PATH_COLUMNS)}): say which; there are: {listed}"
    )


def _text_column(table: pa.Table, name: str, path: Path) -> pa.ChunkedArray:
    if name not in table.column_names:
        listed = ", ".join(table.column_names)
        raise InputError(f"{path}: no column {name!r}{suggest(name, table.column_names)}; there are: {listed}")
    values = table[name]
    if not _is_text(values.type):
        if not pa.types.is_integer(values.type):
            raise InputError(f"{path}: column {name!r} holds {values.type}, no text")
        values = values.cast(pa.string())
    if values.null_count:
        first = pc.index(pc.is_null(values), True).as_py()
        raise InputError(f"{path}: row {first + 1} has no {name}")
    # Dictionaries become plain text.
    return values.cast(pa.large_string())


def _names(table: pa.Table, name: str, path: Path) -> pa.ChunkedArray:
    names = _text_column(table, name, path)
    first = pc.index(pc.utf8_trim_whitespace(names), pa.scalar("", pa.large_string())).as_py()
    if first >= 0:
        raise InputError(f"{path}: row {first + 1} has no {name}")
    return names


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _read_parquet(path: Path) -> pa.Table:
    try:
        # The file alone: a folder named `split=...` above it is no column.
        return pq.ParquetFile(path).read()
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path} is no Parquet file: {error}") from error


def _read_csv(path: Path) -> pa.Table:
    with opened_csv(path) as file:
        header = file.readline()
    delimiter = max(_DELIMITERS, key=header.count)
    names = next(csv.reader([header], delimiter=delimiter), [])
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"{path} has two columns {twice[0]!r}")
    try:
        return pa.csv.read_csv(
            path,
            parse_options=pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            # All text: a name such as 007 is no number.
            convert_options=pa.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string())),
        )
    except (pa.ArrowInvalid, pa.ArrowKeyError) as error:
        raise InputError(f"{path} is not a readable CSV file in UTF-8: {error}") from error
