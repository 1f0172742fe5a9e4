"""Archives as they were downloaded, and what is looked at in them."""

import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from dorl_jax.errors import InputError

_ZIP = (".zip",)
_PACKED = (".rar", ".7z", ".tar", ".gz", ".tgz", ".bz2", ".xz")


def files_of(roots: Sequence[Path], suffixes: Sequence[str]) -> Iterator[Path]:
    """The files under the folders with one of these endings (small letters), in alphabetical order.

    What macOS and Windows leave in archives is passed over: hidden files, `__MACOSX`.
    """
    for root in roots:
        for place, folders, files in os.walk(root, followlinks=True):
            folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
            for name in sorted(files):
                if not name.startswith(".") and name.lower().endswith(tuple(suffixes)):
                    yield Path(place, name)


def archives_in(path: Path) -> tuple[list[Path], list[Path]]:
    """The .zip archives in a folder (or the one that it is), and archives of other kinds."""
    if path.is_dir():
        return list(files_of([path], _ZIP)), list(files_of([path], _PACKED))
    name = path.name.lower()
    return [path] if name.endswith(_ZIP) else [], [path] if name.endswith(_PACKED) else []


def unpack(archive: Path, into: Path) -> Path:
    """Unpack a .zip archive to `into/<its name>`, whole or not at all; what is there already is left as it is.

    Raises:
      InputError: not a .zip archive, or a damaged one.
    """
    folder = into / archive.stem
    if folder.is_dir():
        return folder
    into.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f"{archive.stem}.partial", dir=into))
    try:
        with zipfile.ZipFile(archive) as file:
            file.extractall(partial)
        partial.rename(folder)
    except (zipfile.BadZipFile, EOFError) as error:
        raise InputError(f"{archive} is no whole .zip archive: {error}; download it again") from error
    finally:
        if partial.exists():
            shutil.rmtree(partial)
    return folder
