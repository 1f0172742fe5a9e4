"""A small laboratory on disk, and the means to spoil it."""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dorl_jax.data.synthetic import write_laboratories
from dorl_jax.data.taxonomy import Taxonomy, load_taxonomy


@pytest.fixture(scope="session")
def five() -> Taxonomy:
    return load_taxonomy("five_classes")


@pytest.fixture(scope="session")
def smears(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two synthetic laboratories of 15 cells each. Read only."""
    return write_laboratories(tmp_path_factory.mktemp("smears") / "root", cells_per_class=3, laboratories=2, seed=1)


@pytest.fixture
def make_laboratory(tmp_path: Path) -> Callable[..., Path]:
    """Writes `<name>/labels.csv` with the given rows, and a 20 x 24 image and mask for every file named."""

    def make(rows: Sequence[dict[str, str]], name: str = "lab") -> Path:
        folder = tmp_path / name
        folder.mkdir()
        for row in rows:
            if row.get("file"):
                image = np.full((20, 24, 3), 200, np.uint8)
                Image.fromarray(image).save(folder / row["file"])
            if row.get("mask"):
                mask = np.zeros((20, 24), np.uint8)
                mask[5:15, 6:18] = 128
                Image.fromarray(mask).save(folder / row["mask"])
        with (folder / "labels.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        return folder

    return make
