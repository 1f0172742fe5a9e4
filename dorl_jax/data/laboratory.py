"""Laboratories from what they come as: a table, a tree, a published or built set, or a file that says which."""

import os
import re
import tomllib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unicodedata import normalize

import yaml

from dorl_jax import config
from dorl_jax.data.built import INFO_FILE, read_built
from dorl_jax.data.listing import Listing, Row
from dorl_jax.data.sets import find_set
from dorl_jax.data.tables import LABELS_FILE, Columns, read_table
from dorl_jax.data.trees import SUFFIXES, is_hidden, is_page, is_tree, read_tree, walk
from dorl_jax.errors import InputError, name_some, suggest

LABORATORY_FILES = ("laboratory.toml", "laboratory.yaml", "laboratory.yml")
# Folders that a tree keeps its images and masks in.
_IMAGES, _MASKS = "images", "masks"


@dataclass(frozen=True)
class LaboratoryFile:
    """What `laboratory.toml` or `laboratory.yaml` says.

    Attributes:
      name: of the laboratory; the name of its folder if empty.
      root: folder of the images, relative to this file; `${NAME}` is an environment variable.
      table: CSV file, relative to `root`.
      images: class-per-folder tree, relative to `root`. If neither a table nor a tree nor a published set is named,
        what `root` holds decides.
      masks: tree of masks that mirrors `images`, relative to `root`; a table tells them in a column.
      published: name of a published data set that `root` holds as it was downloaded.
      columns: what the columns of the table are called.
      group: regular expression, searched in the file's name: its first group (or all it matches) is the patient or
        slide.
      split: the same for the part the image belongs to.
      labels: the laboratory's label -> the word of a taxonomy.
      dropped: labels whose cells are left out.
    """

    name: str = ""
    root: str = "."
    table: str = ""
    images: str = ""
    masks: str = ""
    published: str = ""
    columns: Columns = field(default_factory=Columns)
    group: str = ""
    split: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()


def open_laboratory(path: Path) -> Listing:
    """One laboratory.

    Args:
      path: a laboratory file (see `LaboratoryFile`), or a folder with one, with a `labels.csv`, with a built data set,
        or with a folder of images for each class (in it, or in its `images`, with masks in `masks`).

    Raises:
      InputError: none of these, or what the reader of its kind refuses.
    """
    path = Path(os.path.abspath(path))
    if path.is_file():
        if path.suffix.lower() not in (".toml", ".yaml", ".yml"):
            raise InputError(f"{path} is no laboratory: give a folder, or a .toml or .yaml file that describes one")
        return _described(path)
    if not path.is_dir():
        raise InputError(f"no laboratory at {path}")
    reader = _reader(path)
    if reader is None:
        raise InputError(
            f"no {LABELS_FILE} in {path}, no {LABORATORY_FILES[0]} and no folder of images for each class: "
            "a laboratory has one of them"
        )
    return reader(path)


def open_laboratories(root: Path, names: Sequence[str] = ()) -> tuple[Listing, ...]:
    """The laboratories in a folder, or the one that it is.

    Args:
      root: holds a folder for each laboratory, or is one (see `open_laboratory`).
      names: those to read, in the wanted order, by their folders or by the names in their laboratory files; none means
        all, in alphabetical order.

    Raises:
      InputError: no such folder, no laboratory, an unknown name, or two laboratories of one name; where all are to be
        read, a folder with images that is none of them.
    """
    root = Path(os.path.abspath(root))
    if not root.exists():
        raise InputError(f"no data folder at {root}")
    found = _find(root)
    if not found:
        raise InputError(
            f"no laboratory in {root}: none of its folders has a {LABELS_FILE}, a {LABORATORY_FILES[0]} or a folder of "
            "images for each class"
        )
    chosen = [_named(name, found) for name in names] or sorted(found)
    if len(set(chosen)) < len(chosen):
        raise InputError(f"a laboratory is named twice: {', '.join(names)}")
    listings = tuple(_found_in(name, open_laboratory(found[name])) for name in chosen)
    seen: dict[str, Path] = {}
    for key, listing in zip(chosen, listings, strict=True):
        if listing.name in seen:
            raise InputError(f"two laboratories are called {listing.name!r}: {seen[listing.name]} and {found[key]}")
        seen[listing.name] = found[key]
    if not names and root not in found.values():
        _refuse_passed_over(root, found, listings)
    return listings


def holds_laboratories(path: Path) -> bool:
    """Whether a folder, or one in it, says by a file that it is a laboratory or a built set."""
    with os.scandir(path) as entries:
        return _declared(path) or any(
            _declared(Path(entry)) for entry in entries if entry.is_dir() and not is_hidden(entry.name)
        )


def no_laboratory(name: str, known: Collection[str]) -> InputError:
    """The error for a name that none of the known laboratories has."""
    return InputError(f"no laboratory {name!r}{suggest(name, known)}; there are: {name_some(known, 20)}")


def _find(root: Path) -> dict[str, Path]:
    """Name of the folder (or laboratory file) -> path."""
    if root.is_file() or _declared(root):
        return {root.stem if root.is_file() else root.name: root}
    folders = [path for path in root.iterdir() if path.is_dir() and not is_hidden(path.name)]
    inner = {path.name: path for path in folders if _reader(path) is not None}
    # Folders of images are classes, folders of such folders laboratories; a laboratory's file tells for sure.
    if _reader(root) is not None and not any(map(_declared, inner.values())):
        return {root.name: root}
    return inner


def _named(name: str, found: Mapping[str, Path]) -> str:
    """The key of a laboratory that is asked for by its folder, or by the name in its file."""
    for key in found:
        if same_name(key, name):
            return key
    own = {said: key for key, path in found.items() if (said := _own_name(path))}
    for said, key in own.items():
        if same_name(said, name):
            return key
    raise no_laboratory(name, [*found, *own])


def _found_in(folder: str, listing: Listing) -> Listing:
    return listing if folder == listing.name else replace(listing, folder=folder)


def _own_name(path: Path) -> str:
    """The name in a laboratory's file, "" if there is none."""
    files = [path] if path.is_file() else [path / name for name in LABORATORY_FILES if (path / name).is_file()]
    return str(_parse(files[0]).get("name", "")) if files else ""


def same_name(one: str, other: str) -> bool:
    """Whether two names are one text, be their accents in the letters or beside them (Unicode's NFC and NFD)."""
    return normalize("NFC", one) == normalize("NFC", other)


def _refuse_passed_over(root: Path, found: Mapping[str, Path], listings: Sequence[Listing]) -> None:
    """Refuse to do without a folder that may be meant for a laboratory."""
    others = sorted(
        path for path in root.iterdir() if path.is_dir() and not is_hidden(path.name) and path.name not in found
    )
    held = {folder.name: file for folder in others if (file := _cells_in(folder)) is not None}
    if not held:
        return
    # Where a laboratory's file tells so, its images lie in a folder beside it.
    used = [str(source) for listing in listings for row in listing.rows for source in (row.image, row.mask) if source]
    held = {name: file for name, file in held.items() if not any(one.startswith(f"{root / name}/") for one in used)}
    if held:
        listed = name_some(f"{name} (with {file.relative_to(root / name)})" for name, file in held.items())
        raise InputError(
            f"no laboratories, but with images, in {root}: {listed}. A laboratory has a {LABELS_FILE}, "
            f"images/CLASS/ or CLASS/ with images, or a {LABORATORY_FILES[0]} that says where they are. To do without "
            "these folders, name the wanted ones (data.laboratories of a run; elsewhere give the folders themselves)"
        )


def _cells_in(folder: Path) -> Path | None:
    """The first image in a folder, at any depth, that none of our own commands wrote; None if there is none.

    Passed over are what `dorl-jax data check` wrote, run folders and built sets.
    """
    if is_page(folder):
        return None
    own: list[str] = []
    for file in walk(folder):
        place = str(file.parent)
        if any(place == one or place.startswith(f"{one}/") for one in own):
            continue
        if _is_run(file.parent) or (file.parent / INFO_FILE).is_file():
            own.append(place)
        elif file.suffix.lower() in SUFFIXES:
            return file
    return None


def _is_run(folder: Path) -> bool:
    return (folder / config.SETTINGS_FILE).is_file() and (folder / "stages").is_dir()


def _declared(folder: Path) -> bool:
    """Whether the folder says by a file that it is a laboratory."""
    return any((folder / name).is_file() for name in (*LABORATORY_FILES, LABELS_FILE)) or bool(_versions(folder))


def _versions(folder: Path) -> list[Path]:
    """The folders of a built set's versions, the newest last; the folder itself if it is one."""
    if (folder / INFO_FILE).is_file():
        return [folder]
    versions = [path for path in folder.glob("*.*.*") if (path / INFO_FILE).is_file()]
    return sorted(versions, key=lambda path: [int(part) if part.isdigit() else 0 for part in path.name.split(".")])


def _reader(folder: Path) -> Callable[[Path], Listing] | None:
    files = [name for name in LABORATORY_FILES if (folder / name).is_file()]
    if files:
        return lambda folder: _described(_only(folder, files))
    if (folder / LABELS_FILE).is_file():
        return lambda folder: _with_note_of_masks(
            Listing(folder.name, read_table(folder / LABELS_FILE, folder)), folder
        )
    if _versions(folder):
        return _built
    if is_tree(folder / _IMAGES if (folder / _IMAGES).is_dir() else folder):
        return lambda folder: _tree(folder, "", "")
    return None


def _only(folder: Path, files: Sequence[str]) -> Path:
    if len(files) > 1:
        raise InputError(f"{folder} has {' and '.join(files)}, and each says what it is: leave one of them")
    return folder / files[0]


def _built(folder: Path) -> Listing:
    return read_built(_versions(folder)[-1])


def _tree(folder: Path, images: str, masks: str) -> Listing:
    if not images and (folder / _IMAGES).is_dir():
        images = _IMAGES
        masks = masks or (_MASKS if (folder / _MASKS).is_dir() else "")
    rows, notes = read_tree(folder / images, folder / masks if masks else None)
    if masks and not any(row.mask for row in rows):
        notes += (f"No image has a mask in {folder / masks}: the mask of a/b.jpg is a/b.png there.",)
    return Listing(folder.name, rows, {}, notes)


def _described(path: Path) -> Listing:
    """The laboratory that a file describes."""
    said = config.build(LaboratoryFile, _parse(path), origin=str(path))
    named = [key for key in ("table", "images", "published") if getattr(said, key)]
    if len(named) > 1:
        raise InputError(f"{path}: give one of {' and '.join(named)}")
    root = Path(os.path.abspath(path.parent / config.expand_path(said.root, f"root of {path}")))
    if not root.is_dir():
        raise InputError(f"{path}: no folder at {root} (root = {said.root!r})")
    table = said.table or (LABELS_FILE if not said.images and (root / LABELS_FILE).is_file() else "")
    if said.masks and (said.published or table):
        what = f"published = {said.published!r}" if said.published else table
        raise InputError(f"{path}: masks = {said.masks!r} mirrors a tree of images, which {what} is not: leave it out")
    if "/" in said.name:
        raise InputError(
            f"{path}: name = {said.name!r}: a laboratory's name has no '/', which ends it in the names of its cells"
        )
    if said.published:
        listing = find_set(said.published).read(root)
    elif table:
        listing = _with_note_of_masks(Listing("", read_table(root / table, root, said.columns)), root)
    elif said.images and not said.masks:
        listing = _with_note_of_masks(_tree(root, said.images, ""), root)
    else:
        listing = _tree(root, said.images, said.masks)
    both = sorted(set(said.labels) & set(said.dropped))
    if both:
        raise InputError(f"{path}: both mapped and dropped: {name_some(both)}")
    used = {row.label for row in listing.rows}
    own = _as_written({**said.labels, **dict.fromkeys(said.dropped, "")}, used)
    words = {**listing.words, **own}
    notes = list(listing.notes)
    unused = [label for label in own if label not in used]
    if said.columns != Columns() and not table:
        notes.append(f"{path.name} tells columns, but there is no table.")
    if unused:
        notes.append(f"{path.name} maps labels that no image has: {name_some(unused)}.")
    rows = listing.rows
    for key in ("group", "split"):
        if pattern := getattr(said, key):
            rows, missed = _search(rows, key, pattern, path)
            if len(missed) == len(rows):
                raise InputError(
                    f"{path}: {key} = {pattern!r} matches none of {len(rows)} files, {missed[0]!r} for example: "
                    "mend it, or leave it out"
                )
            if missed:
                notes.append(f"{len(missed)} files do not match {key} = {pattern!r}: {name_some(missed, 3)}.")
    default = path.parent.name if path.name in LABORATORY_FILES else path.stem
    return Listing(said.name or default, rows, words, tuple(notes), dict.fromkeys(own, str(path)))


def _with_note_of_masks(listing: Listing, folder: Path) -> Listing:
    """Tells of a folder of masks that no image has its mask in."""
    if any(row.mask for row in listing.rows) or not (folder / _MASKS).is_dir():
        return listing
    note = f"No image has a mask, though there is a folder {folder / _MASKS}: name masks in a table's column or in "
    return replace(listing, notes=(*listing.notes, f"{note}{LABORATORY_FILES[0]}."))


def _as_written(words: dict[str, str], used: Collection[str]) -> dict[str, str]:
    """The words by the labels that are used, where both are one text in other code points.

    macOS takes accented letters apart (Unicode's NFD) in the names of folders, editors do not.
    """
    twins: dict[str, list[str]] = {}
    for label in sorted(used):
        twins.setdefault(normalize("NFC", label), []).append(label)
    return {
        written: word
        for label, word in words.items()
        for written in ([label] if label in used else twins.get(normalize("NFC", label), [label]))
    }


def _search(rows: tuple[Row, ...], key: str, pattern: str, path: Path) -> tuple[tuple[Row, ...], list[str]]:
    """The rows with what the pattern finds in their file's name, and the files it does not match."""
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise InputError(f"{path}: {key} = {pattern!r} is no regular expression: {error}") from error
    found, missed = [], []
    for row in rows:
        match = expression.search(row.file)
        value = None if match is None else match[1] if expression.groups else match[0]
        if value is None:
            missed.append(row.file)
            found.append(row)
        else:
            found.append(replace(row, group=value) if key == "group" else replace(row, split=value))
    return tuple(found), missed


def _parse(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".toml":
            return tomllib.loads(text)
        # Every scalar is text: YAML would read the labels NO and 1e5 as something else.
        node = yaml.compose(text, Loader=yaml.BaseLoader)
        _refuse_repeated_keys(node, path)
        tree = yaml.load(text, Loader=yaml.BaseLoader)
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no text in UTF-8: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path} is not valid TOML: {error}") from error
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise InputError(f"{path} does not hold keys and values")
    return tree


def _refuse_repeated_keys(node: Any, path: Path) -> None:
    """TOML refuses a repeated key, YAML takes the last one."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_repeated_keys(item, path)
    if not isinstance(node, yaml.MappingNode):
        return
    seen: set[str] = set()
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise InputError(f"{path}, line {key.start_mark.line + 1}: a key that is no text")
        if key.value in seen:
            raise InputError(f"{path}, line {key.start_mark.line + 1}: {key.value!r} is there twice")
        seen.add(key.value)
        _refuse_repeated_keys(value, path)
