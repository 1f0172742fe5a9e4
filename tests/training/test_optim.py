import jax.numpy as jnp
import numpy as np
import pytest

from dorl_jax.training.optim import adamw, make_schedule, warmup_cosine, warmup_cosine_by_epoch


def test_by_step():
    schedule = warmup_cosine(1e-2, 3, 12)
    np.testing.assert_allclose([schedule(step) for step in (0, 3, 7.5, 12)], [0, 1e-2, 0.5e-2, 0], atol=1e-8)
    np.testing.assert_allclose(warmup_cosine(1.0, 500, 10)(5), 1.0)  # a short run still reaches its peak
    np.testing.assert_allclose([warmup_cosine(1.0, 500, 2)(step) for step in (0, 1)], [0, 1])
    assert float(warmup_cosine(1.0, 500, 1)(0)) == 1.0  # the shortest, too


def test_by_epoch_as_a_loop_over_epochs_gives_it():
    schedule = warmup_cosine_by_epoch(0.5, 8, 40, epoch_steps=4)
    expected = []
    for epoch in range(10):
        rate = (epoch + 1) / 2 if epoch < 2 else (1 + np.cos(np.pi * (epoch - 2) / 8)) / 2
        expected += [0.5 * rate] * 4
    np.testing.assert_allclose([schedule(step) for step in range(40)], expected, rtol=1e-5)
    assert expected[-1] > 0


def test_a_training_of_less_than_an_epoch():
    assert float(warmup_cosine_by_epoch(1.0, 50, 20, epoch_steps=100)(7)) == pytest.approx(1.0)


def test_either_by_name():
    assert float(make_schedule("epoch", 1.0, 8, 40, 4)(5)) == pytest.approx(1.0)
    assert float(make_schedule("step", 1.0, 8, 40, 4)(4)) == pytest.approx(0.5)


@pytest.mark.parametrize(("decayed", "expected"), [("all", 0.9), ("matrices", 1.0)])
def test_what_decays(decayed, expected):
    parameters = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    optimiser = adamw(lambda step: 0.5, 0.2, decayed)
    zeros = {name: jnp.zeros_like(x) for name, x in parameters.items()}
    updates, _ = optimiser.update(zeros, optimiser.init(parameters), parameters)
    np.testing.assert_allclose(parameters["kernel"] + updates["kernel"], 0.9, rtol=1e-6)
    np.testing.assert_allclose(parameters["bias"] + updates["bias"], expected, rtol=1e-6)
