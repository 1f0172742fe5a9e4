"""Sample sheets: what is drawn where."""

import numpy as np
import pytest

from dorl_jax.sheets import cut_to_width, fit_image, fit_mask, outline, width_of
from dorl_jax.training.pictures import mask_sheet, reconstruction_sheet

TRUE, PREDICTED = [255, 176, 0], [0, 183, 255]
TILE, LEFT, TOP, ACROSS, DOWN = 160, 12, 36, 168, 188
"""Side of a tile, place of the first, and from one to the next, in pixels."""


def square(side: int, top: int, left: int, size: int) -> np.ndarray:
    mask = np.zeros((side, side), bool)
    mask[top : top + size, left : left + size] = True
    return mask


def has(sheet: np.ndarray, colour: list[int]) -> bool:
    return bool((sheet[TOP:] == colour).all(-1).any())


def test_outlines_lie_on_the_rims_of_the_masks():
    images = np.full((1, 40, 40, 3), 90, np.uint8)
    truth, predicted = square(40, 10, 12, 20)[None], square(40, 5, 12, 25)[None]
    sheet = mask_sheet(images, truth, predicted, [""])
    tile = sheet[TOP : TOP + TILE, LEFT : LEFT + TILE]
    # Four pixels for one. The outermost rows of the true square are 40 and 119, of the predicted one 20 and 119.
    assert tile[40, 80].tolist() == TRUE
    assert tile[20, 80].tolist() == PREDICTED
    # Where both run, the wide one is seen on both sides of the narrow one.
    assert [tile[row, 80].tolist() for row in (117, 119, 121)] == [TRUE, PREDICTED, TRUE]
    assert [tile[80, column].tolist() for column in (46, 48, 50)] == [TRUE, PREDICTED, TRUE]
    # The outermost columns are 48 and 127 of the true, 48 and 147 of the predicted square.
    assert tile[80, 127].tolist() == TRUE
    assert tile[80, 147].tolist() == PREDICTED
    for row, column in ((0, 0), (10, 80), (30, 80), (80, 80), (130, 80), (80, 40), (80, 138), (80, 159)):
        assert tile[row, column].tolist() == [90, 90, 90]


def test_holes_are_outlined_and_an_empty_mask_draws_nothing():
    mask = square(40, 5, 5, 30)
    mask[15:25, 15:25] = False
    images, nothing = np.full((1, 40, 40, 3), 90, np.uint8), np.zeros((1, 40, 40), bool)
    sheet = mask_sheet(images, nothing, mask[None], [""])
    tile = sheet[TOP : TOP + TILE, LEFT : LEFT + TILE]
    assert tile[59, 80].tolist() == PREDICTED  # the last row of the mask above the hole
    assert tile[80, 80].tolist() == [90, 90, 90]
    assert not has(sheet, TRUE)
    assert not has(mask_sheet(images, mask[None], nothing, [""]), PREDICTED)


@pytest.mark.parametrize("side", [20, 80, 160, 320])
def test_every_cell_in_its_place(side):
    count = 11  # eight, and three below
    images = np.stack([np.full((side, side, 3), 20 * index, np.uint8) for index in range(count)])
    none = np.zeros((count, side, side), bool)
    before = images.copy()
    sheet = mask_sheet(images, none, none, [str(index) for index in range(count)])
    assert sheet.shape == (TOP + 2 * DOWN - 8 + 12, 2 * 12 + 8 * ACROSS - 8, 3)
    for index in range(count):
        top, left = TOP + index // 8 * DOWN, LEFT + index % 8 * ACROSS
        assert (sheet[top : top + TILE, left : left + TILE] == 20 * index).all()
        assert (sheet[top + TILE + 1 : top + TILE + 20, left : left + TILE] < 128).any()  # the caption
    assert (sheet[TOP + DOWN :, LEFT + 3 * ACROSS :] == 255).all()
    np.testing.assert_array_equal(images, before)


def test_what_is_given_is_not_drawn_upon():
    images, masks = np.full((1, TILE, TILE, 3), 90, np.uint8), square(TILE, 20, 20, 90)[None]
    mask_sheet(images, masks, masks, [""])
    assert (images == 90).all()


def test_targets_stand_above_their_reconstructions():
    targets, made = np.zeros((2, 2, 40, 40, 3), np.uint8)
    targets[:, ..., 0], made[:, ..., 1] = 200, np.array([100, 150])[:, None, None]
    sheet = reconstruction_sheet(targets, made, ["a", "b"])
    for index, green in enumerate((100, 150)):
        left = LEFT + index * ACROSS
        assert (sheet[TOP : TOP + TILE, left : left + TILE] == (200, 0, 0)).all()
        assert (sheet[TOP + TILE + 2 : TOP + 2 * TILE + 2, left : left + TILE] == (0, green, 0)).all()


def test_long_captions_keep_to_their_tile_and_keep_their_number():
    assert cut_to_width("bccd 0.93", TILE) == "bccd 0.93"
    cut = cut_to_width("a laboratory of a very long name 0.93", TILE)
    assert cut.startswith("a laboratory")
    assert cut.endswith("… 0.93")
    assert TILE - 12 < width_of(cut) <= TILE
    cut = cut_to_width("a_laboratory_of_a_very_long_name", TILE)
    assert cut.endswith("…")
    assert TILE - 12 < width_of(cut) <= TILE
    images, none = np.zeros((2, 8, 8, 3), np.uint8), np.zeros((2, 8, 8), bool)
    sheet = mask_sheet(images, none, none, ["a laboratory of a very long name 0.93", ""])
    assert (sheet[TOP + TILE + 1 :, LEFT + TILE :] == 255).all()


@pytest.mark.parametrize("captions", [[], ["a"], ["a", "b", "c"]])
def test_a_caption_for_each(captions):
    images, none = np.zeros((2, 8, 8, 3), np.uint8), np.zeros((2, 8, 8), bool)
    with pytest.raises(ValueError, match=f"2 pictures and {len(captions)} captions"):
        mask_sheet(images, none, none, captions)


@pytest.mark.parametrize("factor", [2, 4])
def test_masks_shrink_by_the_half_and_fit_oblong_images(factor):
    rng = np.random.default_rng(factor)
    mask = rng.random((12 * factor, 20 * factor)) < 0.5
    cover = mask.reshape(12, factor, 20, factor).mean((1, 3))
    ours = fit_mask(mask, 20)
    assert ours.shape == (12, 20) == fit_image(np.zeros((*mask.shape, 3), np.uint8), 20).shape[:2]
    clear = cover != 0.5
    np.testing.assert_array_equal(ours[clear], (cover > 0.5)[clear])


def test_an_outline_is_what_has_a_neighbour_outside():
    mask = np.zeros((30, 30), bool)
    yy, xx = np.mgrid[:30, :30]
    mask[(yy - 14) ** 2 + (xx - 13) ** 2 < 90] = True
    image = np.zeros((30, 30, 3), np.uint8)
    outline(image, mask, (255, 255, 255))
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    np.testing.assert_array_equal(image[..., 0] > 0, mask & ~inner)
