"""The look of a picture in a few numbers, and how far two looks are apart."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import cv2
import numpy as np
from jaxtyping import Float, UInt8

BINS = 32
"""Of a histogram: 8 levels each."""

Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Look:
    """The look of one picture. Colours are RGB, 0..255.

    Attributes:
      mean, sd: over the pixels.
      background: the commonest colour of the brighter half of the pixels, to 16 levels, averaged within.
      optical_density: mean over pixels and channels of log10(background / value), value and background at least 1,
        and at least 0 for each pixel: how much dye there is.
      saturation: mean of (largest - smallest) / largest channel, 0..1.
      contrast: standard deviation of the grey (Rec. 601), grey levels.
      sharpness: variance of the grey's Laplacian (4 neighbours); comparable only at one scale.
    """

    mean: Colour
    sd: Colour
    background: Colour
    optical_density: float
    saturation: float
    contrast: float
    sharpness: float


def measure_look(image: UInt8[np.ndarray, "h w 3"]) -> Look:
    """The numbers of one picture."""
    mean, sd = cv2.meanStdDev(image)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    background = _background(image, grey)
    # By level and channel, for there are only 256 levels.
    densities = np.maximum(0, np.log10(np.maximum(background, 1) / np.maximum(np.arange(256), 1)[:, None]))
    shares = [cv2.calcHist([image], [channel], None, [256], [0, 256]).ravel() / grey.size for channel in range(3)]
    largest = image.max(2)
    saturation = (largest - image.min(2)) / np.maximum(largest, 1)
    return Look(
        mean=_colour(mean.ravel()),
        sd=_colour(sd.ravel()),
        background=_colour(background),
        optical_density=float((densities * np.stack(shares, 1)).sum() / 3),
        saturation=float(saturation.mean()),
        contrast=float(grey.std()),
        sharpness=float(cv2.Laplacian(grey, cv2.CV_32F).var(dtype=float)),
    )


def histogram(image: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "3 32"]:
    """The share of the pixels in each bin of each channel."""
    counts = [cv2.calcHist([image], [channel], None, [BINS], [0, 256]).ravel() for channel in range(3)]
    return np.stack(counts).astype(np.float64) / (image.shape[0] * image.shape[1])


def mean_colour(colours: Sequence[Colour]) -> Colour:
    """The mean of some colours."""
    return _colour(np.mean(colours, axis=0))


def mean_look(looks: Sequence[Look]) -> Look:
    """Of at least one look, the mean of each number."""
    values = [[getattr(look, field.name) for look in looks] for field in fields(Look)]
    mean, sd, background, *numbers = values
    return Look(mean_colour(mean), mean_colour(sd), mean_colour(background), *(float(np.mean(one)) for one in numbers))


def to_lab(colours: Sequence[Colour]) -> Float[np.ndarray, "n 3"]:
    """sRGB colours in CIE L*a*b* (D65)."""
    rgb = np.asarray(colours, np.float32).reshape(1, -1, 3) / 255
    return cv2.cvtColor(rgb, cv2.COLOR_RGB2Lab)[0].astype(np.float64)


def colour_difference(first: Colour, second: Colour) -> float:
    """Delta E of CIE 1976: about 2 is just seen, 10 plainly, black and white are 100 apart."""
    one, other = to_lab([first, second])
    return float(np.linalg.norm(one - other))


def _background(image: UInt8[np.ndarray, "h w 3"], grey: UInt8[np.ndarray, "h w"]) -> Float[np.ndarray, "3"]:
    bright = image[grey >= np.median(grey)].astype(np.int32)
    bins = (bright[:, 0] >> 4 << 8) | (bright[:, 1] >> 4 << 4) | bright[:, 2] >> 4
    commonest = np.bincount(bins, minlength=4096).argmax()
    return bright[bins == commonest].mean(0)


def _colour(values: np.ndarray) -> Colour:
    red, green, blue = (float(value) for value in values)
    return red, green, blue
