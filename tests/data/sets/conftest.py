"""Archives of the published layouts, with images of a few pixels."""

import csv
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dorl_jax.data.listing import Listing


@pytest.fixture
def draw() -> Callable[[Path], None]:
    """Writes an image of its own for every path, in the format of its ending."""

    def write(path: Path, size: tuple[int, int] = (20, 18)) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        width, height = size
        seed = sum(path.name.encode())
        pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)

    return write


@pytest.fixture
def pack() -> Callable[[Path, Path], Path]:
    """Packs what is in a folder into a .zip archive."""

    def write(folder: Path, archive: Path) -> Path:
        archive.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(archive, "w") as file:
            for path in sorted(folder.rglob("*")):
                file.write(path, path.relative_to(folder))
        return archive

    return write


@pytest.fixture
def labels_of() -> Callable[[Listing], dict[str, str]]:
    return lambda listing: {row.file: row.label for row in listing.rows}


@pytest.fixture
def write_table() -> Callable[[Path, Mapping[str, str], tuple[str, str]], None]:
    def write(path: Path, rows: Mapping[str, str], header: tuple[str, str]) -> None:
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(header)
            writer.writerows(rows.items())

    return write
