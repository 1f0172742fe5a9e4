"""Convolutions against sums written out, and the CPU formulation against XLA's own primitives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dorl_jax.models.conv import (
    _conv_transpose_phases,
    _conv_transpose_plain,
    _kernel_gradient_plain,
    _kernel_gradient_shifts,
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


def test_kernel_gradient_forms_agree():
    x, grad, padding = draw((3, 6, 5, 2)), draw((3, 7, 3, 4), 1), ((2, 1), (0, 0))
    shape = (3, 3, 2, 4)
    np.testing.assert_allclose(
        _kernel_gradient_shifts(x, grad, padding, shape), _kernel_gradient_plain(x, grad, padding, shape), atol=1e-4
    )


def test_negative_padding_crops():
    x, kernel = draw((1, 6, 6, 2)), draw((2, 2, 2, 3), 1)
    whole = conv2d(x, kernel, ((0, 0), (0, 0)))
    np.testing.assert_allclose(conv2d(x, kernel, ((-1, 0), (0, -1))), whole[:, 1:, :-1], atol=1e-5)
