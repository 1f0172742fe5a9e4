"""What is kept of a picture to know its copies by: a thumbnail and, about two centres, its rings in harmonics."""

import hashlib
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Complex64, Float32, Int8, UInt8

SIDE = 48
"""Of the thumbnail, in pixels."""
RINGS = np.array([1, 2, 3, 4, 5, 6], np.float32) / 6
"""Radii, as shares of a frame's radius."""
HARMONICS = 9
"""Of the brightness along a ring: 0 to 8 waves a turn."""

_ANGLES = 2 * np.pi * np.arange(32, dtype=np.float32) / 32
# A ring stands for the area about it.
_AMPLITUDES = np.sqrt(RINGS / RINGS.sum())[:, None]
_PICTURE = np.array([(SIDE - 1) / 2, (SIDE - 1) / 2, 0.47 * SIDE], np.float32)
# Grey levels; less contrast than that is noise, or nothing.
_LEAST_CONTRAST = 2.0


@dataclass(frozen=True)
class Fingerprint:
    """A picture's thumbnail and its rings.

    Attributes:
      thumbnail: grey, stretched to 0..255.
      frames: x, y and radius in thumbnail pixels of the whole picture's frame and of the cell's.
      rings: of each frame, the harmonics of each ring; the norm of a frame's rings is 1. A turn by an angle a
        multiplies harmonic k by exp(-ika), a flip conjugates: the magnitudes change with neither.
      coarse_detail: `detail` of the thumbnail at half its side, scaled so that the largest is 127.
    """

    thumbnail: UInt8[np.ndarray, "48 48"]
    coarse_detail: Int8[np.ndarray, "24 24"]
    frames: Float32[np.ndarray, "2 3"]
    rings: Complex64[np.ndarray, "2 r k"]


def take_fingerprint(image: UInt8[np.ndarray, "h w 3"]) -> Fingerprint | None:
    """The fingerprint of a picture, or None where it is blank (a standard deviation below 2 grey levels)."""
    # Grey first: a third of the work, and the same but for rounding.
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    way = cv2.INTER_AREA if min(grey.shape) >= SIDE else cv2.INTER_LINEAR
    small = cv2.resize(grey.astype(np.float32), (SIDE, SIDE), interpolation=way)
    if small.std() < _LEAST_CONTRAST:
        return None
    low, high = small.min(), small.max()
    stretched = (small - low) * (255 / (high - low))
    frames = np.stack([_PICTURE, _cell_frame(cv2.GaussianBlur(stretched, (0, 0), 1.1))])
    smooth = cv2.GaussianBlur(stretched, (0, 0), 1.8)
    rings = np.stack([_rings(smooth, frame) for frame in frames])
    thumbnail = (stretched + 0.5).astype(np.uint8)
    coarse = cv2.resize(detail(thumbnail, frames[1]), (SIDE // 2, SIDE // 2), interpolation=cv2.INTER_AREA)
    coarse = np.asarray(coarse) * (127 / max(float(np.abs(coarse).max()), 1e-6))
    return Fingerprint(thumbnail, np.rint(coarse).astype(np.int8), frames, rings)


def digest_pixels(image: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """16 bytes that are the same for pictures of the same pixels, whatever their files' formats."""
    height, width = image.shape[:2]
    digest = hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16)
    digest.update(f"{width} {height}".encode())
    return digest.digest()


def detail(thumbnail: UInt8[np.ndarray, "s s"], cell: Float32[np.ndarray, "3"]) -> Float32[np.ndarray, "s s"]:
    """Outlines and chromatin, without what is coarser, and without the mean of each circle about the cell.

    One lymphocyte's dark disc, and its rim, are like another's: only what breaks their symmetry tells cells apart.

    Args:
      thumbnail: grey.
      cell: the cell's frame.
    """
    grey = thumbnail.astype(np.float32)
    fine = cv2.GaussianBlur(grey, (0, 0), 0.7) - cv2.GaussianBlur(grey, (0, 0), 2.0)
    y, x = np.mgrid[: len(grey), : len(grey)].astype(np.float32)
    circle = np.hypot(x - cell[0], y - cell[1]).astype(np.intp)
    pixels = np.maximum(np.bincount(circle.ravel()), 1)
    means = np.bincount(circle.ravel(), fine.ravel()) / pixels
    return fine - means.astype(np.float32)[circle]


def _cell_frame(grey: Float32[np.ndarray, "s s"]) -> Float32[np.ndarray, "3"]:
    """Centre and radius of what is dark about the middle: the nucleus, wherever the crop was cut.

    The mean and spread of the darkness under a Gaussian window that follows them (mean shift).
    """
    darkness = 255 - grey
    low, high = np.quantile(darkness, [0.5, 0.99])
    weight = np.clip((darkness - low) / (high - low + 1e-6), 0, 1) ** 2
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    middle_x, middle_y, window = float(_PICTURE[0]), float(_PICTURE[1]), 0.375 * SIDE
    spread = window / 1.6
    for _ in range(8):
        squared = (x - middle_x) ** 2 + (y - middle_y) ** 2
        seen = weight * np.exp(-squared / (2 * window**2))
        total = seen.sum()
        if not total:
            return _PICTURE
        middle_x, middle_y = (seen * x).sum() / total, (seen * y).sum() / total
        squared = (x - middle_x) ** 2 + (y - middle_y) ** 2
        variance = (seen * squared).sum() / total / 2
        # Of two Gaussians' product the inverse variances add: take the window's away.
        spread = 1 / np.sqrt(max(1 / max(variance, 0.25) - 1 / window**2, 1e-3))
        window = float(np.clip(1.6 * spread, 0.09 * SIDE, 0.375 * SIDE))
    return np.array([middle_x, middle_y, 2.34 * spread], np.float32)


def _rings(grey: Float32[np.ndarray, "s s"], frame: Float32[np.ndarray, "3"]) -> Complex64[np.ndarray, "r k"]:
    x, y, radius = frame
    out = (RINGS * radius)[:, None]
    values = cv2.remap(
        grey,
        (x + out * np.cos(_ANGLES)).astype(np.float32),
        (y + out * np.sin(_ANGLES)).astype(np.float32),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REFLECT_101,
    )
    values = (values - (values * _AMPLITUDES**2).sum() / len(_ANGLES)) * _AMPLITUDES
    values /= np.sqrt((values**2).sum()) + 1e-3
    harmonics = np.fft.rfft(values, axis=1, norm="ortho")[:, :HARMONICS]
    # The waves that a real signal's transform leaves out as conjugates.
    harmonics[:, 1:] *= np.sqrt(2)
    return harmonics.astype(np.complex64)
