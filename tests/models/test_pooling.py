"""Statistics over the cell against NumPy, token by token."""

import numpy as np

from dorl_jax.models.pooling import foreground_statistics

TOKENS = np.random.RandomState(0).standard_normal((3, 9, 5)).astype(np.float32)


def test_tokens_count_once_for_each_of_their_parts_that_is_cell():
    parts = np.random.RandomState(1).randint(0, 4, (3, 3, 3))
    found = np.asarray(foreground_statistics(TOKENS, (parts / 3).astype(np.float32)))
    for cell in range(3):
        repeated = np.repeat(TOKENS[cell].astype(np.float64), parts[cell].ravel(), axis=0)
        np.testing.assert_allclose(found[cell, :5], repeated.mean(0), atol=1e-6)
        np.testing.assert_allclose(found[cell, 5:], np.sqrt(repeated.var(0) + 1e-6), atol=1e-6)


def test_tokens_outside_the_cell_change_nothing():
    foreground = np.zeros((3, 3, 3), np.float32)
    foreground[:, 1, 1:] = 0.5
    changed = np.where(foreground.reshape(3, 9, 1) > 0, TOKENS, 99)
    np.testing.assert_array_equal(foreground_statistics(TOKENS, foreground), foreground_statistics(changed, foreground))


def test_without_a_cell_all_tokens_count():
    everywhere = foreground_statistics(TOKENS, np.ones((3, 3, 3), np.float32))
    np.testing.assert_allclose(foreground_statistics(TOKENS, None), everywhere, atol=1e-7)
    np.testing.assert_allclose(foreground_statistics(TOKENS, np.zeros((3, 3, 3), np.float32)), everywhere, atol=1e-7)
    np.testing.assert_allclose(everywhere[:, :5], TOKENS.mean(1), atol=1e-6)
