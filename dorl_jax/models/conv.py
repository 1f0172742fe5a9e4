"""Convolutions whose gradients XLA compiles well on a CPU too.

XLA's CPU back end turns the weight gradient of a convolution, and everything about a strided transposed one, into
loops that are slower than the forward pass by orders of magnitude. Here a transposed convolution is written as
stride-1 convolutions, one for each output phase, and the weight gradient of a stride-1 convolution as one matrix
product for each image. On other platforms the plain primitives are used.
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
from dorl_jax.models.products import add_bias

Padding = tuple[tuple[int, int], tuple[int, int]]
_DIMENSIONS = ("NHWC", "HWIO", "NHWC")


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def conv2d(
    x: Float[Array, "b h w i"], kernel: Float[Array, "kh kw i o"], padding: Padding
) -> Float[Array, "b oh ow o"]:
    """Stride-1 cross-correlation with zero padding (before, after) per axis; negative padding crops."""
    return lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=_DIMENSIONS)


def _conv2d_forward(x: Array, kernel: Array, padding: Padding) -> tuple[Array, tuple[Array, Array]]:
    return conv2d(x, kernel, padding), (x, kernel)


def _conv2d_backward(padding: Padding, saved: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    x, kernel = saved
    kh, kw = kernel.shape[:2]
    mirrored = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    (top, bottom), (left, right) = padding
    grad_x = conv2d(grad, mirrored, ((kh - 1 - top, kh - 1 - bottom), (kw - 1 - left, kw - 1 - right)))
    plain = partial(_kernel_gradient_plain, padding=padding, shape=kernel.shape)
    shifts = partial(_kernel_gradient_shifts, padding=padding, shape=kernel.shape)
    return grad_x, lax.platform_dependent(x, grad, cpu=shifts, default=plain)


conv2d.defvjp(_conv2d_forward, _conv2d_backward)


def _kernel_gradient_plain(x: Array, grad: Array, padding: Padding, shape: tuple[int, ...]) -> Array:
    def forward(kernel: Array) -> Array:
        return lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=_DIMENSIONS)

    return jax.linear_transpose(forward, jax.ShapeDtypeStruct(shape, x.dtype))(grad)[0]


def _kernel_gradient_shifts(x: Array, grad: Array, padding: Padding, shape: tuple[int, ...]) -> Array:
    kh, kw, channels_in, channels_out = shape
    padded = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), (*padding[0], 0), (*padding[1], 0), (0, 0, 0)))
    _, height, width, _ = padded.shape
    wide = jnp.pad(grad, ((0, 0), (kh - 1, kh - 1), (kw - 1, kw - 1), (0, 0)))

    # One image at a time, so that the shifted copies of its gradient, one for each tap, stay in the cache.
    def add_image(total: Array, image: tuple[Array, Array]) -> tuple[Array, None]:
        x_one, grad_one = image
        shifts = [
            grad_one[kh - 1 - v : kh - 1 - v + height, kw - 1 - u : kw - 1 - u + width]
            for v in range(kh)
            for u in range(kw)
        ]
        taps = jnp.concatenate(shifts, axis=-1).reshape(height * width, -1)
        flat = x_one.reshape(height * width, channels_in)
        product = lax.dot_general(flat, taps, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)
        return total + product, None

    start = jnp.zeros((channels_in, kh * kw * channels_out), jnp.float32)
    total, _ = lax.scan(add_image, start, (padded, wide))
    return total.reshape(channels_in, kh, kw, channels_out).transpose(1, 2, 0, 3).astype(x.dtype)


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


def _output_size(size: int, k: int, stride: int, padding: int) -> int:
    return (size - 1) * stride - 2 * padding + k


def _phase(size: int, k: int, stride: int, padding: int, phase: int) -> tuple[int, int, tuple[int, int]]:
    """First tap, number of outputs and padding of the stride-1 correlation that gives outputs phase, phase+s, ...

    Output `phase + s*m` sums `x[i] kernel[u]` over `s*i + u - p = phase + s*m`: the taps `u = first + s*t` with
    `i = m + shift - t`, a correlation with the taps in reverse order. All phases give equally many outputs: where the
    stride does not divide the output size, the last ones of some phases lie beyond the edge.
    """
    first = (phase + padding) % stride
    shift = (phase + padding - first) // stride
    taps = len(range(first, k, stride))
    outputs = math.ceil(_output_size(size, k, stride, padding) / stride)
    before = taps - 1 - shift
    return first, outputs, (before, outputs + taps - 1 - size - before)


def _conv_transpose_phases(x: Array, kernel: Array, stride: int, padding: int) -> Array:
    k = kernel.shape[0]
    if stride == 1:
        edge = k - 1 - padding
        return conv2d(x, jnp.flip(kernel, (0, 1)), ((edge, edge), (edge, edge)))
    rows = [_phase(x.shape[1], k, stride, padding, p) for p in range(stride)]
    columns = [_phase(x.shape[2], k, stride, padding, p) for p in range(stride)]

    def part(row: tuple[int, int, tuple[int, int]], column: tuple[int, int, tuple[int, int]]) -> Array:
        taps = jnp.flip(kernel[row[0] :: stride, column[0] :: stride], (0, 1))
        return conv2d(x, taps, (row[2], column[2]))

    parts = jnp.stack([jnp.stack([part(r, c) for c in columns], 3) for r in rows], 2)
    batch, height, _, width, _, channels = parts.shape
    whole = parts.reshape(batch, height * stride, width * stride, channels)
    return whole[:, : _output_size(x.shape[1], k, stride, padding), : _output_size(x.shape[2], k, stride, padding)]


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
