"""Laboratory-invariant representations of blood cells, in JAX and Flax NNX."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dorl_jax.dorl import DoRL

__all__ = ["DoRL", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """`DoRL`, when it is first asked for: it brings in JAX."""
    if name == "DoRL":
        from dorl_jax.dorl import DoRL

        return DoRL
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
