"""Pictures that show the same cell: turned, flipped, saved again, resized, brightened, or cut a little otherwise.

Four sieves, each finer and dearer than the one before:

1. The magnitudes of the rings' harmonics (see `fingerprint`) change neither with turns nor with flips. A k-d tree
   finds the pairs whose magnitudes are near.
2. The rings of a pair are turned onto each other. Their distance is never less than that of the magnitudes, so the
   first sieve loses nothing that passes the second.
3. The thumbnails, turned, scaled and shifted as the rings say, must agree in their detail.
4. The affine map that lays one thumbnail on the other best is found (Evangelidis and Psarakis, "Parametric image
   alignment using enhanced correlation coefficient maximization", 2008), and the detail compared again.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Complex64, Float, Float32, Int, Int8

from dorl_jax.data.check.fingerprint import SIDE, Fingerprint, detail

# Measured on 3,141 real cells of four laboratories: of 240 planted copies of each kind (JPEG at quality 50, scale 0.7,
# turns, flips, 5 % more light) all are found, none farther than 0.25; of those cut 4 % otherwise 88 %. Of the cells
# themselves 20 pairs are nearer than 0.6, all of one cell by eye; the next, at 0.77, are two cells.
MOST_DISTANCE = 0.6
"""Largest distance (see `Pair`) of two pictures that count as one cell."""
RADII = (0.2, 0.1)
"""Largest distance of the rings about the picture's middle, and of those about the cell."""
MOST_NEIGHBOURS = 32
"""The nearest pictures that are compared with each. Of more copies than that each still has its own nearest."""

_DIMENSIONS = 16
_LEAST_FIRST_CORRELATION = 0.55
_LEAST_OVERLAP = 0.6
_BLOCK = 4096
_FLAGS = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP


@dataclass(frozen=True)
class Pair:
    """Two pictures of one cell: their places, first < second, and their distance.

    The distance is sqrt(2 - 2r), r being the correlation of the detail of the thumbnails where they overlap: 0 for
    copies, about 1.4 for strangers.
    """

    first: int
    second: int
    distance: float


def find_copies(fingerprints: Sequence[Fingerprint | None]) -> tuple[Pair, ...]:
    """The pairs of pictures that show the same cell, nearest first. None (a blank picture) is like no other."""
    places = [place for place, one in enumerate(fingerprints) if one is not None]
    kept = [one for one in fingerprints if one is not None]
    if len(kept) < 2:
        return ()
    found: dict[tuple[int, int], float] = {}
    for frame, radius in enumerate(RADII):
        rings = np.stack([one.rings[frame] for one in kept])
        frames = np.stack([one.frames[frame] for one in kept])
        for pairs in near_pairs(rings, radius):
            distance, angle, flipped = turn_onto(rings[pairs[:, 0]], rings[pairs[:, 1]])
            near = np.flatnonzero(distance <= radius)
            starts = first_maps(frames[pairs[near, 0]], frames[pairs[near, 1]], angle[near], flipped[near])
            for (i, j), start in zip(pairs[near].tolist(), starts, strict=True):
                if alike_at_first(kept[i].coarse_detail, kept[j].coarse_detail, start):
                    measured = lay_over(kept[i], kept[j], start)
                    if measured <= min(MOST_DISTANCE, found.get((i, j), np.inf)):
                        found[i, j] = measured
    pairs_found = [Pair(places[i], places[j], distance) for (i, j), distance in found.items()]
    return tuple(sorted(pairs_found, key=lambda pair: (pair.distance, pair.first, pair.second)))


def near_pairs(rings: Complex64[np.ndarray, "n r k"], radius: float) -> Iterator[Int[np.ndarray, "m 2"]]:
    """Pairs of rows, first < second, whose magnitudes are within `radius`, in blocks; a pair may be in two."""
    from scipy.spatial import cKDTree  # slow to import

    magnitudes = np.abs(rings).reshape(len(rings), -1)
    # No pair is farther apart along the main axes than in all dimensions, and few dimensions are searched faster.
    centred = magnitudes - magnitudes.mean(0)
    axes = np.linalg.eigh(centred.T @ centred)[1][:, : -_DIMENSIONS - 1 : -1]
    points = centred @ axes
    tree = cKDTree(points)
    for begin in range(0, len(points), _BLOCK):
        block = points[begin : begin + _BLOCK]
        # One more than wanted, for the nearest is the picture itself, or its twin.
        found: np.ndarray = tree.query(
            block, MOST_NEIGHBOURS + 1, distance_upper_bound=radius * (1 + 1e-5), workers=-1
        )[1]  # type: ignore[assignment]
        row, column = np.nonzero(found < len(points))
        here, there = begin + row, found[row, column]
        pairs = np.unique(np.stack([np.minimum(here, there), np.maximum(here, there)], 1)[here != there], axis=0)
        apart = np.linalg.norm(magnitudes[pairs[:, 0]] - magnitudes[pairs[:, 1]], axis=1)
        yield pairs[apart <= radius]


def turn_onto(
    first: Complex64[np.ndarray, "m r k"], second: Complex64[np.ndarray, "m r k"]
) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"], Bool[np.ndarray, " m"]]:
    """The least distance of the rings over 128 turns of the second, plain or flipped, and where it is.

    Returns:
      Distance; angle in radians that the second (flipped first, if so) is to be turned by; flipped or not.
    """
    steps = 128
    best, places = [], []
    for turned in (second, second.conj()):
        spectrum = np.zeros((len(first), steps), np.complex64)
        spectrum[:, : first.shape[2]] = (first * turned.conj()).sum(1)
        # At step n: the sum over k of Re(spectrum[k] exp(ika)), a = 2 pi n / steps.
        correlation = np.fft.ifft(spectrum, axis=1).real * steps
        places.append(correlation.argmax(1))
        best.append(correlation.max(1))
    flipped = best[1] > best[0]
    squares = (np.abs(first) ** 2).sum((1, 2)) + (np.abs(second) ** 2).sum((1, 2))
    distance = np.sqrt(np.maximum(squares - 2 * np.where(flipped, best[1], best[0]), 0))
    return distance, 2 * np.pi * np.where(flipped, places[1], places[0]) / steps, flipped


def first_maps(
    first: Float32[np.ndarray, "m 3"],
    second: Float32[np.ndarray, "m 3"],
    angle: Float[np.ndarray, " m"],
    flipped: Bool[np.ndarray, " m"],
) -> Float32[np.ndarray, "m 2 3"]:
    """The affine maps from the frames (x, y, radius) of the firsts to those of the seconds, as `turn_onto` has them."""
    cosine, sine = np.cos(angle), np.sin(angle)
    linear = np.stack([cosine, sine, -sine, cosine], -1).reshape(-1, 2, 2)
    linear[flipped, 1] *= -1
    linear *= (second[:, 2] / first[:, 2])[:, None, None]
    shift = second[:, :2, None] - linear @ first[:, :2, None]
    return np.concatenate([linear, shift], 2).astype(np.float32)


def alike_at_first(
    first: Int8[np.ndarray, "c c"], second: Int8[np.ndarray, "c c"], start: Float32[np.ndarray, "2 3"]
) -> bool:
    """Whether the coarse details of two fingerprints agree at all under the map from the first to the second."""
    half = start.copy()
    # Pixel x of the half-sized picture has its centre at 2x + 1/2 of the other.
    half[:, 2] = (start[:, :2].sum(1) / 2 + start[:, 2] - 0.5) / 2
    laid = cv2.warpAffine(second.astype(np.float32), half, first.shape, flags=_FLAGS)
    # The map may be a pixel off: the best of nine shifts counts.
    correlation = cv2.matchTemplate(first.astype(np.float32), laid[1:-1, 1:-1], cv2.TM_CCOEFF_NORMED)
    return bool(correlation.max() >= _LEAST_FIRST_CORRELATION)


def lay_over(first: Fingerprint, second: Fingerprint, start: Float32[np.ndarray, "2 3"]) -> float:
    """The distance (see `Pair`) of two pictures; infinity if no map near `start` lays one on the other.

    Args:
      first, second: the fingerprints.
      start: affine map from pixels of the first's thumbnail to those of the second's, roughly.
    """
    one, other = (picture.thumbnail.astype(np.float32) for picture in (first, second))
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 20, 1e-4)
    try:
        # No mask, a Gaussian of 5 pixels.
        _, found = cv2.findTransformECC(one, other, start.copy(), cv2.MOTION_AFFINE, criteria, None, 5)  # type: ignore[call-overload]
    except cv2.error:  # no map brings them closer
        return float("inf")
    inside = cv2.warpAffine(np.ones_like(one), found, (SIDE, SIDE), flags=_FLAGS) > 0.999
    long, short = np.linalg.svd(found[:, :2], compute_uv=False)
    if inside.mean() < _LEAST_OVERLAP or long > 1.3 * short or not 0.6 < long * short < 1 / 0.6:
        return float("inf")
    mine = detail(first.thumbnail, first.frames[1])[inside]
    laid = cv2.warpAffine(detail(second.thumbnail, second.frames[1]), found, (SIDE, SIDE), flags=_FLAGS)[inside]
    mine, laid = mine - mine.mean(), laid - laid.mean()
    energy = float(np.sqrt((mine**2).sum(dtype=float) * (laid**2).sum(dtype=float)))
    if not energy:
        return float("inf")
    return float(np.sqrt(max(0.0, 2 - 2 * float((mine * laid).sum(dtype=float)) / energy)))
