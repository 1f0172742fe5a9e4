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
    TPUs; and the weights, which both take as their first argument, so that they are stored once and a compiler need not
    look at them. `margin` (b, side, side, 3) -> (b, 4 grid, 4 grid), above 0 on the cell; `vector` (b, side, side, 3) ->
    (b, width). Images are uint8, RGB; what they are normalised by is inside.

    Where `zoom` is 0, `vector` takes the image. Otherwise it takes the window around the cell. What is between the two
    functions, the largest component at the image's own size and the cut, has no fixed shape, so that it stays with
    the caller: `dorl_jax.data.cut.cut_cells`, which needs neither JAX nor the models.

    Args:
      segmenter: merged, or without LoRA.
      cae: for its features.
      path: of the file.
      zoom: see `dorl_jax.stages.extract.ExtractSettings`.
      provenance: plain values, put into the header.
    """
    graph, state = nnx.split((segmenter, cae))
    leaves, structure = jax.tree.flatten(state)

    def bind(function: Callable[[LoraSam, Cae, Any], Any]) -> Callable[[list[Any], Any], Any]:
        def bound(weights: list[Any], images: Any) -> Any:
            return function(*nnx.merge(graph, jax.tree.unflatten(structure, weights)), images)

        return bound

    side, width = segmenter.config.encoder.side, cae.config.width
    images = jax.ShapeDtypeStruct((*export.symbolic_shape("b"), side, side, 3), jnp.uint8)
    functions, programs, kept = {}, {}, set()
    for name, function, out in (
        ("margin", _margin, (4 * segmenter.config.encoder.grid[0],) * 2),
        ("vector", _vector, (width,)),
    ):
        program, places = _export(bind(function), leaves, images)
        programs[name] = program
        kept |= set(places)
        functions[name] = {
            "weights": [f"weight_{place:04d}" for place in places],
            "input": f"uint8 (b, {side}, {side}, 3)",
            "output": f"float32 (b, {', '.join(map(str, out))})",
        }
    header = {
        "format": _FORMAT,
        "functions": functions,
        "platforms": PLATFORMS,
        "preprocessing": {
            "side": side,
            "resize": segmenter.config.resize,
            "zoom": zoom,
            "channels": "RGB, 0..255; normalised inside",
            "vector_takes": f"the window around the cell, {zoom} times its size" if zoom else "the whole image",
        },
        "provenance": dict(provenance or {}),
        "jax": jax.__version__,
    }
    with replacing(path) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as file:
        file.writestr("header.json", json.dumps(header, indent=1) + "\n")
        for name, program in programs.items():
            file.writestr(name, program)
        for place in sorted(kept):
            buffer = io.BytesIO()
            np.save(buffer, np.asarray(leaves[place]), allow_pickle=False)
            file.writestr(f"weight_{place:04d}.npy", buffer.getbuffer())


def _margin(segmenter: LoraSam, cae: Cae, images: Any) -> Any:
    logits = segmenter(images)["low_res_logits"].astype(jnp.float32)
    return logits[..., 1] - logits[..., 0]


def _vector(segmenter: LoraSam, cae: Cae, images: Any) -> Any:
    return cae.encode(segmenter.sam.encode_image(images)["tokens"]).astype(jnp.float32)


def _export(
    function: Callable[[list[Any], Any], Any], leaves: list[Any], images: jax.ShapeDtypeStruct
) -> tuple[bytes, list[int]]:
    """The function of the weights that it uses, and their places among all."""
    shapes = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]
    used = set(export.export(jax.jit(function))(shapes, images).module_kept_var_idx)
    places = [place for place in range(len(leaves)) if place in used]

    def of_used(weights: list[Any], images: Any) -> Any:
        everything = [jnp.zeros(shape.shape, shape.dtype) for shape in shapes]
        for place, weight in zip(places, weights, strict=True):
            everything[place] = weight
        return function(everything, images)

    exported = export.export(jax.jit(of_used), platforms=PLATFORMS)([shapes[place] for place in places], images)
    return bytes(exported.serialize()), places
