"""Low-rank adaptation of linear maps (Hu et al., arXiv 2106.09685), as SAMed and DoRL place it in SAM."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32

from dorl_jax.errors import suggest
from dorl_jax.models.layers import Linear, linear, torch_uniform
from dorl_jax.models.products import product, sum_of_rows, sums

TARGETS = ("q", "k", "v", "proj", "mlp")


@dataclass(frozen=True)
class LoraConfig:
    """Which linear maps of an image encoder get an update, and of what rank. The defaults are DoRL's.

    Attributes:
      rank: of the updates, at least 1.
      alpha: the update is scaled by `alpha / rank`; None for no scaling, as SAMed and DoRL have it.
      targets: of "q", "k", "v" (thirds of the fused map), "proj" (behind the attention) and "mlp" (both its layers).
      blocks: indices of the blocks; None for all.
    """

    rank: int = 4
    alpha: float | None = None
    targets: tuple[str, ...] = ("q", "v")
    blocks: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"LoRA of rank {self.rank}: expected at least 1; leave LoRA out with lora=None")
        for target in self.targets:
            if target not in TARGETS:
                known = ", ".join(TARGETS)
                raise ValueError(f"unknown LoRA target {target!r}{suggest(target, TARGETS)}; known: {known}")

    @property
    def scale(self) -> float:
        """Factor of the update."""
        return 1.0 if self.alpha is None else self.alpha / self.rank

    def of_block(self, index: int) -> "LoraConfig | None":
        """This, if it has a part in the block."""
        return self if self.blocks is None or index in self.blocks else None


class Lora(nnx.Module):
    """The update `x A B` of a linear map.

    A is drawn from U(-1/sqrt(in), 1/sqrt(in)), B is zero, so that training starts from the frozen map. No bias. Both
    are `nnx.LoRAParam`: the type selects them for training.
    """

    def __init__(self, in_features: int, out_features: int, rank: int, *, rngs: nnx.Rngs) -> None:
        self.a = nnx.LoRAParam(torch_uniform(in_features)(rngs.params(), (in_features, rank)))
        self.b = nnx.LoRAParam(jnp.zeros((rank, out_features)))


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def adapted_affine(
    x: Float[Array, "*b i"],
    kernel: Float[Array, "i o"],
    bias: Float32[Array, " o"],
    downs: tuple[Float[Array, "i r"], ...],
    ups: tuple[Float[Array, "r _"], ...],
    places: tuple[tuple[int, int], ...],
) -> Float[Array, "*b o"]:
    """x @ kernel + bias, plus x @ down @ up of every update at the columns `places`.

    All but the bias of one type, that of the result; sums in fp32.
    """
    return _adapted_forward(x, kernel, bias, downs, ups, places)[0]


def _adapted_forward(
    x: Array,
    kernel: Array,
    bias: Array,
    downs: tuple[Array, ...],
    ups: tuple[Array, ...],
    places: tuple[tuple[int, int], ...],
) -> tuple[Array, tuple[Array, Array, tuple[Array, ...], tuple[Array, ...], Array]]:
    inner = product(x, jnp.concatenate(downs, axis=1), ((x.ndim - 1,), (0,)))
    # One product for all updates, with zeros where one does not reach: adding them one by one would write all outputs
    # for each.
    wide = [
        jnp.pad(up, ((0, 0), (start, kernel.shape[1] - stop))) for up, (start, stop) in zip(ups, places, strict=True)
    ]
    last = ((x.ndim - 1,), (0,))
    y = sums(x, kernel, last) + sums(inner, jnp.concatenate(wide), last)
    return (y + bias).astype(x.dtype), (x, kernel, downs, ups, inner)


def _adapted_backward(
    places: tuple[tuple[int, int], ...],
    saved: tuple[Array, Array, tuple[Array, ...], tuple[Array, ...], Array],
    grad: Array,
) -> tuple[Array, Array, Array, tuple[Array, ...], tuple[Array, ...]]:
    x, kernel, downs, ups, inner = saved
    last, rows = x.ndim - 1, tuple(range(x.ndim - 1))
    ranks = [down.shape[1] for down in downs]
    edges = [sum(ranks[:index]) for index in range(len(ranks) + 1)]
    of_inners, of_ups = [], []
    for up, (start, stop), low, high in zip(ups, places, edges[:-1], edges[1:], strict=True):
        part = grad[..., start:stop]
        of_inners.append(product(part, up, ((last,), (1,))))
        # Each by itself: what devices sum holds no zeros.
        of_ups.append(product(inner[..., low:high], part, (rows, rows)))
    of_inner = jnp.concatenate(of_inners, axis=-1)
    of_down = product(x, of_inner, (rows, rows))
    along = ((last,), (1,))
    of_x = sums(grad, kernel, along) + sums(of_inner, jnp.concatenate(downs, axis=1), along)
    of_downs = tuple(of_down[:, low:high] for low, high in pairwise(edges))
    return of_x.astype(x.dtype), product(x, grad, (rows, rows)), sum_of_rows(grad), of_downs, tuple(of_ups)


adapted_affine.defvjp(_adapted_forward, _adapted_backward)


class Unmerged(nnx.Variable):
    """A kernel as it was before its update was merged into it; not trained."""


class AdaptedLinear(Linear):
    """A linear map with LoRA on parts of its outputs: `y = x W + b + scale * x A B`."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        parts: Mapping[str, tuple[int, int]],
        config: LoraConfig,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ) -> None:
        """A map with PyTorch's initialisation.

        Args:
          in_features, out_features: channels.
          parts: for each update its name and the outputs it covers, from and to.
          config: rank and scale.
          rngs: for the initial values.
          dtype: of the arithmetic; parameters are fp32.
        """
        init = torch_uniform(in_features)
        super().__init__(in_features, out_features, dtype=dtype, kernel_init=init, bias_init=init, rngs=rngs)
        parts = dict(sorted(parts.items()))  # nnx.merge puts a Dict in this order, and `places` has to stay in step
        self.places = tuple(parts.values())
        self.scale = config.scale
        self.lora = nnx.Dict(
            {name: Lora(in_features, stop - start, config.rank, rngs=rngs) for name, (start, stop) in parts.items()}
        )
        self.unmerged: Unmerged | None = nnx.data(None)

    def __call__(self, inputs: Float[Array, "*b i"], out_sharding: Any = None) -> Float[Array, "*b o"]:
        if self.unmerged is not None:
            return super().__call__(inputs, out_sharding)
        assert self.bias is not None
        dtype, loras = self.dtype or inputs.dtype, self.lora.values()
        return adapted_affine(
            inputs.astype(dtype),
            jnp.asarray(self.kernel[...], dtype),
            self.bias[...],
            tuple(jnp.asarray(lora.a[...], dtype) for lora in loras),
            tuple(jnp.asarray(self.scale * lora.b[...], dtype) for lora in loras),
            self.places,
        )

    def _factors(self) -> tuple[Float[Array, "i r"], Float[Array, "r o"]]:
        """All updates as one: the As side by side, each B in its own rows at the outputs it covers, scaled."""
        rows = [
            jnp.pad(lora.b[...], ((0, 0), (start, self.out_features - stop)))
            for lora, (start, stop) in zip(self.lora.values(), self.places, strict=True)
        ]
        a = jnp.concatenate([lora.a[...] for lora in self.lora.values()], axis=1)
        return a, self.scale * jnp.concatenate(rows)

    def merge(self) -> None:
        """Add the update to the kernel: the same map at the cost of a plain one. The kernel as it was is kept."""
        if self.unmerged is None:
            kernel = self.kernel[...]
            a, b = self._factors()
            update = jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
            self.unmerged = Unmerged(kernel)
            self.kernel.set_value(kernel + update)

    def unmerge(self) -> None:
        """Take `merge` back, to the last bit.

        Raises:
          ValueError: what the kernel was has been let go (see `forget_unmerged`).
        """
        if self.unmerged is not None:
            if not self.unmerged.size:
                raise ValueError("what this model's weights were before LoRA was merged has been let go: load it again")
            self.kernel.set_value(self.unmerged[...])
            self.unmerged = None


def adapted_linear(
    in_features: int,
    out_features: int,
    *,
    config: LoraConfig | None,
    parts: Mapping[str, tuple[int, int]] | None = None,
    rngs: nnx.Rngs,
    dtype: DTypeLike = jnp.float32,
) -> Linear:
    """A linear map with LoRA (see `AdaptedLinear`), by default on "all" its outputs; without a config a plain one."""
    parts = {"all": (0, out_features)} if parts is None else parts
    if config is None or not parts:
        return linear(in_features, out_features, rngs=rngs, dtype=dtype)
    return AdaptedLinear(in_features, out_features, parts, config, rngs=rngs, dtype=dtype)


def merge_lora(model: nnx.Module) -> None:
    """Merge every LoRA update inside the model into its map (see `AdaptedLinear.merge`), in place."""
    for _, module in nnx.iter_modules(model):
        if isinstance(module, AdaptedLinear):
            module.merge()


def unmerge_lora(model: nnx.Module) -> None:
    """Take `merge_lora` back, to the last bit, in place."""
    for _, module in nnx.iter_modules(model):
        if isinstance(module, AdaptedLinear):
            module.unmerge()


def forget_unmerged(model: nnx.Module) -> None:
    """Let go, in place, of what merged kernels were: `unmerge_lora` would no longer give the model that was trained."""
    for _, module in nnx.iter_modules(model):
        if isinstance(module, AdaptedLinear) and module.unmerged is not None:
            # Merged it stays: a map without this would apply its update a second time.
            module.unmerged = Unmerged(jnp.zeros((0, 0)))


def has_lora(model: nnx.Module) -> bool:
    """Whether there is a LoRA update inside the model, merged or not."""
    return any(isinstance(module, AdaptedLinear) for _, module in nnx.iter_modules(model))


def is_merged(model: nnx.Module) -> bool:
    """Whether a LoRA update inside the model is merged."""
    return any(
        isinstance(module, AdaptedLinear) and module.unmerged is not None for _, module in nnx.iter_modules(model)
    )
