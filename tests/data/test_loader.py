import multiprocessing
import os
import signal
from collections import Counter
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from dorl_jax.data.augment import Augmentation
from dorl_jax.data.images import ImageError, read_image, resize_image, resize_mask
from dorl_jax.data.light import in_light
from dorl_jax.data.loader import (
    WHOLE,
    Batches,
    CellSources,
    Share,
    array_batches,
    balance_groups,
    image_batches,
    picture_batches,
    segmentation_batches,
)
from dorl_jax.data.manifest import Cell, read_cell, read_laboratories
from dorl_jax.data.pictures import ArrayPictures, FilePictures
from dorl_jax.data.pool import worker_count
from dorl_jax.data.sources import Part
from dorl_jax.data.taxonomy import Taxonomy
from dorl_jax.errors import InputError


@pytest.fixture(scope="module")
def cells(smears: Path, five: Taxonomy) -> tuple[Cell, ...]:
    return read_laboratories(smears, (), five).cells


PLAIN = Augmentation("none")


def numbered(folder: Path, laboratories: dict[str, int]) -> list[Cell]:
    """Plain cells whose red value is their number."""
    found: list[Cell] = []
    for laboratory, count in laboratories.items():
        for _ in range(count):
            path = folder / f"{len(found)}.png"
            Image.new("RGB", (16, 16), (len(found), 200, 0)).save(path)
            Image.new("L", (16, 16), 255).save(folder / f"{len(found)}_m.png")
            mask = folder / f"{len(found)}_m.png"
            found.append(Cell(f"{laboratory}/{path.name}", laboratory, path, mask, "monocyte"))
    return found


def numbers(batch: dict[str, np.ndarray]) -> list[int]:
    return [int(image[0, 0, 0]) for image in batch["image"]]


def test_every_cell_once_an_epoch_in_new_order(tmp_path: Path) -> None:
    cells = numbered(tmp_path, {"a": 7, "b": 4})
    batches = segmentation_batches(cells, 8, 4, seed=5, augmentation=PLAIN)
    stream = [number for _ in range(11) for number in numbers(next(batches))]
    epochs = [tuple(stream[start : start + 11]) for start in range(0, 44, 11)]
    assert all(sorted(epoch) == list(range(11)) for epoch in epochs)
    assert len(set(epochs)) == 4


def test_fewer_cells_than_a_batch(tmp_path: Path) -> None:
    batches = segmentation_batches(numbered(tmp_path, {"a": 3}), 8, 8, seed=0, augmentation=PLAIN)
    stream = [number for _ in range(3) for number in numbers(next(batches))]
    assert all(sorted(stream[start : start + 3]) == [0, 1, 2] for start in range(0, 24, 3))


def test_balanced_laboratories(tmp_path: Path) -> None:
    cells = numbered(tmp_path, {"large": 12, "small": 3, "tiny": 1})
    batches = segmentation_batches(cells, 8, 6, seed=0, augmentation=PLAIN, balance="laboratory")
    seen: Counter[int] = Counter()
    for _ in range(6):
        found = numbers(next(batches))
        assert Counter(cells[number].laboratory for number in found) == {"large": 2, "small": 2, "tiny": 2}
        seen.update(found)
    # 12 draws of each laboratory: one epoch of the large, four of the small, twelve of the tiny.
    assert [seen[number] for number in range(16)] == [1] * 12 + [4] * 3 + [12]


def test_batches_are_the_resized_cells(cells: tuple[Cell, ...]) -> None:
    batch = next(segmentation_batches(cells, 40, len(cells), seed=0, augmentation=PLAIN))
    assert (batch["image"].dtype, batch["mask"].dtype) == (np.uint8, np.uint8)
    expected = {}
    for cell in cells:
        image, mask = read_cell(cell)
        assert mask is not None
        expected[resize_image(image, 40).tobytes()] = resize_mask(mask, 40)
    assert len(expected) == len(cells)
    for image, mask in zip(batch["image"], batch["mask"], strict=True):
        np.testing.assert_array_equal(mask, expected.pop(image.tobytes()))


def test_the_seed_decides(cells: tuple[Cell, ...]) -> None:
    plain, same, other = (segmentation_batches(cells, 32, 8, seed=seed) for seed in (1, 1, 2))
    for _ in range(9):
        expected, found = next(plain), next(same)
        np.testing.assert_array_equal(expected["image"], found["image"])
        np.testing.assert_array_equal(expected["mask"], found["mask"])
        assert not np.array_equal(expected["image"], next(other)["image"])


def test_each_epoch_is_augmented_anew(tmp_path: Path) -> None:
    cells = numbered(tmp_path, {"a": 1})
    batches = segmentation_batches(cells, 8, 1, seed=0)
    assert len({next(batches)["image"].tobytes() for _ in range(6)}) == 6


def test_seed_decides_the_augmentation(tmp_path: Path) -> None:
    # One cell has one order, so only its augmentation can differ.
    cells = numbered(tmp_path, {"a": 1})
    drawn = {next(segmentation_batches(cells, 8, 1, seed=seed))["image"].tobytes() for seed in (0, 0, 1, 2)}
    assert len(drawn) == 3


@pytest.mark.parametrize(
    ("workers", "balance"), [(0, "none"), (0, "laboratory"), pytest.param(2, "laboratory", marks=pytest.mark.slow)]
)
def test_restoring_in_mid_epoch_continues_bit_for_bit(cells: tuple[Cell, ...], workers: int, balance: str) -> None:
    def start() -> Batches:
        return segmentation_batches(cells, 32, 7, seed=3, workers=workers, balance=balance)

    batches = start()
    for _ in range(6):
        next(batches)
    state = batches.get_state()
    expected = [next(batches) for _ in range(6)]
    restored = start()
    restored.set_state(state)
    for batch in expected:
        found = next(restored)
        np.testing.assert_array_equal(batch["image"], found["image"])
        np.testing.assert_array_equal(batch["mask"], found["mask"])


@pytest.mark.slow
def test_the_number_of_workers_and_processes_changes_nothing(cells: tuple[Cell, ...]) -> None:
    def start(workers: int = 0, share: Share = WHOLE) -> Batches:
        return segmentation_batches(cells, 32, 12, 3, balance="class", workers=workers, share=share)

    expected = list(islice(start(), 9))
    with closing(start(workers=3)) as batches:
        for batch in expected:
            found = next(batches)
            for name in ("image", "mask", "place"):
                np.testing.assert_array_equal(found[name], batch[name])
        # A state of one number of workers is one of any other.
        state = batches.get_state()
    restored = start(workers=1)
    restored.set_state({"row": 4 * 12})
    with closing(restored):
        for batch in expected[4:]:
            np.testing.assert_array_equal(next(restored)["image"], batch["image"])
    assert restored.get_state() == state


@pytest.mark.parametrize("count", [2, 3])
def test_processes_share_every_batch(cells: tuple[Cell, ...], count: int) -> None:
    whole = segmentation_batches(cells, 16, 12, 3, balance="laboratory")
    shares = [
        segmentation_batches(cells, 16, 12, 3, balance="laboratory", share=Share(index, count))
        for index in range(count)
    ]
    for step in range(6):
        if step == 3:
            # Every process knows the place of all: any of them can restore another number of processes.
            state = shares[0].get_state()
            assert all(share.get_state() == state for share in shares)
            shares = shares[::-1]
            for index, share in enumerate(shares):
                share.close()
                shares[index] = segmentation_batches(cells, 16, 12, 3, balance="laboratory", share=Share(index, count))
                shares[index].set_state(state)
        batch, parts = next(whole), [next(share) for share in shares]
        for name in ("image", "mask", "place"):
            # One behind the other: what is drawn for a row of a batch is drawn for the same cell.
            np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), batch[name])


def test_a_batch_that_cannot_be_shared(cells: tuple[Cell, ...]) -> None:
    with pytest.raises(InputError, match="batches of 10 cannot be shared by 4 processes"):
        segmentation_batches(cells, 16, 10, 3, share=Share(0, 4))


def test_balanced_classes(tmp_path: Path) -> None:
    labels = ["monocyte"] * 9 + ["basophil"] * 1 + ["neutrophil"] * 2
    cells = [
        replace(cell, label=label) for cell, label in zip(numbered(tmp_path, {"a": 8, "b": 4}), labels, strict=True)
    ]
    batches = segmentation_batches(cells, 8, 6, seed=0, augmentation=PLAIN, balance="class")
    for _ in range(5):
        found = Counter(cells[place].label for place in next(batches)["place"])
        assert found == {"monocyte": 2, "basophil": 2, "neutrophil": 2}
    groups = balance_groups(cells, "laboratory_and_class")
    assert groups is not None
    assert Counter(groups) == {"a/monocyte": 8, "b/monocyte": 1, "b/basophil": 1, "b/neutrophil": 2}
    assert balance_groups(cells, "none") is None


@pytest.mark.parametrize("count", [1, 2, 7, 40])
def test_processes_share_the_images_in_order(cells: tuple[Cell, ...], count: int) -> None:
    read = []
    for index in range(count):
        for batch in image_batches(cells, 16, 4, share=Share(index, count)):
            assert len(batch["originals"]) == batch["valid"].sum()
            read += batch["index"][batch["valid"]].tolist()
    assert read == list(range(len(cells)))


def test_worker_count(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, expected in ((1, 0), (2, 0), (4, 2), (12, 6), (200, 8)):
        monkeypatch.setattr("os.sched_getaffinity", lambda _, cores=cores: set(range(cores)), raising=False)
        assert worker_count(-1) == expected
    assert worker_count(3) == 3


def test_parts_of_a_picture_and_the_chosen_resizing_are_read(tmp_path: Path) -> None:
    field = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(field).save(tmp_path / "field.png")
    Image.fromarray(np.full((60, 80), 255, np.uint8)).save(tmp_path / "mask.png")
    box = (5, 7, 50, 40)
    cell = Cell("a/1", "a", Part(tmp_path / "field.png", *box), Part(tmp_path / "mask.png", *box), "monocyte")
    (batch,) = image_batches([cell], 16, 1, resize="cv2_bilinear")
    np.testing.assert_array_equal(batch["originals"][0], field[7:47, 5:55])
    np.testing.assert_array_equal(batch["image"][0], cv2.resize(field[7:47, 5:55], (16, 16)))
    pair = next(segmentation_batches([cell], 16, 1, 0, augmentation=PLAIN, resize="cv2_bilinear"))
    np.testing.assert_array_equal(pair["image"][0], batch["image"][0])
    assert pair["mask"].all()


def test_every_batch_is_in_the_chosen_light(cells: tuple[Cell, ...]) -> None:
    cell = cells[0]
    lit = in_light(read_image(cell.image), "white_patch")
    (batch,) = image_batches([cell], 24, 1, light="white_patch")
    np.testing.assert_array_equal(batch["originals"][0], lit)
    np.testing.assert_array_equal(batch["image"][0], resize_image(lit, 24))
    pair = next(segmentation_batches([cell], 24, 1, 0, augmentation=PLAIN, light="white_patch"))
    np.testing.assert_array_equal(pair["image"][0], resize_image(lit, 24))


def test_refuses_cells_without_masks(cells: tuple[Cell, ...]) -> None:
    bare = Cell("lab/bare.png", "lab", cells[0].image, None, "monocyte")
    with pytest.raises(InputError, match=r"1 cells have no mask .*: lab/bare\.png"):
        segmentation_batches([*cells, bare], 32, 4, seed=0)
    with pytest.raises(InputError, match="no cells"):
        segmentation_batches([], 32, 4, seed=0)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_broken_image_is_named_and_not_replaced(tmp_path: Path, workers: int) -> None:
    cells = numbered(tmp_path, {"a": 4})
    cells[2].image.write_text("no image")
    with pytest.raises(ImageError, match=r"2\.png is no BMP"):
        next(segmentation_batches(cells, 8, 4, seed=0, workers=workers))
    with pytest.raises(ImageError, match=r"2\.png is no BMP"):
        list(image_batches(cells, 8, 4, workers=workers))


@pytest.mark.parametrize(
    ("batch_size", "workers"), [(1, 0), (4, 0), (30, 0), (32, 0), pytest.param(4, 2, marks=pytest.mark.slow)]
)
def test_image_batches_in_order_with_a_filled_up_tail(cells: tuple[Cell, ...], batch_size: int, workers: int) -> None:
    batches = list(image_batches(cells, 24, batch_size, workers=workers))
    assert len(batches) == -(-len(cells) // batch_size)
    place = 0
    for batch in batches:
        assert batch["index"].dtype == np.int64
        assert batch["image"].shape == (batch_size, 24, 24, 3)
        assert len(batch["originals"]) == batch["valid"].sum()
        for row in range(batch_size):
            assert batch["valid"][row] == (place < len(cells))
            cell = min(place, len(cells) - 1)
            assert batch["index"][row] == cell
            original = read_image(cells[cell].image)
            np.testing.assert_array_equal(batch["image"][row], resize_image(original, 24))
            if batch["valid"][row]:
                np.testing.assert_array_equal(batch["originals"][row], original)
            place += 1


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_chosen_batches_with_reasons_in_place_of_pictures(tmp_path: Path, workers: int) -> None:
    cells = numbered(tmp_path, {"a": 11})
    cells[6].image.write_text("no image")
    cells[10].image.unlink()
    pictures = FilePictures(CellSources(cells, masks=False))
    found = list(picture_batches(pictures, 8, 4, range(1, 11), numbers=[1, 2], strict=False, workers=workers))
    assert [batch["index"].tolist() for batch in found] == [[5, 6, 7, 8], [9, 10, 10, 10]]
    assert [batch["valid"].tolist() for batch in found] == [[True] * 4, [True, True, False, False]]
    reasons = [reason for batch in found for reason in batch["reason"].tolist()]
    assert [bool(reason) for reason in reasons] == [False, True, False, False, False, True]
    assert "6.png is no BMP" in reasons[1]
    assert reasons[5].startswith("no image file")
    whole = [row for batch in image_batches(cells[:6], 8, 1) for row in batch["image"]]
    np.testing.assert_array_equal(found[0]["image"][0], whole[5])
    assert not found[0]["image"][1].any()  # black, no neighbour
    assert [image.shape for image in found[0]["originals"]][1] == (1, 1, 3)


def test_pictures_in_memory_are_checked() -> None:
    image = np.zeros((4, 5, 3), np.uint8)
    assert ArrayPictures([image]).read(0).shape == (4, 5, 3)
    with pytest.raises(InputError, match=r"image 1 is float64 \(4, 5, 3\), expected uint8"):
        ArrayPictures([image, image / 255])


def test_image_batches_of_nothing() -> None:
    assert list(image_batches([], 8, 4)) == []


def test_array_batches_shuffle_rows_together(tmp_path: Path) -> None:
    stored = np.lib.format.open_memmap(tmp_path / "a.npy", "w+", np.float32, (10, 2, 3))
    stored[:] = np.arange(10)[:, None, None]
    arrays = {
        "feature": np.load(tmp_path / "a.npy", mmap_mode="r"),
        "domain": np.arange(10, dtype=np.int32) * 2,
    }
    batches = array_batches(arrays, 5, seed=0)
    epochs = []
    for _ in range(4):
        pair = [next(batches), next(batches)]
        order = np.concatenate([batch["domain"] for batch in pair]) // 2
        assert sorted(order) == list(range(10))
        features = np.concatenate([batch["feature"] for batch in pair])
        assert features.dtype == np.float32
        np.testing.assert_array_equal(features, np.broadcast_to(order[:, None, None], (10, 2, 3)))
        epochs.append(tuple(order))
    assert len(set(epochs)) == 4


def test_array_batches_balance_groups_and_restore() -> None:
    groups = np.array([7] * 20 + [3] * 4 + [9] * 2)
    arrays = {"row": np.arange(26)}
    batches = array_batches(arrays, 6, seed=0, groups=groups)
    for _ in range(5):
        rows = next(batches)["row"]
        assert Counter(groups[rows].tolist()) == {3: 2, 7: 2, 9: 2}
    state = batches.get_state()
    expected = [next(batches)["row"] for _ in range(5)]
    restored = array_batches(arrays, 6, seed=0, groups=groups)
    restored.set_state(state)
    np.testing.assert_array_equal([next(restored)["row"] for _ in range(5)], expected)


def test_array_batches_of_one_group_each_take_turns_and_restore() -> None:
    groups = np.array([7] * 20 + [3] * 4 + [9] * 2)
    arrays = {"row": np.arange(26)}
    batches = array_batches(arrays, 5, seed=0, groups=groups, whole_batches=True)
    rows = np.array([next(batches)["row"] for _ in range(24)])
    assert [set(groups[batch].tolist()) for batch in rows] == [{3}, {7}, {9}] * 8
    # Every group has epochs of its own, each in another order.
    for group, size in ((7, 20), (3, 4), (9, 2)):
        own = np.flatnonzero(groups == group)
        epochs = rows[groups[rows[:, 0]] == group].reshape(-1, size)
        np.testing.assert_array_equal(np.sort(epochs, axis=1), np.broadcast_to(own, epochs.shape))
        assert len({tuple(epoch) for epoch in epochs}) > 1
    state = batches.get_state()
    expected = [next(batches)["row"] for _ in range(5)]
    restored = array_batches(arrays, 5, seed=0, groups=groups, whole_batches=True)
    restored.set_state(state)
    np.testing.assert_array_equal([next(restored)["row"] for _ in range(5)], expected)


def test_array_batches_refuse_lengths_that_differ() -> None:
    with pytest.raises(InputError, match="differing lengths: a 3, b 4"):
        array_batches({"a": np.zeros(3), "b": np.zeros(4)}, 2, seed=0)
    with pytest.raises(InputError, match="differing lengths: a 3, groups 4"):
        array_batches({"a": np.zeros(3)}, 2, seed=0, groups=[0, 0, 1, 1])
    with pytest.raises(InputError, match="no rows"):
        array_batches({"a": np.zeros(0)}, 2, seed=0)


@pytest.mark.slow
def test_ctrl_c_is_not_for_the_workers() -> None:
    """A terminal sends it to them, too; the process that they work for ends them."""
    arrays = {"x": np.arange(40)}
    with closing(array_batches(arrays, 4, seed=0, workers=1)) as ours, closing(array_batches(arrays, 4, seed=0)) as own:
        np.testing.assert_array_equal(next(ours)["x"], next(own)["x"])
        children = multiprocessing.active_children()
        assert children
        for child in children:
            os.kill(child.pid, signal.SIGINT)
        for _ in range(20):
            np.testing.assert_array_equal(next(ours)["x"], next(own)["x"])
