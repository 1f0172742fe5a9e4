"""Sheets of small pictures: pictures fitted into a tile, outlines of masks, and what is written beside."""

import math
from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]

PAPER, INK = (255, 255, 255), (28, 37, 48)
# Of masks, in every picture of a run; told apart by the colour-blind too.
PREDICTED, TRUE = "#00B7FF", "#FFB000"
# Side of a picture in a sheet, in pixels.
TILE = 160
_GAP, _MARGIN, _LINE = 8, 12, 20
_COLUMNS = 8
_FRAME = (213, 219, 225)


def fit_image(image: UInt8[np.ndarray, "h w 3"], side: int) -> UInt8[np.ndarray, "tall wide 3"]:
    """The image with its longer side of `side` pixels."""
    height, width = image.shape[:2]
    shrinks = side < max(height, width)
    return cv2.resize(image, _fitted(height, width, side), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


def fit_square(image: UInt8[np.ndarray, "h w 3"], side: int) -> UInt8[np.ndarray, "side side 3"]:
    """`fit_image` in the middle of a square of paper."""
    small = fit_image(image, side)
    height, width = small.shape[:2]
    square = np.full((side, side, 3), PAPER, np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = small
    return square


def fit_mask(mask: Bool[np.ndarray, "h w"], side: int) -> Bool[np.ndarray, "tall wide"]:
    """The mask of `fit_image`'s image: where at least half of a pixel is covered."""
    height, width = mask.shape
    shrinks = side < max(height, width)
    cover = cv2.resize(
        mask.view(np.uint8) * 255,
        _fitted(height, width, side),
        interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR,
    )
    return cover > 127


def outline(
    image: UInt8[np.ndarray, "h w 3"], mask: Bool[np.ndarray, "h w"], colour: Colour, thickness: int = 1
) -> None:
    """Draw the outermost pixels of a mask's parts, and the rims of its holes, onto an image."""
    lines, _ = cv2.findContours(mask.view(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(image, lines, -1, colour, thickness)


def write(sheet: Image.Image, place: tuple[int, int], text: str) -> None:
    """Write a line onto a sheet, its top left corner at (x, y)."""
    ImageDraw.Draw(sheet).text(place, text, INK, _font())


def width_of(text: str) -> int:
    """Pixels that a line is wide."""
    return math.ceil(_font().getlength(text))


def cut_to_width(text: str, width: int) -> str:
    """The text within `width` pixels; what is too much is left out before its last word, which tends to be a number.

    Of a single word its end is left out.
    """
    head, space, last = text.rpartition(" ")
    if not space:
        head, last = text, ""
    cut = text
    while head and width_of(cut) > width:
        head = head[:-1]
        cut = f"{head}…{space}{last}"
    return cut


def lay_out(
    tiles: Sequence[UInt8[np.ndarray, "h w 3"]],
    captions: Sequence[str],
    legend: Sequence[tuple[str, Colour | None, int]],
    columns: int = _COLUMNS,
) -> UInt8[np.ndarray, "tall wide 3"]:
    """A sheet of tiles in rows.

    Args:
      tiles: of one size, `TILE` pixels wide or less.
      captions: of each tile, written beneath in one line or several; cut where the tile ends.
      legend: above the tiles, texts, each with its line (colour, width) or None.
      columns: tiles in a row.

    Raises:
      ValueError: no tile, or not a caption for each.
    """
    if not tiles or len(tiles) != len(captions):
        raise ValueError(f"{len(tiles)} pictures and {len(captions)} captions")
    tall, wide = tiles[0].shape[:2]
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    lines = 1 + max(caption.count("\n") for caption in captions)
    across, down = TILE + _GAP, tall + lines * _LINE + _GAP
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
        draw.rectangle([(x - 1, y - 1), (x + TILE, y + tall)], outline=_FRAME)
        sheet.paste(Image.fromarray(tile), (x + (TILE - wide) // 2, y))
        for number, line in enumerate(caption.split("\n")):
            write(sheet, (x, y + tall + 3 + number * _LINE), cut_to_width(line, TILE))
    return np.asarray(sheet)


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(13)


def _fitted(height: int, width: int, side: int) -> tuple[int, int]:
    scale = side / max(height, width)
    return max(1, round(width * scale)), max(1, round(height * scale))
