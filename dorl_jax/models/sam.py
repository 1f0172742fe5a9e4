"""The Segment Anything Model (Kirillov et al., arXiv 2304.02643)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Real

from dorl_jax.models.image_encoder import ImageEncoder, ImageEncoderConfig
from dorl_jax.models.layers import AnyArray
from dorl_jax.models.lora import LoraConfig
from dorl_jax.models.mask_decoder import MaskDecoder, MaskDecoderConfig
from dorl_jax.models.prompt_encoder import PromptEncoder
from dorl_jax.models.variants import require_variant

SAM_PIXEL_MEAN = (123.675, 116.28, 103.53)
SAM_PIXEL_STD = (58.395, 57.12, 57.375)

ImageSize = int | tuple[int, int]  # side of a square, or height and width


@dataclass(frozen=True)
class SamConfig:
    """Shape of a SAM; use a preset (`SamConfig.vit_b(image_size=224)`).

    Attributes:
      encoder: the image encoder.
      decoder: the mask decoder.
      mask_prompt_hidden: channels inside the encoder of mask prompts.
      pixel_mean, pixel_std: statistics of the input, on the 0..255 scale, RGB.
      resize: how the images that it was trained on were brought to its size (see `data.images.resize_image`).
      light: what was done about their light (see `data.light.in_light`).
    """

    encoder: ImageEncoderConfig
    decoder: MaskDecoderConfig = field(default_factory=MaskDecoderConfig)
    mask_prompt_hidden: int = 16
    pixel_mean: tuple[float, float, float] = SAM_PIXEL_MEAN
    pixel_std: tuple[float, float, float] = SAM_PIXEL_STD
    resize: Literal["bilinear", "cv2_bilinear"] = "bilinear"
    light: Literal["as_is", "white_patch"] = "as_is"

    @classmethod
    def vit_b(cls, image_size: ImageSize = 1024) -> "SamConfig":
        """ViT-B, 94 million parameters."""
        return cls(ImageEncoderConfig(image_size, 16, 768, 12, 12, (2, 5, 8, 11)))

    @classmethod
    def vit_l(cls, image_size: ImageSize = 1024) -> "SamConfig":
        """ViT-L, 312 million parameters."""
        return cls(ImageEncoderConfig(image_size, 16, 1024, 24, 16, (5, 11, 17, 23)))

    @classmethod
    def vit_h(cls, image_size: ImageSize = 1024) -> "SamConfig":
        """ViT-H, 641 million parameters."""
        return cls(ImageEncoderConfig(image_size, 16, 1280, 32, 16, (7, 15, 23, 31)))

    @classmethod
    def tiny(cls, image_size: ImageSize = 112) -> "SamConfig":
        """About 4 million parameters, patches of 8 pixels: for CPUs, demonstrations and tests. No official weights."""
        encoder = ImageEncoderConfig(image_size, 8, 192, 6, 6, tuple(range(6)), out_channels=128)
        return cls(encoder, MaskDecoderConfig(hidden=512))

    @classmethod
    def preset(cls, variant: str, image_size: ImageSize | None = None) -> "SamConfig":
        """The preset of that name, at its own or another image size (a side, or height and width).

        Raises:
          InputError: no such preset.
        """
        require_variant(variant)
        make = getattr(cls, variant)
        return make() if image_size is None else make(image_size)

    def with_lora(self, lora: LoraConfig | None) -> "SamConfig":
        """The same with LoRA in the image encoder; None for none."""
        return replace(self, encoder=replace(self.encoder, lora=lora))

    def with_masks(self, multimask_outputs: int) -> "SamConfig":
        """The same with that many masks beside the single one."""
        return replace(self, decoder=replace(self.decoder, multimask_outputs=multimask_outputs))


class Sam(nnx.Module):
    """Image encoder, prompt encoder and mask decoder.

    Parameters are fp32; `dtype` is that of the arithmetic (fp32 or bf16).
    """

    def __init__(self, config: SamConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32) -> None:
        encoder, channels = config.encoder, config.encoder.out_channels
        self.config = config
        self.image_encoder = ImageEncoder(encoder, rngs=rngs, dtype=dtype)
        self.prompt_encoder = PromptEncoder(
            channels, encoder.image_shape, encoder.grid, mask_hidden=config.mask_prompt_hidden, rngs=rngs, dtype=dtype
        )
        self.mask_decoder = MaskDecoder(channels, config.decoder, rngs=rngs, dtype=dtype)

    def normalise(self, images: Real[AnyArray, "b h w 3"]) -> Float[Array, "b p q 3"]:
        """Images of 0..255 at most as large as the model's input -> normalised, zero-padded bottom and right."""
        height, width = self.config.encoder.image_shape
        if images.shape[1] > height or images.shape[2] > width:
            raise ValueError(f"expected images of shape (B, H, W, 3), H <= {height}, W <= {width}; got {images.shape}")
        mean, std = jnp.array(self.config.pixel_mean), jnp.array(self.config.pixel_std)
        scaled = (images.astype(jnp.float32) - mean) / std
        return jnp.pad(scaled, ((0, 0), (0, height - images.shape[1]), (0, width - images.shape[2]), (0, 0)))

    def encode_image(self, images: Real[AnyArray, "b h w 3"]) -> dict[str, Array]:
        """Features of images.

        Args:
          images: (B, H, W, 3), RGB, 0..255, at most as large as the model's input.

        Returns:
          "tokens" (B, h, w, C) before the neck, "embedding" (B, h, w, 256) behind it.
        """
        tokens, embedding = self.image_encoder(self.normalise(images))
        return {"tokens": tokens, "embedding": embedding}

    def predict(
        self,
        embedding: Float[AnyArray, "b h w c"],
        points: tuple[Real[AnyArray, "*p n 2"], Int[AnyArray, "*p n"]] | None = None,
        boxes: Real[AnyArray, "*p 4"] | None = None,
        masks: Real[AnyArray, "*p h4 w4"] | None = None,
        multimask: bool = True,
    ) -> dict[str, Array]:
        """Masks of what the prompts point at.

        A prompt set is points, a box and a mask, each of them optional. There is one an image (prompts of shape
        (B, ...)), or P an image (prompts of shape (B, P, ...), all of one P), or P for a single image (an embedding of
        shape (1, ...), prompts of shape (P, ...)). Without prompts the decoder is asked for a mask of its own choice.

        Args:
          embedding: of the images, from `encode_image`.
          points: (x, y) in pixels of the model's input, and labels: 1 foreground, 0 background, -1 padding that makes
            sets of different sizes one array.
          boxes: (x0, y0, x1, y1) in the same pixels.
          masks: logits at four times the token grid, such as an earlier answer.
          multimask: three answers to an ambiguous prompt, or the one that suits an unambiguous prompt.

        Returns:
          "low_res_logits" (B, 4h, 4w, M), or (B, P, 4h, 4w, M): a mask is where they are above 0. "iou" (B, M), or
          (B, P, M): predicted intersection over union of each. M is 3 in the official models (multimask) or 1.

        Raises:
          ValueError: prompts that are not of one shape, or not for these images.
        """
        prompts = {"points": points and points[0], "labels": points and points[1], "boxes": boxes, "masks": masks}
        leading = _leading_axes({name: x for name, x in prompts.items() if x is not None}, len(embedding))
        count = math.prod(leading)

        def flat(x: AnyArray, inner: int, dtype: DTypeLike) -> Array:
            return jnp.asarray(x, dtype).reshape(count, *x.shape[x.ndim - inner :])

        logits, iou = self.decode(
            jnp.repeat(jnp.asarray(embedding), count // len(embedding), axis=0),
            (flat(points[0], 2, jnp.float32), flat(points[1], 1, jnp.int32)) if points is not None else None,
            flat(boxes, 1, jnp.float32) if boxes is not None else None,
            flat(masks, 2, jnp.float32) if masks is not None else None,
        )
        logits, iou = (logits[..., 1:], iou[..., 1:]) if multimask else (logits[..., :1], iou[..., :1])
        return {"low_res_logits": logits.reshape(*leading, *logits.shape[1:]), "iou": iou.reshape(*leading, -1)}

    def decode(
        self,
        embedding: Float[Array, "b h w c"],
        points: tuple[Float[Array, "b n 2"], Int[Array, "b n"]] | None = None,
        boxes: Float[Array, "b 4"] | None = None,
        masks: Float[Array, "b h4 w4"] | None = None,
    ) -> tuple[Float[Array, "b h4 w4 m"], Float[Array, "b m"]]:
        """Logits and predicted IoU of **every** mask token: the single mask first, then the multimask ones.

        Prompts as in `PromptEncoder`, one set an image.
        """
        sparse, dense = self.prompt_encoder(embedding.shape[0], points, boxes, masks)
        return self.mask_decoder(embedding, self.prompt_encoder.dense_positions(), sparse, dense)

    def postprocess(
        self,
        low_res: Float[AnyArray, "*b h4 w4 m"],
        input_shape: tuple[int, int],
        original_shape: tuple[int, int] | None = None,
    ) -> Float[Array, "*b height width m"]:
        """Logits on the pixels of an image: bilinear to the model's input, padding cut off, bilinear to the original.

        Args:
          low_res: logits at four times the token grid.
          input_shape: height and width of the image as the model was given it.
          original_shape: height and width before it was resized for the model; None if it was not.
        """
        *batch, _, _, channels = low_res.shape
        height, width = input_shape

        def resize(x: Array, shape: tuple[int, int]) -> Array:
            return jax.image.resize(x, (*batch, *shape, channels), "bilinear", antialias=False)

        logits = resize(jnp.asarray(low_res), self.config.encoder.image_shape)[..., :height, :width, :]
        return logits if original_shape is None else resize(logits, original_shape)


def _leading_axes(prompts: Mapping[str, AnyArray], images: int) -> tuple[int, ...]:
    """(B,) or (B, P) that all prompts share."""
    inner = {"points": 2, "labels": 1, "boxes": 1, "masks": 2}
    found = {name: tuple(x.shape[: x.ndim - inner[name]]) for name, x in prompts.items()}
    leading = next(iter(found.values()), (images,))
    if any(axes != leading for axes in found.values()) or len(leading) not in (1, 2):
        raise ValueError(f"prompts of one shape are needed, (B, ...) or (B, P, ...); got {found}")
    if leading[0] != images and not (images == 1 and len(leading) == 1):
        raise ValueError(f"prompts for {leading[0]} images, but the embedding is of {images}")
    return leading
