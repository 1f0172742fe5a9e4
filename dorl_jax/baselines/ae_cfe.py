"""An autoencoder in the manner of AE-CFE (Salehi et al., MICCAI 2022): means and covariances of laboratories agree.

The original reads Mask R-CNN's features of a cell, (14, 14, 256); this one a segmenter's tokens on the same grid. Other
than there, features are standardised by channel and reconstructed without a final tanh, and the channels of the
decoders are a setting.
"""

from collections.abc import Mapping
from contextlib import closing

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Float32, Int

from dorl_jax.baselines.cells import Cells
from dorl_jax.baselines.fitting import autoencoder_batches, compiled_step, encode_all, fit, image_target
from dorl_jax.baselines.settings import AeCfeSettings
from dorl_jax.channel_statistics import channel_statistics
from dorl_jax.errors import InputError
from dorl_jax.losses import mean_discrepancy, ssim
from dorl_jax.models.conv import ConvTranspose, conv2d
from dorl_jax.models.layers import AnyArray, Buffer, torch_uniform
from dorl_jax.training.optim import warmup_cosine
from dorl_jax.training.step import LossFunction

_GRID = 14
# (kernel, stride) of the encoder: 14 to 12, 5, 3, 2, 1 and 1; its channels, and the groups of their normalisation.
_ENCODER = ((3, 1), (3, 2), (3, 1), (2, 1), (2, 1))
_CHANNELS = (200, 150, 100, 70, 60)
_GROUPS = (20, 30, 10, 10, 20)
# (kernel, stride) of the decoders: 1 to 5, 12, 14; and on to 31, 63, 127, 128, 128, or 31, 63, 64, 64.
_FEATURE_DECODER = ((5, 1), (4, 2), (3, 1))
_IMAGE_DECODERS = {128: ((5, 2), (3, 2), (3, 2), (2, 1), (1, 1)), 64: ((5, 2), (3, 2), (2, 1), (1, 1))}


class AeCfe(nnx.Module):
    """Tokens to a vector, and back to the tokens and from them to the image of the cell."""

    def __init__(
        self,
        width: int,
        latent: int,
        image_channels: int,
        image_size: int,
        mean: Float32[np.ndarray, " c"],
        std: Float32[np.ndarray, " c"],
        *,
        rngs: nnx.Rngs,
    ) -> None:
        """Shape, and the statistics of the features' channels."""
        self.mean, self.std = Buffer(jnp.asarray(mean)), Buffer(jnp.asarray(std))
        sizes = (width, *_CHANNELS)
        kernels, biases = [], []
        for (kernel, _), a, b in zip((*_ENCODER, (1, 1)), sizes, (*_CHANNELS, latent), strict=True):
            init = torch_uniform(kernel * kernel * a)
            kernels.append(nnx.Param(init(rngs.params(), (kernel, kernel, a, b))))
            biases.append(nnx.Param(init(rngs.params(), (b,))))
        self.kernels, self.biases = nnx.List(kernels), nnx.List(biases)
        self.norms = nnx.List(
            nnx.GroupNorm(channels, groups, epsilon=1e-5, rngs=rngs)
            for channels, groups in zip(_CHANNELS, _GROUPS, strict=True)
        )
        self.feature_decoder = _decoder((latent, 150, 200, width), _FEATURE_DECODER, rngs)
        layers = _IMAGE_DECODERS[image_size]
        self.image_decoder = _decoder((width, *[image_channels] * (len(layers) - 1), 3), layers, rngs)

    def standardise(self, features: Float[AnyArray, "b 14 14 c"]) -> Float[Array, "b 14 14 c"]:
        """Channels of mean 0 and sd 1."""
        return (jnp.asarray(features, jnp.float32) - self.mean[...]) / self.std[...]

    def encode(self, features: Float[AnyArray, "b 14 14 c"]) -> Float[Array, "b d"]:
        """The vector, -1..1."""
        x = self.standardise(features)
        strides = (*(stride for _, stride in _ENCODER), 1)
        for number, (kernel, bias, stride) in enumerate(zip(self.kernels, self.biases, strides, strict=True)):
            # Every other value of stride 1: on a CPU the gradient of stride 2 itself is far slower.
            x = conv2d(x, kernel[...], ((0, 0), (0, 0)))[:, ::stride, ::stride] + bias[...]
            if number < len(self.norms):
                x = self.norms[number](jax.nn.relu(x))
        return jnp.tanh(x[:, 0, 0])

    def __call__(self, features: Float[AnyArray, "b 14 14 c"]) -> dict[str, Array]:
        """fp32 "latent" (B, d), "feature" (B, 14, 14, c), standardised, and "image" (B, S, S, 3), 0..1."""
        latent = self.encode(features)
        feature = _decode(self.feature_decoder, latent[:, None, None])
        image = jax.nn.sigmoid(_decode(self.image_decoder, feature))
        return {"latent": latent, "feature": feature, "image": image}


def moment_discrepancy(
    latents: Float[AnyArray, "b d"], domains: Int[AnyArray, " b"], num_domains: int
) -> Float[Array, ""]:
    """AE-CFE's distance between laboratories: of their means, and of their covariances.

    Sum over the domains i >= 1 of the mean squared difference of their mean from that of domain 0
    (`losses.mean_discrepancy`), and of half the sum of the two Kullback-Leibler divergences (mean over the entries)
    between the softmaxes, along the first axis, of their covariance and of that of domain 0.

    A domain with fewer than two cells in the batch adds nothing to the second.

    Args:
      latents: one vector a cell.
      domains: of each, 0..num_domains - 1.
      num_domains: static.
    """
    member = jax.nn.one_hot(domains, num_domains, dtype=latents.dtype)
    counts = member.sum(axis=0)
    means = (member.T @ latents) / jnp.maximum(counts, 1)[:, None]
    centred = latents - means[domains]
    covariances = jnp.einsum("bk,bi,bj->kij", member, centred, centred) / jnp.maximum(counts - 1, 1)[:, None, None]
    logs = jax.nn.log_softmax(covariances, axis=1)
    first, others = logs[0], logs[1:]
    # Both divergences at once: sum (p - q) (log p - log q).
    divergences = 0.5 * jnp.mean((jnp.exp(others) - jnp.exp(first)) * (others - first), axis=(1, 2))
    present = (counts[1:] > 1) & (counts[0] > 1)
    return mean_discrepancy(latents, domains, num_domains) + jnp.sum(jnp.where(present, divergences, 0))


def ae_cfe(cells: Cells, settings: AeCfeSettings, seed: int, *, progress: bool = True) -> Float32[np.ndarray, "n d"]:
    """The vectors of an autoencoder that is trained on the cells that may train; no label is used.

    Raises:
      InputError: the features are not on a grid of 14 x 14.
    """
    grid, _, width = cells.features[0].shape
    if grid != _GRID:
        raise InputError(f"AE-CFE reads features on a grid of {_GRID} x {_GRID}, the store has {grid} x {grid}")
    mean, std = channel_statistics(cells.features, cells.training)
    shape = (width, settings.latent, settings.image_channels, settings.image_size)
    model = AeCfe(*shape, mean, std, rngs=nnx.Rngs(seed))
    optimiser = optax.adam(warmup_cosine(settings.learning_rate, settings.steps // 20, settings.steps))
    step = compiled_step(model, _objective(int(cells.domains.max()) + 1, settings.discrepancy), optimiser)
    with closing(autoencoder_batches(cells, settings.batch_size, seed)) as batches:
        fit(model, step, batches, optimiser, settings.steps, seed=seed, name="AE-CFE", progress=progress)
    return encode_all(_encode, model, cells.features, settings.batch_size)


def _objective(domains: int, weight: float) -> LossFunction:
    def objective(model: AeCfe, batch: Mapping[str, Array], key: Array) -> dict[str, Array]:
        features = batch["feature"].astype(jnp.float32)
        out = model(features)
        similarity = ssim(out["image"], image_target(batch["crop"], out["image"].shape[1]))
        mse = jnp.mean((out["feature"] - model.standardise(features)) ** 2)
        discrepancy = moment_discrepancy(out["latent"], batch["domain"], domains)
        loss = 1 - similarity + mse + weight * discrepancy
        return {"loss": loss, "ssim": similarity, "mse": mse, "discrepancy": discrepancy}

    return objective


def _decoder(channels: tuple[int, ...], layers: tuple[tuple[int, int], ...], rngs: nnx.Rngs) -> nnx.List:
    return nnx.List(
        ConvTranspose(a, b, kernel, stride=stride, padding=0, rngs=rngs)
        for a, b, (kernel, stride) in zip(channels[:-1], channels[1:], layers, strict=True)
    )


def _decode(layers: nnx.List, x: Array) -> Array:
    """ReLU between the layers."""
    *hidden, last = layers
    for layer in hidden:
        x = jax.nn.relu(layer(x))
    return last(x)


@nnx.jit
def _encode(model: AeCfe, features: Array) -> Array:
    return model.encode(features)
