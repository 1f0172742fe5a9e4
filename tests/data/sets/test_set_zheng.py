from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dorl_jax.data.sets import find_set
from dorl_jax.errors import InputError


@pytest.fixture
def repository(
    tmp_path: Path, draw: Callable[..., None], write_table: Callable[..., None]
) -> Callable[[Mapping[str, str]], Path]:
    """The repository with three cells in each of its sets; the headers of the two tables differ, as published."""

    def make(labels: Mapping[str, str]) -> Path:
        for number, header in ((1, "class label"), (2, "class")):
            for name in ("001", "002", "010"):
                draw(tmp_path / f"Dataset {number}/{name}.bmp")
                mask = np.zeros((18, 20), np.uint8)
                mask[4:9] = 128
                mask[6, 5:9] = 255
                Image.fromarray(mask).save(tmp_path / f"Dataset {number}/{name}.png")
            write_table(tmp_path / f"Class Labels of Dataset {number}.csv", labels, ("image ID", header))
        return tmp_path

    return make


@pytest.mark.parametrize(("name", "folder"), [("jiangxi_tecom", "Dataset 1"), ("cellavision_blog", "Dataset 2")])
def test_labels_and_masks(repository: Callable[..., Path], name: str, folder: str) -> None:
    root = repository({"1": "2", "2": "1", "10": "5", "11": "3"})
    listing = find_set(name).read(root)
    assert [(row.file, row.label, row.mask) for row in listing.rows] == [
        (f"{folder}/001.bmp", "2", root / folder / "001.png"),
        (f"{folder}/002.bmp", "1", root / folder / "002.png"),
        (f"{folder}/010.bmp", "5", root / folder / "010.png"),
    ]
    assert {label: listing.words[label] for label in "12345"} == {
        "1": "neutrophil",
        "2": "lymphocyte",
        "3": "monocyte",
        "4": "eosinophil",
        "5": "basophil",
    }
    assert any("1 labels of Class Labels of Dataset" in note for note in listing.notes)
    assert listing.rows[2].where.endswith(".csv, line 4")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"1": "2", "2": "1"}, r"has no label for .*010.bmp"),
        ({"1": "2", "2": "1", "10": "6"}, r"line 4: not an image's number and a label of 1 to 5: 10,6"),
        ({"1": "2", "2": "1", "10": "5", "010": "5"}, r"line 5: image 10 is there already in line 4"),
    ],
)
def test_bad_table(repository: Callable[..., Path], labels: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        find_set("jiangxi_tecom").read(repository(labels))


def test_missing_mask_and_missing_table(repository: Callable[..., Path]) -> None:
    root = repository({"1": "2", "2": "1", "10": "5"})
    (root / "Dataset 1/002.png").unlink()
    with pytest.raises(InputError, match=r"no mask of .*002.bmp"):
        find_set("jiangxi_tecom").read(root)
    (root / "Class Labels of Dataset 2.csv").unlink()
    with pytest.raises(InputError, match="0 files 'Class Labels of Dataset 2.csv'"):
        find_set("cellavision_blog").read(root)
