"""Groups of cells: what the tables say, and what the pictures show."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from dorl_jax.data import groups
from dorl_jax.data.check.copies import find_copies
from dorl_jax.data.groups import cached_groups, cell_groups
from dorl_jax.data.manifest import read_laboratories
from dorl_jax.data.synthetic import write_laboratories
from dorl_jax.data.taxonomy import load_taxonomy


@pytest.fixture
def manifest(tmp_path):
    root = write_laboratories(tmp_path / "cells", cells_per_class=3, laboratories=2)
    return read_laboratories(root, [], load_taxonomy("five_classes"))


def test_cells_on_their_own(manifest):
    assert cell_groups(manifest, progress=False) == dict.fromkeys((cell.id for cell in manifest.cells), "")


def test_slides_and_copies_are_joined(manifest, tmp_path):
    """Cells 0 and 1 are of one slide, 20 is 1 turned, 21 is of another laboratory's slide of the same name."""
    cells = list(manifest.cells)
    other = next(i for i, cell in enumerate(cells) if cell.laboratory != cells[0].laboratory)
    turned = tmp_path / "turned.png"
    Image.fromarray(np.rot90(np.asarray(Image.open(cells[1].image).convert("RGB"))).copy()).save(turned)
    cells[0], cells[1] = replace(cells[0], group="s1"), replace(cells[1], group="s1")
    cells[other] = replace(cells[other], image=turned)
    cells[other + 1] = replace(cells[other + 1], group="s1")
    cells[other + 2] = replace(cells[other + 2], group="s1")
    made = replace(manifest, cells=tuple(cells))
    groups = cell_groups(made, progress=False)
    name, second = f"{cells[0].laboratory}/s1", f"{cells[other].laboratory}/s1"
    assert {id: group for id, group in groups.items() if group} == {
        cells[0].id: name,
        cells[1].id: name,
        cells[other].id: name,
        cells[other + 1].id: second,
        cells[other + 2].id: second,
    }
    assert cached_groups(made, tmp_path / "groups.parquet", progress=False) == groups
    # Read again, not looked for: the pictures may be gone.
    turned.unlink()
    assert cached_groups(made, tmp_path / "groups.parquet", progress=False) == groups


def test_pictures_there_by_the_dozen_are_compared_once(manifest, tmp_path, monkeypatch):
    """A class that was evened out: 12 of the cells 40 times each, one of them turned in half of its copies."""
    turned = tmp_path / "turned.png"
    Image.fromarray(np.rot90(np.asarray(Image.open(manifest.cells[0].image).convert("RGB"))).copy()).save(turned)
    cells = [replace(cell, id=f"{cell.id}#{number}") for number in range(40) for cell in manifest.cells[:12]]
    cells = [replace(cell, image=turned) if place % 24 == 0 else cell for place, cell in enumerate(cells)]
    compared = []
    monkeypatch.setattr(groups, "find_copies", lambda found: compared.append(len(found)) or find_copies(found))
    found = cell_groups(replace(manifest, cells=tuple(cells)), progress=False)
    assert compared == [13]
    assert found == {cell.id: cells[place % 12].id for place, cell in enumerate(cells)}
