"""Laboratory-invariant representations of blood cells, in JAX and Flax NNX."""

__version__ = "0.1.0"
