"""The Segment Anything Model (Kirillov et al., arXiv 2304.02643)."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Real

from dorl_jax.models.image_encoder import ImageEncoder, ImageEncoderConfig
from dorl_jax.models.layers import AnyArray
from dorl_jax.models.mask_decoder import MaskDecoder
from dorl_jax.models.prompt_encoder import PromptEncoder
from dorl_jax.models.variants import require_variant

SAM_PIXEL_MEAN = (123.675, 116.28, 103.53)
SAM_PIXEL_STD = (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class SamConfig:
    """Shape of a SAM; use a preset (`SamConfig.vit_b(image_size=224)`).

    Attributes:
      encoder: the image encoder.
      multimask_outputs: masks beside the single-mask output (3 in SAM, the number of classes in DoRL).
      decoder_hidden: hidden width of the mask decoder's MLPs.
      pixel_mean, pixel_std: statistics of the input, on the 0..255 scale, RGB.
    """

    encoder: ImageEncoderConfig
    multimask_outputs: int = 3
    decoder_hidden: int = 2048
    pixel_mean: tuple[float, float, float] = SAM_PIXEL_MEAN
    pixel_std: tuple[float, float, float] = SAM_PIXEL_STD

    @classmethod
    def vit_b(cls, image_size: int = 1024) -> "SamConfig":
        """ViT-B, 94 million parameters."""
        return cls(ImageEncoderConfig(image_size, 16, 768, 12, 12, (2, 5, 8, 11)))

    @classmethod
    def vit_l(cls, image_size: int = 1024) -> "SamConfig":
        """ViT-L, 312 million parameters."""
        return cls(ImageEncoderConfig(image_size, 16, 1024, 24, 16, (5, 11, 17, 23)))

    @classmethod
    def vit_h(cls, image_size: int = 1024) -> "SamConfig":
        """ViT-H, 641 million parameters."""
        return cls(ImageEncoderConfig(image_size, 16, 1280, 32, 16, (7, 15, 23, 31)))

    @classmethod
    def tiny(cls, image_size: int = 112) -> "SamConfig":
        """About 4 million parameters, patches of 8 pixels: for CPUs, demonstrations and tests. No official weights."""
        encoder = ImageEncoderConfig(image_size, 8, 192, 6, 6, tuple(range(6)), out_channels=128)
        return cls(encoder, decoder_hidden=512)

    @classmethod
    def preset(cls, variant: str, image_size: int | None = None) -> "SamConfig":
        """The preset of that name, at its own or another image size.

        Raises:
          InputError: no such preset.
        """
        require_variant(variant)
        make = getattr(cls, variant)
        return make() if image_size is None else make(image_size)

    def with_lora(self, rank: int) -> "SamConfig":
        """The same with LoRA of this rank on q and v of every block; 0 for none."""
        return replace(self, encoder=replace(self.encoder, lora_rank=rank))


class Sam(nnx.Module):
    """Image encoder, prompt encoder and mask decoder.

    Parameters are fp32; `dtype` is that of the arithmetic (fp32 or bf16).
    """

    def __init__(self, config: SamConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32) -> None:
        channels = config.encoder.out_channels
        self.config = config
        self.image_encoder = ImageEncoder(config.encoder, rngs=rngs, dtype=dtype)
        self.prompt_encoder = PromptEncoder(
            channels, config.encoder.image_size, config.encoder.grid, rngs=rngs, dtype=dtype
        )
        self.mask_decoder = MaskDecoder(
            channels, config.multimask_outputs + 1, hidden=config.decoder_hidden, rngs=rngs, dtype=dtype
        )

    def normalise(self, images: Real[AnyArray, "b h w 3"]) -> Float[Array, "b s s 3"]:
        """Images of 0..255 at most as large as the model's input -> normalised, zero-padded bottom and right."""
        size = self.config.encoder.image_size
        if max(images.shape[1:3]) > size:
            raise ValueError(f"expected images of shape (B, H, W, 3) with H, W <= {size}, got {images.shape}")
        mean, std = jnp.array(self.config.pixel_mean), jnp.array(self.config.pixel_std)
        scaled = (images.astype(jnp.float32) - mean) / std
        return jnp.pad(scaled, ((0, 0), (0, size - images.shape[1]), (0, size - images.shape[2]), (0, 0)))

    def encode_image(self, images: Real[AnyArray, "b h w 3"]) -> dict[str, Array]:
        """Features of images.

        Args:
          images: (B, H, W, 3), RGB, 0..255, H and W at most the model's image size.

        Returns:
          "tokens" (B, h, w, C) before the neck, "embedding" (B, h, w, 256) behind it.
        """
        tokens, embedding = self.image_encoder(self.normalise(images))
        return {"tokens": tokens, "embedding": embedding}

    def decode(
        self,
        embedding: Float[Array, "b h w c"],
        points: tuple[Float[Array, "b n 2"], Int[Array, "b n"]] | None = None,
        boxes: Float[Array, "b 4"] | None = None,
        masks: Float[Array, "b h4 w4"] | None = None,
    ) -> tuple[Float[Array, "b h4 w4 m"], Float[Array, "b m"]]:
        """Logits and predicted IoU of **every** mask token: the single mask first, then the multimask ones.

        Prompts as in `PromptEncoder`.
        """
        sparse, dense = self.prompt_encoder(embedding.shape[0], points, boxes, masks)
        return self.mask_decoder(embedding, self.prompt_encoder.dense_positions(), sparse, dense)

    def upscale(self, low_res: Float[Array, "b h4 w4 m"], height: int, width: int) -> Float[Array, "b height width m"]:
        """Logits on the pixels of the input: bilinear to the model's input size, padding cut off."""
        size = self.config.encoder.image_size
        shape = (low_res.shape[0], size, size, low_res.shape[-1])
        return jax.image.resize(low_res, shape, "bilinear", antialias=False)[:, :height, :width]
