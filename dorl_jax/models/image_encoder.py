"""SAM's image encoder: a plain ViT with windowed attention and decomposed relative positions.

Kirillov et al., "Segment Anything" (arXiv 2304.02643); Li et al., ViTDet (arXiv 2203.16527).
"""

from dataclasses import dataclass

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dorl_jax.models.conv import Conv3x3
from dorl_jax.models.layers import Mlp, attend, layer_norm, linear, merge_heads, split_heads
from dorl_jax.models.lora import Lora

EPSILON = 1e-6


@dataclass(frozen=True)
class ImageEncoderConfig:
    """Shape of the encoder.

    Attributes:
      image_size: side of the square input in pixels, a multiple of `patch_size`.
      patch_size: side of a token in pixels.
      width: channels of a token.
      depth: number of blocks.
      heads: attention heads; `width` is a multiple of it.
      global_blocks: indices of the blocks that attend over the whole grid; the others attend within windows.
      window: side of a window in tokens.
      out_channels: channels behind the neck.
      lora_rank: rank of the updates of q and v in every block; 0 for none.
    """

    image_size: int
    patch_size: int
    width: int
    depth: int
    heads: int
    global_blocks: tuple[int, ...]
    window: int = 14
    out_channels: int = 256
    lora_rank: int = 0

    def __post_init__(self) -> None:
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")

    @property
    def grid(self) -> int:
        """Side of the token grid."""
        return self.image_size // self.patch_size


class Attention(nnx.Module):
    """Self-attention over a grid of tokens with decomposed relative positions and optional LoRA on q and v."""

    def __init__(
        self, config: ImageEncoderConfig, side: int, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32
    ) -> None:
        width, rank = config.width, config.lora_rank
        self.heads = config.heads
        self.dtype = dtype
        self.qkv = linear(width, 3 * width, rngs=rngs, dtype=dtype)
        self.proj = linear(width, width, rngs=rngs, dtype=dtype)
        size = width // config.heads
        self.rel_pos_h = nnx.Param(jnp.zeros((2 * side - 1, size)))
        self.rel_pos_w = nnx.Param(jnp.zeros((2 * side - 1, size)))
        self.lora_q = Lora(width, width, rank, rngs=rngs, dtype=dtype) if rank else None
        self.lora_v = Lora(width, width, rank, rngs=rngs, dtype=dtype) if rank else None

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        batch, height, width, channels = x.shape
        tokens = x.reshape(batch, height * width, channels)
        q, k, v = jnp.split(self.qkv(tokens), 3, axis=-1)
        if self.lora_q is not None and self.lora_v is not None:
            q, v = q + self.lora_q(tokens), v + self.lora_v(tokens)
        q, k, v = (split_heads(part, self.heads) for part in (q, k, v))
        # The position bias q.Rh + q.Rw is itself a product of two vectors: written as extra columns of q and k it
        # joins the one matrix product of the scores, and any fused attention kernel can take it.
        columns = [q * q.shape[-1] ** -0.5, *self._position_columns(q, height, width)]
        rows, cols = jnp.divmod(jnp.arange(height * width), width)
        places = jnp.concatenate([rows[:, None] == jnp.arange(height), cols[:, None] == jnp.arange(width)], axis=1)
        places = jnp.broadcast_to(places.astype(k.dtype), (*k.shape[:2], *places.shape))
        out = attend(jnp.concatenate(columns, -1), jnp.concatenate([k, places], -1), v)
        return self.proj(merge_heads(out)).reshape(batch, height, width, channels)

    def _position_columns(
        self, q: Float[Array, "b heads n d"], height: int, width: int
    ) -> tuple[Float[Array, "b heads n h"], Float[Array, "b heads n w"]]:
        """q . R[i - j] for every row j and every column j of the grid."""
        grid = q.reshape(*q.shape[:2], height, width, q.shape[-1])
        table_h = self.rel_pos_h[...].astype(self.dtype)[_offsets(height)]
        table_w = self.rel_pos_w[...].astype(self.dtype)[_offsets(width)]
        by_row = jnp.einsum("bnhwd,hkd->bnhwk", grid, table_h)
        by_column = jnp.einsum("bnhwd,wkd->bnhwk", grid, table_w)
        tokens = height * width
        return by_row.reshape(*q.shape[:2], tokens, height), by_column.reshape(*q.shape[:2], tokens, width)


def _offsets(side: int) -> Array:
    """Index of the offset i - j in a table of 2 * side - 1 entries."""
    return jnp.arange(side)[:, None] - jnp.arange(side)[None, :] + side - 1


class Block(nnx.Module):
    """Pre-norm transformer block; `window` 0 attends over the whole grid."""

    def __init__(
        self, config: ImageEncoderConfig, window: int, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32
    ) -> None:
        self.window = window
        self.norm1 = layer_norm(config.width, EPSILON, rngs=rngs, dtype=dtype)
        self.attn = Attention(config, window or config.grid, rngs=rngs, dtype=dtype)
        self.norm2 = layer_norm(config.width, EPSILON, rngs=rngs, dtype=dtype)
        self.mlp = Mlp(config.width, 4 * config.width, rngs=rngs, dtype=dtype)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        normed = self.norm1(x)
        # A grid of exactly one window needs no partition.
        if self.window and x.shape[1:3] != (self.window, self.window):
            windows = partition_windows(normed, self.window)
            attended = join_windows(self.attn(windows), self.window, x.shape[1], x.shape[2])
        else:
            attended = self.attn(normed)
        x = x + attended
        return x + self.mlp(self.norm2(x))


def partition_windows(x: Float[Array, "b h w c"], window: int) -> Float[Array, "bn s s c"]:
    """Tokens into windows of `window` x `window`, zero-padded at the bottom and right."""
    batch, height, width, channels = x.shape
    down, right = -height % window, -width % window
    x = jnp.pad(x, ((0, 0), (0, down), (0, right), (0, 0)))
    rows, columns = (height + down) // window, (width + right) // window
    x = x.reshape(batch, rows, window, columns, window, channels).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(-1, window, window, channels)


def join_windows(windows: Float[Array, "bn s s c"], window: int, height: int, width: int) -> Float[Array, "b h w c"]:
    """The inverse of `partition_windows`; the padding is dropped."""
    rows, columns = -(-height // window), -(-width // window)
    channels = windows.shape[-1]
    x = windows.reshape(-1, rows, columns, window, window, channels).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(-1, rows * window, columns * window, channels)[:, :height, :width]


class Neck(nnx.Module):
    """1x1 convolution, norm, 3x3 convolution, norm: tokens to the embedding that the mask decoder reads."""

    def __init__(self, config: ImageEncoderConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32) -> None:
        out = config.out_channels
        self.conv1 = linear(config.width, out, use_bias=False, rngs=rngs, dtype=dtype)
        self.norm1 = layer_norm(out, EPSILON, rngs=rngs, dtype=dtype)
        self.conv2 = Conv3x3(out, out, rngs=rngs, dtype=dtype)
        self.norm2 = layer_norm(out, EPSILON, rngs=rngs, dtype=dtype)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w o"]:
        return self.norm2(self.conv2(self.norm1(self.conv1(x))))


class ImageEncoder(nnx.Module):
    """Normalised images to tokens (before the neck) and embedding (behind it)."""

    def __init__(self, config: ImageEncoderConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32) -> None:
        self.config = config
        self.dtype = dtype
        self.patch_embed = linear(3 * config.patch_size**2, config.width, rngs=rngs, dtype=dtype)
        self.pos_embed = nnx.Param(jnp.zeros((config.grid, config.grid, config.width)))
        self.blocks = nnx.List(
            Block(config, 0 if index in config.global_blocks else config.window, rngs=rngs, dtype=dtype)
            for index in range(config.depth)
        )
        self.neck = Neck(config, rngs=rngs, dtype=dtype)

    def __call__(self, images: Float[Array, "b s s 3"]) -> tuple[Float[Array, "b h w c"], Float[Array, "b h w o"]]:
        """Tokens of width `config.width` before the neck, and the embedding behind it.

        Args:
          images: normalised images of the configured size.

        Raises:
          ValueError: images of another size.
        """
        size, patch, grid = self.config.image_size, self.config.patch_size, self.config.grid
        if images.shape[1:] != (size, size, 3):
            raise ValueError(f"expected images of shape (B, {size}, {size}, 3), got {images.shape}")
        patches = images.reshape(-1, grid, patch, grid, patch, 3).transpose(0, 1, 3, 2, 4, 5)
        x = self.patch_embed(patches.reshape(-1, grid, grid, 3 * patch**2)) + self.pos_embed[...].astype(self.dtype)
        for block in self.blocks:
            x = block(x)
        return x, self.neck(x)
