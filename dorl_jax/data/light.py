"""The same light for every image: what the microscope's lamp and the camera's white balance did, taken back."""

from typing import Literal

import cv2
import numpy as np
from jaxtyping import UInt8

Light = Literal["as_is", "white_patch"]

# What the ground becomes; some room is left for what is brighter.
_WHITE = 235


def in_light(image: UInt8[np.ndarray, "h w 3"], light: Light) -> UInt8[np.ndarray, "h w 3"]:
    """The image in the light that a model was trained in.

    Args:
      image: RGB, 0..255.
      light: "as_is" leaves it; "white_patch" multiplies each channel so that its 90th percentile, which on a smear is
        the empty ground, becomes 235. Light absorbed is light divided by what came in, so that what is left is the
        stain. It takes nothing but the image itself.

    Returns:
      RGB, 0..255, rounded; what was brighter than the ground by 255 / 235 and more is cut off at 255.

    Source: the white patch of retinex theory (Land & McCann 1971), with a percentile in place of the maximum.
    """
    if light == "as_is":
        return image
    counts = np.stack([np.bincount(channel.ravel(), minlength=256) for channel in cv2.split(image)])
    # The least level that nine tenths of the pixels do not exceed, in whole numbers.
    ground = (10 * counts.cumsum(axis=1) >= 9 * counts.sum(axis=1, keepdims=True)).argmax(axis=1)
    table = np.minimum(np.rint(np.arange(256)[:, None] * (_WHITE / np.maximum(ground, 1))), 255).astype(np.uint8)
    return cv2.LUT(image, table[None])
