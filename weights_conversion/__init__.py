"""Checkpoints of PyTorch code into dorl_jax models, and back."""

from weights_conversion.cae import convert_cae, export_cae
from weights_conversion.lora_sam import LoraFiles, convert_lora_sam, export_lora_sam
from weights_conversion.report import format_report
from weights_conversion.sam import convert_sam, export_sam
from weights_conversion.sources import open_state_dict, read_state_dict

__all__ = [
    "LoraFiles",
    "convert_cae",
    "convert_lora_sam",
    "convert_sam",
    "export_cae",
    "export_lora_sam",
    "export_sam",
    "format_report",
    "open_state_dict",
    "read_state_dict",
]
