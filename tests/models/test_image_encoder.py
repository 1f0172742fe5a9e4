"""The encoder's attention and windows against loops over tokens."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dorl_jax.models.image_encoder import (
    Attention,
    Block,
    ImageEncoder,
    ImageEncoderConfig,
    join_windows,
    partition_windows,
)

CONFIG = ImageEncoderConfig(32, 8, 12, 2, 3, (1,), window=3, out_channels=8)


def randomised(module, seed=0):
    """Every parameter drawn anew, so that tables and biases are not zero."""
    graph, state = nnx.split(module)
    leaves, tree = jax.tree.flatten(state)
    rng = np.random.RandomState(seed)
    drawn = [jnp.asarray(0.5 * rng.standard_normal(leaf.shape), jnp.float32) for leaf in leaves]
    return nnx.merge(graph, jax.tree.unflatten(tree, drawn))


def test_relative_positions():
    config, side = CONFIG, 4
    attention = randomised(Attention(config, (side, side), rngs=nnx.Rngs(0)))
    x = np.random.RandomState(1).standard_normal((2, side, side, config.width)).astype(np.float32)
    weight, bias = np.asarray(attention.qkv.kernel[...], np.float64), np.asarray(attention.qkv.bias[...])
    table_h, table_w = np.asarray(attention.rel_pos_h[...]), np.asarray(attention.rel_pos_w[...])
    size = config.width // config.heads
    expected = np.zeros(x.shape)
    for b in range(2):
        tokens = x[b].reshape(-1, config.width)
        qkv = (tokens @ weight + bias).reshape(-1, 3, config.heads, size)
        for head in range(config.heads):
            q, k, v = qkv[:, 0, head], qkv[:, 1, head], qkv[:, 2, head]
            scores = np.empty((side**2, side**2))
            for i in range(side**2):
                for j in range(side**2):
                    down, right = i // side - j // side, i % side - j % side
                    position = q[i] @ table_h[down + side - 1] + q[i] @ table_w[right + side - 1]
                    scores[i, j] = q[i] @ k[j] / np.sqrt(size) + position
            weights = np.exp(scores - scores.max(1, keepdims=True))
            out = weights / weights.sum(1, keepdims=True) @ v
            expected[b, :, :, head * size : (head + 1) * size] = out.reshape(side, side, size)
    expected = expected @ np.asarray(attention.proj.kernel[...]) + np.asarray(attention.proj.bias[...])
    np.testing.assert_allclose(attention(jnp.asarray(x)), expected, atol=2e-4)


def test_windows_hold_their_tokens_and_zeros():
    x = np.arange(1, 1 + 2 * 4 * 5 * 2, dtype=np.float32).reshape(2, 4, 5, 2)
    windows = np.asarray(partition_windows(jnp.asarray(x), 3))
    assert windows.shape == (8, 3, 3, 2)
    padded = np.zeros((2, 6, 6, 2), np.float32)
    padded[:, :4, :5] = x
    for number, window in enumerate(windows):
        b, row, column = number // 4, number // 2 % 2, number % 2
        np.testing.assert_array_equal(window, padded[b, 3 * row : 3 * row + 3, 3 * column : 3 * column + 3])
    np.testing.assert_array_equal(join_windows(jnp.asarray(windows), 3, 4, 5), x)


def test_tokens_of_another_window_do_not_matter():
    block = randomised(Block(CONFIG, 3, rngs=nnx.Rngs(0)))
    x = np.random.RandomState(2).standard_normal((1, 6, 6, CONFIG.width)).astype(np.float32)
    changed = x.copy()
    changed[:, 3:, 3:] += 1
    before, after = np.asarray(block(jnp.asarray(x))), np.asarray(block(jnp.asarray(changed)))
    np.testing.assert_array_equal(before[:, :3], after[:, :3])
    assert np.abs(before[:, 3:, 3:] - after[:, 3:, 3:]).max() > 0.1


def test_one_window_is_the_whole_grid():
    config = replace(CONFIG, image_size=24)
    windowed, whole = (Block(config, window, rngs=nnx.Rngs(0)) for window in (3, 0))
    x = jnp.asarray(np.random.RandomState(3).standard_normal((2, 3, 3, config.width)), jnp.float32)
    np.testing.assert_array_equal(randomised(windowed)(x), randomised(whole)(x))


def test_patches_are_read_in_place():
    encoder = ImageEncoder(replace(CONFIG, depth=0, global_blocks=()), rngs=nnx.Rngs(0))
    images = np.random.RandomState(4).standard_normal((1, 32, 32, 3)).astype(np.float32)
    tokens, _ = encoder(jnp.asarray(images))
    kernel, bias = np.asarray(encoder.patch_embed.kernel[...]), np.asarray(encoder.patch_embed.bias[...])
    expected = images[0, 8:16, 24:32].reshape(-1) @ kernel + bias
    np.testing.assert_allclose(tokens[0, 1, 3], expected, atol=1e-5)


def test_impossible_shapes_are_refused():
    with pytest.raises(ValueError, match="not a multiple of patch_size"):
        replace(CONFIG, image_size=30)
    with pytest.raises(ValueError, match="not a multiple of heads"):
        replace(CONFIG, heads=5)
    with pytest.raises(ValueError, match=r"expected images of shape \(B, 32, 32, 3\)"):
        ImageEncoder(replace(CONFIG, depth=0), rngs=nnx.Rngs(0))(jnp.zeros((1, 24, 24, 3)))
