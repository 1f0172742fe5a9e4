"""Texture of a region: local binary patterns, grey-level co-occurrence, energies of bands."""

from itertools import pairwise

import cv2
import numpy as np
from jaxtyping import Bool, Float, Float64, Int, UInt8

_NEIGHBOURS = 8
# Bins of `local_binary_patterns`: 0..8 bright neighbours in one arc, and all else.
PATTERNS = _NEIGHBOURS + 2
# Right, down, and both diagonals: the other four directions give the same pairs the other way round.
_DIRECTIONS = ((0, 1), (1, 0), (1, 1), (1, -1))


def local_binary_patterns(
    grey: Float[np.ndarray, "h w"], region: Bool[np.ndarray, "h w"], radius: int
) -> Float64[np.ndarray, " 10"]:
    """Shares of the rotation-invariant uniform patterns of 8 neighbours (Ojala et al., PAMI 2002).

    Args:
      grey: any range; only which of two pixels is brighter counts.
      region: of the pixels that are counted; those nearer to the image's edge than `radius` are left out.
      radius: of the circle of neighbours, which are interpolated bilinearly.

    Returns:
      Shares that sum to 1, or all 0 where no pixel is counted.
    """
    height, width = grey.shape
    inside = np.zeros_like(region)
    inside[radius : height - radius, radius : width - radius] = region[
        radius : height - radius, radius : width - radius
    ]
    rows, columns = np.nonzero(inside)
    if not len(rows):
        return np.zeros(PATTERNS)
    centre = grey[rows, columns]
    bright = np.empty((_NEIGHBOURS, len(rows)), bool)
    for number in range(_NEIGHBOURS):
        angle = 2 * np.pi * number / _NEIGHBOURS
        # Rounded, so that a neighbour a hair's breadth from a pixel is that pixel.
        y, x = np.round(-radius * np.sin(angle), 6), np.round(radius * np.cos(angle), 6)
        top, left = int(np.floor(y)), int(np.floor(x))
        below, right = y - top, x - left
        value = np.zeros(len(rows))
        for dy, share_y in ((0, 1 - below), (1, below)):
            for dx, share_x in ((0, 1 - right), (1, right)):
                if share_y * share_x:
                    value += share_y * share_x * grey[rows + top + dy, columns + left + dx]
        # As bright, but for rounding, is bright.
        bright[number] = value >= centre - 1e-6
    changes = (bright != np.roll(bright, 1, axis=0)).sum(axis=0)
    code = np.where(changes <= 2, bright.sum(axis=0), PATTERNS - 1)
    return np.bincount(code, minlength=PATTERNS) / len(rows)


def co_occurrence(
    levels: Int[np.ndarray, "h w"] | UInt8[np.ndarray, "h w"],
    region: Bool[np.ndarray, "h w"],
    distance: int,
    count: int,
) -> Float64[np.ndarray, "n n"]:
    """How often two levels are so far apart, both pixels in the region (Haralick et al. 1973).

    Args:
      levels: 0..count - 1.
      region: of the pixels that are counted.
      distance: in pixels, along rows, columns and both diagonals alike.
      count: of levels.

    Returns:
      Symmetric shares that sum to 1, or all 0 where there is no pair.
    """
    table = np.zeros((count, count))
    height, width = levels.shape
    for down, across in _DIRECTIONS:
        dy, dx = down * distance, across * distance
        here = np.s_[max(0, -dy) : height - max(0, dy), max(0, -dx) : width - max(0, dx)]
        there = np.s_[max(0, dy) : height - max(0, -dy), max(0, dx) : width - max(0, -dx)]
        both = region[here] & region[there]
        pairs = levels[here][both].astype(np.int64) * count + levels[there][both]
        table += np.bincount(pairs, minlength=count * count).reshape(count, count)
    table += table.T
    return table / max(table.sum(), 1)


def co_occurrence_numbers(table: Float64[np.ndarray, "n n"]) -> list[float]:
    """Contrast, homogeneity, energy, correlation and entropy of `co_occurrence`."""
    i, j = np.indices(table.shape)
    mean = (table * i).sum()
    variance = (table * (i - mean) ** 2).sum()
    correlation = (table * (i - mean) * (j - mean)).sum() / variance if variance > 1e-12 else 0.0
    shares = table[table > 0]
    return [
        float((table * (i - j) ** 2).sum()),
        float((table / (1 + (i - j) ** 2)).sum()),
        float(np.sqrt((table**2).sum())),
        float(correlation),
        float(-(shares * np.log2(shares)).sum()),
    ]


def band_energies(
    channel: Float[np.ndarray, "h w"], region: Bool[np.ndarray, "h w"], sigmas: tuple[float, ...]
) -> list[float]:
    """Root mean square, over the region, of the differences between blurs of one sigma and the next.

    Outside, the region's mean stands in, so that its edge is no texture.
    """
    if not region.any():
        return [0.0] * (len(sigmas) - 1)
    filled = np.where(region, channel, channel[region].mean()).astype(np.float32)
    blurred = [cv2.GaussianBlur(filled, (0, 0), sigma) if sigma else filled for sigma in sigmas]
    return [float(np.sqrt(np.mean((fine - coarse)[region] ** 2))) for fine, coarse in pairwise(blurred)]
