"""What a step costs: arithmetic and memory, as the compiler counts them. Nothing runs but the smallest gradients."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled_step import StepToCompile, lower_step
from flax import nnx
from small_sam import SMALL

from dorl_jax.models import CaeConfig, LoraConfig, LoraSam, SamConfig
from dorl_jax.models.abstract import abstract_model
from dorl_jax.models.cae import CaeEncoder
from dorl_jax.models.compute import set_compute
from dorl_jax.stages.finetune_sam import segmentation_objective


def flops(lowered) -> float:
    """As traced: what the compiler still drops or merges is not much."""
    return lowered.cost_analysis()["flops"]


def lower(**what):
    return lower_step(StepToCompile(**{"dtype": "float32", "batch": 2, **what}), jax.devices()[:1]).lowered


def forward_flops(variant: str, size: int) -> float:
    """Of the fine-tuning's loss, without a gradient."""
    config = SamConfig.preset(variant, size)
    model = abstract_model(lambda rngs: LoraSam(config, LoraConfig(), rngs=rngs))
    graph, parameters = nnx.split(model)
    loss = segmentation_objective(model.config)
    batch = {
        "image": jax.ShapeDtypeStruct((2, size, size, 3), np.uint8),
        "mask": jax.ShapeDtypeStruct((2, size, size), np.uint8),
    }
    run = jax.jit(lambda parameters, batch: loss(nnx.merge(graph, parameters), batch, jax.random.key(0)))
    return flops(run.lower(parameters, batch))


@pytest.mark.parametrize(("variant", "size"), [("tiny", 112), pytest.param("vit_b", 224, marks=pytest.mark.slow)])
def test_no_gradient_is_computed_for_frozen_weights(variant, size):
    forward = forward_flops(variant, size)
    # Forward and the gradients of the activations; those of the weights, the third part, for little but the decoder.
    assert flops(lower(variant=variant)) <= 2.2 * forward
    if variant == "tiny":
        assert flops(lower(variant=variant, encoder="full")) >= 2.6 * forward  # the figure can tell


def test_the_autoencoders_encoder_computes_with_the_kept_tokens_alone():
    config = CaeConfig(width=256, heads=4, encoder_depth=2)
    graph, parameters = nnx.split(abstract_model(partial(_encoder, config)))

    def counted(kept: int | None) -> float:
        tokens = jax.ShapeDtypeStruct((1, config.tokens, config.width), jnp.float32)
        places = None if kept is None else jax.ShapeDtypeStruct((1, kept), jnp.int32)
        run = jax.jit(lambda parameters, tokens, places: nnx.merge(graph, parameters)(tokens, places))
        return flops(run.lower(parameters, tokens, places))

    def products(tokens: int) -> float:
        """Matrix products alone: qkv, output and MLP (12 C^2 a token), scores and their sum (2 N C a token)."""
        return config.encoder_depth * 2 * tokens * (12 * config.width**2 + 2 * tokens * config.width)

    assert config.kept_tokens == 49
    # What is beside the products, norms and GELU, adds less than 6 %.
    assert 1 <= counted(49) / products(50) <= 1.06
    assert 1 <= counted(None) / products(197) <= 1.06


def _encoder(config: CaeConfig, rngs: nnx.Rngs) -> CaeEncoder:
    return CaeEncoder(config, rngs=rngs)


def temporaries(**what) -> int:
    return lower(**what).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize(("step", "least", "most"), [("finetune", 1.25, 1.5), ("cae", 1.05, 1.34)])
def test_blocks_are_computed_again(step, least, most):
    """The blocks once more forward, beside two passes (LoRA) or three. What it saves, a TPU's compiler shows."""
    what = {"variant": "tiny", "step": step}
    assert least <= flops(lower(**what, remat=True)) / flops(lower(**what)) <= most


@pytest.mark.slow
def test_parts_of_a_batch_save_memory():
    what = {"variant": "tiny", "step": "finetune", "batch": 16}
    assert temporaries(**what, accumulate=4) < 0.5 * temporaries(**what)


@pytest.mark.slow
def test_recomputing_blocks_leaves_the_gradients_as_they_are():
    model = LoraSam(SMALL, LoraConfig(2), rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    batch = {
        "image": jnp.asarray(rng.integers(0, 256, (2, 32, 32, 3)), jnp.uint8),
        "mask": jnp.asarray(rng.integers(0, 2, (2, 32, 32)), jnp.uint8),
    }
    loss = segmentation_objective(model.config)

    def gradients(remat: bool) -> nnx.State:
        graph, trained, rest = nnx.split(set_compute(model, remat=remat), model.trainable("lora"), ...)

        def of(trained: nnx.State) -> jax.Array:
            return loss(nnx.merge(graph, trained, rest), batch, jax.random.key(0))["loss"]

        return jax.jit(jax.grad(of))(trained)

    kept, again = jax.tree.leaves(gradients(False)), jax.tree.leaves(gradients(True))
    assert any(np.abs(leaf).max() > 1e-4 for leaf in kept)
    for a, b in zip(kept, again, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
