"""What the benchmark measures: its tasks, their weights and batches, and their arithmetic."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dorl_jax.models import Cae, CaeConfig, LoraSam, SamConfig
from dorl_jax.models.cae import HEAD_LAYERS
from dorl_jax.models.image_encoder import ImageEncoderConfig

LABORATORIES = 3


@dataclass(frozen=True)
class Task:
    """One thing that is timed.

    Attributes:
      kind: "forward" (normalisation, image encoder and neck), "finetune" or "cae" (optimiser steps).
      batch: images or cells a step.
      variant: of the model.
    """

    kind: str
    batch: int
    variant: str = "vit_b"

    @property
    def image_size(self) -> int:
        """Side of the images in pixels."""
        return 112 if self.variant == "tiny" else 224

    @property
    def trains(self) -> bool:
        """Whether parameters change."""
        return self.kind != "forward"


TASKS = {
    "forward_b1": Task("forward", 1),
    "forward_b8": Task("forward", 8),
    "finetune_b8": Task("finetune", 8),
    "cae_b16": Task("cae", 16),
}


def task_of(name: str, batch: int | None = None, variant: str | None = None) -> Task:
    """The task of that name, with another batch or variant if they are given."""
    task = TASKS[name]
    return replace(task, batch=batch or task.batch, variant=variant or task.variant)


def write_inputs(task: Task, folder: Path) -> None:
    """Weights under the original code's names, and a batch, for all contestants: `weights`, `lora`, `batch`.

    Drawn, from seed 0. No weight is zero, or the contestants could not be told apart by what they give.
    """
    import jax
    import jax.numpy as jnp
    from flax import nnx
    from safetensors.numpy import save_file

    from dorl_jax.models.cae import random_kept
    from weights_conversion import export_cae, export_lora_sam

    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    if task.kind == "cae":
        config = CaeConfig.preset(task.variant)
        save_file(export_cae(Cae(config, rngs=nnx.Rngs(0))), folder / "weights.safetensors")
        # What a training with seed 0 keeps in its first step, so that the first losses are comparable.
        key = jax.random.fold_in(jax.random.key(0), 0)
        batch = {
            "feature": rng.standard_normal((task.batch, config.grid, config.grid, config.width), np.float32),
            "crop": rng.integers(0, 256, (task.batch, config.image_size, config.image_size, 3), np.uint8),
            "domain": (np.arange(task.batch) % LABORATORIES).astype(np.int32),
            "kept": np.asarray(random_kept(key, task.batch, config)),
        }
    else:
        size = task.image_size
        model = LoraSam(SamConfig.preset(task.variant, size), rngs=nnx.Rngs(0))
        for _, leaf in nnx.to_flat_state(nnx.state(model.sam.image_encoder)):
            if not np.asarray(leaf[...]).any():
                leaf.set_value(jnp.asarray(0.02 * rng.standard_normal(leaf.shape), jnp.float32))
        files = export_lora_sam(model)
        save_file(files.sam, folder / "weights.safetensors")
        save_file(files.lora, folder / "lora.safetensors")
        batch = {
            "image": rng.integers(0, 256, (task.batch, size, size, 3), np.uint8),
            "mask": rng.integers(0, 2, (task.batch, size, size), np.uint8),
        }
    save_file(batch, folder / "batch.safetensors")


def multiply_adds(task: Task) -> float:
    """Multiply-adds a step of the matrix products that the mathematics asks for, LoRA and losses left out.

    A fine-tuning step is two forwards (no gradient of frozen weights; the mask decoder left out), a step of the
    autoencoder three.
    """
    if task.kind == "cae":
        return 3.0 * task.batch * _cae_forward(CaeConfig.preset(task.variant))
    forward = encoder_multiply_adds(SamConfig.preset(task.variant, task.image_size).encoder)
    return (2.0 if task.trains else 1.0) * task.batch * forward


def encoder_multiply_adds(encoder: ImageEncoderConfig) -> float:
    """Multiply-adds an image of SAM's encoder and neck, of windows only what lies in the image."""
    tokens, width, out = encoder.grid[0] * encoder.grid[1], encoder.width, encoder.out_channels
    total = tokens * (3.0 * encoder.patch_size**2 * width + width * out + 9 * out**2)
    for index in range(encoder.depth):
        rows, columns = encoder.grid
        if index not in encoder.global_blocks and encoder.window:
            rows, columns = min(rows, encoder.window), min(columns, encoder.window)
        total += tokens * (12 * width**2 + 2 * rows * columns * width + (rows + columns) * width)
    return total


def _cae_forward(config: CaeConfig) -> float:
    def blocks(tokens: int) -> float:
        return tokens * (12 * config.width**2 + 2 * tokens * config.width)

    total = config.encoder_depth * blocks(config.kept_tokens + 1) + config.decoder_depth * blocks(config.tokens + 1)
    channels, side = (config.width, *config.head_channels, 3), config.grid
    for a, b, (kernel, stride, padding) in zip(channels[:-1], channels[1:], HEAD_LAYERS, strict=True):
        total += side**2 * kernel**2 * a * b
        side = (side - 1) * stride - 2 * padding + kernel
    return total
