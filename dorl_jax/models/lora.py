"""Low-rank adaptation of a linear map (Hu et al., arXiv 2106.09685), as SAMed and DoRL place it in SAM."""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dorl_jax.models.layers import torch_uniform


class Lora(nnx.Module):
    """The update `x A B` that is added to a frozen linear map.

    A is drawn from U(-1/sqrt(in), 1/sqrt(in)), B is zero, so that training starts from the frozen map. No alpha,
    no bias. Both are `nnx.LoRAParam`: the type selects them for training.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ) -> None:
        self.a = nnx.LoRAParam(torch_uniform(in_features)(rngs.params(), (in_features, rank)))
        self.b = nnx.LoRAParam(jnp.zeros((rank, out_features)))
        self.dtype = dtype

    def __call__(self, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
        a, b = self.a[...].astype(self.dtype), self.b[...].astype(self.dtype)
        return (x.astype(self.dtype) @ a) @ b
