"""Every image and mask decoded once, and what is kept of them: a few kilobytes each."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from dorl_jax.data.check.colours import Look, histogram, measure_look
from dorl_jax.data.check.fingerprint import Fingerprint, digest_pixels, take_fingerprint
from dorl_jax.data.check.mask_facts import MaskFacts, measure_mask
from dorl_jax.data.images import ImageError, ImageFacts, read_image_with_facts, read_mask_values
from dorl_jax.data.manifest import why_unusable
from dorl_jax.data.pool import worker_pool
from dorl_jax.data.sources import ImageSource

_AT_ONCE = 16


@dataclass(frozen=True)
class Measured:
    """What is kept of a picture.

    Attributes:
      header: what the file says of itself.
      width, height: in pixels, as read.
      digest: of the decoded pixels, whatever the file's format.
      fingerprint: to know near copies by; None of a blank picture.
      look: its colours.
      brightest: the largest value of any channel, as read.
      histogram: of its channels, shares of the pixels.
    """

    header: ImageFacts
    width: int
    height: int
    digest: bytes
    fingerprint: Fingerprint | None
    look: Look
    brightest: int
    histogram: Float[np.ndarray, "3 b"]


@dataclass(frozen=True)
class Outcome:
    """What reading one row came to.

    Attributes:
      image: None if it cannot be read.
      mask: None if there is none, or none of the image's size that can be read.
      reason: why the cell cannot be used, "" if it can.
    """

    image: Measured | None
    mask: MaskFacts | None = None
    reason: str = ""


Sources = tuple[ImageSource, ImageSource | None]


def measure(sources: Sources) -> Outcome:
    """Read an image, and its mask if it has one; never raises `ImageError`."""
    image_source, mask_source = sources
    try:
        image, header = read_image_with_facts(image_source)
    except ImageError as error:
        return Outcome(None, reason=str(error))
    height, width = image.shape[:2]
    measured = Measured(
        header=header,
        width=width,
        height=height,
        digest=digest_pixels(image),
        fingerprint=take_fingerprint(image),
        look=measure_look(image),
        brightest=int(image.max()),
        histogram=histogram(image).astype(np.float32),
    )
    values = None
    if mask_source is not None:
        try:
            values = read_mask_values(mask_source)
        except ImageError as error:
            return Outcome(measured, reason=str(error))
    reason = why_unusable(image_source, image, mask_source, values) or ""
    fits = values is not None and values.shape == (height, width)
    return Outcome(measured, measure_mask(values) if fits and values is not None else None, reason)


def measure_all(sources: Sequence[Sources], *, workers: int, progress: bool) -> list[Outcome]:
    """`measure` of each, in order.

    Args:
      sources: of the images and masks.
      workers: processes that decode, as for `pool.worker_pool`.
      progress: show a bar with rate and time left.
    """
    with worker_pool(workers) as pool:
        outcomes = pool.map(measure, sources, chunksize=_AT_ONCE)
        return list(tqdm(outcomes, "checking images", len(sources), unit="image", disable=not progress))
