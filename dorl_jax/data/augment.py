"""Random changes of an image and its mask, always together; all chance comes from the generator."""

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

_ROTATION = (-20, 20)  # degrees, the upper end excluded
_SEAM = 1.5  # sd in pixels


@dataclass(frozen=True)
class Augmentation:
    """How training images are changed.

    Attributes:
      kind: "none"; "parity", the paper's (see `parity_augment`), with no use of what follows; "laboratory", a symmetry
        of the square, a rotation by -20..20 degrees, and the look of another laboratory:
      magnification: images are zoomed by 1/m..m, as by another objective; 1 leaves them.
      stain: strength of the random amount, hue and purity of the dyes (see `stain_jitter`).
      white_balance: strength of the random brightness and colour of the light (see `stain_jitter`).
      blur: strength of random blur and noise (see `degrade`).
      cell_stain: half the time the dyes of the cell alone change, by this strength (see `stain_apart`).
    """

    kind: Literal["none", "parity", "laboratory"] = "laboratory"
    magnification: float = 1.25
    stain: float = 1.0
    white_balance: float = 1.0
    blur: float = 1.0
    cell_stain: float = 0.0


def parity_augment(
    image: UInt8[np.ndarray, "h w 3"], mask: Bool[np.ndarray, "h w"], rng: np.random.Generator
) -> tuple[UInt8[np.ndarray, "h2 w2 3"], Bool[np.ndarray, "h2 w2"]]:
    """The paper's augmentation: half the time a quarter turn and flip, else half the time a small rotation.

    The rotation is by a whole number of degrees from -20 to 19 about the centre, without interpolation; what
    turns in is black and background. A quarter turn swaps the sides of an image that is not square.

    Source: the released code of arXiv 2408.07467.
    """
    if rng.random() > 0.5:
        return _turn_and_flip(image, mask, turns=int(rng.integers(4)), axis=int(rng.integers(2)))
    if rng.random() > 0.5:
        matrix = _rotate_zoom(image.shape[:2], degrees=float(rng.integers(*_ROTATION)))
        size = image.shape[1::-1]
        turned = cv2.warpAffine(image, matrix, size, flags=cv2.INTER_NEAREST)
        return turned, cv2.warpAffine(mask.astype(np.uint8), matrix, size, flags=cv2.INTER_NEAREST).astype(bool)
    return image, mask


def augment(
    image: UInt8[np.ndarray, "h w 3"],
    mask: Bool[np.ndarray, "h w"],
    rng: np.random.Generator,
    how: Augmentation = Augmentation(),
) -> tuple[UInt8[np.ndarray, "h2 w2 3"], Bool[np.ndarray, "h2 w2"]]:
    """The image and its mask, changed together.

    What comes in from outside under "laboratory" is the mirror image, in the mask too. A quarter turn swaps the sides
    of an image that is not square.

    Args:
      image: RGB, 0..255.
      mask: True on the cell.
      rng: the only source of chance.
      how: see there.
    """
    if how.kind == "none":
        return image, mask
    if how.kind == "parity":
        return parity_augment(image, mask, rng)
    symmetry, shape = _symmetry(mask.shape, turns=int(rng.integers(4)), flipped=bool(rng.random() < 0.5))
    zoom = np.exp(rng.uniform(-1, 1) * np.log(how.magnification))
    # One map for all: every step by itself would copy the image, or blur it once more.
    matrix = _rotate_zoom(shape, degrees=rng.uniform(*_ROTATION), zoom=zoom) @ symmetry
    # The mask rides along as a fourth channel: OpenCV maps four in a third of the time that three and one take.
    # Interpolated and cut at one half, its edge stays where the image's edge is.
    both = cv2.cvtColor(image, cv2.COLOR_RGB2RGBA)
    np.multiply(mask.view(np.uint8), 255, out=both[..., 3])
    both = cv2.warpAffine(both, matrix, shape[::-1], flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    image, cover = cv2.cvtColor(both, cv2.COLOR_RGBA2RGB), cv2.extractChannel(both, 3) > 127
    if how.cell_stain and rng.random() < 0.5:
        image = stain_apart(image, cover, rng, how.cell_stain)
    image = stain_jitter(image, rng, how.stain, how.white_balance)
    return degrade(image, rng, how.blur), cover


def stain_jitter(
    image: UInt8[np.ndarray, "h w 3"], rng: np.random.Generator, strength: float, white_balance: float = 0.0
) -> UInt8[np.ndarray, "h w 3"]:
    """The image as if stained, lit and white-balanced elsewhere.

    Dyes absorb light: in optical density, -log(intensity), their amounts add up. One random affine map of the
    three densities therefore covers the amount of dye (scale), its hue (rotation about the grey axis) and
    purity (distance from the grey axis), and the colour and strength of the light (offset, a gain of each channel).

    Args:
      image: RGB, 0..255.
      rng: the only source of chance.
      strength: of the change of the dyes; 0 is the identity, 1 spans about the difference between laboratories.
      white_balance: the same for the light: at 1 brightness changes by up to 12 % and each channel by up to 15 % more.
    """
    if strength == 0 and white_balance == 0:
        return image
    draws = rng.uniform(-1, 1, 7)
    amount = np.exp(0.25 * strength * draws[0])
    purity = np.exp(0.5 * strength * draws[1])
    matrix = amount * _about_grey(angle=0.35 * strength * draws[2], purity=purity)
    light = white_balance * (0.12 * draws[3] + 0.15 * draws[4:])
    # In logarithms of grey levels. Half of a level keeps black finite.
    density = cv2.LUT(image, -np.log((np.arange(256, dtype=np.float32) + 0.5) / 255.5))
    levels = cv2.exp(cv2.transform(density, np.column_stack([-matrix, np.log(255.5) - light]).astype(np.float32)))
    # Undo the half level; OpenCV rounds and saturates. What falls below 0, by half a level at most, is rounded to it.
    return cv2.convertScaleAbs(levels, alpha=1, beta=-0.5)


def stain_apart(
    image: UInt8[np.ndarray, "h w 3"], cover: Bool[np.ndarray, "h w"], rng: np.random.Generator, strength: float
) -> UInt8[np.ndarray, "h w 3"]:
    """The image with other dyes in the cell than around it.

    In another laboratory's stain cytoplasm may have the colour that red cells have in this one; which colour goes with
    which cannot be learned from few laboratories, so that it had better not be relied on.

    Args:
      image: RGB, 0..255.
      cover: True on the cell.
      rng: the only source of chance.
      strength: see `stain_jitter`.
    """
    # A sharp seam would give the cell away.
    share = cv2.GaussianBlur(cover.astype(np.float32), (0, 0), _SEAM)[..., None]
    return cv2.convertScaleAbs(image * (1 - share) + stain_jitter(image, rng, strength) * share)


def degrade(image: UInt8[np.ndarray, "h w 3"], rng: np.random.Generator, strength: float) -> UInt8[np.ndarray, "h w 3"]:
    """At strength 1, half the time a blur of up to 1.2 pixels, half the time noise of up to 6 levels (sd)."""
    if strength == 0:
        return image
    blurred, noisy = rng.random(2) < 0.5
    if blurred:
        image = cv2.GaussianBlur(image, (0, 0), sigmaX=max(strength * rng.uniform(0.2, 1.2), 0.1))
    if noisy:
        noise = rng.standard_normal(image.shape, dtype=np.float32) * np.float32(strength * rng.uniform(0, 6))
        image = cv2.add(image, noise, dtype=cv2.CV_8U)
    return image


def _turn_and_flip(
    image: UInt8[np.ndarray, "h w 3"], mask: Bool[np.ndarray, "h w"], turns: int, axis: int
) -> tuple[UInt8[np.ndarray, "h2 w2 3"], Bool[np.ndarray, "h2 w2"]]:
    image, mask = np.flip(np.rot90(image, turns), axis), np.flip(np.rot90(mask, turns), axis)
    # OpenCV wants its rows one after the other.
    return np.ascontiguousarray(image), np.ascontiguousarray(mask)


def _symmetry(shape: tuple[int, int], turns: int, flipped: bool) -> tuple[Float[np.ndarray, "3 3"], tuple[int, int]]:
    """Where (x, y, 1) goes by quarter turns and a flip of the rows, and the new height and width."""
    height, width = shape
    matrix = np.eye(3)
    for _ in range(turns):
        matrix = np.array([[0.0, 1, 0], [-1, 0, width - 1], [0, 0, 1]]) @ matrix
        height, width = width, height
    if flipped:
        matrix = np.array([[1.0, 0, 0], [0, -1, height - 1], [0, 0, 1]]) @ matrix
    return matrix, (height, width)


def _rotate_zoom(shape: tuple[int, int], degrees: float, zoom: float = 1.0) -> Float[np.ndarray, "2 3"]:
    height, width = shape
    return cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, zoom)


def _about_grey(angle: float, purity: float) -> Float[np.ndarray, "3 3"]:
    """Turns colours about the grey axis by `angle` (radians) and scales their distance from it."""
    axis = np.ones(3) / np.sqrt(3)
    along = np.outer(axis, axis)
    cross = np.cross(np.eye(3), axis)
    return along + purity * (np.cos(angle) * (np.eye(3) - along) - np.sin(angle) * cross)
