"""How programs are compiled that run for long."""

import platform

import jax


def compiler_options() -> dict[str, int] | None:
    """Of `jax.jit`, for where JAX computes: on x86 vectors of 512 bits, of which XLA uses half if it is not told."""
    if jax.default_backend() == "cpu" and platform.machine() in ("x86_64", "AMD64"):
        return {"xla_cpu_prefer_vector_width": 512}
    return None
