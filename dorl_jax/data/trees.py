"""A laboratory as a tree: one folder for each class."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from dorl_jax.data.listing import Row
from dorl_jax.errors import InputError, name_some

SUFFIXES = (".bmp", ".png", ".jpg", ".jpeg", ".jpe", ".tif", ".tiff", ".webp")
# What `dorl-jax data check` writes into its folder: the page, the same for programs, the sheet of pictures.
PAGE, PAGE_DATA, PAGE_SHEET = "check.html", "check.json", "contact_sheet.png"


def read_tree(folder: Path, masks: Path | None = None) -> tuple[tuple[Row, ...], tuple[str, ...]]:
    """The images under the folders of a tree; the name of the outermost folder is the label.

    Args:
      folder: holds a folder for each class; deeper folders belong to the class.
      masks: a tree of the same shape that holds the masks: the mask of `a/b.jpg` is `a/b.png`, or of any other ending.
        An image without one has no mask. It may lie in `folder`, and is no class then.

    Returns:
      The rows in alphabetical order, and remarks: what was not taken for an image, masks without an image.

    Raises:
      InputError: no such folder, no image in it, or two masks for an image.
    """
    folder = Path(os.path.abspath(folder))
    if not folder.is_dir():
        raise InputError(f"no folder at {folder}")
    masks = None if masks is None else Path(os.path.abspath(masks))
    images, others = _images(folder, without=masks)
    mask_of = {} if masks is None else _masks(masks)
    rows = []
    for image in images:
        file = image.relative_to(folder)
        if len(file.parts) < 2:
            others.append(image)
            continue
        rows.append(
            Row(
                file=file.as_posix(),
                image=image,
                label=file.parts[0],
                mask=mask_of.pop(file.with_suffix("").as_posix(), None),
                where=str(image),
            )
        )
    if not rows:
        raise InputError(f"no image in the folders of {folder}: a tree has a folder of images for each class")
    notes = []
    if others:
        kinds = Counter(path.suffix or path.name for path in others)
        listed = name_some((f"{count} {suffix}" for suffix, count in sorted(kinds.items())), 8)
        notes.append(f"{len(others)} files are not taken for images of a class: {listed}.")
    if mask_of:
        notes.append(f"{len(mask_of)} masks have no image: {name_some(mask_of)}.")
    return tuple(rows), tuple(notes)


def is_tree(folder: Path) -> bool:
    """Whether a folder of this folder holds images."""
    return any(_has_image(path) for path in _visible_folders(folder) if not is_page(path))


def _has_image(folder: Path) -> bool:
    return any(path.suffix.lower() in SUFFIXES and not is_hidden(path.name) for path in folder.iterdir())


def _visible_folders(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir() and not is_hidden(path.name)]


def is_hidden(name: str) -> bool:
    """Whether a file or folder is passed over."""
    # What macOS and Windows leave in archives is no cell.
    return name.startswith((".", "__MACOSX")) or name in ("Thumbs.db", "desktop.ini")


def walk(folder: Path, without: Path | None = None) -> Iterator[Path]:
    """The files under a folder, each folder's in alphabetical order before those of its folders.

    Hidden files and folders, and what `dorl-jax data check` wrote, are passed over. Links are followed, but not to a
    folder that they lie in.

    Args:
      folder: where to begin.
      without: a folder that is passed over.

    Raises:
      InputError: a folder that cannot be read.
    """
    above: dict[str, tuple[tuple[int, int], ...]] = {str(folder): (folder_identity(folder),)}
    for place, folders, files in os.walk(folder, onerror=_refuse, followlinks=True):
        own = above.pop(place)
        followed = []
        for name in sorted(folders):
            inner = Path(place, name)
            if is_hidden(name) or inner == without or is_page(inner):
                continue
            if (identity := folder_identity(inner)) not in own:
                above[str(inner)] = (*own, identity)
                followed.append(name)
        folders[:] = followed
        for name in sorted(files):
            if not is_hidden(name):
                yield Path(place, name)


def folder_identity(folder: str | Path) -> tuple[int, int]:
    """What is the same for a folder and the links to it."""
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _refuse(error: OSError) -> NoReturn:
    raise InputError(f"{error.filename} cannot be read: {error.strerror}") from error


def is_page(folder: Path) -> bool:
    """Whether `dorl-jax data check` wrote its page into the folder: its pictures are sheets, no cells."""
    return all((folder / name).is_file() for name in (PAGE, PAGE_DATA, PAGE_SHEET))


def _images(folder: Path, without: Path | None = None) -> tuple[list[Path], list[Path]]:
    """Files that look like images, and the others, in alphabetical order."""
    images: list[Path] = []
    others: list[Path] = []
    for path in walk(folder, without):
        (images if path.suffix.lower() in SUFFIXES else others).append(path)
    return sorted(images), sorted(others)


def _masks(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise InputError(f"no folder of masks at {folder}")
    found: dict[str, Path] = {}
    for path in _images(folder)[0]:
        key = path.relative_to(folder).with_suffix("").as_posix()
        if key in found:
            raise InputError(f"two masks for one image: {found[key]} and {path}")
        found[key] = path
    return found
