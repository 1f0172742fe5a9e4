"""The benchmark's steps in this package: what its stages run."""

import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
from benchmark_tasks import LABORATORIES, Task
from flax import nnx
from jax.stages import Compiled
from safetensors.numpy import load_file

from dorl_jax.compiling import compiler_options
from dorl_jax.models import SAM_PIXEL_MEAN, SAM_PIXEL_STD
from dorl_jax.models.compute import round_kernels, set_compute, with_rounded_kernels
from dorl_jax.stages.finetune_sam import segmentation_objective
from dorl_jax.stages.train_cae import cae_objective
from dorl_jax.training.optim import adamw
from dorl_jax.training.pace import settle
from dorl_jax.training.step import LossFunction, init_state, make_step
from weights_conversion import convert_cae, convert_lora_sam

Run = Callable[[], float]


def prepare(task: Task, dtype: str, folder: Path) -> Run:
    """A function that takes one step and returns a number to compare: the loss, or the mean square of the features."""
    return compile_step(task, dtype, folder)[0]


def compile_step(task: Task, dtype: str, folder: Path) -> tuple[Run, Compiled]:
    """That function and its program."""
    batch = load_file(folder / "batch.safetensors")
    weights = load_file(folder / "weights.safetensors")
    if task.kind == "cae":
        cae = set_compute(convert_cae(weights), dtype=dtype)
        arrays = {name: batch[name] for name in ("feature", "crop", "domain")}
        return _training(cae, nnx.Param, cae_objective(cae.config, LABORATORIES), arrays, 0.05)
    lora = load_file(folder / "lora.safetensors")
    model = convert_lora_sam(
        weights, lora, task.variant, task.image_size, pixel_mean=SAM_PIXEL_MEAN, pixel_std=SAM_PIXEL_STD
    )
    set_compute(model, dtype=dtype)
    if task.kind == "finetune":
        return _training(model, model.trainable(), segmentation_objective(model.config), batch, 0.1)
    round_kernels(model.merge())
    graph, state = nnx.split(model.sam)
    encode = jax.jit(
        lambda state, images: nnx.merge(graph, state).encode_image(images), compiler_options=compiler_options()
    )
    program = encode.lower(state, batch["image"]).compile()
    mean_square = jax.jit(lambda x: jnp.mean(x.astype(jnp.float32) ** 2))

    def forward() -> float:
        return float(mean_square(jax.block_until_ready(program(state, batch["image"]))["tokens"]))

    return forward, program


def _training(
    model: nnx.Module, trainable: nnx.filterlib.Filter, objective: LossFunction, batch: dict, weight_decay: float
) -> tuple[Run, Compiled]:
    graph, *(trained, rest) = nnx.split(model, trainable, ...)
    rest = with_rounded_kernels(model, rest)
    optimiser = adamw(lambda step: 1e-4, weight_decay)
    state = init_state(trained, optimiser, 0)
    step = jax.jit(make_step(graph, objective, optimiser), donate_argnums=0, compiler_options=compiler_options())
    program = step.lower(state, rest, batch).compile()

    def one(own: nnx.Module = model) -> float:  # a training keeps its model, too, while it steps
        nonlocal state
        started = time.perf_counter()
        state, losses = program(state, rest, batch)
        settle(state, started)  # as the loop of a training does
        return float(losses["loss"])

    return one, program


def matmul(side: int) -> Callable[[], object]:
    """An fp32 product of two square matrices."""
    a, b = jax.random.uniform(jax.random.key(0), (2, side, side))
    product = jax.jit(jnp.matmul)
    return lambda: jax.block_until_ready(product(a, b))
