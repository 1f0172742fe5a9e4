"""The losses of DoRL: segmentation, image similarity, reconstruction and discrepancy between laboratories.

All of them look across the whole batch. Under `jit` with a sharded batch XLA makes these sums global, so the value
does not depend on the number of devices.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dorl_jax.models.layers import AnyArray


def segmentation_loss(
    logits: Float[AnyArray, "b h w k"],
    labels: Int[AnyArray, "b h w"],
    dice_weight: float = 0.8,
    class_weights: Sequence[float] | None = None,
) -> dict[str, Float[Array, ""]]:
    """Cross-entropy and Dice (DoRL, eq. 1): `loss = 0.2 * ce + 0.8 * dice`.

    Dice is the mean over the classes of `1 - (2 sum(p t) + 1e-5) / (sum(p^2) + sum(t^2) + 1e-5)`, sums over the
    whole batch.

    Args:
      logits: class scores.
      labels: class indices.
      dice_weight: share of Dice in the loss.
      class_weights: of each class; None for 1. Cross-entropy is their weighted mean over the pixels (0 where none of
        them weighs anything), Dice the mean over the classes of weight times Dice.

    Returns:
      "loss", "ce", "dice".
    """
    weights = jnp.ones(logits.shape[-1]) if class_weights is None else jnp.asarray(class_weights)
    smooth = 1e-5
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    targets = jax.nn.one_hot(labels, logits.shape[-1])
    weighted = targets * weights
    # Without a pixel that weighs (weights 0 and 1, and no cell in a small batch) it is 0, and no NaN.
    ce = -jnp.sum(weighted * log_probabilities) / jnp.maximum(jnp.sum(weighted), jnp.finfo(jnp.float32).tiny)
    probabilities = jnp.exp(log_probabilities)
    pixels = (0, 1, 2)
    overlap = jnp.sum(probabilities * targets, pixels)
    total = jnp.sum(probabilities**2, pixels) + jnp.sum(targets**2, pixels)
    dice = jnp.mean(weights * (1 - (2 * overlap + smooth) / (total + smooth)))
    return {"loss": (1 - dice_weight) * ce + dice_weight * dice, "ce": ce, "dice": dice}


def ssim(
    a: Float[AnyArray, "b h w c"], b: Float[AnyArray, "b h w c"], window: int = 11, sigma: float = 1.5
) -> Float[Array, ""]:
    """Structural similarity (Wang et al. 2004), mean over everything.

    Gaussian window, zero padding, C1 = 0.01^2 and C2 = 0.03^2, for images of range 1.

    Args:
      a, b: images.
      window: side of the window in pixels, odd.
      sigma: standard deviation of the window in pixels.
    """
    height, width = a.shape[1:3]
    rows, columns = _blur_matrix(height, window, sigma), _blur_matrix(width, window, sigma)

    # The window is separable: two banded matrix products are faster than a depthwise convolution, forward and back.
    def blur(x: AnyArray) -> Array:
        return jnp.einsum("ph,bhwc,qw->bpqc", rows, x, columns)

    c1, c2 = 0.01**2, 0.03**2
    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    similarity = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return jnp.mean(similarity / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)))


def _blur_matrix(size: int, window: int, sigma: float) -> np.ndarray:
    """The Gaussian window as a matrix over positions; what reaches past the edge is zero."""
    offsets = np.arange(window) - window // 2
    weights = np.exp(-(offsets**2) / (2 * sigma**2))
    weights /= weights.sum()
    distance = np.arange(size)[None, :] - np.arange(size)[:, None]
    inside = np.abs(distance) <= window // 2
    return np.where(inside, weights[np.clip(distance, -(window // 2), window // 2) + window // 2], 0).astype(np.float32)


def mean_discrepancy(
    projections: Float[AnyArray, "b d"], domains: Int[AnyArray, " b"], num_domains: int
) -> Float[Array, ""]:
    """Sum over the domains i >= 1 of the mean squared difference of their mean projection from that of domain 0.

    A domain that is absent from the batch adds nothing; without domain 0 the value is 0. (The released code divides
    by zero there.)

    Args:
      projections: one vector a sample.
      domains: the sample's domain, 0 .. num_domains - 1; another value (such as -1) leaves the sample out.
      num_domains: number of domains, static.
    """
    member = jax.nn.one_hot(domains, num_domains, dtype=projections.dtype)
    counts = member.sum(axis=0)
    means = (member.T @ projections) / jnp.maximum(counts, 1)[:, None]
    distances = jnp.mean((means[1:] - means[0]) ** 2, axis=-1)
    present = (counts[1:] > 0) & (counts[0] > 0)
    return jnp.sum(jnp.where(present, distances, 0.0))


def cae_loss(
    out: Mapping[str, AnyArray],
    features: Float[AnyArray, "b h w c"],
    images: Float[AnyArray, "b s s 3"],
    domains: Int[AnyArray, " b"],
    num_domains: int,
    pixel_weight: float = 0.0,
) -> dict[str, Float[Array, ""]]:
    """The autoencoder's loss: `(1 - SSIM) + 2 * (discrepancy + 0.5 * MSE(features)) + pixel_weight * L1(image)`.

    Args:
      out: what `Cae.__call__` gives.
      features: its input.
      images: targets of the image head, 0..1.
      domains, num_domains: as in `mean_discrepancy`.
      pixel_weight: weight of the mean absolute difference of the image, which SSIM, nearly blind to colour, lacks;
        0 in the original.

    Returns:
      "loss", "ssim" (the similarity itself), "mse" (of the features), "discrepancy", "l1" (of the image).
    """
    similarity = ssim(out["image"], images)
    mse = jnp.mean((out["feature"] - features.astype(jnp.float32)) ** 2)
    discrepancy = mean_discrepancy(out["projection"], domains, num_domains)
    l1 = jnp.mean(jnp.abs(out["image"] - images))
    loss = (1 - similarity) + 2 * (discrepancy + 0.5 * mse) + pixel_weight * l1
    return {"loss": loss, "ssim": similarity, "mse": mse, "discrepancy": discrepancy, "l1": l1}
