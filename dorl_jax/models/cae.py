"""DoRL's cross-domain autoencoder: a masked autoencoder over the encoder's feature tokens (arXiv 2408.07467, 3.2)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from dorl_jax.errors import InputError
from dorl_jax.models.attention import attend
from dorl_jax.models.contrast_head import ContrastHead
from dorl_jax.models.conv import ConvTranspose
from dorl_jax.models.layers import AnyArray, Mlp, linear, merge_heads, run_blocks, split_heads
from dorl_jax.models.norm import layer_norm
from dorl_jax.models.pixel_encoder import PixelEncoder, shrink, side_multiple
from dorl_jax.models.pooling import foreground_statistics
from dorl_jax.models.regions import (
    REGION_NUMBERS,
    RELATION_NUMBERS,
    SIZE_NUMBERS,
    region_statistics,
    relation_statistics,
    size_statistics,
)
from dorl_jax.models.variants import require_variant

EPSILON = 1e-5
# What a cell's vector can be made of (see `Cae.encode`).
VectorPart = Literal["cls", "tokens", "features", "pixels", "regions", "relations", "size"]
# Those that are measured on the crop at its full size.
_MEASURED = {"regions", "relations", "size"}
# (kernel, stride, padding) of the image head; together they take a grid of 14 to 128 pixels.
HEAD_LAYERS = ((4, 2, 1), (4, 2, 1), (4, 1, 1), (8, 1, 1), (8, 2, 1))


@dataclass(frozen=True)
class CaeConfig:
    """Shape of the autoencoder; use a preset.

    Attributes:
      width: channels of a feature token, and of the latent vector.
      grid: side of the token grid.
      encoder_depth, decoder_depth: blocks.
      heads: attention heads.
      mask_ratio: share of the tokens hidden from the encoder in training.
      projection: size of the projector's output.
      head_channels: channels between the layers of the image head.
      feature_mean, feature_std: statistics of each channel of the features, which are standardised with them; empty (as
        in the original) to take features as they are.
      vector: what the exported vector is made of, one behind the other (see `Cae.encode`).
      pixel_channels: of the convolutions of the pixel encoder; empty for none, as in the original.
      pixel_size: side in pixels of the crops that it sees.
      pixel_units: what it sees of them: "grey", how far they are from the grey around the cell; "cell", how far from
        the cell's mean, by its sd (see `pixel_encoder.in_own_units`).
    """

    width: int = 768
    grid: int = 14
    encoder_depth: int = 12
    decoder_depth: int = 4
    heads: int = 12
    mask_ratio: float = 0.75
    projection: int = 50
    head_channels: tuple[int, int, int, int] = (512, 256, 128, 64)
    feature_mean: tuple[float, ...] = ()
    feature_std: tuple[float, ...] = ()
    vector: tuple[VectorPart, ...] = ("cls",)
    pixel_channels: tuple[int, ...] = ()
    pixel_size: int = 48
    pixel_units: Literal["grey", "cell"] = "grey"

    def __post_init__(self) -> None:
        if not self.vector or not set(self.vector) <= set(get_args(VectorPart)):
            raise InputError(f"a vector is made of {', '.join(get_args(VectorPart))}, not of {self.vector}")
        if len(set(self.vector)) < len(self.vector):
            raise InputError(f"a vector names each of its parts once, not {', '.join(self.vector)}")
        if "pixels" in self.vector and not self.pixel_channels:
            raise InputError("a vector with 'pixels' needs a pixel encoder: give its channels")
        multiple = side_multiple(len(self.pixel_channels)) if self.pixel_channels else 1
        if self.pixel_size % multiple:
            raise InputError(
                f"a pixel encoder of this depth halves crops: {self.pixel_size} is no multiple of {multiple}"
            )

    @classmethod
    def vit_b(cls) -> "CaeConfig":
        """For the features of SAM ViT-B: DoRL's own."""
        return cls()

    @classmethod
    def vit_l(cls) -> "CaeConfig":
        """For the features of SAM ViT-L."""
        return cls(width=1024, heads=16)

    @classmethod
    def vit_h(cls) -> "CaeConfig":
        """For the features of SAM ViT-H."""
        return cls(width=1280, heads=16)

    @classmethod
    def tiny(cls) -> "CaeConfig":
        """For the features of the tiny SAM: about 3 million parameters."""
        return cls(width=192, encoder_depth=4, decoder_depth=2, heads=6, head_channels=(96, 48, 32, 16))

    @classmethod
    def preset(cls, variant: str) -> "CaeConfig":
        """The preset of that name.

        Raises:
          InputError: no such preset.
        """
        require_variant(variant)
        return getattr(cls, variant)()

    @property
    def vector_size(self) -> int:
        """Numbers of the exported vector."""
        return sum(self.part_sizes.values())

    @property
    def part_sizes(self) -> dict[str, int]:
        """Numbers of each part of the exported vector, in order."""
        sizes: dict[str, int] = {
            "cls": self.width,
            "tokens": 2 * self.width,
            "features": 2 * self.width,
            "pixels": self.pixel_channels[-1] if self.pixel_channels else 0,
            "regions": REGION_NUMBERS,
            "relations": RELATION_NUMBERS,
            "size": SIZE_NUMBERS,
        }
        return {part: sizes[part] for part in self.vector}

    @property
    def crop_size(self) -> int:
        """Side in pixels of the crops that `Cae.encode` takes; 0 where it needs none."""
        if _MEASURED & set(self.vector):
            return self.image_size
        return self.pixel_size if "pixels" in self.vector else 0

    @property
    def needs_mask(self) -> bool:
        """Whether the vector depends on the mask of the cell, beside the features."""
        return self.vector != ("cls",)

    @property
    def tokens(self) -> int:
        """Number of feature tokens."""
        return self.grid**2

    @property
    def kept_tokens(self) -> int:
        """Number of tokens the encoder sees in training."""
        return int(self.tokens * (1 - self.mask_ratio))

    @property
    def image_size(self) -> int:
        """Side in pixels of the image that the head reconstructs."""
        size = self.grid
        for kernel, stride, padding in HEAD_LAYERS:
            size = (size - 1) * stride - 2 * padding + kernel
        return size


class Attention(nnx.Module):
    """Self-attention without a bias on q, k and v."""

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32) -> None:
        self.heads = heads
        self.qkv = linear(width, 3 * width, use_bias=False, rngs=rngs, dtype=dtype)
        self.proj = linear(width, width, rngs=rngs, dtype=dtype)

    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        q, k, v = (split_heads(part, self.heads) for part in jnp.split(self.qkv(x), 3, axis=-1))
        return self.proj(merge_heads(attend(q * q.shape[-1] ** -0.5, k, v)))


class Block(nnx.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32) -> None:
        self.norm1 = layer_norm(width, EPSILON, rngs=rngs, dtype=dtype)
        self.attn = Attention(width, heads, rngs=rngs, dtype=dtype)
        self.norm2 = layer_norm(width, EPSILON, rngs=rngs, dtype=dtype)
        self.mlp = Mlp(width, 4 * width, rngs=rngs, dtype=dtype)

    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def _small_normal(rngs: nnx.Rngs, shape: tuple[int, ...]) -> nnx.Param[Array]:
    """Normal, sd 0.02. (The original truncates at +-2, a hundred standard deviations away.)"""
    return nnx.Param(0.02 * rngs.params.normal(shape))


class CaeEncoder(nnx.Module):
    """Feature tokens, all or the kept ones, behind a learned cls token."""

    def __init__(self, config: CaeConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32) -> None:
        self.cls_token = _small_normal(rngs, (1, config.width))
        self.pos_embedding = _small_normal(rngs, (config.tokens, config.width))
        self.blocks = nnx.List(
            Block(config.width, config.heads, rngs=rngs, dtype=dtype) for _ in range(config.encoder_depth)
        )
        self.norm = layer_norm(config.width, EPSILON, rngs=rngs, dtype=dtype)
        self.remat = False  # see `compute.set_compute`

    def __call__(self, tokens: Float[AnyArray, "b t c"], kept: Int[AnyArray, "b k"] | None) -> Float[Array, "b n c"]:
        x = tokens + self.pos_embedding[...]
        if kept is not None:
            x = jnp.take_along_axis(x, kept[:, :, None], axis=1)
        cls = jnp.broadcast_to(self.cls_token[...], (x.shape[0], *self.cls_token.shape))
        x = jnp.concatenate([cls, x], axis=1)
        return self.norm(run_blocks(self.blocks, x, self.remat))


class CaeDecoder(nnx.Module):
    """Encoded tokens at their places, mask tokens at the others -> all feature tokens."""

    def __init__(self, config: CaeConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32) -> None:
        self.mask_token = _small_normal(rngs, (1, config.width))
        self.pos_embedding = _small_normal(rngs, (config.tokens + 1, config.width))
        self.blocks = nnx.List(
            Block(config.width, config.heads, rngs=rngs, dtype=dtype) for _ in range(config.decoder_depth)
        )
        self.remat = False  # see `compute.set_compute`

    def __call__(self, encoded: Float[Array, "b n c"], kept: Int[AnyArray, "b k"] | None) -> Float[Array, "b t c"]:
        batch, _, width = encoded.shape
        places = self.pos_embedding[...]
        if kept is not None:
            cls, seen = encoded[:, :1], encoded[:, 1:]
            hidden = jnp.broadcast_to(self.mask_token[...].astype(encoded.dtype), (batch, places.shape[0] - 1, width))
            # Row by row, so that the compiler sees that no row needs another: with the rows spread over devices, a
            # scatter at (row, place) sends all of them to all devices.
            filled = jax.vmap(lambda x, at, new: x.at[at].set(new, unique_indices=True))(hidden, kept, seen)
            encoded = jnp.concatenate([cls, filled], axis=1)
        x = encoded + places
        return run_blocks(self.blocks, x, self.remat)[:, 1:]


class ImageHead(nnx.Module):
    """Transposed convolutions with ReLU between them: token grid to RGB image, 1.0 for white."""

    def __init__(self, config: CaeConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32) -> None:
        channels = (config.width, *config.head_channels, 3)
        self.layers = nnx.List(
            ConvTranspose(a, b, kernel, stride=stride, padding=padding, rngs=rngs, dtype=dtype)
            for a, b, (kernel, stride, padding) in zip(channels[:-1], channels[1:], HEAD_LAYERS, strict=True)
        )

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b s s 3"]:
        *hidden, last = self.layers
        for layer in hidden:
            x = jax.nn.relu(layer(x))
        return last(x)


class Cae(nnx.Module):
    """Masked autoencoder over feature tokens with an image head and a projector.

    Parameters are fp32; `dtype` is that of the arithmetic (fp32 or bf16).
    """

    def __init__(self, config: CaeConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32) -> None:
        self.config = config
        self.encoder = CaeEncoder(config, rngs=rngs, dtype=dtype)
        self.decoder = CaeDecoder(config, rngs=rngs, dtype=dtype)
        self.image_head = ImageHead(config, rngs=rngs, dtype=dtype)
        self.projector = linear(config.width, config.projection, rngs=rngs, dtype=dtype)
        self.pixel_encoder = (
            PixelEncoder(config.pixel_channels, config.pixel_units == "cell", rngs=rngs, dtype=dtype)
            if config.pixel_channels
            else None
        )
        self.contrast_head = (
            ContrastHead(config.pixel_channels[-1], rngs=rngs, dtype=dtype) if config.pixel_channels else None
        )

    def encode(
        self,
        features: Float[AnyArray, "b h w c"],
        foreground: Float[AnyArray, "b h w"] | None = None,
        crops: Float[AnyArray, "b s s 3"] | None = None,
        areas: Float[AnyArray, " b"] | None = None,
    ) -> Float[Array, "b n"]:
        """The representation of a cell, nothing masked: the parts that `CaeConfig.vector` names, one behind the other.

        "cls" is the encoder's cls token, the original's vector; "tokens" mean and sd over the cell of the encoder's
        tokens; "features" the same of the standardised features themselves; "pixels" the pixel encoder's vector;
        "regions", "relations" and "size" `regions.region_statistics`, `regions.relation_statistics` and
        `regions.size_statistics` of the crop.

        Args:
          features: (B, grid, grid, width), LoRA-SAM's tokens.
          foreground: share of each token that is cell, 0..1; None for 1 everywhere.
          crops: the cell alone on grey, 0..1, side `config.crop_size`; "pixels", "regions", "relations" and "size" need
            them.
          areas: of the cells, in pixels of their images; "size" needs them.

        Raises:
          ValueError: no crops, or of another size, or no areas, where they are needed.
        """
        config = self.config
        tokens = self._tokens(features)
        parts = {}
        if {"cls", "tokens"} & set(config.vector):
            encoded = self.encoder(tokens, None)
            parts["cls"] = encoded[:, 0]
            if "tokens" in config.vector:
                parts["tokens"] = foreground_statistics(encoded[:, 1:], foreground)
        if "features" in config.vector:
            parts["features"] = foreground_statistics(tokens, foreground)
        if config.crop_size:
            size = config.crop_size
            if crops is None:
                raise ValueError("this autoencoder's vector needs the crops of the cells")
            if crops.shape[1:] != (size, size, 3):
                raise ValueError(f"expected crops of shape (B, {size}, {size}, 3), got {crops.shape}")
            if "pixels" in config.vector:
                parts["pixels"] = self.encode_pixels(shrink(crops, config.pixel_size))
            if "regions" in config.vector:
                parts["regions"] = region_statistics(crops)
            if "relations" in config.vector:
                parts["relations"] = relation_statistics(crops)
            if "size" in config.vector:
                if areas is None:
                    raise ValueError("this autoencoder's vector needs the areas of the cells")
                parts["size"] = size_statistics(crops, areas)
        return jnp.concatenate([parts[part] for part in config.vector], axis=-1)

    def encode_pixels(self, crops: Float[AnyArray, "b s s 3"]) -> Float[Array, "b p"]:
        """The pixel encoder's vector (see `encode`).

        Raises:
          ValueError: crops of another size, or no pixel encoder.
        """
        size = self.config.pixel_size
        if self.pixel_encoder is None:
            raise ValueError("this autoencoder has no pixel encoder")
        if crops.shape[1:] != (size, size, 3):
            raise ValueError(f"expected crops of shape (B, {size}, {size}, 3), got {crops.shape}")
        return self.pixel_encoder(crops)

    def compare(self, crops: Float[AnyArray, "b s s 3"], standardise: Callable[[Array], Array]) -> Float[Array, "b q"]:
        """What the contrast compares of the pixel encoder's vectors (see `ContrastHead`)."""
        if self.contrast_head is None:
            raise ValueError("this autoencoder has no pixel encoder")
        return self.contrast_head(self.encode_pixels(crops), standardise)

    def keep_encoders(self) -> "Cae":
        """Drop, in place, what only training needs, a third of the weights: from now on `encode` is all it does."""
        for name in ("decoder", "image_head", "projector", "contrast_head"):
            if hasattr(self, name):
                delattr(self, name)
        return self

    def __call__(
        self, features: Float[AnyArray, "b h w c"], kept: Int[AnyArray, "b n"] | None = None
    ) -> dict[str, Array]:
        """Reconstruct.

        Args:
          features: (B, grid, grid, width), LoRA-SAM's tokens.
          kept: row-major indices of the tokens that the encoder sees, distinct in each row; None for all.

        Returns:
          fp32 "feature" (B, grid, grid, width), in the units of `standardise`; "image" (B, S, S, 3) with values about
          0..1; "projection" (B, config.projection).
        """
        decoded = self.decoder(self.encoder(self._tokens(features), kept), kept)
        grid = decoded.reshape(features.shape)
        out = {
            "feature": grid,
            "image": self.image_head(grid),
            "projection": self.projector(decoded.mean(axis=1)),
        }
        return {name: value.astype(jnp.float32) for name, value in out.items()}

    def standardise(self, features: Float[AnyArray, "b h w c"]) -> Float[AnyArray, "b h w c"]:
        """Features in the units in which they are reconstructed (see `CaeConfig.feature_mean`)."""
        if not self.config.feature_mean:
            return features
        return (features - jnp.array(self.config.feature_mean)) / jnp.array(self.config.feature_std)

    def _tokens(self, features: Float[AnyArray, "b h w c"]) -> Float[AnyArray, "b t c"]:
        config = self.config
        if features.shape[1:] != (config.grid, config.grid, config.width):
            raise ValueError(
                f"expected features of shape (B, {config.grid}, {config.grid}, {config.width}), got {features.shape}"
            )
        return self.standardise(features).reshape(features.shape[0], config.tokens, config.width)


def random_kept(key: Array, batch: int, config: CaeConfig) -> Int[Array, "b k"]:
    """Indices of the tokens to keep, drawn without replacement for each sample; works inside jit."""
    order = jnp.argsort(jax.random.uniform(key, (batch, config.tokens)), axis=1)
    return order[:, : config.kept_tokens]
