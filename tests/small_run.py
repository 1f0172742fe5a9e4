"""A run folder with models small enough to be loaded in every test; nothing in it is trained."""

from pathlib import Path

from flax import nnx
from small_sam import lora_sam

from dorl_jax import config
from dorl_jax.models import Cae, CaeConfig, LoraConfig
from dorl_jax.stages.extract import ExtractSettings
from dorl_jax.stages.run import RunSettings
from dorl_jax.training.checkpoints import save_model

CAE = CaeConfig(width=24, grid=4, encoder_depth=2, decoder_depth=1, heads=3, head_channels=(8, 8, 8, 8))


def write_small_run(folder: Path, *, zoom: float = 1.25, seed: int = 0, cae: CaeConfig = CAE) -> Path:
    """Images of 32 x 32 pixels to vectors, by default of 24 numbers."""
    save_model(folder / "finetune_sam" / "model", lora_sam(LoraConfig(rank=2), seed))
    save_model(folder / "train_cae" / "model", Cae(cae, rngs=nnx.Rngs(seed + 1)))
    config.save(RunSettings(extract=ExtractSettings(zoom=zoom)), folder / config.SETTINGS_FILE)
    return folder
