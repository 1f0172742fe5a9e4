"""What sheets of small pictures share: pictures fitted into a tile, outlines of masks, and what is written beside."""

import math

import cv2
import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]

PAPER, INK = (255, 255, 255), (28, 37, 48)
# Of masks, in every picture of a run; told apart by the colour-blind too.
PREDICTED, TRUE = "#00B7FF", "#FFB000"


def fit_image(image: UInt8[np.ndarray, "h w 3"], side: int) -> UInt8[np.ndarray, "tall wide 3"]:
    """The image with its longer side of `side` pixels."""
    height, width = image.shape[:2]
    shrinks = side < max(height, width)
    return cv2.resize(image, _fitted(height, width, side), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


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
    """The text within `width` pixels; what is too much is left out before its last word, which tends to be a number."""
    head, space, last = text.rpartition(" ")
    cut = text
    while head and width_of(cut) > width:
        head = head[:-1]
        cut = f"{head}…{space}{last}"
    return cut


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(13)


def _fitted(height: int, width: int, side: int) -> tuple[int, int]:
    scale = side / max(height, width)
    return max(1, round(width * scale)), max(1, round(height * scale))
