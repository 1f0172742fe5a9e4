"""PyTorch and safetensors checkpoints into dorl_jax models."""
