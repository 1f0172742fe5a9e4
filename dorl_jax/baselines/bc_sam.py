"""BC-SAM's convolutional autoencoder (arXiv 2408.06716), trained by its own recipe on a run's features."""

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float32

from dorl_jax.baselines.cells import Cells
from dorl_jax.baselines.fitting import autoencoder_batches, compiled_step, encode_all, fit, gather_statistics
from dorl_jax.config import setting
from dorl_jax.losses import mean_discrepancy, ssim
from dorl_jax.models.conv_autoencoder import ConvAutoencoder, ConvAutoencoderConfig
from dorl_jax.training.optim import adamw, warmup_cosine
from dorl_jax.training.step import LossFunction

_WIDTH = ConvAutoencoderConfig().width


@dataclass(frozen=True)
class BcSamSettings:
    """BC-SAM's autoencoder; what is not the original's says so."""

    steps: int = setting(300, "optimiser steps (the original: 10 epochs)")
    batch_size: int = setting(64, "cells a step (the original: 128)")
    learning_rate: float = setting(5e-4, "of AdamW, falling to 0 with a cosine (the original: constant)")
    weight_decay: float = setting(0.05, "of AdamW")
    discrepancy: float = setting(5.0, "weight of the distance between the means of laboratories")
    latent: int = setting(50, "size of the vector")


def bc_sam(cells: Cells, settings: BcSamSettings, seed: int, *, progress: bool = True) -> Float32[np.ndarray, "n d"]:
    """The vectors of an autoencoder that is trained on these cells; no label is used.

    The channels inside are those of the original in proportion to the features' width.
    """
    width = cells.features[0].shape[-1]
    model = ConvAutoencoder(scaled_config(width, settings.latent), rngs=nnx.Rngs(seed))
    domains = len(cells.manifest.laboratories)
    schedule = warmup_cosine(settings.learning_rate, settings.steps // 20, settings.steps)
    optimiser = adamw(schedule, settings.weight_decay)
    step = compiled_step(model, _objective(domains, settings.discrepancy), optimiser)
    with closing(autoencoder_batches(cells, settings.batch_size, seed)) as batches:
        fit(model, step, batches, optimiser, settings.steps, seed=seed, name="BC-SAM", progress=progress)
        gather_statistics(model, batches, "feature", 50)
    return encode_all(_encode, model, cells.features, settings.batch_size)


def scaled_config(width: int, latent: int) -> ConvAutoencoderConfig:
    """The original's shape for features of another width, its channels in proportion."""
    full = ConvAutoencoderConfig()
    a, b, c, d, e, f, g = (max(8, round(count * width / _WIDTH)) for count in full.decoder_channels)
    return ConvAutoencoderConfig(width, max(8, round(full.hidden * width / _WIDTH)), latent, (a, b, c, d, e, f, g))


def _objective(domains: int, weight: float) -> LossFunction:
    def objective(model: ConvAutoencoder, batch: Mapping[str, Array], key: Array) -> dict[str, Array]:
        # A copy made within the gradient, which may move its running statistics; they are gathered at the end.
        out = nnx.clone(model)(batch["feature"].astype(jnp.float32))
        similarity = ssim(out["image"], batch["crop"].astype(jnp.float32) / 255)
        discrepancy = mean_discrepancy(out["latent"], batch["domain"], domains)
        return {"loss": 1 - similarity + weight * discrepancy, "ssim": similarity, "discrepancy": discrepancy}

    return objective


@nnx.jit
def _encode(model: ConvAutoencoder, features: Array) -> Array:
    return model.encode(features)
