"""How a model computes leaves what it computes."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from small_sam import SMALL

from dorl_jax.models import LoraSam
from dorl_jax.models.compute import round_kernels, set_compute, with_rounded_kernels


def test_rounded_kernels_give_the_same_to_the_last_bit():
    model = set_compute(LoraSam(SMALL, rngs=nnx.Rngs(0)), dtype=jnp.bfloat16).merge()
    images = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8)
    run = nnx.jit(lambda model, images: model(images))
    before = run(model, images)
    round_kernels(model)
    kinds = {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model.sam.image_encoder.blocks[0].mlp))}
    assert kinds == {jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32)}  # kernels, and biases
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(run(model, images)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_rounded_while_the_rest_trains_gives_the_same_to_the_last_bit():
    model = set_compute(LoraSam(SMALL, rngs=nnx.Rngs(0)), dtype=jnp.bfloat16)
    graph, trained, rest = nnx.split(model, model.trainable(), ...)
    rounded = with_rounded_kernels(model, rest)
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)

    @jax.jit
    def gradients(trained: nnx.State, rest: nnx.State) -> nnx.State:
        return jax.grad(lambda trained: (nnx.merge(graph, trained, rest)(images)["logits"] ** 2).mean())(trained)

    for a, b in zip(
        *(jax.tree.leaves(gradients(trained, state)) for state in (rest, rounded)),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
    kernel = rounded["sam"]["image_encoder"]["blocks"][0]["mlp"]["lin1"]["kernel"]
    assert kernel[...].dtype == jnp.bfloat16
    assert model.sam.image_encoder.blocks[0].mlp.lin1.kernel[...].dtype == jnp.float32
