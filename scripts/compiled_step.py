"""The step of a training, or the encoder alone, compiled for devices that need not be there. No weight is drawn."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jax.stages import Lowered

from dorl_jax.errors import InputError
from dorl_jax.models import Cae, CaeConfig, LoraConfig, LoraSam, Sam, SamConfig
from dorl_jax.models.abstract import abstract_model
from dorl_jax.models.attention import parts_of
from dorl_jax.models.compute import round_kernels, set_compute, with_rounded_kernels
from dorl_jax.parallel import batch_sharding, make_mesh, on_every_device, parameter_shardings
from dorl_jax.stages.finetune_sam import segmentation_objective
from dorl_jax.stages.train_cae import cae_objective
from dorl_jax.training.optim import adamw, warmup_cosine
from dorl_jax.training.step import LossFunction, StepSettings, init_state, make_step


@dataclass(frozen=True)
class StepToCompile:
    """Which step.

    Attributes:
      variant: of the model.
      step: "finetune", "cae", or "forward": the encoder alone, neck included, with weights held in `dtype`.
      batch: images (or cells) a device.
      model: devices along the mesh's axis `model`.
      remat: see `set_compute`.
      dtype: of the arithmetic.
      encoder: what trains of LoRA-SAM (see `LoraSam.trainable`).
      accumulate: see `StepSettings`.
      image_size: side of the images; 0 for 112 (tiny) or 224.
      laboratories: domains of the CAE.
    """

    variant: str = "vit_b"
    step: Literal["finetune", "cae", "forward"] = "finetune"
    batch: int = 32
    model: int = 1
    remat: bool = False
    dtype: str = "bfloat16"
    encoder: str = "lora"
    accumulate: int = 1
    image_size: int = 0
    laboratories: int = 3

    @property
    def side(self) -> int:
        """Of the images, in pixels."""
        return self.image_size or (112 if self.variant == "tiny" else 224)


@dataclass(frozen=True)
class LoweredStep:
    """A step, ready to be compiled.

    Attributes:
      lowered: the step.
      trained, frozen: parameters that train, and that do not.
      looped_flops: arithmetic of a device that the compiler does not count, for it counts the inside of a loop once:
        attention of many tokens goes through its queries part by part. Of "forward" alone.
      least_bytes: what a device has to read and write at least, weights, images and results. Of "forward" alone.
    """

    lowered: Lowered
    trained: int
    frozen: int
    looped_flops: float = 0.0
    least_bytes: int = 0


def lower_step(what: StepToCompile, devices: Sequence[Any]) -> LoweredStep:
    """Trace the training's own step for these devices.

    Raises:
      InputError: devices or batch do not divide; a choice that this step has no use for.
    """
    if what.step == "forward" and (what.model, what.remat, what.accumulate) != (1, False, 1):
        raise InputError("--step forward takes no --model, --remat or --accumulate: nothing trains")
    if what.step == "cae" and what.image_size:
        raise InputError("--step cae takes no --image-size: its batches are features")
    for name, number in (("--batch", what.batch), ("--accumulate", what.accumulate)):
        if number < 1:
            raise InputError(f"{name} {number}: at least 1 is needed")
    if what.batch % what.accumulate:
        raise InputError(f"--batch {what.batch} a device does not divide into --accumulate {what.accumulate} parts")
    mesh = make_mesh(what.model, devices)
    if what.step == "forward":
        return _lower_forward(what, mesh)
    model, trainable, loss, shapes = _finetune(what) if what.step == "finetune" else _cae(what)
    set_compute(model, dtype=what.dtype, remat=what.remat)
    graph, *(trained, rest) = nnx.split(model, trainable, ...)
    rest = jax.eval_shape(partial(with_rounded_kernels, model), rest)
    optimiser = adamw(warmup_cosine(1e-4, 500, 10_000), 0.1)
    settings = StepSettings(accumulate=what.accumulate)
    state = jax.eval_shape(lambda trained: init_state(trained, optimiser, 0, settings), trained)
    shardings = parameter_shardings(state, mesh)
    rows = what.batch * len(devices)
    batch = {
        name: jax.ShapeDtypeStruct((rows, *shape), dtype, sharding=batch_sharding(mesh))
        for name, (shape, dtype) in shapes.items()
    }
    step = jax.jit(
        make_step(graph, loss, optimiser, settings),
        donate_argnums=0,
        out_shardings=(shardings, on_every_device(mesh)),
    )
    lowered = step.lower(_shapes(state, shardings), _shapes(rest, parameter_shardings(rest, mesh)), batch)
    return LoweredStep(lowered, _count(trained), _count(rest))


def _lower_forward(what: StepToCompile, mesh: Mesh) -> LoweredStep:
    config = SamConfig.preset(what.variant, what.side)
    model = abstract_model(lambda rngs: round_kernels(set_compute(Sam(config, rngs=rngs), dtype=what.dtype)))
    encoder = nnx.state(model.image_encoder)
    parts, whole = nnx.split(model)

    def encode(weights: nnx.State, images: Any) -> Any:
        return nnx.merge(parts, weights).encode_image(images)

    images = jax.ShapeDtypeStruct(
        (what.batch * mesh.size, what.side, what.side, 3), np.uint8, sharding=batch_sharding(mesh)
    )
    weights = _shapes(whole, jax.tree.map(lambda _: on_every_device(mesh), whole))
    program = jax.jit(encode, out_shardings=batch_sharding(mesh))
    results = jax.eval_shape(encode, weights, images)
    rows = [images, *jax.tree.leaves(results)]
    least = _bytes(encoder) + sum(_bytes(array) for array in rows) // mesh.size
    shape = config.encoder
    tokens = shape.grid[0] * shape.grid[1]
    skipped = 1 - 1 / parts_of(tokens, tokens)  # of the two products of attention
    in_loops = 4.0 * tokens**2 * shape.width * len(shape.global_blocks) * skipped
    return LoweredStep(program.lower(weights, images), 0, _count(encoder), what.batch * in_loops, least)


Parts = tuple[nnx.Module, nnx.filterlib.Filter, LossFunction, dict[str, tuple[tuple[int, ...], Any]]]


def _finetune(what: StepToCompile) -> Parts:
    size = what.side
    config = SamConfig.preset(what.variant, size)
    lora = None if what.encoder == "full" else LoraConfig()
    model = abstract_model(lambda rngs: LoraSam(config, lora, rngs=rngs))
    shapes = {"image": ((size, size, 3), np.uint8), "mask": ((size, size), np.uint8)}
    return model, model.trainable(what.encoder), segmentation_objective(model.config, 0.8), shapes


def _cae(what: StepToCompile) -> Parts:
    config = CaeConfig.preset(what.variant)
    # Standardised features, the default; the figures themselves do not matter.
    config = replace(config, feature_mean=(0.0,) * config.width, feature_std=(1.0,) * config.width)
    model = abstract_model(lambda rngs: Cae(config, rngs=rngs))
    shapes = {
        "feature": ((config.grid, config.grid, config.width), jnp.bfloat16),
        "crop": ((config.image_size, config.image_size, 3), np.uint8),
        "domain": ((), np.int32),
    }
    return model, nnx.Param, cae_objective(config, what.laboratories, 1.0), shapes


def _shapes(tree: Any, shardings: Any) -> Any:
    return jax.tree.map(lambda x, to: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=to), tree, shardings)


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _count(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
