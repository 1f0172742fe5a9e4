"""What follows from an image and the segmenter's answer: the mask, the cell on grey, the window around it."""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from dorl_jax.data.crops import cell_crop, cell_view, is_empty, largest_component
from dorl_jax.data.images import Resize, resize_image


class CutCells(NamedTuple):
    """Of a batch of cells.

    Attributes:
      crops: uint8 (B, S, S, 3), the cells on grey; the whole image where no mask was found.
      empty: bool (B,), True where no mask was found.
      foreground: uint8 (B, G, G), the share of each token's patch that is cell, 255 for all of it; of the window where
        there is one, else of the image; 255 everywhere where no mask was found.
      areas: float32 (B,), of the cells in pixels of their images; of the whole image where no mask was found.
      views: uint8 (B, V, V, 3), the windows around the cells, or None if none were asked for.
    """

    crops: np.ndarray
    empty: np.ndarray
    foreground: np.ndarray
    areas: np.ndarray
    views: np.ndarray | None


def mask_at(margin: Float[np.ndarray, "h w"], height: int, width: int) -> Bool[np.ndarray, "height width"]:
    """The largest component of the mask at the image's own size.

    The margin is interpolated bilinearly before the threshold; the argmax of two interpolated channels is the sign of
    their interpolated difference.

    Args:
      margin: how much more a pixel is cell than background, at the segmenter's resolution.
      height, width: of the image.
    """
    resized = cv2.resize(np.ascontiguousarray(margin), (width, height), interpolation=cv2.INTER_LINEAR)
    return largest_component(resized > 0)


def cut_cells(
    images: Sequence[UInt8[np.ndarray, "_ _ 3"]],
    margins: Float[np.ndarray, "b h w"],
    crop_size: int,
    grid: int,
    *,
    parity: bool = False,
    zoom: float = 0.0,
    view_size: int = 0,
    resize: Resize = "bilinear",
) -> CutCells:
    """Masks, crops and windows of a batch; free of JAX, so that worker processes can do it.

    Args:
      images: RGB, each at its own size.
      margins: see `mask_at`.
      crop_size: side of the crops in pixels.
      grid: side of the token grid.
      parity: see `crops.cell_crop`.
      zoom: side of the window over the longer side of the cell (see `crops.cell_view`); 0 for no windows.
      view_size: side that the windows are resized to, in pixels.
      resize: see `images.resize_image`.
    """
    masks = [mask_at(margin, *image.shape[:2]) for image, margin in zip(images, margins, strict=True)]
    crops = [cell_crop(image, mask, crop_size, parity=parity) for image, mask in zip(images, masks, strict=True)]
    empty = np.array([is_empty(mask) for mask in masks])
    shares = [
        np.full(mask.shape, 255, np.uint8) if none else mask * np.uint8(255)
        for mask, none in zip(masks, empty, strict=True)
    ]
    areas = np.array([np.count_nonzero(share) for share in shares], np.float32)
    views = None
    if zoom:
        pairs = zip(images, masks, strict=True)
        views = np.stack([resize_image(cell_view(image, mask, zoom), view_size, resize) for image, mask in pairs])
        shares = [cell_view(share, mask, zoom, repeat_edge=False) for share, mask in zip(shares, masks, strict=True)]
    foreground = np.stack([cv2.resize(share, (grid, grid), interpolation=cv2.INTER_AREA) for share in shares])
    return CutCells(np.stack(crops), empty, foreground, areas, views)
