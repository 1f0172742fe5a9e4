"""Convolutions that XLA compiles well on a CPU too.

XLA's CPU back end turns the weight gradient of a convolution, and everything about a strided transposed one, into
loops that are slower than the forward pass by orders of magnitude, and convolves bf16 no faster than fp32. Here a
stride-1 convolution is, image by image, one matrix product: the columns of the kernel are gathered before it, its rows
summed behind it, so that each number is copied as often as the kernel is long, not as often as it is large. A
transposed convolution is one of stride 1 that gives all of its output phases at once, as channels. On other
platforms the plain primitives are used.
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dorl_jax.models.layers import torch_uniform
from dorl_jax.models.products import add_bias, sums

Pair = tuple[int, int]
Padding = tuple[Pair, Pair]
_DIMENSIONS = ("NHWC", "HWIO", "NHWC")
# Positions in a product: enough for it to run at full speed, few enough for its operands to stay in the cache.
_POSITIONS = 1024
_ROWS, _COLUMNS = 1, 2


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def conv2d(
    x: Float[Array, "b h w i"], kernel: Float[Array, "kh kw i o"], padding: Padding
) -> Float[Array, "b oh ow o"]:
    """Stride-1 cross-correlation with zero padding (before, after) per axis; negative padding crops."""
    plain = partial(_plain, padding=padding)
    # Of fp32 XLA's own forward is as fast, and faster where channels are few.
    cpu = plain if x.dtype == jnp.float32 else partial(_products, padding=padding)
    return lax.platform_dependent(x, kernel, cpu=cpu, default=plain)


def _conv2d_forward(x: Array, kernel: Array, padding: Padding) -> tuple[Array, tuple[Array, Array]]:
    return conv2d(x, kernel, padding), (x, kernel)


def _conv2d_backward(padding: Padding, saved: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    products, plain = partial(_products_gradients, padding=padding), partial(_plain_gradients, padding=padding)
    return lax.platform_dependent(*saved, grad, cpu=products, default=plain)


conv2d.defvjp(_conv2d_forward, _conv2d_backward)


def _plain(x: Array, kernel: Array, padding: Padding) -> Array:
    return lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=_DIMENSIONS)


def _plain_gradients(x: Array, kernel: Array, grad: Array, padding: Padding) -> tuple[Array, Array]:
    return jax.vjp(partial(_plain, padding=padding), x, kernel)[1](grad)


def _products(x: Array, kernel: Array, padding: Padding) -> Array:
    matrix, (top, bottom), columns = _matrix(kernel), *padding

    def some(images: Array) -> Array:
        gathered = _gather(images, kernel.shape[1], columns, _COLUMNS)
        rows = sums(gathered, matrix, ((3,), (0,)))
        return _sum(rows, kernel.shape[0], (top, bottom), _ROWS).astype(x.dtype)

    parts = lax.map(some, _parts(x))
    return parts.reshape(-1, *parts.shape[2:])


def _products_gradients(x: Array, kernel: Array, grad: Array, padding: Padding) -> tuple[Array, Array]:
    kh, kw, channels_in, channels_out = kernel.shape
    matrix, (top, bottom), (left, right) = _matrix(kernel), *padding

    def some(total: Array, images: tuple[Array, Array]) -> tuple[Array, Array]:
        x, grad = images
        # What `_sum` gave in reverse order: the row that a tap is added to lies as far below as it came from above.
        rows = _gather(grad, kh, (kh - 1 - top, kh - 1 - bottom), _ROWS, reverse=True)
        columns = sums(rows, matrix, ((3,), (1,)))
        grad_x = _sum(columns, kw, (kw - 1 - left, kw - 1 - right), _COLUMNS, reverse=True).astype(x.dtype)
        positions = ((0, 1, 2), (0, 1, 2))
        gathered = _gather(x, kw, (left, right), _COLUMNS)
        return total + sums(gathered, rows, positions), grad_x

    total, parts = lax.scan(some, jnp.zeros(matrix.shape, jnp.float32), (_parts(x), _parts(grad, x)))
    grad_kernel = total.reshape(kw, channels_in, kh, channels_out).transpose(2, 0, 1, 3)
    return parts.reshape(x.shape), grad_kernel.astype(kernel.dtype)


def _matrix(kernel: Array) -> Array:
    """(columns of the kernel x channels in, rows x channels out)."""
    kh, kw, channels_in, channels_out = kernel.shape
    return kernel.transpose(1, 2, 0, 3).reshape(kw * channels_in, kh * channels_out)


def _parts(x: Array, like: Array | None = None) -> Array:
    """Images in equal parts of about `_POSITIONS` positions (those of `like`, if given)."""
    batch, height, width = (x if like is None else like).shape[:3]
    most = max(1, _POSITIONS // (height * width))
    size = max(n for n in range(1, min(most, batch) + 1) if batch % n == 0)
    return x.reshape(batch // size, size, *x.shape[1:])


def _padded(x: Array, padding: Pair, axis: int) -> Array:
    return lax.pad(x, jnp.zeros((), x.dtype), [(*(padding if i == axis else (0, 0)), 0) for i in range(x.ndim)])


def _gather(x: Array, taps: int, padding: Pair, axis: int, reverse: bool = False) -> Array:
    """`y[j, t] = x[j + t]` along the axis of the padded x, taps before channels; in reverse order, if wanted."""
    padded = _padded(x, padding, axis)
    length = padded.shape[axis] - taps + 1
    order = range(taps)[::-1] if reverse else range(taps)
    return jnp.concatenate([lax.slice_in_dim(padded, t, t + length, axis=axis) for t in order], axis=-1)


def _sum(z: Array, taps: int, padding: Pair, axis: int, reverse: bool = False) -> Array:
    """`y[j] = sum of z[j + t, t]` along the axis of the padded z; with taps in reverse order, if wanted."""
    channels = z.shape[-1] // taps
    total: Array | None = None
    for t in range(taps):
        at = taps - 1 - t if reverse else t
        one = _padded(z[..., t * channels : (t + 1) * channels], padding, axis)
        one = lax.slice_in_dim(one, at, at + one.shape[axis] - taps + 1, axis=axis)
        total = one if total is None else total + one
    assert total is not None
    return total


def conv_transpose2d(
    x: Float[Array, "b h w i"], kernel: Float[Array, "k k i o"], stride: int, padding: int
) -> Float[Array, "b oh ow o"]:
    """`torch.nn.functional.conv_transpose2d` for NHWC input and a square kernel of shape (k, k, in, out).

    Output size is `(h - 1) * stride - 2 * padding + k` per axis. The kernel keeps PyTorch's orientation:
    `y[s*i + u - p] += x[i] kernel[u]`.
    """
    phases = partial(_conv_transpose_phases, stride=stride, padding=padding)
    plain = partial(_conv_transpose_plain, stride=stride, padding=padding)
    return lax.platform_dependent(x, kernel, cpu=phases, default=plain)


def _conv_transpose_plain(x: Array, kernel: Array, stride: int, padding: int) -> Array:
    edge = kernel.shape[0] - 1 - padding
    return lax.conv_general_dilated(
        x,
        jnp.flip(kernel, (0, 1)),
        (1, 1),
        ((edge, edge), (edge, edge)),
        lhs_dilation=(stride, stride),
        dimension_numbers=_DIMENSIONS,
    )


def _conv_transpose_phases(x: Array, kernel: Array, stride: int, padding: int) -> Array:
    """With `u = stride * t + r` output `stride * m + r` sums `x[m - t] kernel[u]`: a correlation with t in reverse."""
    k, _, channels_in, channels_out = kernel.shape
    taps = math.ceil(k / stride)
    if stride == 1:
        edge = k - 1 - padding
        return conv2d(x, jnp.flip(kernel, (0, 1)), ((edge, edge), (edge, edge)))
    missing = taps * stride - k
    kernel = jnp.pad(kernel, ((0, missing), (0, missing), (0, 0), (0, 0)))
    kernel = kernel.reshape(taps, stride, taps, stride, channels_in, channels_out).transpose(0, 2, 4, 1, 3, 5)
    kernel = jnp.flip(kernel.reshape(taps, taps, channels_in, -1), (0, 1))
    parts = conv2d(x, kernel, ((taps - 1, taps - 1), (taps - 1, taps - 1)))
    batch, height, width, _ = parts.shape
    parts = parts.reshape(batch, height, width, stride, stride, channels_out).transpose(0, 1, 3, 2, 4, 5)
    whole = parts.reshape(batch, height * stride, width * stride, channels_out)
    rows, columns = ((size - 1) * stride - 2 * padding + k for size in x.shape[1:3])
    return whole[:, padding : padding + rows, padding : padding + columns]


class Conv3x3(nnx.Module):
    """A 3x3 convolution without bias that keeps the size (SAM's neck)."""

    def __init__(self, channels_in: int, channels_out: int, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32) -> None:
        init = torch_uniform(9 * channels_in)
        self.kernel = nnx.Param(init(rngs.params(), (3, 3, channels_in, channels_out)))
        self.dtype = dtype

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h w o"]:
        return conv2d(x.astype(self.dtype), self.kernel[...].astype(self.dtype), ((1, 1), (1, 1)))


class ConvTranspose(nnx.Module):
    """A transposed convolution with bias (see `conv_transpose2d`)."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel_size: int,
        *,
        stride: int,
        padding: int,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ) -> None:
        # PyTorch takes the fan of a transposed convolution from its output channels.
        init: Callable[..., Array] = torch_uniform(channels_out * kernel_size**2)
        self.kernel = nnx.Param(init(rngs.params(), (kernel_size, kernel_size, channels_in, channels_out)))
        self.bias = nnx.Param(init(rngs.params(), (channels_out,)))
        self.stride, self.padding, self.dtype = stride, padding, dtype

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b oh ow o"]:
        kernel, bias = self.kernel[...].astype(self.dtype), self.bias[...].astype(self.dtype)
        return add_bias(conv_transpose2d(x.astype(self.dtype), kernel, self.stride, self.padding), bias)
