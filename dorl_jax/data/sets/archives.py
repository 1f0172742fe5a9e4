"""Archives as they were downloaded, and what is looked at in them."""

import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from dorl_jax.data.trees import walk
from dorl_jax.errors import InputError

_IMAGES = (".bmp", ".jpg", ".jpeg", ".png", ".tif", ".tiff")
_ZIP = (".zip",)
_PACKED = (".rar", ".7z", ".tar", ".gz", ".tgz", ".bz2", ".xz")


def files_of(roots: Sequence[Path], suffixes: Sequence[str]) -> Iterator[Path]:
    """The files under the folders with one of these endings (small letters), in alphabetical order.

    What macOS and Windows leave in archives is passed over: hidden files, `__MACOSX`.
    """
    for root in roots:
        for path in walk(root):
            if path.name.lower().endswith(tuple(suffixes)):
                yield path


def archives_in(path: Path) -> tuple[list[Path], list[Path]]:
    """The .zip archives in a folder (or the one that it is), and archives of other kinds."""
    if path.is_dir():
        return list(files_of([path], _ZIP)), list(files_of([path], _PACKED))
    name = path.name.lower()
    return [path] if name.endswith(_ZIP) else [], [path] if name.endswith(_PACKED) else []


def not_unpacked(archives: Sequence[Path], folder: Path) -> list[Path]:
    """The .zip archives whose images are not in the folder, too; told by the first image of each.

    Raises:
      InputError: not a .zip archive, or a damaged one.
    """
    if not archives:
        return []
    there = {(path.parent.name, path.name) for path in files_of([folder], _IMAGES)}
    left = []
    for archive in archives:
        with _opened(archive) as file:
            names = (PurePosixPath(name) for name in file.namelist())
            image = next((name for name in names if _is_image(name)), None)
        if image is not None and (image.parent.name or folder.name, image.name) not in there:
            left.append(archive)
    return left


def unpack(archive: Path, into: Path) -> Path:
    """Unpack a .zip archive to `into/<its name>`, whole or not at all; what is there already is left as it is.

    Raises:
      InputError: not a .zip archive, a damaged or encrypted one, or one packed by an unusual method.
    """
    folder = into / archive.stem
    if folder.is_dir():
        return folder
    into.mkdir(parents=True, exist_ok=True)
    # Hidden, for `into` may lie among what is read, and what a killed process leaves is not all of the archive.
    partial = Path(tempfile.mkdtemp(prefix=f".{archive.stem}.partial", dir=into))
    try:
        with _opened(archive) as file:
            file.extractall(partial)
        partial.rename(folder)
    finally:
        if partial.exists():
            shutil.rmtree(partial)
    return folder


@contextmanager
def _opened(archive: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(archive) as file:
            yield file
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise InputError(f"{archive} is no whole .zip archive: {error}; download it again") from error
    except RuntimeError as error:  # encrypted, or packed by a method that Python does not know
        raise InputError(f"{archive} cannot be unpacked here: {error}; unpack it by another program") from error


def _is_image(name: PurePosixPath) -> bool:
    hidden = any(part.startswith((".", "__MACOSX")) for part in name.parts)
    return not hidden and name.suffix.lower() in _IMAGES
