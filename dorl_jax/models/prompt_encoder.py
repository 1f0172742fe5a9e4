"""SAM's prompt encoder: points, boxes and masks into sparse tokens and a dense embedding (arXiv 2304.02643)."""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from dorl_jax.models.gelu import exact_gelu
from dorl_jax.models.layers import Buffer, linear
from dorl_jax.models.norm import layer_norm

BACKGROUND, FOREGROUND, BOX_FIRST, BOX_SECOND = range(4)


class PositionEncoding(nnx.Module):
    """Random Fourier features of positions in the unit square."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs) -> None:
        self.gaussian_matrix = Buffer(rngs.params.normal((2, channels // 2)))

    def __call__(self, positions: Float[Array, "*b 2"]) -> Float[Array, "*b c"]:
        """Features of (x, y) in 0..1."""
        angles = 2 * jnp.pi * ((2 * positions - 1) @ self.gaussian_matrix[...])
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)

    def grid(self, height: int, width: int) -> Float[Array, "h w c"]:
        """Features of the centres of a grid of tokens."""
        y, x = jnp.meshgrid((jnp.arange(height) + 0.5) / height, (jnp.arange(width) + 0.5) / width, indexing="ij")
        return self(jnp.stack([x, y], axis=-1))


class MaskDownscaling(nnx.Module):
    """A mask prompt at four times the token grid, down to the grid: two 2x2 stride-2 convolutions and a 1x1."""

    def __init__(self, channels: int, hidden: int = 16, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32) -> None:
        self.conv1 = linear(4, hidden // 4, rngs=rngs, dtype=dtype)
        self.norm1 = layer_norm(hidden // 4, 1e-6, rngs=rngs, dtype=dtype)
        self.conv2 = linear(hidden, hidden, rngs=rngs, dtype=dtype)
        self.norm2 = layer_norm(hidden, 1e-6, rngs=rngs, dtype=dtype)
        self.conv3 = linear(hidden, channels, rngs=rngs, dtype=dtype)

    def __call__(self, masks: Float[Array, "b h4 w4"]) -> Float[Array, "b h w c"]:
        x = exact_gelu(self.norm1(self.conv1(_pairs(masks[..., None]))))
        x = exact_gelu(self.norm2(self.conv2(_pairs(x))))
        return self.conv3(x)


def _pairs(x: Float[Array, "b h2 w2 c"]) -> Float[Array, "b h w c4"]:
    """Each 2x2 square into one token of four times the channels."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // 2, 2, width // 2, 2, channels).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, height // 2, width // 2, 4 * channels)


class PromptEncoder(nnx.Module):
    """Prompts of a batch of images, one set of prompts an image."""

    def __init__(
        self,
        channels: int,
        image_shape: tuple[int, int],
        grid: tuple[int, int],
        *,
        mask_hidden: int = 16,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ) -> None:
        self.image_shape, self.grid = image_shape, grid
        self.position_encoding = PositionEncoding(channels, rngs=rngs)
        self.point_embeddings = nnx.List(nnx.Param(rngs.params.normal((1, channels))) for _ in range(4))
        self.not_a_point_embed = nnx.Param(rngs.params.normal((1, channels)))
        self.no_mask_embed = nnx.Param(rngs.params.normal((1, channels)))
        self.mask_downscaling = MaskDownscaling(channels, mask_hidden, rngs=rngs, dtype=dtype)

    def __call__(
        self,
        batch: int,
        points: tuple[Float[Array, "b n 2"], Int[Array, "b n"]] | None = None,
        boxes: Float[Array, "b 4"] | None = None,
        masks: Float[Array, "b h4 w4"] | None = None,
    ) -> tuple[Float[Array, "b p c"], Float[Array, "b h w c"]]:
        """Sparse and dense prompt embeddings.

        Args:
          batch: number of images.
          points: (x, y) in pixels of the model's input and labels: 1 foreground, 0 background, -1 padding.
          boxes: (x0, y0, x1, y1) in the same pixels.
          masks: logits at four times the token grid, as the mask decoder gives them.

        Returns:
          Sparse tokens: points, a padding point where no box is given, the two corners of the box; none without a
          prompt. Dense embedding on the token grid: the mask's, or the learned "no mask".
        """
        channels = self.no_mask_embed.shape[-1]
        sparse = []
        if points is not None:
            coords, labels = points
            if boxes is None:
                coords = jnp.concatenate([coords, jnp.zeros((batch, 1, 2), coords.dtype)], axis=1)
                labels = jnp.concatenate([labels, jnp.full((batch, 1), -1, labels.dtype)], axis=1)
            sparse.append(self._points(coords, labels))
        if boxes is not None:
            corners = self.position_encoding(self._in_unit_square(boxes.reshape(batch, 2, 2)))
            kinds = [self.point_embeddings[kind][...] for kind in (BOX_FIRST, BOX_SECOND)]
            sparse.append(corners + jnp.concatenate(kinds)[None])
        if masks is not None:
            dense = self.mask_downscaling(masks)
        else:
            dense = jnp.broadcast_to(self.no_mask_embed[...], (batch, *self.grid, channels))
        return jnp.concatenate(sparse, axis=1) if sparse else jnp.zeros((batch, 0, channels)), dense

    def _points(self, coords: Float[Array, "b n 2"], labels: Int[Array, "b n"]) -> Float[Array, "b n c"]:
        encoded = self.position_encoding(self._in_unit_square(coords))
        label = labels[..., None]
        encoded = jnp.where(label == -1, self.not_a_point_embed[...], encoded)
        for kind in (BACKGROUND, FOREGROUND):
            encoded = jnp.where(label == kind, encoded + self.point_embeddings[kind][...], encoded)
        return encoded

    def _in_unit_square(self, coords: Float[Array, "b n 2"]) -> Float[Array, "b n 2"]:
        """Centres of pixels (x, y) as fractions of the input."""
        height, width = self.image_shape
        return (coords + 0.5) / jnp.array([width, height], coords.dtype)

    def dense_positions(self) -> Float[Array, "h w c"]:
        """Position encoding of the token grid."""
        return self.position_encoding.grid(*self.grid)
