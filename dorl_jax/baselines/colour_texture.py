"""The classical vector of a stained cell: colour, texture, shape and size of cell, nucleus and cytoplasm."""

import cv2
import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8

from dorl_jax.baselines.shapes import shape_numbers
from dorl_jax.baselines.texture import band_energies, co_occurrence, co_occurrence_numbers, local_binary_patterns
from dorl_jax.data.crops import largest_component

_SIDE = 128
_GREY = 128
_LEVELS = 16
_DISTANCES = (1, 2, 4, 8)
_RADII = (1, 2, 4)
_SIGMAS = (0.0, 1.0, 2.0, 4.0, 8.0)
_BINS = 12

PARTS = {"colour": 138, "texture": 114, "shape": 31, "size": 3}
"""What the vector is made of, in order: name -> numbers. Each can have a classifier of its own (see `Experts`)."""


def colour_texture(
    crop: UInt8[np.ndarray, "s s 3"],
    foreground: UInt8[np.ndarray, "g g"] | None = None,
    area: float | None = None,
) -> Float32[np.ndarray, " d"]:
    """Some 290 numbers that do not change when the cell is mirrored or turned by quarters.

    The nucleus is what is darker than Otsu's threshold in the green channel, which the dyes of the nucleus absorb most.

    Args:
      crop: the cell alone on grey 128, stretched to a square (see `crops.cell_crop`).
      foreground: share of each token that is cell, 0..255, which tells how far the crop was stretched; None for not.
      area: of the cell in pixels of its image; None for those of the crop.
    """
    mask = cell_mask(crop)
    crop, mask = _unstretched(crop, mask, foreground)
    green = crop[..., 1].astype(np.float32)
    nucleus = mask & (green <= _otsu(crop[..., 1][mask]))
    # Grains of the cytoplasm are no nucleus.
    nucleus = cv2.morphologyEx(nucleus.astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)) > 0
    cytoplasm = mask & ~nucleus
    channels = _channels(crop)
    numbers: list[float] = []
    means = []
    for region in (mask, nucleus, cytoplasm):
        moments = _moments(channels[region])
        means.append(moments[: channels.shape[-1]])
        numbers += moments
    numbers += (np.array(means[1]) - np.array(means[2])).tolist()
    numbers += _histograms(channels[mask])
    levels = _levels(green, mask)
    for region in (mask, nucleus, cytoplasm):
        for radius in _RADII if region is mask else _RADII[:1]:
            numbers += local_binary_patterns(green, region, radius).tolist()
    for region in (mask, cytoplasm):
        for distance in _DISTANCES:
            numbers += co_occurrence_numbers(co_occurrence(levels, region, distance, _LEVELS))
    for region in (nucleus, cytoplasm):
        for channel in range(3):
            numbers += band_energies(channels[..., channel], region, _SIGMAS)
    numbers += shape_numbers(mask)
    numbers += shape_numbers(nucleus)
    numbers += _relations(mask, nucleus)
    numbers += _sizes(mask, nucleus, area)
    return np.array(numbers, np.float32)


def cell_mask(crop: UInt8[np.ndarray, "s s 3"]) -> Bool[np.ndarray, "s s"]:
    """Where the cell is in a crop on grey: the largest part that is not grey, its holes filled and its rim left out.

    Where that is less than a hundredth of the crop, all of it.
    """
    other = np.abs(crop.astype(np.int16) - _GREY).max(axis=-1) > 6
    part = largest_component(other).astype(np.uint8)
    outlines, _ = cv2.findContours(part, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled = cv2.drawContours(np.zeros_like(part), outlines, -1, 1, cv2.FILLED)
    # Resizing mixed the rim with grey.
    inner = cv2.erode(filled, np.ones((3, 3), np.uint8), borderValue=0) > 0
    return inner if inner.sum() >= inner.size / 100 else np.ones_like(inner)


def _unstretched(
    crop: UInt8[np.ndarray, "s s 3"], mask: Bool[np.ndarray, "s s"], foreground: UInt8[np.ndarray, "g g"] | None
) -> tuple[UInt8[np.ndarray, "h w 3"], Bool[np.ndarray, "h w"]]:
    """The crop with the cell's own proportions, its longer side unchanged."""
    if foreground is None or not foreground.any():
        return crop, mask
    # The cell's width in tokens, parts of them counted.
    wide, high = foreground.max(axis=0).sum(dtype=float), foreground.max(axis=1).sum(dtype=float)
    longer = max(wide, high)
    size = (max(32, round(_SIDE * wide / longer)), max(32, round(_SIDE * high / longer)))
    stretched = cv2.resize(crop, size, interpolation=cv2.INTER_AREA)
    # Of a mirrored mask the mirror image, which the nearest pixel would not give.
    return stretched, cv2.resize(mask * np.uint8(255), size, interpolation=cv2.INTER_AREA) > 127


def _channels(crop: UInt8[np.ndarray, "h w 3"]) -> Float32[np.ndarray, "h w 9"]:
    """CIE L, a, b; optical densities of red, green, blue; saturation, and hue as cosine and sine times saturation."""
    share = crop.astype(np.float32) / 255
    lab = cv2.cvtColor(share, cv2.COLOR_RGB2LAB) / 100
    density = -np.log10((crop.astype(np.float32) + 1) / 256)
    hue, saturation, _ = cv2.split(cv2.cvtColor(share, cv2.COLOR_RGB2HSV))
    angle = np.deg2rad(hue)
    return np.dstack([lab, density, saturation, saturation * np.cos(angle), saturation * np.sin(angle)])


def _moments(values: Float[np.ndarray, "n c"]) -> list[float]:
    """Means, standard deviations and skewnesses of the channels, of no pixel zeros."""
    if not len(values):
        return [0.0] * (3 * values.shape[1])
    values = values.astype(np.float64)
    mean, spread = values.mean(axis=0), values.std(axis=0)
    centred = values - mean
    # Products: NumPy's third power takes ten times as long.
    skew = (centred * centred * centred).mean(axis=0) / np.maximum(spread, 1e-6) ** 3
    return [*mean.tolist(), *spread.tolist(), *skew.tolist()]


def _histograms(values: Float[np.ndarray, "n 9"]) -> list[float]:
    """Shares of L, a, b and saturation in fixed bins."""
    ranges = ((0, (0.0, 1.0)), (1, (-0.2, 0.7)), (2, (-0.7, 0.5)), (6, (0.0, 1.0)))
    numbers: list[float] = []
    for channel, (low, high) in ranges:
        inside = np.clip(values[:, channel], low, high)
        numbers += (np.histogram(inside, _BINS, (low, high))[0] / max(len(values), 1)).tolist()
    return numbers


def _levels(grey: Float32[np.ndarray, "h w"], region: Bool[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    """Equal steps between the darkest and the brightest hundredth of the region."""
    low, high = np.percentile(grey[region], (1, 99))
    share = (grey - low) / max(high - low, 1)
    return np.clip(share * _LEVELS, 0, _LEVELS - 1).astype(np.uint8)


def _otsu(values: UInt8[np.ndarray, " n"]) -> float:
    """Otsu's threshold (1979)."""
    return cv2.threshold(values.reshape(-1, 1), 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)[0]


def _sizes(mask: Bool[np.ndarray, "h w"], nucleus: Bool[np.ndarray, "h w"], area: float | None) -> list[float]:
    """Logarithms of the areas of the cell, its nucleus and its cytoplasm; half a pixel more where there is none."""
    whole = mask.sum()
    shares = [1.0, *((part.sum() + 0.5) / (whole + 1) for part in (nucleus, mask & ~nucleus))]
    return np.log(np.multiply(shares, max(whole if area is None else area, 1))).tolist()


def _relations(mask: Bool[np.ndarray, "h w"], nucleus: Bool[np.ndarray, "h w"]) -> list[float]:
    """The cell's proportions; the nucleus's share of it; how far it is from its middle, and how thick it is."""
    height, width = np.ptp(np.argwhere(mask), axis=0) + 1
    longer, shorter = max(height, width), min(height, width)
    radius = np.sqrt(mask.sum() / np.pi)
    if not nucleus.any():
        return [shorter / longer, 0.0, 0.0, 0.0, 0.0]
    apart = np.linalg.norm(np.argwhere(mask).mean(axis=0) - np.argwhere(nucleus).mean(axis=0)) / radius
    depth = cv2.distanceTransform(np.pad(nucleus, 1).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    return [
        shorter / longer,
        nucleus.sum() / mask.sum(),
        float(apart),
        float(depth.max() / radius),
        float(depth[nucleus].mean() / radius),
    ]
