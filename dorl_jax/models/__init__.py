"""The models. They know nothing of data, devices, files or the settings of a run."""

from dorl_jax.models.cae import Cae, CaeConfig
from dorl_jax.models.image_encoder import ImageEncoderConfig
from dorl_jax.models.lora import LoraConfig
from dorl_jax.models.lora_sam import DORL_PIXEL_MEAN, DORL_PIXEL_STD, LoraSam
from dorl_jax.models.mask_decoder import MaskDecoderConfig
from dorl_jax.models.sam import SAM_PIXEL_MEAN, SAM_PIXEL_STD, Sam, SamConfig

__all__ = [
    "DORL_PIXEL_MEAN",
    "DORL_PIXEL_STD",
    "SAM_PIXEL_MEAN",
    "SAM_PIXEL_STD",
    "Cae",
    "CaeConfig",
    "ImageEncoderConfig",
    "LoraConfig",
    "LoraSam",
    "MaskDecoderConfig",
    "Sam",
    "SamConfig",
]
