"""SAM's two-way transformer: prompt tokens and image tokens attend to each other (arXiv 2304.02643, appendix A)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dorl_jax.models.attention import attend
from dorl_jax.models.layers import Mlp, linear, merge_heads, split_heads
from dorl_jax.models.norm import layer_norm

EPSILON = 1e-5


class CrossAttention(nnx.Module):
    """Attention whose inner width is `width / downsample`."""

    def __init__(
        self, width: int, heads: int, downsample: int = 1, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32
    ) -> None:
        inner = width // downsample
        self.heads = heads
        self.q_proj = linear(width, inner, rngs=rngs, dtype=dtype)
        self.k_proj = linear(width, inner, rngs=rngs, dtype=dtype)
        self.v_proj = linear(width, inner, rngs=rngs, dtype=dtype)
        self.out_proj = linear(inner, width, rngs=rngs, dtype=dtype)

    def __call__(
        self, q: Float[Array, "b n c"], k: Float[Array, "b m c"], v: Float[Array, "b m c"]
    ) -> Float[Array, "b n c"]:
        q, k, v = (
            split_heads(project(x), self.heads) for project, x in ((self.q_proj, q), (self.k_proj, k), (self.v_proj, v))
        )
        return self.out_proj(merge_heads(attend(q * q.shape[-1] ** -0.5, k, v)))


class TwoWayBlock(nnx.Module):
    """Self-attention of the tokens, tokens to image, MLP on the tokens, image to tokens; norms after each."""

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        *,
        first: bool,
        downsample: int,
        epsilon: float,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ) -> None:
        self.first = first
        self.self_attn = CrossAttention(width, heads, rngs=rngs, dtype=dtype)
        self.norm1 = layer_norm(width, epsilon, rngs=rngs, dtype=dtype)
        self.cross_attn_token_to_image = CrossAttention(width, heads, downsample, rngs=rngs, dtype=dtype)
        self.norm2 = layer_norm(width, epsilon, rngs=rngs, dtype=dtype)
        self.mlp = Mlp(width, hidden, activation=jax.nn.relu, rngs=rngs, dtype=dtype)
        self.norm3 = layer_norm(width, epsilon, rngs=rngs, dtype=dtype)
        self.cross_attn_image_to_token = CrossAttention(width, heads, downsample, rngs=rngs, dtype=dtype)
        self.norm4 = layer_norm(width, epsilon, rngs=rngs, dtype=dtype)

    def __call__(
        self,
        tokens: Float[Array, "b n c"],
        image: Float[Array, "b m c"],
        token_positions: Float[Array, "b n c"],
        image_positions: Float[Array, "m c"],
    ) -> tuple[Float[Array, "b n c"], Float[Array, "b m c"]]:
        if self.first:  # the tokens are their own positions here: nothing to add, and no residual
            tokens = self.self_attn(tokens, tokens, tokens)
        else:
            q = tokens + token_positions
            tokens = tokens + self.self_attn(q, q, tokens)
        tokens = self.norm1(tokens)
        placed_image = image + image_positions
        tokens = self.norm2(tokens + self.cross_attn_token_to_image(tokens + token_positions, placed_image, image))
        tokens = self.norm3(tokens + self.mlp(tokens))
        image = self.norm4(image + self.cross_attn_image_to_token(placed_image, tokens + token_positions, tokens))
        return tokens, image


class TwoWayTransformer(nnx.Module):
    """`depth` two-way blocks and a last attention of the tokens to the image."""

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        depth: int,
        *,
        downsample: int = 2,
        epsilon: float = EPSILON,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ) -> None:
        self.layers = nnx.List(
            TwoWayBlock(
                width,
                heads,
                hidden,
                first=index == 0,
                downsample=downsample,
                epsilon=epsilon,
                rngs=rngs,
                dtype=dtype,
            )
            for index in range(depth)
        )
        self.final_attn_token_to_image = CrossAttention(width, heads, downsample, rngs=rngs, dtype=dtype)
        self.norm_final_attn = layer_norm(width, EPSILON, rngs=rngs, dtype=dtype)

    def __call__(
        self,
        tokens: Float[Array, "b n c"],
        image: Float[Array, "b m c"],
        image_positions: Float[Array, "m c"],
    ) -> tuple[Float[Array, "b n c"], Float[Array, "b m c"]]:
        positions = tokens
        for layer in self.layers:
            tokens, image = layer(tokens, image, positions, image_positions)
        attended = self.final_attn_token_to_image(tokens + positions, image + image_positions, image)
        return self.norm_final_attn(tokens + attended), image
