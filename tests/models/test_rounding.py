"""Rounding by integers, against that of ml_dtypes on the host."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from dorl_jax.models.rounding import rounded


def test_every_number_as_elsewhere() -> None:
    """Random bits, the numbers around every tie, and the ends of the range."""
    rng = np.random.default_rng(0)
    ties = (np.arange(2**16, dtype=np.uint32)[:, None] << 16) + np.array([0x7FFF, 0x8000, 0x8001], np.uint32)
    bits = np.concatenate([rng.integers(0, 2**32, 10**6, dtype=np.uint32), ties.ravel()])
    x = bits.view(np.float32)
    found = np.asarray(jax.jit(lambda x: rounded(x, jnp.bfloat16))(x))
    nan = np.isnan(x)
    assert np.isnan(found[nan].astype(np.float32)).all()
    with np.errstate(over="ignore"):
        expected = x[~nan].astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(found[~nan].view(np.uint16), expected.view(np.uint16))


@pytest.mark.parametrize(
    ("given", "asked"), [("float32", "float32"), ("bfloat16", "bfloat16"), ("bfloat16", "float32")]
)
def test_what_needs_no_rounding(given: str, asked: str) -> None:
    x = jnp.asarray([1.5, -2.0], given)
    found = rounded(x, asked)
    assert found.dtype == asked
    np.testing.assert_array_equal(found, [1.5, -2.0])
