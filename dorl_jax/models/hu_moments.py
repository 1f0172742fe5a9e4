"""Hu's moments of a region (Hu, IRE Transactions 1962), computed on the device."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

HU_NUMBERS = 7
"""Of `hu_moments`."""

# What a moment is raised by before its logarithm: below it fp32, and the pixels of a disc, decide.
_LEAST = 1e-6


def hu_moments(region: Bool[Array, "b s s"]) -> Float[Array, "b 7"]:
    """log10(|moment| + 1e-6) of the seven: where a region lies, how large it is and how it is turned leave them alone.

    Absolute values, for a mirror image turns the sign of the last. Of no pixel the logarithm of 1e-6.
    """
    weight = region.astype(jnp.float32)
    area = weight.sum(axis=(1, 2))
    count = jnp.maximum(area, 1)[:, None]
    places = jnp.arange(region.shape[1], dtype=jnp.float32)
    powers = []
    for axis in (2, 1):  # of rows, of columns
        sums = weight.sum(axis=axis)
        centred = places - jnp.matmul(sums, places, precision=jax.lax.Precision.HIGHEST)[:, None] / count
        # Scaled here, so that the third powers stay near 1.
        centred = centred / jnp.sqrt(count)
        powers.append(jnp.stack([centred**power for power in range(4)], axis=-1))
    moments = jnp.einsum("bip,bij,bjq->qpb", powers[0], weight, powers[1], precision=jax.lax.Precision.HIGHEST)
    m = moments / count[:, 0]  # m[p, q]: p along columns, q along rows, as is usual
    a, b = m[3, 0] + m[1, 2], m[2, 1] + m[0, 3]
    c, d = m[3, 0] - 3 * m[1, 2], 3 * m[2, 1] - m[0, 3]
    apart = m[2, 0] - m[0, 2]
    hu = jnp.stack(
        [
            m[2, 0] + m[0, 2],
            apart**2 + 4 * m[1, 1] ** 2,
            c**2 + d**2,
            a**2 + b**2,
            c * a * (a**2 - 3 * b**2) + d * b * (3 * a**2 - b**2),
            apart * (a**2 - b**2) + 4 * m[1, 1] * a * b,
            d * a * (a**2 - 3 * b**2) - c * b * (3 * a**2 - b**2),
        ],
        axis=-1,
    )
    return jnp.log10(jnp.abs(hu) + _LEAST)
