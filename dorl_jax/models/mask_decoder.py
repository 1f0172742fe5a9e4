"""SAM's mask decoder: image embedding and prompt tokens into mask logits and their predicted IoU (arXiv 2304.02643)."""

from dataclasses import dataclass
from itertools import pairwise

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dorl_jax.models.gelu import exact_gelu
from dorl_jax.models.layers import linear, torch_uniform
from dorl_jax.models.norm import layer_norm
from dorl_jax.models.two_way_transformer import TwoWayTransformer


@dataclass(frozen=True)
class MaskDecoderConfig:
    """Shape of the decoder; the defaults are SAM's.

    Attributes:
      multimask_outputs: masks beside the single-mask output (3 in SAM, the number of classes in DoRL).
      depth: two-way blocks.
      heads: attention heads.
      hidden: hidden width of the blocks' MLPs.
      downsample: how much narrower the attention between tokens and image is than the embedding.
      iou_depth, iou_hidden: layers and hidden width of the IoU head; `iou_hidden` None for the embedding's width.
      epsilon: of the blocks' norms; 1e-5 in the official code, 1e-6 in Hugging Face's.
    """

    multimask_outputs: int = 3
    depth: int = 2
    heads: int = 8
    hidden: int = 2048
    downsample: int = 2
    iou_depth: int = 3
    iou_hidden: int | None = None
    epsilon: float = 1e-5


class Perceptron(nnx.Module):
    """Linear layers with ReLU between them."""

    def __init__(
        self, width: int, hidden: int, out: int, depth: int, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32
    ) -> None:
        sizes = [width, *[hidden] * (depth - 1), out]
        self.layers = nnx.List(linear(a, b, rngs=rngs, dtype=dtype) for a, b in pairwise(sizes))

    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b o"]:
        *hidden, last = self.layers
        for layer in hidden:
            x = jax.nn.relu(layer(x))
        return last(x)


class Doubling(nnx.Module):
    """Transposed convolution of kernel and stride 2: every token becomes a 2x2 square, a plain matrix product."""

    def __init__(self, channels_in: int, channels_out: int, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32) -> None:
        init = torch_uniform(4 * channels_out)
        self.kernel = nnx.Param(init(rngs.params(), (2, 2, channels_in, channels_out)))
        self.bias = nnx.Param(init(rngs.params(), (channels_out,)))
        self.dtype = dtype

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h2 w2 o"]:
        batch, height, width, _ = x.shape
        kernel, bias = self.kernel[...].astype(self.dtype), self.bias[...].astype(self.dtype)
        y = jnp.einsum("bhwi,yxio->bhywxo", x.astype(self.dtype), kernel)
        return y.reshape(batch, 2 * height, 2 * width, -1) + bias


class MaskDecoder(nnx.Module):
    """Masks at four times the token grid, one for each mask token."""

    def __init__(
        self,
        channels: int,
        config: MaskDecoderConfig,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ) -> None:
        masks = config.multimask_outputs + 1
        self.iou_token = nnx.Param(rngs.params.normal((1, channels)))
        self.mask_tokens = nnx.Param(rngs.params.normal((masks, channels)))
        self.transformer = TwoWayTransformer(
            channels,
            config.heads,
            config.hidden,
            config.depth,
            downsample=config.downsample,
            epsilon=config.epsilon,
            rngs=rngs,
            dtype=dtype,
        )
        self.upscale1 = Doubling(channels, channels // 4, rngs=rngs, dtype=dtype)
        self.upscale_norm = layer_norm(channels // 4, 1e-6, rngs=rngs, dtype=dtype)
        self.upscale2 = Doubling(channels // 4, channels // 8, rngs=rngs, dtype=dtype)
        self.hypernetworks = nnx.List(
            Perceptron(channels, channels, channels // 8, 3, rngs=rngs, dtype=dtype) for _ in range(masks)
        )
        self.iou_prediction_head = Perceptron(
            channels, config.iou_hidden or channels, masks, config.iou_depth, rngs=rngs, dtype=dtype
        )

    def __call__(
        self,
        embedding: Float[Array, "b h w c"],
        positions: Float[Array, "h w c"],
        sparse: Float[Array, "b p c"],
        dense: Float[Array, "b h w c"],
    ) -> tuple[Float[Array, "b h4 w4 m"], Float[Array, "b m"]]:
        """Mask logits (fp32) and predicted IoU of every mask token; choosing among them is the caller's."""
        batch, height, width, channels = embedding.shape
        own = jnp.concatenate([self.iou_token[...], self.mask_tokens[...]])
        tokens = jnp.concatenate([jnp.broadcast_to(own, (batch, *own.shape)), sparse], axis=1)
        image = (embedding + dense).reshape(batch, height * width, channels)
        tokens, image = self.transformer(tokens, image, positions.reshape(height * width, channels))
        x = self.upscale1(image.reshape(batch, height, width, channels))
        x = exact_gelu(self.upscale2(exact_gelu(self.upscale_norm(x))))
        weights = jnp.stack([net(tokens[:, 1 + i]) for i, net in enumerate(self.hypernetworks)], axis=1)
        logits = jnp.einsum("bhwc,bmc->bhwm", x, weights, preferred_element_type=jnp.float32)
        return logits, self.iou_prediction_head(tokens[:, 0]).astype(jnp.float32)
