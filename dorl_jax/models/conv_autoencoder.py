"""BC-SAM's convolutional autoencoder (arXiv 2408.06716), the baseline beside the cross-domain autoencoder."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dorl_jax.models.batch_norm import BatchNorm
from dorl_jax.models.conv import ConvTranspose
from dorl_jax.models.layers import AnyArray, linear, torch_uniform

# (kernel, stride) of the decoder's layers, without padding; they take one pixel to 5, 12, 14, 31, 63, 127, 128, 128.
DECODER_LAYERS = ((5, 1), (4, 2), (3, 1), (5, 2), (3, 2), (3, 2), (2, 1), (1, 1))


@dataclass(frozen=True)
class ConvAutoencoderConfig:
    """Shape of the autoencoder; the defaults are the original's, which reads the features of SAM ViT-B.

    Attributes:
      width: channels of the features.
      hidden: channels inside the encoder.
      latent: size of the latent vector.
      decoder_channels: channels between the layers of the decoder, one fewer than there are layers.
      decoder_layers: (kernel, stride) of each.
    """

    width: int = 768
    hidden: int = 256
    latent: int = 50
    decoder_channels: tuple[int, ...] = (150, 200, 256, 200, 180, 150, 128)
    decoder_layers: tuple[tuple[int, int], ...] = DECODER_LAYERS


class ConvEncoder(nnx.Module):
    """Three convolutions, each with batch normalisation and ReLU; the second halves the grid."""

    def __init__(self, config: ConvAutoencoderConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32) -> None:
        hidden = config.hidden
        init = torch_uniform(9 * hidden)
        halving = nnx.Conv(
            hidden, hidden, (3, 3), 2, padding="VALID", dtype=dtype, kernel_init=init, bias_init=init, rngs=rngs
        )
        # A 1x1 convolution is a linear map of each token.
        first = linear(config.width, hidden, rngs=rngs, dtype=dtype)
        self.layers = nnx.List([first, halving, linear(hidden, config.latent, rngs=rngs, dtype=dtype)])
        self.norms = nnx.List(BatchNorm(channels, dtype=dtype) for channels in (hidden, hidden, config.latent))

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b p q d"]:
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = jax.nn.relu(norm(layer(x)))
        return x


class ConvDecoder(nnx.Module):
    """Transposed convolutions with batch normalisation and ReLU between them: one pixel to the logits of an image."""

    def __init__(self, config: ConvAutoencoderConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32) -> None:
        channels = (config.latent, *config.decoder_channels, 3)
        self.layers = nnx.List(
            ConvTranspose(a, b, kernel, stride=stride, padding=0, rngs=rngs, dtype=dtype)
            for a, b, (kernel, stride) in zip(channels[:-1], channels[1:], config.decoder_layers, strict=True)
        )
        self.norms = nnx.List(BatchNorm(count, dtype=dtype) for count in config.decoder_channels)

    def __call__(self, x: Float[Array, "b 1 1 d"]) -> Float[Array, "b s s 3"]:
        *hidden, last = self.layers
        for layer, norm in zip(hidden, self.norms, strict=True):
            x = jax.nn.relu(norm(layer(x)))
        return last(x)


class ConvAutoencoder(nnx.Module):
    """Convolutional autoencoder from feature tokens, through one vector, to the image of the cell.

    It was trained with `(1 - ssim(out["image"], images)) + 5 * mean_discrepancy(out["latent"], domains, n)`, both in
    `dorl_jax.losses`.

    Like every module with batch normalisation it has two modes: a new one is in training mode, where samples of a batch
    depend on each other and every call, `encode` too, moves the running statistics; `model.eval()` and `model.train()`
    switch. Parameters and statistics are fp32; `dtype` is that of the arithmetic (fp32 or bf16).
    """

    def __init__(self, config: ConvAutoencoderConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32) -> None:
        self.config = config
        self.encoder = ConvEncoder(config, rngs=rngs, dtype=dtype)
        self.decoder = ConvDecoder(config, rngs=rngs, dtype=dtype)

    def encode(self, features: Float[AnyArray, "b h w c"]) -> Float[Array, "b d"]:
        """The representation of a cell: the encoder's output averaged over the grid, fp32, never negative.

        Args:
          features: (B, h, w, width), LoRA-SAM's tokens on a grid of at least 3 x 3.
        """
        _, height, width, channels = features.shape
        if min(height, width) < 3 or channels != self.config.width:
            raise ValueError(
                f"expected features of shape (B, h, w, {self.config.width}), h and w at least 3, got {features.shape}"
            )
        return self.encoder(jnp.asarray(features)).mean(axis=(1, 2), dtype=jnp.float32)

    def __call__(self, features: Float[AnyArray, "b h w c"]) -> dict[str, Array]:
        """Reconstruct.

        Args:
          features: (B, h, w, width), LoRA-SAM's tokens on a grid of at least 3 x 3.

        Returns:
          fp32 "latent" (B, config.latent), as `encode` gives it; "image" (B, 128, 128, 3), or of the side that
          other decoder layers give, with values in 0..1.
        """
        latent = self.encode(features)
        logits = self.decoder(latent[:, None, None])
        return {"latent": latent, "image": jax.nn.sigmoid(logits.astype(jnp.float32))}
