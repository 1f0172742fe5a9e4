"""What is waited for behind a step."""

import time

import jax
import jax.numpy as jnp
import pytest

from dorl_jax.training import pace

SLOW = jax.jit(lambda x: jax.lax.fori_loop(0, 60, lambda _, x: jnp.tanh(x @ x), x))


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    found: list[float] = []
    monkeypatch.setattr(pace.time, "sleep", found.append)
    return found


def test_the_step_is_done_and_the_pause_is_a_hundredth_of_it_at_most(pauses: list[float]) -> None:
    x = jnp.ones((512, 512))
    SLOW(x).block_until_ready()
    started = time.perf_counter()
    results = {"a": SLOW(x), "b": [SLOW(x + 1)]}
    pace.settle(results, started)
    took = time.perf_counter() - started
    assert all(leaf.is_ready() for leaf in jax.tree.leaves(results))
    assert 0 < pauses[0] <= 0.01 * took


def test_the_pause_of_a_long_step_is_a_moment(pauses: list[float]) -> None:
    pace.settle(jnp.ones(3), time.perf_counter() - 60)
    assert pauses == [0.005]


def test_accelerators_are_not_waited_for(pauses: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace.jax, "default_backend", lambda: "tpu")
    monkeypatch.setattr(pace.jax, "block_until_ready", lambda results: pytest.fail("it waits"))
    pace.settle(jnp.ones(3), time.perf_counter() - 60)
    assert pauses == []
