from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from dorl_jax.data.manifest import Checked, check_cells, read_laboratories
from dorl_jax.data.synthetic import CLASSES, LABORATORIES, Laboratory, draw_cell, write_laboratories
from dorl_jax.data.taxonomy import Taxonomy
from dorl_jax.errors import InputError

CREAM = LABORATORIES[0]


def drawn(label: str, laboratory: Laboratory = CREAM, count: int = 12) -> list[tuple[np.ndarray, np.ndarray]]:
    return [draw_cell(label, laboratory, np.random.default_rng(seed)) for seed in range(count)]


@pytest.mark.parametrize("laboratory", LABORATORIES, ids=lambda laboratory: laboratory.name)
@pytest.mark.parametrize("label", CLASSES)
def test_masks_are_true(label: str, laboratory: Laboratory) -> None:
    for image, mask in drawn(label, laboratory, 5):
        assert image.shape == (laboratory.side, laboratory.side, 3)
        assert set(np.unique(mask)) == {0, 128, 255}
        assert ndimage.label(mask > 64)[1] == 1
        grey = image.mean(-1)
        # Nucleus darker than cytoplasm, cytoplasm than most of what is around.
        assert grey[mask == 255].mean() < grey[mask == 128].mean() < np.median(grey[mask == 0])
        # The edge of the mask is where the picture changes: brightness jumps across it.
        rim = (mask > 64) & ~ndimage.binary_erosion(mask > 64, iterations=3)
        around = ndimage.binary_dilation(mask > 64, iterations=6) & ~ndimage.binary_dilation(mask > 64, iterations=3)
        assert grey[rim].mean() < grey[around].mean()


def mean_of(label: str, measure: str) -> float:
    values = []
    for _, mask in drawn(label):
        cell, nucleus = mask > 64, mask == 255
        if measure == "diameter":
            values.append(2 * np.sqrt(cell.sum() / np.pi) / CREAM.pixels_per_micrometre)
        elif measure == "nucleus":
            values.append(nucleus.sum() / cell.sum())
        else:  # how far the nucleus is from convex: share of its disc of equal spread that it fills
            y, x = np.argwhere(nucleus).T
            spread = np.sqrt(np.linalg.det(np.cov(y, x)))
            values.append(nucleus.sum() / (4 * np.pi * spread))
    return float(np.mean(values))


def test_classes_differ_as_in_life() -> None:
    diameter = {label: mean_of(label, "diameter") for label in CLASSES}
    assert diameter["lymphocyte"] < diameter["basophil"] < diameter["neutrophil"] < diameter["monocyte"]
    assert 8 < diameter["lymphocyte"] < 11
    assert 14 < diameter["monocyte"] < 18
    nucleus = {label: mean_of(label, "nucleus") for label in CLASSES}
    assert max(nucleus, key=lambda label: nucleus[label]) == "lymphocyte"
    assert nucleus["lymphocyte"] > 0.6
    fill = {label: mean_of(label, "fill") for label in CLASSES}
    assert fill["lymphocyte"] > 0.97  # a disc
    assert max(fill["neutrophil"], fill["eosinophil"], fill["monocyte"]) < 0.92  # lobes and horseshoes


@pytest.mark.parametrize("laboratory", LABORATORIES, ids=lambda laboratory: laboratory.name)
def test_granules_show_in_colour(laboratory: Laboratory) -> None:
    def cytoplasm(label: str) -> np.ndarray:
        return np.mean([image[mask == 128].mean(0) for image, mask in drawn(label, laboratory, 6)], axis=0)

    neutrophil, eosinophil, basophil = map(cytoplasm, ("neutrophil", "eosinophil", "basophil"))
    assert eosinophil[0] - eosinophil[2] > neutrophil[0] - neutrophil[2] + 10  # towards red
    assert basophil.mean() < neutrophil.mean() - 15  # dark


def test_laboratories_differ_in_background_size_and_focus() -> None:
    light, size = {}, {}
    for laboratory in LABORATORIES:
        pairs = drawn("lymphocyte", laboratory, 6)
        light[laboratory.name] = np.mean([np.percentile(image[mask == 0], 70, axis=0) for image, mask in pairs], 0)
        size[laboratory.name] = np.mean([(mask > 64).sum() for _, mask in pairs])
    names = list(light)
    for number, name in enumerate(names):
        for other in names[:number]:
            assert np.abs(light[name] - light[other]).max() > 8
    assert max(size.values()) > 2 * min(size.values())


def test_unknown_class() -> None:
    with pytest.raises(InputError, match=r"'monocite' \(did you mean 'monocyte'\?\)"):
        draw_cell("monocite", CREAM, np.random.default_rng(0))


def test_written_laboratories_are_read(smears: Path, five: Taxonomy) -> None:
    manifest = read_laboratories(smears, (), five)
    assert manifest.counts() == {laboratory.name: dict.fromkeys(five.classes, 3) for laboratory in LABORATORIES[:2]}
    assert check_cells(manifest, progress=False) == Checked(manifest, (), {})
    assert all(cell.mask for cell in manifest.cells)
    header = (smears / "cream" / "labels.csv").read_text().splitlines()[0]
    assert header == "file,class,fine,orig_label,width,height,mask,duplicate_of,note"
    assert [path.name for path in smears.parent.iterdir()] == [smears.name]


def test_pixels_follow_from_the_seed(smears: Path, tmp_path: Path) -> None:
    def pixels(root: Path) -> dict[str, bytes]:
        return {str(path.relative_to(root)): np.asarray(Image.open(path)).tobytes() for path in root.rglob("*.png")}

    again = write_laboratories(tmp_path / "again", 3, 2, seed=1)
    other = write_laboratories(tmp_path / "other", 1, 1, seed=2)
    assert pixels(again) == pixels(smears)
    assert len(set(pixels(again).values())) == 2 * 2 * 15
    for name, content in pixels(other).items():
        assert content != pixels(smears)[name]


def test_more_cells_keep_the_first(smears: Path, tmp_path: Path) -> None:
    fewer = write_laboratories(tmp_path / "fewer", 1, 1, seed=1)
    for path in fewer.rglob("*.png"):
        assert path.read_bytes() == (smears / path.relative_to(fewer)).read_bytes()


def test_refuses_what_it_cannot_write(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="0 synthetic laboratories wanted; there are 1 to 5"):
        write_laboratories(tmp_path / "a", laboratories=0)
    with pytest.raises(InputError, match="6 synthetic laboratories"):
        write_laboratories(tmp_path / "a", laboratories=6)
    with pytest.raises(InputError, match="0 synthetic cells a class"):
        write_laboratories(tmp_path / "a", cells_per_class=0)
    with pytest.raises(InputError, match="seed -1"):
        write_laboratories(tmp_path / "a", seed=-1)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    with pytest.raises(InputError, match="full exists already"):
        write_laboratories(tmp_path / "full")
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dorl_jax.data.synthetic.cv2.imwrite", lambda *_: False)
    with pytest.raises(OSError, match="cannot write"):
        write_laboratories(tmp_path / "a", 1, 1)
    assert list(tmp_path.iterdir()) == []
