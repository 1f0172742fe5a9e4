"""Where PyTorch and this library order the numbers of a weight differently: there and back, never a digit changed."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Reorder = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Layout:
    """One way to order a weight.

    Attributes:
      name: what a table of what was mapped calls it.
      to_jax: PyTorch's array -> ours; ValueError for one that has other axes.
      to_torch: the inverse.
    """

    name: str
    to_jax: Reorder
    to_torch: Reorder

    def shape_in_jax(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """What becomes of a shape; ValueError if it has other axes."""
        return self.to_jax(np.broadcast_to(np.int8(0), shape)).shape


def _axes(x: np.ndarray, *order: int) -> np.ndarray:
    return x.transpose(order)  # ValueError if there are more or fewer


def _square_patches(x: np.ndarray, kernel: int | None, channels: int | None) -> np.ndarray:
    size, out = x.shape
    side = kernel or math.isqrt(size // (channels or 1))
    return _axes(x.reshape(side, side, -1, out), 3, 2, 0, 1)


def _patches(*, kernel: int | None = None, channels: int | None = None) -> Layout:
    """A convolution whose stride is its kernel <-> a linear map of the flattened patch; one of the sizes is known."""
    return Layout(
        "patches flattened",
        lambda x: _axes(x, 2, 3, 1, 0).reshape(-1, x.shape[0]),
        lambda x: _square_patches(x, kernel, channels),
    )


AS_IS = Layout("as is", lambda x: x, lambda x: x)
LINEAR = Layout("transposed", lambda x: _axes(x, 1, 0), lambda x: _axes(x, 1, 0))  # (out, in) <-> (in, out)
# (out, in, 1, 1) <-> (in, out)
POINTWISE = Layout(
    "transposed", lambda x: _axes(np.squeeze(x, (2, 3)), 1, 0), lambda x: _axes(x, 1, 0)[:, :, None, None]
)
# (out, in, h, w) <-> (h, w, in, out)
CONV = Layout("transposed", lambda x: _axes(x, 2, 3, 1, 0), lambda x: _axes(x, 3, 2, 0, 1))
# (in, out, h, w) <-> (h, w, in, out)
CONV_TRANSPOSE = Layout("transposed", lambda x: _axes(x, 2, 3, 0, 1), lambda x: _axes(x, 2, 3, 0, 1))
RGB_PATCHES = _patches(channels=3)
PAIR_PATCHES = _patches(kernel=2)
# an axis of one, first or second, that only PyTorch has
UNBATCHED = Layout("axis of one dropped", lambda x: np.squeeze(x, 0), lambda x: x[None])
UNBATCHED_SECOND = Layout("axis of one dropped", lambda x: np.squeeze(x, 1), lambda x: x[:, None])
