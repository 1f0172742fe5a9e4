"""State dicts of a SAM small enough to be converted hundreds of times."""

import numpy as np
from flax import nnx
from golden import rule_made

from dorl_jax.models import ImageEncoderConfig, LoraConfig, LoraSam, MaskDecoderConfig, Sam, SamConfig
from weights_conversion.key_map import shapes_in_torch
from weights_conversion.sam_rules import SAM_RULES

# Blocks 0 and 2 attend within windows of 3 x 3 tokens, 1 and 3 over the grid of 4 x 4. No figure is another's double.
ENCODER = ImageEncoderConfig(
    image_size=32, patch_size=8, width=24, depth=4, heads=3, global_blocks=(1, 3), window=3, out_channels=48,
    mlp_hidden=56,
)  # fmt: skip
SMALL = SamConfig(ENCODER, MaskDecoderConfig(hidden=72, iou_hidden=40, depth=2), mask_prompt_hidden=12)


def small_sam(config: SamConfig = SMALL) -> dict[str, np.ndarray]:
    """A SAM checkpoint under official names."""
    shapes = shapes_in_torch(lambda rngs: Sam(config, rngs=rngs), SAM_RULES)
    return {name: rule_made(name, shape) for name, shape in shapes.items()}


def small_lora(rank: int = 2, blocks: int = 4, classes: int = 2) -> dict[str, np.ndarray]:
    """A LoRA file for it."""
    decoders = small_sam(SMALL.with_masks(classes - 1))
    tensors = {name: value for name, value in decoders.items() if not name.startswith("image_encoder.")}
    for index in range(2 * blocks):
        tensors[f"w_a_{index:03d}"] = rule_made(f"w_a_{index:03d}.weight", (rank, 24))
        tensors[f"w_b_{index:03d}"] = rule_made(f"w_b_{index:03d}.weight", (24, rank))
    return tensors


def assert_same_tensors(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """The same names, types, shapes and bits."""
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name].dtype == value.dtype, name
        np.testing.assert_array_equal(actual[name], value, err_msg=name)


def lora_sam(lora: LoraConfig | None = None, seed: int = 0) -> LoraSam:
    """A fresh LoRA-SAM of that size whose updates are not zero."""
    model = LoraSam(SMALL, lora, rngs=nnx.Rngs(seed))
    for index, (path, leaf) in enumerate(nnx.to_flat_state(nnx.state(model, nnx.LoRAParam))):
        del path
        leaf.set_value(np.random.RandomState(index).standard_normal(leaf.shape).astype(np.float32))
    return model
