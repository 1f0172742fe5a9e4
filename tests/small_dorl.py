"""A DoRL of two untrained tiny models, and images for it; importable by processes of their own."""

from pathlib import Path

import cv2
import jax
import numpy as np
from flax import nnx

from dorl_jax import config
from dorl_jax.dorl import DoRL
from dorl_jax.models import Cae, CaeConfig, LoraSam, SamConfig
from dorl_jax.stages.run import RunSettings
from dorl_jax.training.checkpoints import save_model

SIDE = 48


def small_models() -> tuple[LoraSam, Cae]:
    """Its masks are odd shapes, some of them empty."""
    segmenter = LoraSam(SamConfig.tiny(SIDE), rngs=nnx.Rngs(3))
    positions = segmenter.sam.image_encoder.pos_embed
    positions.set_value(jax.random.normal(jax.random.key(0), positions.shape))
    drawn = jax.tree.map(
        lambda x: 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), nnx.state(segmenter, nnx.LoRAParam)
    )
    nnx.update(segmenter, drawn)
    shape = CaeConfig(
        width=192, grid=6, encoder_depth=1, decoder_depth=1, heads=6, head_channels=(8, 8, 8, 8), projection=5
    )
    return segmenter, Cae(shape, rngs=nnx.Rngs(1))


def small_dorl(zoom: float = 1.25) -> DoRL:
    return DoRL(*small_models(), zoom=zoom)


def save_small_run(folder: Path, zoom: float = 1.25) -> Path:
    """The folder of a run with these models."""
    segmenter, cae = small_models()
    save_model(folder / "finetune_sam" / "model", segmenter)
    save_model(folder / "train_cae" / "model", cae)
    config.save(RunSettings(), folder / config.SETTINGS_FILE)
    text = (folder / config.SETTINGS_FILE).read_text()
    assert "zoom = 1.25" in text
    (folder / config.SETTINGS_FILE).write_text(text.replace("zoom = 1.25", f"zoom = {zoom}"))
    return folder


def write_images(folder: Path, count: int, seed: int = 0) -> Path:
    """Blots of many sizes; image 3 is cut short and image 7 is no image."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for place in range(count):
        height, width = rng.integers(20, 90, 2)
        image = rng.integers(150, 256, (height, width, 3), dtype=np.uint8)
        centre = int(rng.integers(width // 4, width)), int(rng.integers(height // 4, height))
        cv2.circle(image, centre, int(rng.integers(5, 20)), tuple(rng.integers(0, 150, 3).tolist()), -1)
        cv2.imwrite(str(folder / f"{place:03d}.png"), image)
    if count > 7:
        broken = folder / "003.png"
        broken.write_bytes(broken.read_bytes()[:-40])
        (folder / "007.png").write_text("no image")
    return folder
