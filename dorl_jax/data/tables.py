"""A laboratory as a table: a CSV file that lists its images."""

import csv
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TextIO

from dorl_jax.data.listing import Row
from dorl_jax.data.trees import SUFFIXES
from dorl_jax.errors import InputError, suggest

LABELS_FILE = "labels.csv"


@dataclass(frozen=True)
class Columns:
    """What the columns of a table are called.

    Attributes:
      file: path of the image, relative to the folder of the laboratory.
      label: the laboratory's own word for the cell.
      mask: path of the mask; may be absent or empty, as all below.
      group: patient or slide.
      split: "train", "test" or whatever was published.
      duplicate_of: the file that this row repeats; such rows are left out.
    """

    file: str = "file"
    label: str = "class"
    mask: str = "mask"
    group: str = "group"
    split: str = "split"
    duplicate_of: str = "duplicate_of"


def read_table(table: Path, folder: Path, columns: Columns | None = None) -> tuple[Row, ...]:
    """The rows of a CSV file in UTF-8, with a header. Columns that are not asked for are ignored.

    Args:
      table: the file.
      folder: what its paths are relative to.
      columns: their names; the default ones need not be there, but for `file` and `class`.

    Raises:
      InputError: no CSV, no rows, a column that is missing or there twice, an empty file or label, a file that is
        listed twice, a duplicate of no image or of one that repeats it, or paths as Windows writes them.
    """
    if not table.is_file():
        raise InputError(f"no table at {table}")
    columns = columns or Columns()
    usual = Columns()
    required = [columns.file, columns.label]
    for name in ("mask", "group", "split", "duplicate_of"):
        if getattr(columns, name) != getattr(usual, name):
            required.append(getattr(columns, name))
    folder = Path(os.path.abspath(folder))
    rows: list[Row] = []
    line_of: dict[str, int] = {}
    asked_for = [getattr(columns, field.name) for field in fields(Columns)]
    for line, values in _values(table, required, asked_for, _advice(table, folder, columns)):
        where = f"{table}, line {line}"
        text = {field.name: values.get(getattr(columns, field.name), "") for field in fields(Columns)}
        for key in ("file", "label"):
            if not text[key]:
                raise InputError(f"{where}: empty {getattr(columns, key)}")
        for key in ("file", "mask"):
            if "\\" in text[key] and not os.path.exists(folder / text[key]):
                raise InputError(f"{where}: there is no {text[key]}: write '/' between the names of folders")
        image = os.path.normpath(folder / text["file"])
        if not text["duplicate_of"]:
            if image in line_of:
                raise InputError(f"{where}: {text['file']} is listed already in line {line_of[image]}; leave one out")
            line_of[image] = line
        rows.append(
            Row(
                file=Path(text["file"]).as_posix(),
                image=Path(image),
                label=text["label"],
                mask=Path(os.path.normpath(folder / text["mask"])) if text["mask"] else None,
                group=text["group"],
                split=text["split"],
                duplicate_of=text["duplicate_of"],
                where=where,
            )
        )
    _refuse_copies_of_nothing(rows, folder, columns.duplicate_of, line_of)
    return tuple(rows)


def _refuse_copies_of_nothing(rows: Sequence[Row], folder: Path, column: str, kept: Collection[str]) -> None:
    """A row is left out for another one: `no` or `0` in the column, or a circle, would leave out cells for nothing."""
    above = {str(row.image): os.path.normpath(folder / row.duplicate_of) for row in rows if row.duplicate_of}
    for row in rows:
        if not row.duplicate_of:
            continue
        target, seen = os.path.normpath(folder / row.duplicate_of), set[str]()
        while target not in kept and target in above and target not in seen:
            seen.add(target)
            target = above[target]
        # A picture that is not listed may have been kept elsewhere.
        if target not in kept and (target in above or Path(row.duplicate_of).suffix.lower() not in SUFFIXES):
            raise InputError(
                f"{row.where}: {column} is {row.duplicate_of!r}, which is no file that another row keeps: name the "
                "file that this one repeats, or leave the value empty"
            )


@contextmanager
def opened_csv(table: Path) -> Iterator[TextIO]:
    """A CSV file to read; what is wrong with its text is an `InputError` that names it."""
    try:
        # utf-8-sig: spreadsheets put a byte-order mark first.
        with table.open(encoding="utf-8-sig", newline="") as file:
            yield file
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{table} is not a readable CSV file in UTF-8: {error}") from error


def _advice(table: Path, folder: Path, columns: Columns) -> dict[str, str]:
    """Missing column -> what to do, where it is that of the labels."""
    advice = ". Say in [columns] of laboratory.toml what it is called"
    # Of a table alone, paths are relative to its own folder.
    if os.path.abspath(table.parent) == str(folder):
        advice += f"; to embed images without classes, give the table itself: {table} --column {columns.file}"
    return {columns.label: advice}


def _values(
    table: Path, required: Sequence[str], asked_for: Sequence[str], advice: Mapping[str, str]
) -> list[tuple[int, dict[str, str]]]:
    """Line number and stripped values of every row; an absent trailing value is empty."""
    with opened_csv(table) as file:
        reader = csv.DictReader(file, restval="", strict=True)
        columns = [name.strip() for name in reader.fieldnames or ()]
        if len(columns) == 1 and (found := next((sign for sign in ";\t|" if sign in columns[0]), "")):
            raise InputError(
                f"{table}: no column {required[0]!r}; there are: {columns[0]}. "
                f"Its values are parted by {found!r}: save it with commas"
            )
        for name in asked_for:
            if columns.count(name) > 1:
                raise InputError(f"{table} has {columns.count(name)} columns {name!r}: call all but one otherwise")
        for name in required:
            if name not in columns:
                listed = ", ".join(columns) or "none"
                raise InputError(
                    f"{table}: no column {name!r}{suggest(name, columns)}; there are: {listed}{advice.get(name, '')}"
                )
        reader.fieldnames = columns
        # Spreadsheets leave rows of commas behind.
        rows = [(reader.line_num, row) for row in reader if any(map(_is_there, row.values()))]
    if not rows:
        raise InputError(f"{table} has no rows")
    for line, row in rows:
        if None in row:
            raise InputError(f"{table}, line {line}: more values than the {len(columns)} columns")
    return [(line, {key: value.strip() for key, value in row.items()}) for line, row in rows]


def _is_there(value: str | list[str]) -> bool:
    return any(map(_is_there, value)) if isinstance(value, list) else bool(value.strip())
