"""A model as one file that JAX alone can run: StableHLO, weights, and how images are prepared."""

import io
import json
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import export

from dorl_jax.files import replacing
from dorl_jax.models import Cae, CaeConfig, LoraSam
from dorl_jax.models.lora import Unmerged, has_lora, is_merged

PLATFORMS = ("cpu", "cuda", "tpu")
_FORMAT = 1


def export_run(run: Path, path: Path) -> str:
    """Write the models of a run (see `write_program`).

    Returns:
      What the file does, in a line.

    Raises:
      InputError: no run, or one that is not trained to its end.
    """
    from dorl_jax.dorl import DoRL

    dorl = DoRL.load(run)
    write_program(dorl.lora_sam, dorl.cae, path, zoom=dorl.zoom, parity=dorl.parity, provenance=dorl.provenance)
    return f"images (b, {dorl.side}, {dorl.side}, 3) to vectors (b, {dorl.width}), for {', '.join(PLATFORMS)}"


def write_program(
    segmenter: LoraSam,
    cae: Cae,
    path: Path,
    *,
    zoom: float = 0.0,
    parity: bool = False,
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Write a zip archive, not compressed, that `numpy.load` opens.

    In it: `header.json`; two functions, each serialised by `jax.export` for any size of batch and for CPUs, CUDA and
    TPUs; and the weights, which both take as their first argument, so that they are stored once and a compiler need
    not look at them. `margin(weights, images)` (b, 4 grid, 4 grid) is above 0 on the cell. `vector(weights, ...)`
    (b, width) takes what the header names, uint8: "images" (b, side, side, 3), or where `zoom` is not 0 "windows",
    those around the cells; "foreground" (b, grid, grid), "crops", and in float32 "areas" (b,), where the vector is made
    of them, too (see `Cae.encode`).

    What is between the two functions, the largest component at the image's own size and the cuts, has no fixed shape,
    so that it stays with the caller: `dorl_jax.data.cut.cut_cells`, which needs neither JAX nor the models.

    Args:
      segmenter: merged, or without LoRA.
      cae: for its features.
      path: of the file.
      zoom, parity: see `dorl_jax.data.cut.cut_cells`.
      provenance: plain values, put into the header.

    Raises:
      ValueError: the segmenter has LoRA that is not merged.
    """
    if has_lora(segmenter) and not is_merged(segmenter):
        raise ValueError("the LoRA is not merged: call merge() first")
    parts: Any = nnx.split((segmenter, cae), _takes_part, ...)
    graph, used, unused = parts
    weights, structure = jax.tree.flatten(used)
    nothing = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), unused)

    def export_function(function: Callable[..., Any], *arrays: jax.ShapeDtypeStruct) -> bytes:
        def of_weights(weights: list[Any], *arrays: Any) -> Any:
            zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), nothing)
            merged: Any = nnx.merge(graph, jax.tree.unflatten(structure, weights), zeros)
            return function(*merged, *arrays)

        shapes = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in weights]
        return bytes(export.export(jax.jit(of_weights), platforms=PLATFORMS)(shapes, *arrays).serialize())

    shapes, taken = _inputs(segmenter, cae, zoom)
    batch = export.symbolic_shape("b")
    inputs = {name: jax.ShapeDtypeStruct((*batch, *shape), _type_of(name)) for name, shape in shapes.items()}
    names = [f"weight_{place:04d}" for place in range(len(weights))]
    header = {
        "format": _FORMAT,
        "functions": {"margin": ["images"], "vector": taken},
        "inputs": {name: f"{_type_of(name)} ({', '.join(['b', *map(str, shape)])})" for name, shape in shapes.items()},
        "weights": names,
        "platforms": PLATFORMS,
        "preprocessing": {
            "channels": "RGB, 0..255; normalised inside",
            "resize": segmenter.config.resize,
            "light": segmenter.config.light,
            "zoom": zoom,
            "parity": parity,
            "crop": CaeConfig(grid=segmenter.config.encoder.grid[0]).image_size,
        },
        "provenance": dict(provenance or {}),
        "jax": jax.__version__,
    }
    with replacing(path) as unfinished, zipfile.ZipFile(unfinished, "w", zipfile.ZIP_STORED) as file:
        file.writestr("header.json", json.dumps(header, indent=1) + "\n")
        file.writestr("margin", export_function(_margin, inputs["images"]))
        file.writestr("vector", export_function(partial(_vector, taken), *(inputs[name] for name in taken)))
        for name, weight in zip(names, weights, strict=True):
            buffer = io.BytesIO()
            np.save(buffer, np.asarray(weight), allow_pickle=False)
            file.writestr(f"{name}.npy", buffer.getbuffer())


def _inputs(segmenter: LoraSam, cae: Cae, zoom: float) -> tuple[dict[str, tuple[int, ...]], list[str]]:
    """Shapes of what the functions take, without the batch, and which of it `vector` takes."""
    side, grid, crop = segmenter.config.encoder.side, segmenter.config.encoder.grid[0], cae.config.crop_size
    first = "windows" if zoom else "images"
    shapes: dict[str, tuple[int, ...]] = {"images": (side, side, 3), first: (side, side, 3)}
    taken = [first]
    if {"tokens", "features"} & set(cae.config.vector):
        shapes["foreground"] = (grid, grid)
        taken.append("foreground")
    if crop:
        shapes["crops"] = (crop, crop, 3)
        taken.append("crops")
    if "size" in cae.config.vector:
        shapes["areas"] = ()
        taken.append("areas")
    return shapes, taken


def _type_of(name: str) -> str:
    return "float32" if name == "areas" else "uint8"


def _takes_part(path: tuple[Any, ...], value: Any) -> bool:
    """Whether a function reads the variable: not what a merge keeps, and of the autoencoder its encoders."""
    if isinstance(value, Unmerged | nnx.LoRAParam):
        return False
    return path[0] == 0 or path[1] in ("encoder", "pixel_encoder")


def _margin(segmenter: LoraSam, cae: Cae, images: Any) -> Any:
    logits = segmenter(images)["low_res_logits"].astype(jnp.float32)
    return logits[..., 1] - logits[..., 0]


def _vector(taken: list[str], segmenter: LoraSam, cae: Cae, images: Any, *others: Any) -> Any:
    given = {
        name: array.astype(jnp.float32) / 255 if _type_of(name) == "uint8" else array
        for name, array in zip(taken[1:], others, strict=True)
    }
    return cae.encode(segmenter.sam.encode_image(images)["tokens"], **given).astype(jnp.float32)
