"""BC-SAM's convolutional autoencoder (arXiv 2408.06716), trained by its own recipe on a run's features."""

from collections.abc import Mapping
from contextlib import closing

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float32

from dorl_jax.baselines.cells import Cells
from dorl_jax.baselines.fitting import (
    autoencoder_batches,
    compiled_step,
    encode_all,
    fit,
    gather_statistics,
    image_target,
)
from dorl_jax.baselines.settings import BcSamSettings
from dorl_jax.losses import mean_discrepancy, ssim
from dorl_jax.models.conv_autoencoder import ConvAutoencoder, ConvAutoencoderConfig
from dorl_jax.training.optim import adamw, warmup_cosine
from dorl_jax.training.step import LossFunction

_WIDTH = ConvAutoencoderConfig().width
# The decoder's layer from 63 to 127 pixels.
_LAST_DOUBLING = 5


def bc_sam(cells: Cells, settings: BcSamSettings, seed: int, *, progress: bool = True) -> Float32[np.ndarray, "n d"]:
    """The vectors of an autoencoder that is trained on the cells that may train; no label is used.

    The channels inside are those of the original in proportion to the features' width.
    """
    width = cells.features[0].shape[-1]
    model = ConvAutoencoder(scaled_config(width, settings.latent, settings.image_size), rngs=nnx.Rngs(seed))
    domains = int(cells.domains.max()) + 1
    schedule = warmup_cosine(settings.learning_rate, settings.steps // 20, settings.steps)
    optimiser = adamw(schedule, settings.weight_decay)
    step = compiled_step(model, _objective(domains, settings.discrepancy), optimiser)
    with closing(autoencoder_batches(cells, settings.batch_size, seed)) as batches:
        fit(model, step, batches, optimiser, settings.steps, seed=seed, name="BC-SAM", progress=progress)
        gather_statistics(model, batches, "feature", 50)
    return encode_all(_encode, model, cells.features, settings.batch_size)


def scaled_config(width: int, latent: int, image_size: int = 128) -> ConvAutoencoderConfig:
    """The original's shape for features of another width, its channels in proportion.

    Args:
      width: of the features.
      latent: size of the vector.
      image_size: side of the image, 128, or 64 for a decoder that leaves out the last doubling.
    """
    full = ConvAutoencoderConfig()
    channels = [max(8, round(count * width / _WIDTH)) for count in full.decoder_channels]
    layers = list(full.decoder_layers)
    if image_size == 64:
        del channels[_LAST_DOUBLING], layers[_LAST_DOUBLING]
    hidden = max(8, round(full.hidden * width / _WIDTH))
    return ConvAutoencoderConfig(width, hidden, latent, tuple(channels), tuple(layers))


def _objective(domains: int, weight: float) -> LossFunction:
    def objective(model: ConvAutoencoder, batch: Mapping[str, Array], key: Array) -> dict[str, Array]:
        # A copy made within the gradient, which may move its running statistics; they are gathered at the end.
        out = nnx.clone(model)(batch["feature"].astype(jnp.float32))
        similarity = ssim(out["image"], image_target(batch["crop"], out["image"].shape[1]))
        discrepancy = mean_discrepancy(out["latent"], batch["domain"], domains)
        return {"loss": 1 - similarity + weight * discrepancy, "ssim": similarity, "discrepancy": discrepancy}

    return objective


@nnx.jit
def _encode(model: ConvAutoencoder, features: Array) -> Array:
    return model.encode(features)
