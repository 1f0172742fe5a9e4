"""Images in archives: tar files, WebDataset's shards among them, and zip files."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa

from dorl_jax.data.formats.facts import Unreadable
from dorl_jax.data.image_lists.folders import is_image, kind_of, what_there_is
from dorl_jax.data.image_lists.packed import ImageList
from dorl_jax.data.sources import TarMember, ZipMember
from dorl_jax.data.tar_files import TarEntry, read_tar_member, tar_entries
from dorl_jax.data.trees import SUFFIXES, is_hidden
from dorl_jax.data.zip_files import zip_members
from dorl_jax.errors import InputError, name_some

# Side files of WebDataset, and the columns that they become; those of a .json have its keys' names.
_TEXTS = {"cls": "label", "txt": "text"}
_JSON = "json"
# What links to images are counted under.
_LINKS = "links (tar --dereference --hard-dereference writes the files themselves)"
# Of a side file, in bytes.
_MOST_ASIDE = 1 << 20


def zip_images(path: Path) -> ImageList:
    """The images in a zip archive, in its order, each named as there.

    Raises:
      InputError: no image in it, or what `zip_files.zip_members` refuses.
    """
    ids, sources = [], []
    others: Counter[str] = Counter()
    for member in zip_members(path):
        if _hidden(member.name):
            continue
        if is_image(member.name):
            ids.append(member.name)
            sources.append(_behind(member))
        else:
            others[kind_of(member.name)] += 1
    if not ids:
        raise _no_image(path, others)
    return ImageList(ids, sources, beginnings=(str(path),), notes=_notes(path, others))


def tar_images(path: Path) -> ImageList:
    """The images in a tar archive, in its order, each named as there ("./" left out).

    Members next to each other whose names are equal up to the first dot of the file's name belong together, as in
    WebDataset: beside an image, `.cls` gives the column `label`, `.txt` the column `text`, `.json` a column for each
    key. Where an image lies among others of longer endings (`7.png`, `7.mask.png`), it is the one. Without side
    files and such an image, members that share a beginning (`7.a.png`, `7.b.png`) are images of their own. Links are
    not read; a note counts those to images.

    Raises:
      InputError: no image in it; several images with a common side file; a side file that cannot be read; or what
        `tar_files.tar_entries` refuses.
    """
    ids: list[str] = []
    sources: list[str] = []
    columns: dict[str, list[Any]] = {}
    others: Counter[str] = Counter()
    links: list[str] = []
    for sample in _samples(path, links):
        images, aside = _parted(sample, path, others)
        known = _known(images[0], aside, path) if images and aside else {}
        for image in images:
            for name in known:
                # A column that begins late is empty up to here.
                columns.setdefault(name, [None] * len(ids))
            ids.append(image.name.removeprefix("./"))
            sources.append(_behind(TarMember(path, image.offset, image.size, image.name)))
            for name, values in columns.items():
                values.append(known.get(name))
    if count := sum(is_image(name) and not _hidden(name) for name in links):
        others[_LINKS] = count
    if not ids:
        raise _no_image(path, others)
    return ImageList(
        ids,
        sources,
        beginnings=(str(path),),
        columns={name: _column(values) for name, values in columns.items()},
        notes=_notes(path, others),
    )


def _behind(member: TarMember | ZipMember) -> str:
    """What the text of a source has behind the archive's path."""
    return str(member)[len(str(member.path)) :]


def _samples(path: Path, links: list[str]) -> Iterator[list[TarEntry]]:
    entries = (entry for entry in tar_entries(path, links) if not _hidden(entry.name))
    for _, group in groupby(entries, key=lambda entry: _key_and_ending(entry.name)[0]):
        yield list(group)


def _key_and_ending(name: str) -> tuple[str, str]:
    folder, slash, file = name.rpartition("/")
    key, _, ending = file.partition(".")
    return f"{folder}{slash}{key}", ending.lower()


def _parted(sample: list[TarEntry], path: Path, others: Counter[str]) -> tuple[list[TarEntry], dict[str, TarEntry]]:
    """The images and the side files of a sample; the rest is counted."""
    images = [entry for entry in sample if is_image(entry.name)]
    aside = {}
    for entry in sample:
        ending = _key_and_ending(entry.name)[1]
        if images and (ending in _TEXTS or ending == _JSON):
            aside[ending] = entry
        elif entry not in images:
            others[kind_of(entry.name)] += 1
    short = [entry for entry in images if "." not in _key_and_ending(entry.name)[1]]
    if len(short) == 1:
        for entry in images:
            if entry is not short[0]:
                others[f".{_key_and_ending(entry.name)[1]}"] += 1
        images = short
    if len(images) > 1 and aside:
        raise InputError(
            f"{path}: {name_some(entry.name for entry in images)} share {name_some(e.name for e in aside.values())}, "
            "and it cannot be told whose it is: write one image a key"
        )
    return images, aside


def _known(image: TarEntry, aside: dict[str, TarEntry], path: Path) -> dict[str, Any]:
    """What the side files say of an image."""
    known: dict[str, Any] = {}
    for ending, entry in sorted(aside.items(), key=lambda item: item[0] == _JSON):
        text = _read_text(entry, path)
        if ending != _JSON:
            known[_TEXTS[ending]] = text.strip()
            continue
        try:
            said = json.loads(text)
        except ValueError as error:
            raise InputError(f"{entry.name} in {path} is no JSON: {error}") from error
        if not isinstance(said, dict):
            raise InputError(f"{entry.name} in {path} holds no object with keys, but {type(said).__name__}")
        for name, value in said.items():
            # What a .cls says stands; what is nested stays JSON.
            known.setdefault(name, json.dumps(value) if isinstance(value, dict | list) else value)
    return known


def _read_text(entry: TarEntry, path: Path) -> str:
    if entry.size > _MOST_ASIDE:
        raise InputError(f"{entry.name} in {path} has {entry.size} bytes, too many for a label or a description")
    try:
        return read_tar_member(TarMember(path, entry.offset, entry.size, entry.name)).decode("utf-8")
    except (Unreadable, UnicodeDecodeError) as error:
        raise InputError(f"{entry.name} in {path} is no text in UTF-8: {error}") from error


def _column(values: Sequence[Any]) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        # Numbers here and words there: as text, all of them.
        return pa.array([None if value is None else str(value) for value in values], pa.string())


def _hidden(name: str) -> bool:
    return any(is_hidden(part) for part in PurePosixPath(name).parts)


def _no_image(path: Path, others: Counter[str]) -> InputError:
    return InputError(f"no image in {path}: looked for {', '.join(SUFFIXES)}; {what_there_is(others)}")


def _notes(path: Path, others: Counter[str]) -> list[str]:
    if not others:
        return []
    listed = name_some(f"{count} {kind}" for kind, count in others.most_common())
    return [f"{others.total()} files in {path} are not taken for images: {listed}."]
