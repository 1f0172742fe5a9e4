"""Images in folders."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from dorl_jax.data.image_lists.packed import ImageList
from dorl_jax.data.sources import source_text
from dorl_jax.data.trees import SUFFIXES, folder_identity, is_hidden, is_page
from dorl_jax.errors import InputError, name_some

_DIGITS = re.compile(r"[0-9]+")


def folder_images(folder: Path) -> ImageList:
    """All images under a folder, each named by its path in it.

    Files come before folders, both in natural order: "cell9.png" before "cell10.png". Links are followed. Hidden files
    are passed over; so are a folder `masks` beside one `images`, and what `dorl-jax data check` wrote.

    Args:
      folder: an absolute path.

    Raises:
      InputError: no image there; the message tells what there is.
    """
    others: Counter[str] = Counter()
    masks: list[str] = []
    ids = list(_walk(folder, "", (folder_identity(folder),), others, masks))
    if not ids:
        packed = " (give archives by their names or a pattern)" if {".tar", ".zip"} & set(others) else ""
        raise InputError(f"no image in {folder}: looked for {', '.join(SUFFIXES)}; {what_there_is(others)}{packed}")
    notes = []
    if others:
        notes.append(f"{others.total()} files of {folder} are not taken for images: {_listed(others)}.")
    if masks:
        notes.append(f"Folders beside one of images are not read: {name_some(masks)}.")
    return named_files(folder, ids, notes)


def named_files(folder: Path, ids: list[str], notes: Iterable[str] = ()) -> ImageList:
    """Files by their paths in a folder."""
    beginning = f"{folder}/".replace("//", "/")
    odd = any("#" in name for name in ids) or "#" in beginning
    sources = [source_text(Path(beginning + name))[len(beginning) :] for name in ids] if odd else None
    return ImageList(ids, sources, beginnings=(beginning,), notes=tuple(notes))


def naturally(name: str) -> str:
    """A key that sorts numbers in names by their value."""
    return _DIGITS.sub(lambda digits: digits[0].zfill(20), name)


def is_image(name: str) -> bool:
    """Whether a file's name ends as an image's."""
    return os.path.splitext(name)[1].lower() in SUFFIXES


def kind_of(name: str) -> str:
    """What to count a file under that is no image: the ending of its name, or the name."""
    return os.path.splitext(name)[1].lower() or name


def what_there_is(others: Counter[str]) -> str:
    """The end of a message about files that are no images."""
    return f"there are only: {_listed(others)}" if others else "there is no other file either"


def _listed(others: Counter[str]) -> str:
    return name_some((f"{count} {kind}" for kind, count in others.most_common()), 8)


def _walk(
    folder: Path, inside: str, above: tuple[tuple[int, int], ...], others: Counter[str], masks: list[str]
) -> Iterator[str]:
    try:
        with os.scandir(folder / inside) as entries:
            found = [(entry.name, entry.is_dir()) for entry in entries if not is_hidden(entry.name)]
    except OSError as error:
        raise InputError(f"{folder / inside} cannot be read: {error.strerror}") from error
    # By name first, so that "1" and "01", which are the same number, have an order, too.
    found.sort()
    found.sort(key=lambda item: naturally(item[0]))
    folders = [name for name, is_folder in found if is_folder]
    for name, is_folder in found:
        if is_folder:
            continue
        if is_image(name):
            yield inside + name
        else:
            others[kind_of(name)] += 1
    for name in folders:
        if name == "masks" and "images" in folders:
            masks.append(inside + name)
            continue
        if is_page(folder / inside / name):
            continue
        identity = folder_identity(folder / inside / name)
        # A link to a folder that it lies in.
        if identity not in above:
            yield from _walk(folder, f"{inside}{name}/", (*above, identity), others, masks)
