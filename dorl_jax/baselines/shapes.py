"""Shape of a region in numbers that do not change with its size, place or orientation."""

import cv2
import numpy as np
from jaxtyping import Bool

# Of `shape_numbers`.
SHAPE_NUMBERS = 13


def shape_numbers(region: Bool[np.ndarray, "h w"]) -> list[float]:
    """Roundness, solidity, extent, eccentricity, holes, number of parts; and Hu's seven moments, as logarithms.

    - roundness: 4 pi area / perimeter squared, 1 for a disc, of the outlines of all parts together
    - solidity: area over that of the convex hull of all parts
    - extent: area over that of the smallest rectangle around, at any angle
    - eccentricity: of the ellipse with the same second moments, 0 for a disc
    - holes: share of the filled area
    - parts: 4-connected, those under 2 % of the area left out
    - Hu's moments (1962), their absolute values, for a mirror image turns the sign of the last

    A region without pixels gives zeros.
    """
    pixels = region.astype(np.uint8)
    area = float(pixels.sum())
    if not area:
        return [0.0] * SHAPE_NUMBERS
    outlines, _ = cv2.findContours(pixels, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    points = np.concatenate(outlines)
    perimeter = sum(cv2.arcLength(outline, True) for outline in outlines)
    filled = cv2.drawContours(np.zeros_like(pixels), outlines, -1, 1, cv2.FILLED)
    hull = cv2.fillConvexPoly(np.zeros_like(pixels), cv2.convexHull(points), 1).sum()
    (_, sides, _) = cv2.minAreaRect(points)
    # A rectangle through the middles of pixels is half a pixel too small on each side.
    rectangle = (sides[0] + 1) * (sides[1] + 1)
    moments = cv2.moments(pixels, binaryImage=True)
    mean = (moments["mu20"] + moments["mu02"]) / 2
    half = np.hypot((moments["mu20"] - moments["mu02"]) / 2, moments["mu11"])
    eccentricity = np.sqrt(1 - (mean - half) / (mean + half)) if mean + half > 0 else 0.0
    count, _, stats, _ = cv2.connectedComponentsWithStats(pixels, connectivity=4)
    parts = int((stats[1:count, cv2.CC_STAT_AREA] >= 0.02 * area).sum())
    hu = np.abs(cv2.HuMoments(moments)[:, 0])
    return [
        min(4 * np.pi * area / max(perimeter, 1.0) ** 2, 2.0),
        area / hull,
        area / rectangle,
        float(eccentricity),
        1 - area / filled.sum(),
        float(parts),
        *np.log10(hu + 1e-12).tolist(),
    ]
