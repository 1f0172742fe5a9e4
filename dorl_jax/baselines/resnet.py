"""A small residual network trained on the labelled cells of the source: what a laboratory without us would do.

A source is one laboratory, or all but the tested one. What a network says of a cell that it was trained on tells
nothing of how it does on others. So for each source several networks are trained, each without one fold of it; a cell
of the source gets the answer of the network that never saw it, a cell of another laboratory the mean of all. The
vectors are those answers, log probabilities, so that the vectors of one file belong to one source: a classifier on them
that is trained on another would know labels already that it is asked for.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Literal

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float32, Int, Real, Shaped, UInt8
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from dorl_jax.baselines.cells import Cells
from dorl_jax.baselines.colour_texture import cell_mask
from dorl_jax.baselines.fitting import compiled_step, encode_all, fit
from dorl_jax.baselines.settings import ResNetSettings
from dorl_jax.data.augment import Augmentation, augment
from dorl_jax.errors import InputError
from dorl_jax.evaluation.sources import all_but, laboratories_of
from dorl_jax.models.conv import Conv3x3
from dorl_jax.models.layers import AnyArray, linear
from dorl_jax.training.optim import adamw, warmup_cosine
from dorl_jax.training.step import LossFunction

_GREY = 128


class Block(nnx.Module):
    """Two 3 x 3 convolutions, each behind group normalisation and ReLU (He et al. 2016, with its order)."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs) -> None:
        groups = max(1, channels // 8)
        self.norms = nnx.List(nnx.GroupNorm(channels, groups, rngs=rngs) for _ in range(2))
        self.convolutions = nnx.List(Conv3x3(channels, channels, rngs=rngs) for _ in range(2))

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        y = x
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            y = convolution(jax.nn.relu(norm(y)))
        return x + y


class ResNet(nnx.Module):
    """Four stages of one block; before each, the image is halved by a convolution of 2 x 2 pixels with stride 2."""

    def __init__(self, classes: int, width: int, *, rngs: nnx.Rngs) -> None:
        channels = [width * 2**stage for stage in range(4)]
        self.halvings = nnx.List(
            linear(4 * a, b, rngs=rngs) for a, b in zip([3, *channels[:-1]], channels, strict=True)
        )
        self.blocks = nnx.List(Block(count, rngs=rngs) for count in channels)
        self.norm = nnx.GroupNorm(channels[-1], max(1, channels[-1] // 8), rngs=rngs)
        self.head = linear(channels[-1], classes, rngs=rngs)

    def __call__(self, images: Real[AnyArray, "b s s 3"]) -> Float[Array, "b k"]:
        """Log probabilities of the classes.

        Args:
          images: the cells on grey, 0..255.
        """
        x = (jnp.asarray(images, jnp.float32) - _GREY) / 64
        for halving, block in zip(self.halvings, self.blocks, strict=True):
            x = block(halving(_fours(x)))
        pooled = jax.nn.relu(self.norm(x)).mean(axis=(1, 2))
        return jax.nn.log_softmax(self.head(pooled))


def resnet(
    cells: Cells, settings: ResNetSettings, seed: int, *, made: Collection[str] = (), progress: bool = True
) -> Iterator[tuple[str, Float32[np.ndarray, "n k"]]]:
    """For each source the log probabilities of the classes (in alphabetical order), of every cell, once they are there.

    Labels of the source alone are used, and no other laboratory's cells in training.

    Args:
      cells: see there.
      settings: see there.
      seed: of the folds, the weights and the batches; sources do not depend on one another.
      made: sources that are left out.
      progress: show a bar for each network.

    Yields:
      A source (see `evaluation.sources`) and its vectors.

    Raises:
      InputError: a source laboratory with fewer cells (or groups) than folds, or `sources` = "others" with two
        laboratories.
    """
    crops = np.stack([_resized(cells.crops[place], settings.size) for place in range(len(cells))])
    laboratories = cells.laboratories
    classes, targets = np.unique(cells.labels, return_inverse=True)
    schedule = warmup_cosine(settings.learning_rate, settings.steps // 10, settings.steps)
    optimiser = adamw(schedule, settings.weight_decay, "matrices")
    step = compiled_step(_new(len(classes), settings, seed), _objective(settings.smoothing), optimiser)
    for source in _sources(cells, settings.sources):
        if source in made:
            continue
        names = laboratories_of(source, cells.manifest.laboratories)
        folds = np.full(len(cells), -1)
        for name in names:
            rows = np.flatnonzero(laboratories == name)
            folds[rows] = _folds(cells, rows, targets[rows], settings.folds, seed)
        of_source = folds >= 0
        answers = np.zeros((settings.folds, len(cells), len(classes)), np.float32)
        for fold in range(settings.folds):
            fitted = of_source & (folds != fold)
            model = _new(len(classes), settings, seed + fold)
            fit(
                model,
                step,
                _batches(crops[fitted], targets[fitted], laboratories[fitted], settings, seed + fold),
                optimiser,
                settings.steps,
                seed=seed + fold,
                name=f"ResNet, {source}, {fold + 1} of {settings.folds}",
                progress=progress,
            )
            answers[fold] = encode_all(_answer, model, crops, settings.batch_size)
        vectors = answers.mean(axis=0)
        vectors[of_source] = answers[folds[of_source], of_source]
        yield source, vectors


def _sources(cells: Cells, which: Literal["one", "others", "both"]) -> list[str]:
    """Every laboratory; with three and more, all but each."""
    laboratories = cells.manifest.laboratories
    others = [all_but(name) for name in cells.unseen or laboratories] if len(laboratories) > 2 else []
    if which == "others" and not others:
        raise InputError(f"resnet.sources = 'others' takes three laboratories or more, not {len(laboratories)}")
    return [*(laboratories if which != "others" else []), *(others if which != "one" else [])]


def _new(classes: int, settings: ResNetSettings, seed: int) -> ResNet:
    return ResNet(classes, settings.width, rngs=nnx.Rngs(seed))


def _objective(smoothing: float) -> LossFunction:
    def objective(model: ResNet, batch: Mapping[str, Array], key: Array) -> dict[str, Array]:
        logs = model(batch["crop"])
        wanted = jax.nn.one_hot(batch["target"], logs.shape[-1]) * (1 - smoothing) + smoothing / logs.shape[-1]
        right = jnp.mean(logs.argmax(axis=-1) == batch["target"])
        return {"loss": -jnp.mean(jnp.sum(wanted * logs, axis=-1)), "accuracy": right}

    return objective


def _batches(
    crops: UInt8[np.ndarray, "n s s 3"],
    targets: Int[np.ndarray, " n"],
    laboratories: Shaped[np.ndarray, " n"],
    settings: ResNetSettings,
    seed: int,
) -> Iterator[dict[str, np.ndarray]]:
    """Endless: a laboratory is drawn, a class, then one of its cells, which is turned, stretched, stained and lit anew.

    Laboratories alike often; classes by the root of their numbers, so that a class of one cell is not half of what is
    learned.
    """
    rng = np.random.default_rng(seed)
    how = Augmentation("laboratory", stain=settings.stain, white_balance=settings.white_balance)
    chance = np.zeros(len(crops))
    for name in np.unique(laboratories):
        rows = laboratories == name
        counts = np.maximum(np.bincount(targets[rows]), 1)
        weights = (1 / np.sqrt(counts))[targets[rows]]
        chance[rows] = weights / weights.sum()
    chance /= chance.sum()
    masks = [cell_mask(crop) for crop in crops]
    while True:
        chosen = rng.choice(len(crops), settings.batch_size, p=chance)
        yield {
            "crop": np.stack([_changed(crops[row], masks[row], rng, how) for row in chosen]),
            "target": targets[chosen],
        }


def _changed(
    crop: UInt8[np.ndarray, "s s 3"], mask: np.ndarray, rng: np.random.Generator, how: Augmentation
) -> UInt8[np.ndarray, "s s 3"]:
    """Another look of the cell; around it stays grey."""
    image, mask = augment(crop, mask, rng, how)
    image[~mask] = _GREY
    return image


def _folds(
    cells: Cells, rows: Int[np.ndarray, " m"], targets: Int[np.ndarray, " m"], folds: int, seed: int
) -> Int[np.ndarray, " m"]:
    """The fold of each cell of a source, stratified by class as far as it has cells; a group is never divided."""
    groups = np.array([cells.manifest.cells[row].group or f"alone {row}" for row in rows])
    number = len(np.unique(groups))
    if folds < 2 or number < folds:
        name = cells.manifest.cells[rows[0]].laboratory
        raise InputError(
            f"resnet.folds = {folds}: take 2 or more, and no more than {name} has cells (or groups), {number}"
        )
    # Classes with fewer cells than folds are put together, for scikit-learn warns of such.
    counts = np.bincount(targets)
    strata = np.where(counts[targets] < folds, len(counts), targets)
    if (strata == len(counts)).sum() < folds:
        strata = np.where(strata == len(counts), counts.argmax(), strata)
    result = np.zeros(len(rows), int)
    if number == len(rows):
        parts = StratifiedKFold(folds, shuffle=True, random_state=seed).split(rows, strata)
    else:
        parts = StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(rows, strata, groups)
    for fold, (_, tested) in enumerate(parts):
        result[tested] = fold
    return result


def _fours(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 4*c"]:
    """Every 2 x 2 pixels side by side."""
    batch, height, width, channels = x.shape
    parts = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
    return parts.swapaxes(2, 3).reshape(batch, height // 2, width // 2, 4 * channels)


def _resized(crop: UInt8[np.ndarray, "s s 3"], size: int) -> UInt8[np.ndarray, "t t 3"]:
    return cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA)


@nnx.jit
def _answer(model: ResNet, crops: Array) -> Array:
    return model(crops)
