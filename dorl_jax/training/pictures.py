"""Sample sheets of a training: cells with their masks, and reconstructions under what they should be."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import ImageColor

from dorl_jax.sheets import PAPER, PREDICTED, TILE, TRUE, fit_image, fit_mask, lay_out, outline

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
        tile = fit_image(image, TILE)
        outline(tile, fit_mask(true_mask, TILE), true_colour, _WIDE)
        outline(tile, fit_mask(predicted_mask, TILE), predicted_colour, _NARROW)
        tiles.append(tile)
    return lay_out(tiles, captions, [("true", true_colour, _WIDE), ("predicted", predicted_colour, _NARROW)])


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
    seam = np.full((2, TILE, 3), PAPER, np.uint8)
    tiles = [
        np.concatenate([fit_image(target, TILE), seam, fit_image(made, TILE)])
        for target, made in zip(targets, reconstructions, strict=True)
    ]
    return lay_out(tiles, captions, [("above: target, below: reconstruction", None, 0)])
