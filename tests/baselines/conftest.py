"""A run's cells and store without a segmenter: crops by the true masks, features that are drawn."""

from pathlib import Path

import numpy as np
import pytest

from dorl_jax.baselines.cells import Cells, open_cells
from dorl_jax.data.crops import cell_crop
from dorl_jax.data.manifest import read_laboratories, read_pair
from dorl_jax.data.synthetic import write_laboratories
from dorl_jax.data.taxonomy import load_taxonomy
from dorl_jax.store import StoreWriter

WIDTH = 6


@pytest.fixture(scope="session")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Cells:
    """Two laboratories of 20 cells each, four of a class. Read only."""
    folder = tmp_path_factory.mktemp("baselines")
    root = write_laboratories(folder / "root", cells_per_class=4, laboratories=2, seed=3)
    manifest = read_laboratories(root, (), load_taxonomy("five_classes"))
    rng = np.random.default_rng(0)
    count = len(manifest.cells)
    pairs = [read_pair(cell.image, cell.mask) for cell in manifest.cells if cell.mask is not None]
    assert len(pairs) == count
    writer = StoreWriter(folder / "store", [cell.id for cell in manifest.cells], {"made": "by hand"}, 16)
    arrays = {
        "feature": rng.standard_normal((count, 14, 14, WIDTH), np.float32),
        "crop": np.stack([cell_crop(image, mask) for image, mask in pairs]),
        "foreground": rng.integers(0, 256, (count, 14, 14)).astype(np.uint8),
        "empty": np.zeros(count, bool),
    }
    for number, places in writer.missing():
        writer.write(number, {name: array[places.start : places.stop] for name, array in arrays.items()})
    return open_cells(manifest, folder / "store")


@pytest.fixture(scope="session")
def store_folder(cells: Cells) -> Path:
    return cells.store._folder
