"""Colour, texture and shape of a cell, its nucleus and its cytoplasm, computed on the device."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from dorl_jax.models.co_occurrence import CO_OCCURRENCE_NUMBERS, co_occurrence, grey_levels
from dorl_jax.models.hu_moments import HU_NUMBERS, hu_moments
from dorl_jax.models.layers import AnyArray

# A pixel of the cell differs from the grey around it by more than interpolation makes of grey, in steps of 1/255.
_GREY, _NEAR_GREY = 128, 6
_NEIGHBOURS = 8
_PATTERNS = _NEIGHBOURS + 2
_RADII = (1, 2, 4)
_SIGMAS = (0.0, 1.0, 2.0, 4.0, 8.0)
# Pixels taken off a nucleus's rim: what is left tells a round nucleus from lobes.
_EROSIONS = (1, 2, 4, 6, 8, 12, 16)
# Below it a channel is flat, and rounding would make up its skewness.
_LEAST_SPREAD = 1e-3
_CHANNELS = 9
# Accelerators would round to bf16 before they multiply.
_EXACT = jax.lax.Precision.HIGHEST
_MOMENTS = 3 * _CHANNELS
_PATTERN_NUMBERS = (len(_RADII) + 2) * _PATTERNS
_BANDS = 3 * (len(_SIGMAS) - 1)
_SHAPE = 2 + 2 * 2 + len(_EROSIONS)
# Channel of `colour_channels`, and what its histogram covers: L, a, b and saturation.
_RANGES = ((0, 0.0, 1.0), (1, -0.2, 0.7), (2, -0.7, 0.5), (6, 0.0, 1.0))
_BINS = 12
_HISTOGRAMS = len(_RANGES) * _BINS
# What a spread, and a band's energy, are raised by before their logarithms are compared.
_FLAT, _STILL = 1e-3, 4e-4

REGION_NUMBERS = (
    3 * _MOMENTS
    + _CHANNELS
    + _PATTERN_NUMBERS
    + 2 * _BANDS
    + _SHAPE  # of `_measure`
    + _HISTOGRAMS
    + 2 * CO_OCCURRENCE_NUMBERS
    + 2 * HU_NUMBERS
)
"""Of `region_statistics`."""

RELATION_NUMBERS = 7 * _CHANNELS + _PATTERN_NUMBERS + _BANDS + _SHAPE
"""Of `relation_statistics`."""

SIZE_NUMBERS = 3
"""Of `size_statistics`."""


def region_statistics(crops: Float[AnyArray, "b s s 3"]) -> Float[Array, "b n"]:
    """Numbers a pathologist would ask for, `REGION_NUMBERS` a cell; no weight takes part.

    - mean, sd and skewness of CIE L, a, b, the optical densities of red, green, blue, saturation, and the hue's cosine
      and sine times saturation, over the cell, its nucleus and its cytoplasm; nucleus less cytoplasm
    - rotation-invariant uniform local binary patterns (Ojala et al., PAMI 2002) of the green channel
    - energy between blurs of one width and the next in nucleus and cytoplasm
    - the nucleus's share of the cell and its distance from the middle; dispersion and eccentricity of both; how much of
      the nucleus is left when its rim is taken off
    - histograms of L, a, b and saturation over the cell; grey-level co-occurrence of the cell and its cytoplasm in
      green; Hu's moments of cell and nucleus

    The nucleus is what is darker than Otsu's threshold (1979) in green, which the dyes of the nucleus absorb most.
    Apart from rounding the numbers do not change when the cell is mirrored or turned by quarters. Stain and
    light change them: they are compared across laboratories in each laboratory's own units.

    Args:
      crops: the cell alone on grey (see `data.crops.cell_crop`), 0..1.
    """
    parts = _parts(crops)
    found = _measure(parts)
    _, of_nucleus, of_cytoplasm = found.moments
    apart = of_nucleus[:, :_CHANNELS] - of_cytoplasm[:, :_CHANNELS]
    green = parts.pixels[..., 1]
    levels = grey_levels(green, _counts(green, parts.cell))
    more = [
        _histograms(parts.channels, parts.cell),
        *co_occurrence(levels, (parts.cell, parts.cytoplasm)),
        *(hu_moments(region) for region in (parts.cell, parts.nucleus)),
    ]
    return jnp.concatenate([*found.moments, apart, found.patterns, *found.bands, found.shape, *more], axis=-1)


def relation_statistics(crops: Float[AnyArray, "b s s 3"]) -> Float[Array, "b n"]:
    """What nucleus and cytoplasm are beside the cell as a whole, `RELATION_NUMBERS` a cell; no weight takes part.

    Of the first of what `region_statistics` measures: means of nucleus and cytoplasm less the cell's; logarithms of
    their spreads over the cell's, and of the nucleus's bands over the cytoplasm's; skewnesses, patterns and shape as
    they are. What stain and light add to all of a cell has cancelled, so that cells of an unknown laboratory can be
    compared.

    Args:
      crops: as for `region_statistics`.
    """
    found = _measure(_parts(crops))
    means, spreads, skews = zip(*(jnp.split(one, 3, axis=-1) for one in found.moments), strict=True)
    relations = [one - means[0] for one in means[1:]]
    relations += [jnp.log((one + _FLAT) / (spreads[0] + _FLAT)) for one in spreads[1:]]
    of_nucleus, of_cytoplasm = found.bands
    bands = jnp.log((of_nucleus + _STILL) / (of_cytoplasm + _STILL))
    return jnp.concatenate([*relations, *skews, found.patterns, found.shape, bands], axis=-1)


def size_statistics(crops: Float[AnyArray, "b s s 3"], areas: Float[AnyArray, " b"]) -> Float[Array, "b 3"]:
    """Natural logarithms of the areas of the cell, its nucleus and its cytoplasm, in pixels of the image.

    A magnification adds the same to each of them for all of a laboratory's cells: in its own units lymphocytes are
    small and monocytes large, whatever the microscope. Crops alone cannot tell, for all cells fill them alike.

    Args:
      crops: as for `region_statistics`; they tell the nucleus's share.
      areas: of the whole cells, in pixels of their images.
    """
    _, _, cell, nucleus, cytoplasm = _parts(crops)
    whole, *parts = (region.sum(axis=(1, 2)) for region in (cell, nucleus, cytoplasm))
    # Half a pixel more, for a cell without one of the two.
    shares = [jnp.log((part + 0.5) / (whole + 1)) for part in parts]
    return jnp.log(jnp.maximum(areas, 1))[:, None] + jnp.stack([jnp.zeros_like(shares[0]), *shares], axis=-1)


class _Parts(NamedTuple):
    """Pixels 0..255, `colour_channels` of them, and where cell, nucleus and cytoplasm are."""

    pixels: Array
    channels: Array
    cell: Array
    nucleus: Array
    cytoplasm: Array


def _parts(crops: Float[AnyArray, "b s s 3"]) -> _Parts:
    pixels = jnp.round(jnp.asarray(crops, jnp.float32) * 255)
    cell = cell_mask(pixels)
    nucleus = _opened(cell & (pixels[..., 1] <= otsu(pixels[..., 1], cell)[:, None, None]))
    return _Parts(pixels, colour_channels(pixels), cell, nucleus, cell & ~nucleus)


class _Measured(NamedTuple):
    """Moments of cell, nucleus and cytoplasm; patterns; bands of nucleus and cytoplasm; shape: (B, n) each."""

    moments: tuple[Array, Array, Array]
    patterns: Array
    bands: tuple[Array, Array]
    shape: Array


def _measure(parts: _Parts) -> _Measured:
    pixels, channels, *regions = parts
    cell, nucleus, cytoplasm = regions
    moments = [masked_moments(channels, region) for region in regions]
    patterns = []
    for radius in _RADII:
        patterns += local_binary_patterns(pixels[..., 1], regions if radius == 1 else (cell,), radius)
    return _Measured(
        (moments[0], moments[1], moments[2]),
        jnp.concatenate(patterns, axis=-1),
        (band_energies(pixels, nucleus), band_energies(pixels, cytoplasm)),
        _shape_numbers(cell, nucleus),
    )


def cell_mask(pixels: Float[Array, "b s s 3"]) -> Bool[Array, "b s s"]:
    """Where the crop is not grey, small holes filled and the rim, which resizing mixed with grey, left out.

    Where that is less than a hundredth of the crop, all of it.
    """
    other = jnp.abs(pixels - _GREY).max(axis=-1) > _NEAR_GREY
    inner = _eroded(_eroded(_dilated(other)))
    return inner | (inner.mean(axis=(1, 2), keepdims=True) < 0.01)


def otsu(levels: Float[Array, "b s s"], region: Bool[Array, "b s s"]) -> Float[Array, " b"]:
    """Otsu's threshold (1979) over the region, of whole numbers 0..255: what is not above it is the darker part."""
    counts = _counts(levels, region)
    shares = counts / jnp.maximum(counts.sum(axis=1, keepdims=True), 1)
    below = jnp.cumsum(shares, axis=1)
    first_moment = jnp.cumsum(shares * jnp.arange(256), axis=1)
    apart = (first_moment[:, -1:] * below - first_moment) ** 2
    between = apart / jnp.maximum(below * (1 - below), 1e-6)
    return jnp.argmax(between, axis=1).astype(jnp.float32)


def _counts(levels: Float[Array, "b s s"], region: Bool[Array, "b s s"]) -> Float[Array, "b 256"]:
    """How many of the region's pixels have each of the whole numbers 0..255."""
    batch = levels.shape[0]
    high, low = jnp.divmod(levels.reshape(batch, -1), 16)
    digits = jnp.arange(16)
    # A histogram as a matrix product: accelerators count badly and multiply well.
    first = ((high[..., None] == digits) & region.reshape(batch, -1, 1)).astype(jnp.float32)
    second = (low[..., None] == digits).astype(jnp.float32)
    return jnp.einsum("bnp,bnq->bpq", first, second).reshape(batch, 256)


def _histograms(channels: Float[Array, "b s s 9"], region: Bool[Array, "b s s"]) -> Float[Array, "b k"]:
    """Shares of L, a, b and saturation in twelve equal bins each; what lies beyond is in the outermost."""
    count = jnp.maximum(region.sum(axis=(1, 2)), 1)[:, None]
    found = []
    for channel, low, high in _RANGES:
        places = jnp.clip(jnp.floor((channels[..., channel] - low) / (high - low) * _BINS), 0, _BINS - 1)
        inside = (places[..., None] == jnp.arange(_BINS)) & region[..., None]
        found.append(inside.sum(axis=(1, 2)) / count)
    return jnp.concatenate(found, axis=-1)


def colour_channels(pixels: Float[Array, "b s s 3"]) -> Float[Array, "b s s 9"]:
    """CIE L, a, b over 100; optical densities of red, green, blue; saturation; hue's cosine and sine times saturation.

    Args:
      pixels: sRGB, 0..255.
    """
    share = pixels / 255
    linear = jnp.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    # sRGB's primaries to CIE XYZ, over the white of D65
    to_xyz = np.array([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]])
    of_white = jnp.asarray((to_xyz / to_xyz.sum(axis=1, keepdims=True)).T, jnp.float32)
    xyz = jnp.matmul(linear, of_white, precision=_EXACT)
    f = jnp.where(xyz > 0.008856, jnp.cbrt(xyz), 7.787 * xyz + 16 / 116)
    lightness = 1.16 * f[..., 1] - 0.16
    a, b = 5 * (f[..., 0] - f[..., 1]), 2 * (f[..., 1] - f[..., 2])
    density = -jnp.log10((pixels + 1) / 256)
    most = share.max(axis=-1)
    saturation = (most - share.min(axis=-1)) / jnp.maximum(most, 1 / 255)
    red, green, blue = share[..., 0], share[..., 1], share[..., 2]
    along, across = red - (green + blue) / 2, np.sqrt(3) / 2 * (green - blue)
    turn = saturation / jnp.maximum(jnp.hypot(along, across), 1e-6)
    rest = [saturation, along * turn, across * turn]
    return jnp.concatenate([jnp.stack([lightness, a, b], -1), density, jnp.stack(rest, -1)], axis=-1)


def masked_moments(channels: Float[Array, "b s s c"], region: Bool[Array, "b s s"]) -> Float[Array, "b k"]:
    """Means, standard deviations and skewnesses of the channels over the region; of no pixel zeros."""
    weight = region[..., None].astype(jnp.float32)
    count = jnp.maximum(weight.sum(axis=(1, 2)), 1)
    mean = (weight * channels).sum(axis=(1, 2)) / count
    centred = weight * (channels - mean[:, None, None])
    squares = centred * centred
    spread = jnp.sqrt(squares.sum(axis=(1, 2)) / count)
    skew = (squares * centred).sum(axis=(1, 2)) / count / jnp.maximum(spread, _LEAST_SPREAD) ** 3
    return jnp.concatenate([mean, spread, skew], axis=-1)


def local_binary_patterns(
    grey: Float[Array, "b s s"], regions: Sequence[Bool[Array, "b s s"]], radius: int
) -> list[Float[Array, "b 10"]]:
    """For each region shares of the uniform patterns of 8 neighbours, 0..8 of them bright, and of all others.

    Args:
      grey: any range; only which of two pixels is brighter counts.
      regions: pixels that are counted; those nearer to the image's edge than `radius` are left out.
      radius: of the circle of neighbours, which are interpolated bilinearly.
    """
    size = grey.shape[1]
    inner = grey[:, radius : size - radius, radius : size - radius]
    bright = []
    for number in range(_NEIGHBOURS):
        angle = 2 * np.pi * number / _NEIGHBOURS
        # Rounded, so that a neighbour a hair's breadth from a pixel is that pixel.
        y, x = np.round(-radius * np.sin(angle), 6), np.round(radius * np.cos(angle), 6)
        top, left = int(np.floor(y)), int(np.floor(x))
        value = jnp.zeros_like(inner)
        for dy, share_y in ((0, 1 - (y - top)), (1, y - top)):
            for dx, share_x in ((0, 1 - (x - left)), (1, x - left)):
                if share_y * share_x:
                    row, column = radius + top + dy, radius + left + dx
                    there = grey[:, row : row + inner.shape[1], column : column + inner.shape[2]]
                    value += float(share_y * share_x) * there
        # As bright, but for rounding, is bright.
        bright.append(value >= inner - 1e-3)
    count = sum(one.astype(jnp.int32) for one in bright)
    changes = sum((a != b).astype(jnp.int32) for a, b in pairwise([*bright, bright[0]]))
    code = jnp.where(changes <= 2, count, _PATTERNS - 1)
    is_pattern = code[..., None] == jnp.arange(_PATTERNS)
    shares = []
    for region in regions:
        inside = region[:, radius : size - radius, radius : size - radius, None]
        found = (is_pattern & inside).sum(axis=(1, 2)).astype(jnp.float32)
        shares.append(found / jnp.maximum(found.sum(axis=-1, keepdims=True), 1))
    return shares


def band_energies(pixels: Float[Array, "b s s 3"], region: Bool[Array, "b s s"]) -> Float[Array, "b k"]:
    """Root mean square, over the region, of the differences between blurs of one sigma and the next, by channel; 0..1.

    Outside, the region's mean stands in, so that its edge is no texture. Of no pixel zeros.
    """
    weight = region[..., None].astype(jnp.float32)
    count = jnp.maximum(weight.sum(axis=(1, 2)), 1)
    mean = (weight * pixels).sum(axis=(1, 2)) / count
    # Centred: what a blur takes from beyond the region is zero.
    fine = centred = weight * (pixels - mean[:, None, None])
    energies = []
    for sigma in _SIGMAS[1:]:
        kernel = jnp.asarray(_blur(pixels.shape[1], sigma))
        coarse = jnp.einsum("hi,bijc,wj->bhwc", kernel, centred, kernel, precision=_EXACT)
        energies.append(jnp.sqrt((weight * (fine - coarse) ** 2).sum(axis=(1, 2)) / count) / 255)
        fine = coarse
    return jnp.stack(energies, axis=-1).reshape(pixels.shape[0], -1)


def _blur(size: int, sigma: float) -> np.ndarray:
    """Gaussian blur along one axis as a matrix; beyond the edge the image is mirrored about its last pixel."""
    reach = min(round(4 * sigma), size - 1)
    offsets = np.arange(-reach, reach + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    weights /= weights.sum()
    rows = np.arange(size)
    matrix = np.zeros((size, size), np.float32)
    for offset, weight in zip(offsets, weights, strict=True):
        place = np.abs(rows + offset)
        place = np.where(place >= size, 2 * (size - 1) - place, place)
        matrix[rows, place] += weight
    return matrix


def _shape_numbers(cell: Bool[Array, "b s s"], nucleus: Bool[Array, "b s s"]) -> Float[Array, "b k"]:
    area, middle, of_cell = _second_moments(cell)
    part, nucleus_middle, of_nucleus = _second_moments(nucleus)
    there = part > 0
    apart = jnp.hypot(*(nucleus_middle - middle).T) / jnp.sqrt(jnp.maximum(area, 1) / np.pi)
    numbers = [part / jnp.maximum(area, 1), jnp.where(there, apart, 0), *of_cell, *of_nucleus]
    left, done = nucleus, 0
    for erosion in _EROSIONS:
        for _ in range(erosion - done):
            left = _eroded(left)
        done = erosion
        numbers.append(left.sum(axis=(1, 2)) / jnp.maximum(part, 1))
    return jnp.stack(numbers, axis=-1)


def _second_moments(
    region: Bool[Array, "b s s"],
) -> tuple[Float[Array, " b"], Float[Array, "b 2"], list[Float[Array, " b"]]]:
    """Area, middle; dispersion, 1 for a disc and more for anything else, and eccentricity, 0 for a disc."""
    weight = region.astype(jnp.float32)
    area = weight.sum(axis=(1, 2))
    count = jnp.maximum(area, 1)
    places = jnp.arange(region.shape[1], dtype=jnp.float32)
    rows, columns = weight.sum(axis=2), weight.sum(axis=1)
    y, x = (jnp.matmul(one, places, precision=_EXACT) / count for one in (rows, columns))
    down, right = places - y[:, None], places - x[:, None]
    yy, xx = (rows * down**2).sum(axis=1) / count, (columns * right**2).sum(axis=1) / count
    yx = jnp.einsum("bij,bi,bj->b", weight, down, right, precision=_EXACT) / count
    mean, half = (yy + xx) / 2, jnp.hypot((yy - xx) / 2, yx)
    eccentricity = jnp.sqrt(jnp.clip(1 - (mean - half) / jnp.maximum(mean + half, 1e-6), 0, 1))
    # Of a disc of area A the second moment along an axis is A / 4 pi.
    return area, jnp.stack([y, x], -1), [4 * np.pi * mean / count, jnp.where(mean > 0, eccentricity, 0)]


def _eroded(region: Bool[Array, "b s s"]) -> Bool[Array, "b s s"]:
    """Without the pixels that have one outside among their 8 neighbours; beyond the image is outside."""
    wide = jnp.pad(region, ((0, 0), (1, 1), (1, 1)))
    rows = wide[:, :-2] & wide[:, 1:-1] & wide[:, 2:]
    return rows[:, :, :-2] & rows[:, :, 1:-1] & rows[:, :, 2:]


def _dilated(region: Bool[Array, "b s s"]) -> Bool[Array, "b s s"]:
    """With the 8 neighbours of all pixels."""
    wide = jnp.pad(region, ((0, 0), (1, 1), (1, 1)))
    rows = wide[:, :-2] | wide[:, 1:-1] | wide[:, 2:]
    return rows[:, :, :-2] | rows[:, :, 1:-1] | rows[:, :, 2:]


def _opened(region: Bool[Array, "b s s"]) -> Bool[Array, "b s s"]:
    """Without what is thinner than 3 pixels: grains of the cytoplasm are no nucleus."""
    return _dilated(_eroded(region))
