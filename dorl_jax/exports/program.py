"""A model as one file that JAX alone can run: StableHLO, weights, and how images are prepared."""

import io
import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import export

from dorl_jax.files import replacing
from dorl_jax.models import Cae, LoraSam
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
    write_program(dorl.lora_sam, dorl.cae, path, zoom=dorl.zoom, provenance=dorl.provenance)
    return f"images (b, {dorl.side}, {dorl.side}, 3) to vectors (b, {dorl.width}), for {', '.join(PLATFORMS)}"


def write_program(
    segmenter: LoraSam, cae: Cae, path: Path, *, zoom: float = 0.0, provenance: Mapping[str, Any] | None = None
) -> None:
    """Write a zip archive, not compressed, that `numpy.load` opens.

    In it: `header.json`; two functions, each serialised by `jax.export` for any size of batch and for CPUs, CUDA and
    TPUs; and the weights, which both take as their first argument, so that they are stored once and a compiler need
    not look at them. `margin` (b, side, side, 3) -> (b, 4 grid, 4 grid), above 0 on the cell; `vector`
    (b, side, side, 3) -> (b, width). Images are uint8, RGB; what they are normalised by is inside.

    Where `zoom` is 0, `vector` takes the image. Otherwise it takes the window around the cell. What is between the two
    functions, the largest component at the image's own size and the cut, has no fixed shape, so that it stays with
    the caller: `dorl_jax.data.cut.cut_cells`, which needs neither JAX nor the models.

    Args:
      segmenter: merged, or without LoRA.
      cae: for its features.
      path: of the file.
      zoom: see `dorl_jax.stages.extract.ExtractSettings`.
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

    def export_function(function: Callable[[LoraSam, Cae, Any], Any]) -> bytes:
        def of_weights(weights: list[Any], images: Any) -> Any:
            zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), nothing)
            both: Any = nnx.merge(graph, jax.tree.unflatten(structure, weights), zeros)
            return function(both[0], both[1], images)

        shapes = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in weights]
        return bytes(export.export(jax.jit(of_weights), platforms=PLATFORMS)(shapes, images).serialize())

    side, grid = segmenter.config.encoder.side, 4 * segmenter.config.encoder.grid[0]
    images = jax.ShapeDtypeStruct(export.symbolic_shape(f"b, {side}, {side}, 3"), jnp.uint8)
    names = [f"weight_{place:04d}" for place in range(len(weights))]
    header = {
        "format": _FORMAT,
        "functions": {"margin": f"float32 (b, {grid}, {grid})", "vector": f"float32 (b, {cae.config.width})"},
        "weights": names,
        "platforms": PLATFORMS,
        "preprocessing": {
            "images": f"uint8 (b, {side}, {side}, 3), RGB; normalised inside",
            "resize": segmenter.config.resize,
            "zoom": zoom,
            "vector_takes": f"the window around the cell, {zoom} times its size" if zoom else "the whole image",
        },
        "provenance": dict(provenance or {}),
        "jax": jax.__version__,
    }
    with replacing(path) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as file:
        file.writestr("header.json", json.dumps(header, indent=1) + "\n")
        file.writestr("margin", export_function(_margin))
        file.writestr("vector", export_function(_vector))
        for name, weight in zip(names, weights, strict=True):
            buffer = io.BytesIO()
            np.save(buffer, np.asarray(weight), allow_pickle=False)
            file.writestr(f"{name}.npy", buffer.getbuffer())


def _takes_part(path: tuple[Any, ...], value: Any) -> bool:
    """Whether a function reads the variable: not what a merge keeps, and of the autoencoder its encoder."""
    if isinstance(value, Unmerged | nnx.LoRAParam):
        return False
    return path[0] == 0 or path[1] == "encoder"


def _margin(segmenter: LoraSam, cae: Cae, images: Any) -> Any:
    logits = segmenter(images)["low_res_logits"].astype(jnp.float32)
    return logits[..., 1] - logits[..., 0]


def _vector(segmenter: LoraSam, cae: Cae, images: Any) -> Any:
    return cae.encode(segmenter.sam.encode_image(images)["tokens"]).astype(jnp.float32)
