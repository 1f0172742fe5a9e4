"""A small convolutional encoder of the cell alone: finer than feature tokens, cheap enough to train from scratch."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dorl_jax.models.conv import Conv3x3
from dorl_jax.models.layers import AnyArray

# Side in pixels of the squares that become channels: strided convolutions, and their gradients, are slow on CPUs.
PATCH = 2
_GROUPS = 8
_EPSILON = 1e-5
# Grey, the background of a crop, is 0 and adds nothing.
_GREY, _SCALE = 128 / 255, 64 / 255
# A pixel of the cell differs from grey by more than interpolation makes of grey.
_NEAR_GREY = 6.5 / 255
# What a channel's sd is raised by, so that noise in a flat cell stays small.
_FLAT = 4 / 255


class PixelEncoder(nnx.Module):
    """Squares of pixels to channels, then 3x3 convolution, group normalisation and ReLU, halved between, and the mean.

    Every cell is normalised by itself, so that its vector depends on no other.
    """

    def __init__(
        self, channels: Sequence[int], own_units: bool = False, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32
    ) -> None:
        """Build.

        Args:
          channels: of each convolution, multiples of 8; the last is the size of the vector.
          own_units: see cells as `in_own_units` gives them.
          rngs: of the weights.
          dtype: of the arithmetic.
        """
        self.own_units = own_units
        inputs = (3 * PATCH**2, *channels[:-1])
        self.convs = nnx.List(Conv3x3(a, b, rngs=rngs, dtype=dtype) for a, b in zip(inputs, channels, strict=True))
        self.norms = nnx.List(
            nnx.GroupNorm(b, num_groups=_GROUPS, epsilon=_EPSILON, use_fast_variance=False, dtype=dtype, rngs=rngs)
            for b in channels
        )

    def __call__(self, images: Float[AnyArray, "b s s 3"]) -> Float[Array, "b c"]:
        """One vector a cell.

        Args:
          images: the cell alone on grey (see `data.crops.cell_crop`), 0..1; the side is a multiple of
            `side_multiple(number of convolutions)`.
        """
        images = jnp.asarray(images)
        x = _squares(in_own_units(images) if self.own_units else (images - _GREY) / _SCALE, PATCH)
        for index, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            if index:
                x = _halved(x)
            x = jax.nn.relu(norm(conv(x)))
        return x.mean(axis=(1, 2))


def in_own_units(images: Float[Array, "b s s 3"]) -> Float[Array, "b s s 3"]:
    """Every channel less its mean over the cell, by its sd over the cell; 0 around it.

    What a stain or a light does to all of a cell alike is gone, and so is how dark the cell is as a whole.

    Args:
      images: the cell alone on grey, 0..1.
    """
    cell = (jnp.abs(images - _GREY).max(axis=-1, keepdims=True) > _NEAR_GREY).astype(images.dtype)
    pixels = jnp.maximum(cell.sum(axis=(1, 2), keepdims=True), 1)
    centred = (images - (images * cell).sum(axis=(1, 2), keepdims=True) / pixels) * cell
    variance = (centred**2).sum(axis=(1, 2), keepdims=True) / pixels
    return centred / (jnp.sqrt(variance) + _FLAT)


def shrink(images: Float[AnyArray, "b s s 3"], size: int) -> Float[AnyArray, "b size size 3"]:
    """Averages over areas, rounded to steps of 1/255, as training's crops are (see `data.views.small_crop`).

    Args:
      images: 0..1.
      size: side in pixels; images that have it stay as they are.
    """
    side = images.shape[1]
    if side == size:
        return images
    # Of each pixel of the small image, how much of the large one's pixels it covers along one axis.
    edges = np.arange(size + 1) * (side / size)
    pixels = np.arange(side)
    covers = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    weights = jnp.asarray(np.clip(covers, 0, None) * (size / side), jnp.float32)
    means = jnp.einsum("hi,bijc,wj->bhwc", weights, images, weights, precision="highest")
    # Halves upwards, as OpenCV does, whatever rounding left of them.
    return jnp.floor(means * 255 + 0.5001) / 255


def side_multiple(convolutions: int) -> int:
    """What the side of the images has to be a multiple of, in pixels."""
    return PATCH * 2 ** (convolutions - 1)


def _squares(x: Float[Array, "b h w c"], side: int) -> Float[Array, "b h2 w2 c2"]:
    """Squares of side * side pixels as channels, row by row."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // side, side, width // side, side, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height // side, width // side, -1)


def _halved(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """Means of squares of 2 * 2."""
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean(axis=(2, 4))
