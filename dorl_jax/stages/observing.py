"""Looks at a model in training: numbers of each laboratory, and pictures, on cells that do not change."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array

from dorl_jax.data.images import Resize, resize_image, resize_mask
from dorl_jax.data.light import Light, in_light
from dorl_jax.data.manifest import Cell, read_cell
from dorl_jax.losses import mean_discrepancy, ssim
from dorl_jax.models import Cae, LoraSam
from dorl_jax.models.cae import random_kept
from dorl_jax.parallel import batch_sharding, on_every_device
from dorl_jax.store import Places
from dorl_jax.training.loop import Observation
from dorl_jax.training.pictures import mask_sheet, reconstruction_sheet

Observe = Callable[[Any], Observation]
# Of each laboratory: enough for a number, few enough to be read into memory; and enough to look at.
_MOST_CELLS, _MOST_PICTURES = 200, 3


def observe_segmentation(
    cells: Sequence[Cell],
    image_size: int,
    resize: Resize,
    light: Light,
    batch_size: int,
    objective: Callable[[Array, Array], dict[str, Array]],
    mesh: Mesh,
) -> Observe:
    """Masks of cells, unchanged by augmentation, against the true ones.

    Numbers, at the model's input size: "iou" and "dice", 0..1, means over the laboratories of the means over their
    cells; "iou/NAME" of each laboratory; "loss". Picture: "masks".

    Args:
      cells: each with a mask; of each laboratory at most 200 are taken, evenly spaced.
      image_size: side of the model's input.
      resize: see `images.resize_image`.
      light: see `light.in_light`.
      batch_size: cells at a time, over all devices.
      objective: (low-res logits, masks at the input's size) -> "loss" and more.
      mesh: of the model.
    """
    cells = _some_of_each([cell.laboratory for cell in cells], cells, _MOST_CELLS)
    laboratories = np.array([cell.laboratory for cell in cells])
    pairs = [read_cell(cell) for cell in cells]
    images = np.stack([resize_image(in_light(image, light), image_size, resize) for image, _ in pairs])
    masks = np.stack([resize_mask(mask, image_size) for _, mask in pairs if mask is not None])

    @nnx.jit
    def answer(model: LoraSam, batch: Mapping[str, Array]) -> dict[str, Array]:
        out = model(batch["image"])
        truth = batch["mask"]
        predicted = out["logits"][..., 1] > out["logits"][..., 0]
        both, sizes = (predicted & truth).sum((1, 2)), predicted.sum((1, 2)) + truth.sum((1, 2))
        union = sizes - both
        losses = objective(out["low_res_logits"], truth)
        found = {
            "iou": jnp.where(union > 0, both / jnp.maximum(union, 1), 1.0),
            "dice": jnp.where(sizes > 0, 2 * both / jnp.maximum(sizes, 1), 1.0),
            "loss": jnp.broadcast_to(losses["loss"], both.shape),
            "predicted": predicted,
        }
        return jax.lax.with_sharding_constraint(found, on_every_device(mesh))

    def observe(model: LoraSam) -> Observation:
        found = _in_batches(lambda batch: answer(model, batch), {"image": images, "mask": masks}, batch_size, mesh)
        names = sorted(set(laboratories.tolist()))
        of_each = {name: found["iou"][laboratories == name].mean() for name in names}
        numbers = {
            "loss": found["loss"].mean(),
            "iou": np.mean(list(of_each.values())),
            "dice": np.mean([found["dice"][laboratories == name].mean() for name in names]),
            **{f"iou/{name}": value for name, value in of_each.items()},
        }
        shown = _some_of_each(laboratories, np.arange(len(cells)).tolist(), _MOST_PICTURES)
        captions = [f"{laboratories[place]} {found['iou'][place]:.2f}" for place in shown]
        sheet = mask_sheet(images[shown], masks[shown], found["predicted"][shown], captions)
        return Observation({name: float(value) for name, value in numbers.items()}, {"masks": sheet})

    return observe


def observe_reconstruction(
    features: Places,
    crops: Places,
    laboratories: Sequence[str],
    names: Sequence[str],
    batch_size: int,
    pixel_weight: float,
    mesh: Mesh,
) -> Observe:
    """Reconstructions of cells, always with the same tokens hidden, laboratory by laboratory.

    Numbers: "loss", the training's on these cells; "ssim/NAME" and "mse/NAME" of each laboratory; "discrepancy" between
    the laboratories. Picture: "reconstructions", of all tokens.

    Args:
      features, crops, laboratories: of the cells, by place; of each laboratory at most `batch_size` are taken.
      names: of the laboratories, the domains in their order.
      batch_size: cells at a time, over all devices.
      pixel_weight: see `losses.cae_loss`.
      mesh: of the model.
    """
    places = _some_of_each(laboratories, list(range(len(laboratories))), min(batch_size, _MOST_CELLS))
    feature = np.stack([np.asarray(features[place], np.float32) for place in places])
    crop = np.stack([crops[place] for place in places])
    of = np.array([laboratories[place] for place in places])

    @nnx.jit
    def answer(model: Cae, batch: Mapping[str, Array]) -> dict[str, Array]:
        x, target = batch["feature"], batch["crop"].astype(jnp.float32) / 255
        out = model(x, random_kept(jax.random.key(0), x.shape[0], model.config))
        found = {
            "ssim": jax.vmap(lambda a, b: ssim(a[None], b[None]))(out["image"], target),
            "mse": jnp.mean((out["feature"] - model.standardise(x)) ** 2, (1, 2, 3)),
            "l1": jnp.mean(jnp.abs(out["image"] - target), (1, 2, 3)),
            "projection": out["projection"],
            "image": model(x)["image"],
        }
        return jax.lax.with_sharding_constraint(found, on_every_device(mesh))

    def observe(model: Cae) -> Observation:
        found = _in_batches(lambda batch: answer(model, batch), {"feature": feature, "crop": crop}, batch_size, mesh)
        present = [name for name in names if (of == name).any()]

        def mean(what: str) -> float:
            return float(np.mean([found[what][of == name].mean() for name in present]))

        domains = np.array([names.index(name) for name in of], np.int32)
        discrepancy = float(mean_discrepancy(found["projection"], domains, len(names)))
        numbers = {
            "loss": 1 - mean("ssim") + 2 * discrepancy + mean("mse") + pixel_weight * mean("l1"),
            "discrepancy": discrepancy,
            **{f"ssim/{name}": float(found["ssim"][of == name].mean()) for name in present},
            **{f"mse/{name}": float(found["mse"][of == name].mean()) for name in present},
        }
        shown = _some_of_each(of, np.arange(len(of)).tolist(), _MOST_PICTURES)
        made = (np.clip(found["image"][shown], 0, 1) * 255).round().astype(np.uint8)
        sheet = reconstruction_sheet(crop[shown], made, of[shown].tolist())
        return Observation(numbers, {"reconstructions": sheet})

    return observe


def _in_batches(
    answer: Callable[[dict[str, Array]], dict[str, Array]], arrays: Mapping[str, np.ndarray], size: int, mesh: Mesh
) -> dict[str, np.ndarray]:
    """The answers to all rows, in batches of one shape; the last is filled up with copies of the last row."""
    count = len(next(iter(arrays.values())))
    answers = []
    for start in range(0, count, size):
        rows = np.minimum(np.arange(start, start + size), count - 1)
        batch = {name: jax.device_put(array[rows], batch_sharding(mesh)) for name, array in arrays.items()}
        answers.append({name: np.asarray(x) for name, x in answer(batch).items()})
    return {name: np.concatenate([one[name] for one in answers])[:count] for name in answers[0]}


def _some_of_each(groups: Sequence[str] | np.ndarray, items: Sequence[Any], most: int) -> list[Any]:
    """At most `most` of the items of each group, evenly spaced, in order."""
    chosen: list[int] = []
    for group in dict.fromkeys(groups):
        own = [place for place, of in enumerate(groups) if of == group]
        chosen += own[:: -(-len(own) // most)][:most]
    return [items[place] for place in sorted(chosen)]
