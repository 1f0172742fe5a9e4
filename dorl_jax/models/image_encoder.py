"""SAM's image encoder: a plain ViT with windowed attention and decomposed relative positions.

Kirillov et al., "Segment Anything" (arXiv 2304.02643); Li et al., ViTDet (arXiv 2203.16527).
"""

from dataclasses import dataclass
from functools import partial

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dorl_jax.models.attention import attend
from dorl_jax.models.conv import Conv3x3
from dorl_jax.models.layers import Mlp, linear, merge_heads, run_blocks, split_heads
from dorl_jax.models.lora import LoraConfig, adapted_linear
from dorl_jax.models.norm import layer_norm
from dorl_jax.models.positions import position_columns

EPSILON = 1e-6


@dataclass(frozen=True)
class ImageEncoderConfig:
    """Shape of the encoder.

    Attributes:
      image_size: side of the square input in pixels, or its (height, width); multiples of `patch_size`.
      patch_size: side of a token in pixels.
      width: channels of a token.
      depth: number of blocks.
      heads: attention heads; `width` is a multiple of it.
      global_blocks: indices of the blocks that attend over the whole grid; the others attend within windows.
      window: side of a window in tokens.
      out_channels: channels behind the neck.
      mlp_hidden: hidden width of the blocks' MLPs; None for `4 * width`.
      lora: updates of the linear maps; None for none.
    """

    image_size: int | tuple[int, int]
    patch_size: int
    width: int
    depth: int
    heads: int
    global_blocks: tuple[int, ...]
    window: int = 14
    out_channels: int = 256
    mlp_hidden: int | None = None
    lora: LoraConfig | None = None

    def __post_init__(self) -> None:
        if any(side < self.patch_size or side % self.patch_size for side in self.image_shape):
            raise ValueError(f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        outside = [index for index in (self.lora and self.lora.blocks) or () if not 0 <= index < self.depth]
        if outside:
            raise ValueError(f"LoRA on blocks {outside}, but the encoder has {self.depth}, counted from 0")

    @property
    def image_shape(self) -> tuple[int, int]:
        """Height and width of the input in pixels."""
        return self.image_size if isinstance(self.image_size, tuple) else (self.image_size, self.image_size)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the token grid."""
        height, width = self.image_shape
        return height // self.patch_size, width // self.patch_size

    @property
    def side(self) -> int:
        """Side of a square input in pixels.

        Raises:
          ValueError: the input is not square.
        """
        height, width = self.image_shape
        if height != width:
            raise ValueError(f"expected a model with a square input, not {height} x {width}")
        return height


class Attention(nnx.Module):
    """Self-attention over a grid of tokens with decomposed relative positions and optional LoRA."""

    def __init__(
        self,
        config: ImageEncoderConfig,
        grid: tuple[int, int],
        lora: LoraConfig | None = None,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ) -> None:
        width, targets = config.width, lora.targets if lora else ()
        self.heads = config.heads
        self.dtype = dtype
        thirds = {part: (third * width, (third + 1) * width) for third, part in enumerate("qkv") if part in targets}
        on_proj = lora if "proj" in targets else None
        self.qkv = adapted_linear(width, 3 * width, config=lora, parts=thirds, rngs=rngs, dtype=dtype)
        self.proj = adapted_linear(width, width, config=on_proj, rngs=rngs, dtype=dtype)
        size = width // config.heads
        self.rel_pos_h = nnx.Param(jnp.zeros((2 * grid[0] - 1, size)))
        self.rel_pos_w = nnx.Param(jnp.zeros((2 * grid[1] - 1, size)))

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        batch, height, width, channels = x.shape
        tokens = x.reshape(batch, height * width, channels)
        q, k, v = jnp.split(self.qkv(tokens), 3, axis=-1)
        q, k, v = (split_heads(part, self.heads) for part in (q, k, v))
        # The position bias q.Rh + q.Rw is itself a product of two vectors: written as extra columns of q and k it
        # joins the one matrix product of the scores, and any fused attention kernel can take it.
        of_rows, of_columns = (table[...].astype(self.dtype) for table in (self.rel_pos_h, self.rel_pos_w))
        columns = [q * q.shape[-1] ** -0.5, position_columns(q, of_rows, of_columns, (height, width))]
        rows, cols = jnp.divmod(jnp.arange(height * width), width)
        places = jnp.concatenate([rows[:, None] == jnp.arange(height), cols[:, None] == jnp.arange(width)], axis=1)
        places = jnp.broadcast_to(places.astype(k.dtype), (*k.shape[:2], *places.shape))
        out = attend(jnp.concatenate(columns, -1), jnp.concatenate([k, places], -1), v)
        return self.proj(merge_heads(out)).reshape(batch, height, width, channels)


class Block(nnx.Module):
    """Pre-norm transformer block; `window` 0 attends over the whole grid."""

    def __init__(
        self,
        config: ImageEncoderConfig,
        window: int,
        lora: LoraConfig | None = None,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ) -> None:
        self.window = window
        self.norm1 = layer_norm(config.width, EPSILON, rngs=rngs, dtype=dtype)
        grid = (window, window) if window else config.grid
        self.attn = Attention(config, grid, lora, rngs=rngs, dtype=dtype)
        self.norm2 = layer_norm(config.width, EPSILON, rngs=rngs, dtype=dtype)
        on_mlp = partial(adapted_linear, config=lora if lora and "mlp" in lora.targets else None)
        hidden = config.mlp_hidden or 4 * config.width
        self.mlp = Mlp(config.width, hidden, make_linear=on_mlp, rngs=rngs, dtype=dtype)

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
        self.pos_embed = nnx.Param(jnp.zeros((*config.grid, config.width)))
        windows = [0 if index in config.global_blocks else config.window for index in range(config.depth)]
        self.blocks = nnx.List(
            Block(config, window, config.lora and config.lora.of_block(index), rngs=rngs, dtype=dtype)
            for index, window in enumerate(windows)
        )
        self.neck = Neck(config, rngs=rngs, dtype=dtype)
        self.remat = False  # see `compute.set_compute`

    def __call__(self, images: Float[Array, "b p q 3"]) -> tuple[Float[Array, "b h w c"], Float[Array, "b h w o"]]:
        """Tokens of width `config.width` before the neck, and the embedding behind it.

        Args:
          images: normalised images of the configured size.

        Raises:
          ValueError: images of another size.
        """
        shape, patch, (rows, columns) = self.config.image_shape, self.config.patch_size, self.config.grid
        if images.shape[1:] != (*shape, 3):
            raise ValueError(f"expected images of shape (B, {shape[0]}, {shape[1]}, 3), got {images.shape}")
        patches = images.reshape(-1, rows, patch, columns, patch, 3).transpose(0, 1, 3, 2, 4, 5)
        x = self.patch_embed(patches.reshape(-1, rows, columns, 3 * patch**2)) + self.pos_embed[...].astype(self.dtype)
        x = run_blocks(self.blocks, x, self.remat)
        return x, self.neck(x)
