"""Sample sheets of a training: cells with their masks, and reconstructions under what they should be."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageColor, ImageDraw

from dorl_jax.sheets import PAPER, PREDICTED, TRUE, Colour, cut_to_width, fit_image, fit_mask, outline, width_of, write

_TILE = 160
_GAP, _MARGIN, _LINE = 8, 12, 20
_COLUMNS = 8
_FRAME = (213, 219, 225)
# The true outline is the wider one, so that it is seen on both sides of the predicted one where they agree.
_WIDE, _NARROW = 5, 2


def mask_sheet(
    images: UInt8[np.ndarray, "n h w 3"],
    truth: Bool[np.ndarray, "n h w"],
    predicted: Bool[np.ndarray, "n h w"],
    captions: Sequence[str],
) -> UInt8[np.ndarray, "tall wide 3"]:
    """Cells with the outlines of their true (wide, orange) and predicted masks (narrow, blue).

    Args:
      images: RGB, of any size; each is fitted into a tile of 160 pixels.
      truth: true masks.
      predicted: predicted masks.
      captions: of each cell, written beneath; cut where the tile ends.

    Raises:
      ValueError: no cell, or not a caption for each.
    """
    true_colour, predicted_colour = (ImageColor.getrgb(colour)[:3] for colour in (TRUE, PREDICTED))
    tiles = []
    for image, true_mask, predicted_mask in zip(images, truth, predicted, strict=True):
        tile = fit_image(image, _TILE)
        outline(tile, fit_mask(true_mask, _TILE), true_colour, _WIDE)
        outline(tile, fit_mask(predicted_mask, _TILE), predicted_colour, _NARROW)
        tiles.append(tile)
    return _sheet(tiles, captions, [("true", true_colour, _WIDE), ("predicted", predicted_colour, _NARROW)])


def reconstruction_sheet(
    targets: UInt8[np.ndarray, "n side side 3"],
    reconstructions: UInt8[np.ndarray, "n side side 3"],
    captions: Sequence[str],
) -> UInt8[np.ndarray, "tall wide 3"]:
    """Pairs, the target above its reconstruction.

    Args:
      targets: RGB, of any size; each is fitted into a tile of 160 pixels.
      reconstructions: of the targets.
      captions: of each pair, written beneath; cut where the tile ends.

    Raises:
      ValueError: no pair, or not a caption for each.
    """
    seam = np.full((2, _TILE, 3), PAPER, np.uint8)
    tiles = [
        np.concatenate([fit_image(target, _TILE), seam, fit_image(made, _TILE)])
        for target, made in zip(targets, reconstructions, strict=True)
    ]
    return _sheet(tiles, captions, [("above: target, below: reconstruction", None, 0)])


def _sheet(
    tiles: Sequence[UInt8[np.ndarray, "h w 3"]],
    captions: Sequence[str],
    legend: Sequence[tuple[str, Colour | None, int]],
) -> UInt8[np.ndarray, "tall wide 3"]:
    """Tiles of one size in rows, captions beneath; above them the legend: texts, each with its line (colour, width)."""
    if not tiles or len(tiles) != len(captions):
        raise ValueError(f"{len(tiles)} pictures and {len(captions)} captions")
    tall, wide = tiles[0].shape[:2]
    columns = min(_COLUMNS, len(tiles))
    rows = -(-len(tiles) // columns)
    across, down = _TILE + _GAP, tall + _LINE + _GAP
    top = _MARGIN + _LINE + 4
    # Without what would be a gap after the last column and row; the legend wants two tiles.
    size = (2 * _MARGIN + max(2, columns) * across - _GAP, top + rows * down - _GAP + _MARGIN)
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    left = _MARGIN
    for text, colour, width in legend:
        if colour is not None:
            middle = _MARGIN + 8
            draw.line([(left, middle), (left + 22, middle)], colour, width)
            left += 28
        write(sheet, (left, _MARGIN), text)
        left += width_of(text) + 20
    for index, (tile, caption) in enumerate(zip(tiles, captions, strict=True)):
        row, column = divmod(index, columns)
        x, y = _MARGIN + column * across, top + row * down
        # A hair of a frame, for there are cells on white.
        draw.rectangle([(x - 1, y - 1), (x + _TILE, y + tall)], outline=_FRAME)
        sheet.paste(Image.fromarray(tile), (x + (_TILE - wide) // 2, y))
        write(sheet, (x, y + tall + 3), cut_to_width(caption, _TILE))
    return np.asarray(sheet)
