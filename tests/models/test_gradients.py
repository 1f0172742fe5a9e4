"""What has a gradient written out, against JAX's own gradient of the plain formula; in bf16 against that in fp32."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dorl_jax.models import attention, positions
from dorl_jax.models.attention import attend
from dorl_jax.models.gelu import exact_gelu
from dorl_jax.models.lora import adapted_affine
from dorl_jax.models.norm import normalise
from dorl_jax.models.positions import position_columns
from dorl_jax.models.products import add_bias, affine, matmul


def plain_attention(q, k, v):
    scores = jnp.einsum("bhne,bhme->bhnm", q, k, precision="highest")
    return jnp.einsum("bhnm,bhmd->bhnd", jax.nn.softmax(scores, axis=-1), v, precision="highest")


def plain_norm(x, scale, bias):
    centred = x - x.mean(-1, keepdims=True)
    return centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * scale + bias


def plain_adapted(x, kernel, bias, first_a, first_b, second_a, second_b):
    update = jnp.concatenate([first_a @ first_b, jnp.zeros((5, 2)), second_a @ second_b], axis=1)
    return x @ (kernel + update) + bias


def adapted(x, kernel, bias, first_a, first_b, second_a, second_b):
    return adapted_affine(x, kernel, bias, (first_a, second_a), (first_b, second_b), ((0, 3), (5, 9)))


def plain_positions(q, of_rows, of_columns):
    """Token by token, on a grid of three rows and four columns."""
    tokens = []
    for place in range(12):
        row, column = divmod(place, 4)
        own = [of_rows[row - other + 2] for other in range(3)] + [of_columns[column - other + 3] for other in range(4)]
        tokens.append(q[:, :, place] @ jnp.stack(own, axis=1))
    return jnp.stack(tokens, axis=2)


def columns(function):
    return lambda q, of_rows, of_columns: function(q, of_rows, of_columns, grid=(3, 4))


# Function, the plain formula, shapes of the arguments.
CASES = {
    "attention": (attend, plain_attention, [(2, 3, 5, 6), (2, 3, 7, 6), (2, 3, 7, 4)]),
    "norm": (lambda x, s, b: normalise(x, s, b, 1e-5), plain_norm, [(2, 3, 8), (8,), (8,)]),
    "gelu": (exact_gelu, lambda x: x * jax.scipy.stats.norm.cdf(x), [(4, 50)]),
    "matmul": (matmul, lambda x, kernel: x @ kernel, [(2, 3, 5), (5, 4)]),
    "affine": (affine, lambda x, kernel, bias: x @ kernel + bias, [(2, 3, 5), (5, 4), (4,)]),
    "bias": (add_bias, lambda x, bias: x + bias, [(2, 3, 5), (5,)]),
    "positions": (columns(position_columns), plain_positions, [(2, 3, 12, 6), (5, 6), (7, 6)]),
    "positions, not on CPUs": (
        columns(positions._batched),
        plain_positions,
        [(2, 3, 12, 6), (5, 6), (7, 6)],
    ),
    "lora": (adapted, plain_adapted, [(2, 4, 5), (5, 9), (9,), (5, 2), (2, 3), (5, 3), (3, 4)]),
}


@pytest.mark.parametrize("case", list(CASES))
@pytest.mark.parametrize(("dtype", "close"), [(jnp.float32, 2e-6), (jnp.bfloat16, 3e-2)])
def test_value_and_gradients(case, dtype, close):
    function, plain, shapes = CASES[case]
    rng = np.random.default_rng(0)
    # Biases of sums in fp32 are fp32, and so are their gradients.
    types = [jnp.float32 if case in ("affine", "lora") and len(shape) == 1 else dtype for shape in shapes]
    arguments = [jnp.asarray(rng.standard_normal(shape), type_) for shape, type_ in zip(shapes, types, strict=True)]
    wide = [x.astype(jnp.float32) for x in arguments]
    expected, of_plain = jax.vjp(plain, *wide)
    found, of_function = jax.vjp(function, *arguments)
    grad = jnp.asarray(rng.standard_normal(expected.shape), dtype)
    results = [found, *of_function(grad)]
    wanted = [expected, *of_plain(grad.astype(jnp.float32))]
    for a, b, type_ in zip(results, wanted, [dtype, *types], strict=True):
        assert a.dtype == type_
        np.testing.assert_allclose(np.asarray(a, np.float32), b, rtol=0, atol=close * float(np.abs(b).max()))


def test_positions_on_a_grid_of_one_row():
    q = jnp.arange(6.0).reshape(1, 1, 3, 2)
    of_columns = jnp.arange(10.0).reshape(5, 2)
    found = position_columns(q, jnp.ones((1, 2)), of_columns, (1, 3))
    # [0, 1] . [4, 5] = 5 is the first token's own column, of offset 0; and so on.
    np.testing.assert_array_equal(found[0, 0], [[1, 5, 3, 1], [5, 33, 23, 13], [9, 77, 59, 41]])


def test_gelu_far_out():
    x = jnp.array([[-50.0, -6.0, 0.0, 6.0, 50.0]])
    slope = jax.grad(lambda x: exact_gelu(x).sum())(x)
    np.testing.assert_allclose(exact_gelu(x), [[0, 0, 0, 6, 50]], atol=1e-6)
    np.testing.assert_allclose(slope, [[0, 0, 0.5, 1, 1]], atol=1e-6)


@pytest.mark.parametrize("given", [jnp.float32, jnp.bfloat16])
def test_gelu_on_every_number_of_bf16(given):
    """Against the error function in double precision; in bf16 rounding, 2^-8, comes to the polynomial's 2e-4."""
    numbers = (np.arange(2**16, dtype=np.uint32) << 16).view(np.float32)
    x = numbers[np.abs(numbers) < 100].astype(np.float64)
    distribution = np.vectorize(math.erf)(x / math.sqrt(2)) / 2 + 0.5
    slope = distribution + x * np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    found, pull = jax.vjp(exact_gelu, jnp.asarray(x, given))
    found_slope = np.asarray(pull(jnp.ones(len(x), given))[0], np.float64)
    rounding, polynomial = (2**-8, 2e-4) if given == jnp.bfloat16 else (2e-6, 1e-6)
    for ours, exact in ((np.asarray(found, np.float64), x * distribution), (found_slope, slope)):
        assert (np.abs(ours - exact) <= rounding * np.abs(exact) + polynomial).all()
    forward = jax.jit(exact_gelu)(jnp.asarray(x, given))  # not that of the gradient
    np.testing.assert_allclose(
        np.asarray(forward, np.float64), np.asarray(found, np.float64), rtol=2 * rounding, atol=polynomial
    )


@pytest.mark.parametrize("most", [10, 35, 42, 69])
def test_attention_in_parts_is_attention(monkeypatch, most):
    """12 queries of 7 keys, in 12, 3, 2 and again 2 parts: the fewest that divide them and fit."""
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.standard_normal((2, 3, rows, 6)), jnp.float32) for rows in (12, 7, 7))
    whole, of_whole = jax.vjp(attend, q, k, v)
    monkeypatch.setattr(attention, "MOST_SCORES", most)
    assert attention.parts_of(12, 7) == {10: 12, 35: 3, 42: 2, 69: 2}[most]
    found, of_parts = jax.vjp(attend, q, k, v)
    for a, b in zip([found, *of_parts(found)], [whole, *of_whole(whole)], strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_no_array_of_all_scores_at_1024_pixels():
    """Of one block's attention over 64 x 64 tokens, forward and backward, as traced."""
    q, v = (jax.ShapeDtypeStruct((1, 2, 4096, size), jnp.bfloat16) for size in (192, 64))

    def square(q, k, v):
        return jnp.sum(attend(q, k, v).astype(jnp.float32) ** 2)

    text = jax.jit(jax.value_and_grad(square, (0, 1, 2))).lower(q, q, v).as_text()
    assert "4096x64x" in text
    assert "4096x4096" not in text
