"""PyTorch and safetensors checkpoints into dorl_jax models."""

from weights_conversion.cae import convert_cae
from weights_conversion.conv_autoencoder import convert_conv_autoencoder
from weights_conversion.sam import convert_lora_sam, convert_sam
from weights_conversion.sources import read_state_dict

__all__ = ["convert_cae", "convert_conv_autoencoder", "convert_lora_sam", "convert_sam", "read_state_dict"]
