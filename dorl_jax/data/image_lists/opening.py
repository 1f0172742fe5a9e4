"""What is meant by a name: a folder, a pattern, an image, a table, an archive, a laboratory or a built set."""

import glob
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

from dorl_jax.data.image_lists.archives import tar_images, zip_images
from dorl_jax.data.image_lists.folders import (
    folder_images,
    is_image,
    kind_of,
    named_files,
    naturally,
    what_there_is,
)
from dorl_jax.data.image_lists.laboratories import laboratory_images
from dorl_jax.data.image_lists.packed import ImageList, join
from dorl_jax.data.image_lists.tables import table_images, text_images
from dorl_jax.data.laboratory import holds_laboratories, open_laboratories
from dorl_jax.data.trees import SUFFIXES, folder_identity
from dorl_jax.errors import InputError, suggest

_TABLES = (".csv", ".tsv", ".parquet")
_LISTS = (".txt", ".lst")
_LABORATORY = (".toml", ".yaml", ".yml")
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")
_ARCHIVES = (".tar", ".zip")
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")

Names = str | Path | Sequence[str | Path]


def open_images(what: Names, *, column: str | None = None, id_column: str | None = None) -> ImageList:
    """Images from anywhere, listed without opening one.

    What is read, told by what is there and by the ending of its name:

    - a folder: all images in it, at any depth (`folders.folder_images`); where it is a laboratory with a `labels.csv`
      or `laboratory.toml`, holds such, or is a built data set, its cells (`laboratories.laboratory_images`)
    - an image
    - `.csv`, `.tsv`, `.parquet`: a table with a column of paths (`tables.table_images`)
    - `.txt`, `.lst`: a path a line
    - `.toml`, `.yaml`: a file that describes a laboratory
    - `.tar`: images, WebDataset's samples (`archives.tar_images`); `.zip`: images
    - a pattern, "cells/**/*.png", or of numbered files, "cells-{000..012}.tar" or "{a,b}.zip"
    - several of all these

    Names are unique. Of a single thing they are its own: paths in the folder, members of the archive, ids of the
    table. Where a pattern or a sequence names several, each one's path below the folder they share comes first.

    Args:
      what: one or several of these. A name that exists is no pattern.
      column: of a table, the one that holds paths.
      id_column: of a table, the one that holds unique names.

    Raises:
      InputError: nothing there, no image in it, an unknown kind of file, ids that are there twice, or what the reader
        of its kind refuses.
    """
    names = [str(what)] if isinstance(what, str | Path) else [str(name) for name in what]
    if not names:
        raise InputError("no images given: name a folder, files, a pattern, a table or an archive")
    found = [_find(name) for name in names]
    paths = [path for paths, _ in found for path in paths]
    several = len(names) > 1 or found[0][1]
    made = _open(paths, found[0][1] if len(names) == 1 else None, column, id_column) if several else None
    if made is None:
        made = _one(paths[0], column, id_column)
    if (column or id_column) and not any(path.suffix.lower() in _TABLES for path in paths):
        raise InputError(f"a column is given ({column or id_column}), but {names[0]} is no table")
    return made


def _one(path: Path, column: str | None, id_column: str | None) -> ImageList:
    if path.is_dir():
        return laboratory_images(open_laboratories(path)) if holds_laboratories(path) else folder_images(path)
    ending = path.suffix.lower()
    if is_image(path.name):
        return named_files(path.parent, [path.name])
    if ending in _TABLES:
        return table_images(path, column, id_column)
    if ending in _LISTS:
        return text_images(path)
    if ending in _LABORATORY:
        return laboratory_images(open_laboratories(path))
    if ending == ".zip":
        return zip_images(path)
    if ending == ".tar":
        return tar_images(path)
    if path.name.lower().endswith(_COMPRESSED):
        raise InputError(
            f"{path} is a compressed tar, in which no image can be found without unpacking all before it: decompress "
            "it to a .tar (gunzip, unxz, unzstd), which is hardly larger, for images are compressed already"
        )
    raise InputError(
        f"{path} is of no kind that is read: an image ({', '.join(SUFFIXES)}), a table ({', '.join(_TABLES)}), a list "
        f"of paths ({', '.join(_LISTS)}), a laboratory ({', '.join(_LABORATORY)}) or an archive "
        f"({', '.join(_ARCHIVES)})"
    )


def _open(paths: list[Path], base: Path | None, column: str | None, id_column: str | None) -> ImageList:
    """Several, each named by its path below `base`, or below the folder that they share."""
    base = base or Path(os.path.commonpath([path.parent for path in paths]))
    inside = len(f"{base}/".replace("//", "/"))
    names = [path.as_posix()[inside:] for path in paths]
    lists: list[ImageList] = []
    prefixes: list[str] = []
    files: list[str] = []
    for place, (path, name) in enumerate(zip(paths, names, strict=True)):
        plain = is_image(name) and path.is_file()
        if plain:
            files.append(name)
        # Images next to each other are one list: there may be a million.
        if files and (not plain or place == len(paths) - 1):
            lists.append(named_files(base, files))
            prefixes.append("")
            files = []
        if not plain:
            lists.append(_one(path, column, id_column))
            prefixes.append(f"{name}/")
    return join(lists, prefixes)


def _find(name: str) -> tuple[list[Path], Path | None]:
    """What a name stands for, and, if it is a pattern, the folder before its first wildcard."""
    path = Path(os.path.abspath(os.path.expanduser(name)))
    if path.exists():
        return [path], None
    if _BRACES.search(name):
        return _numbered(path), _fixed_part(path)
    if glob.has_magic(name):
        return _matching(path), _fixed_part(path)
    near = suggest(path.name, [item.name for item in path.parent.iterdir()] if path.parent.is_dir() else [])
    raise InputError(f"nothing at {path}{near}")


def _has_wildcard(text: str) -> bool:
    return glob.has_magic(text) or bool(_BRACES.search(text))


def _fixed_part(pattern: Path) -> Path:
    fixed = pattern
    while _has_wildcard(str(fixed)):
        fixed = fixed.parent
    return fixed


def _numbered(pattern: Path) -> list[Path]:
    """The files of a pattern with braces; each must be there."""
    paths = []
    for text in _expanded(str(pattern)):
        if glob.has_magic(text):
            paths += _matching(Path(text))
        elif os.path.exists(text):
            paths.append(Path(text))
        else:
            raise InputError(f"nothing at {text}, which {pattern.name} names")
    return paths


def _expanded(text: str) -> Iterator[str]:
    """Each text that a pattern with braces stands for, "{000..012}" or "{a,b}", the last brace counting fastest."""
    parts = _BRACES.split(text)
    # Every other part was in braces.
    choices = [_choices(part) if place % 2 else [part] for place, part in enumerate(parts)]
    return map("".join, product(*choices))


def _choices(inside: str) -> list[str]:
    if match := _RANGE.fullmatch(inside):
        first, last = match[1], match[2]
        # As the shell and WebDataset: zeros in front are kept.
        width = max(len(first), len(last)) if "0" in (first[0], last[0]) and max(len(first), len(last)) > 1 else 0
        step = 1 if int(last) >= int(first) else -1
        return [str(number).zfill(width) for number in range(int(first), int(last) + step, step)]
    if "," not in inside:
        raise InputError(f"{{{inside}}} in a pattern is neither a range, {{000..012}}, nor a choice, {{a,b}}")
    return inside.split(",")


def _matching(pattern: Path) -> list[Path]:
    """What a pattern with wildcards matches: its images; else tables and archives; else folders."""
    # Text as long as it can be: there may be a million.
    matches = sorted(_not_in_circles(glob.iglob(str(pattern), recursive=True), str(_fixed_part(pattern))))
    matches.sort(key=naturally)
    files = [match for match in matches if os.path.isfile(match)]
    chosen = [file for file in files if is_image(file)]
    if not chosen:
        chosen = [file for file in files if os.path.splitext(file)[1].lower() in (*_ARCHIVES, *_TABLES)]
    if not files:
        chosen = matches
    if not chosen:
        fixed = _fixed_part(pattern)
        if not fixed.is_dir():
            raise InputError(f"no file matches {pattern}: there is no folder {fixed}")
        if not matches:
            raise InputError(f"no file matches {pattern} in {fixed}, {_number_in(fixed)}")
        others = Counter(kind_of(os.path.basename(file)) for file in files)
        raise InputError(f"no image matches {pattern}: looked for {', '.join(SUFFIXES)}; {what_there_is(others)}")
    return [Path(path) for path in chosen]


def _not_in_circles(matches: Iterator[str], base: str) -> Iterator[str]:
    """What does not lie behind a link to a folder that the link lies in, which "**" follows some forty times."""
    # Folder -> it and those above it up to `base`; None behind such a link.
    above: dict[str, tuple[tuple[int, int], ...] | None] = {}

    def way_to(folder: str) -> tuple[tuple[int, int], ...] | None:
        if folder not in above:
            way = way_to(os.path.dirname(folder)) if len(folder) > len(base) else ()
            identity = folder_identity(folder)
            above[folder] = None if way is None or identity in way else (*way, identity)
        return above[folder]

    return (match for match in matches if way_to(os.path.dirname(match)) is not None)


def _number_in(folder: Path) -> str:
    kinds = Counter("folders" if path.is_dir() else kind_of(path.name) for path in folder.iterdir())
    return f"where {what_there_is(kinds)}" if kinds else "which is empty"
