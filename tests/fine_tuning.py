"""Four AdamW steps of LoRA-SAM, as the recorded and the twin's fine-tuning take them."""

import re
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from dorl_jax.losses import segmentation_loss
from dorl_jax.models import LoraSam


def fine_tune(
    model: LoraSam, images: np.ndarray, labels: np.ndarray, steps: int = 4
) -> Iterator[tuple[dict[str, float], dict[str, np.ndarray], dict[str, np.ndarray]]]:
    """Losses and gradients before each step, and the trained parameters after it."""
    graph, trained, rest = nnx.split(model, model.trainable("lora"), ...)
    optimiser = optax.adamw(1e-4, b1=0.9, b2=0.999, weight_decay=0.1)

    def loss_of(trained, rest):
        losses = segmentation_loss(nnx.merge(graph, trained, rest)(jnp.asarray(images))["low_res_logits"], labels)
        return losses["loss"], losses

    @jax.jit
    def step(trained, rest, state):
        (_, losses), grads = jax.value_and_grad(loss_of, has_aux=True)(trained, rest)
        updates, state = optimiser.update(grads, state, trained)
        return optax.apply_updates(trained, updates), state, losses, grads

    state = optimiser.init(trained)
    for _ in range(steps):
        trained, state, losses, grads = step(trained, rest, state)
        yield {name: float(value) for name, value in losses.items()}, by_source_name(grads), by_source_name(trained)


def by_source_name(state: nnx.State) -> dict[str, np.ndarray]:
    """Model tensors under the names of DoRL's LoRA file; layouts stay the model's."""
    named = {}
    for path, leaf in nnx.to_flat_state(state):
        name = ".".join(map(str, path)).removeprefix("sam.")
        lora = re.fullmatch(r"image_encoder\.blocks\.(\d+)\.attn\.qkv\.lora\.([qv])\.([ab])", name)
        if lora:
            name = f"w_{lora[3]}_{2 * int(lora[1]) + 'qv'.index(lora[2]):03d}"
        else:
            for ours, theirs in _NAMES:
                name = re.sub(ours, theirs, name)
        named[name] = np.asarray(leaf.get_value())
    return named


_NAMES = (
    (r"\.(kernel|scale)$", ".weight"),
    (r"(no_mask_embed|iou_token|mask_tokens)$", r"\1.weight"),
    (r"hypernetworks\.", "output_hypernetworks_mlps."),
    (r"upscale1\.", "output_upscaling.0."),
    (r"upscale_norm\.", "output_upscaling.1."),
    (r"upscale2\.", "output_upscaling.3."),
)
