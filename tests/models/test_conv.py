"""Convolutions against sums written out, and the CPU formulation against XLA's own primitives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dorl_jax.models.conv import (
    _conv_transpose_phases,
    _conv_transpose_plain,
    _plain,
    _plain_gradients,
    _products,
    _products_gradients,
    conv2d,
    conv_transpose2d,
)


def draw(shape, seed=0):
    return jnp.asarray(np.random.RandomState(seed).standard_normal(shape), jnp.float32)


def scatter(x, kernel, stride, padding):
    """`y[s*i + u - p] += x[i] kernel[u]`, in float64."""
    x, kernel = np.asarray(x, np.float64), np.asarray(kernel, np.float64)
    batch, height, width, _ = x.shape
    k, channels = kernel.shape[0], kernel.shape[-1]
    full = np.zeros((batch, (height - 1) * stride + k, (width - 1) * stride + k, channels))
    for i in range(height):
        for j in range(width):
            patch = np.einsum("bi,uvio->buvo", x[:, i, j], kernel)
            full[:, i * stride : i * stride + k, j * stride : j * stride + k] += patch
    return full[:, padding : full.shape[1] - padding, padding : full.shape[2] - padding]


# The stride divides the output size of the first six, and not that of the others.
LAYERS = [(4, 2, 1), (4, 1, 1), (8, 1, 1), (8, 2, 1), (2, 2, 0), (6, 3, 0), (3, 2, 0), (5, 2, 0), (3, 2, 1), (4, 3, 1)]


@pytest.mark.parametrize(("k", "stride", "padding"), LAYERS)
@pytest.mark.parametrize("form", [conv_transpose2d, _conv_transpose_phases, _conv_transpose_plain])
def test_transposed_convolution(form, k, stride, padding):
    x, kernel = draw((2, 5, 7, 3)), draw((k, k, 3, 4), 1)
    np.testing.assert_allclose(form(x, kernel, stride, padding), scatter(x, kernel, stride, padding), atol=1e-4)


@pytest.mark.parametrize(("k", "stride", "padding"), LAYERS)
def test_gradients_of_transposed_convolution(k, stride, padding):
    x, kernel = draw((2, 5, 7, 3)), draw((k, k, 3, 4), 1)

    def total(form):
        return lambda x, kernel: jnp.sum(jnp.sin(form(x, kernel, stride, padding)))

    ours = jax.grad(total(_conv_transpose_phases), (0, 1))(x, kernel)
    plain = jax.grad(total(_conv_transpose_plain), (0, 1))(x, kernel)
    for a, b in zip(ours, plain, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4)


PADDINGS = [((2, 1), (0, 0)), ((1, 1), (1, 1)), ((-1, 0), (0, -1)), ((0, 3), (-2, 4))]


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("shape", [(5, 6, 7, 2), (6, 20, 21, 2)])  # all images in one product, and two in each
def test_products_are_the_convolution(padding, shape):
    x, kernel = draw(shape), draw((3, 2, 2, 4), 1)
    whole = _plain(x, kernel, padding)
    np.testing.assert_allclose(_products(x, kernel, padding), whole, atol=1e-5)
    grad = draw(whole.shape, 2)
    plain = _plain_gradients(x, kernel, grad, padding)
    for a, b in zip(_products_gradients(x, kernel, grad, padding), plain, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())


def test_products_of_bf16_sum_in_fp32():
    x, kernel, grad = (
        draw(s, i).astype(jnp.bfloat16) for i, s in enumerate([(4, 30, 30, 8), (8, 8, 8, 4), (4, 25, 25, 4)])
    )
    padding = ((1, 1), (1, 1))

    def wide(*arrays):
        return [one.astype(jnp.float32) for one in arrays]

    exact = [_plain(*wide(x, kernel), padding), *_plain_gradients(*wide(x, kernel, grad), padding)]
    ours = [_products(x, kernel, padding), *_products_gradients(x, kernel, grad, padding)]
    for a, b in zip(ours, exact, strict=True):
        assert a.dtype == jnp.bfloat16
        # Sums of 512 and more products: rounded once each, no number is off by more than half a step of bf16.
        np.testing.assert_allclose(a.astype(jnp.float32), b, rtol=2**-8, atol=1e-4 * float(jnp.abs(b).max()))


def test_negative_padding_crops():
    x, kernel = draw((1, 6, 6, 2)), draw((2, 2, 2, 3), 1)
    whole = conv2d(x, kernel, ((0, 0), (0, 0)))
    np.testing.assert_allclose(conv2d(x, kernel, ((-1, 0), (0, -1))), whole[:, 1:, :-1], atol=1e-5)
