"""The same training on one device, on two and on eight, and with parameters that are split over devices."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = """
import csv, sys
from pathlib import Path
import jax
import numpy as np
from flax import nnx
from dorl_jax.data.loader import array_batches
from dorl_jax.models import Cae, CaeConfig, LoraConfig
from dorl_jax.parallel import make_mesh, parameter_shardings
from dorl_jax.stages.finetune_sam import segmentation_objective
from dorl_jax.stages.train_cae import cae_objective
from dorl_jax.training.loop import LoopSettings, train
from dorl_jax.training.optim import adamw, warmup_cosine
from small_sam import SMALL, lora_sam

folder, model_axis = Path(sys.argv[1]), int(sys.argv[2])
rng = np.random.default_rng(0)
schedule = warmup_cosine(1e-3, 2, 10)
settings = LoopSettings(10, log_every=1, checkpoint_every=10, model_axis=model_axis)

def run(name, model, trainable, objective, arrays):
    batches = array_batches(arrays, 8, seed=3)
    train(model, trainable, objective, adamw(schedule, 0.1), schedule, batches, settings, folder / name, name=name,
          progress=False)
    state = nnx.to_flat_state(nnx.state(model, nnx.Param))
    np.savez(folder / f"{name}.npz", **{".".join(map(str, path)): np.asarray(leaf[...]) for path, leaf in state})
    return model

sam = lora_sam(LoraConfig(rank=2))
images = rng.integers(0, 256, (24, 32, 32, 3), dtype=np.uint8)
masks = (images[..., 0] > 100).astype(np.uint8)
# No batch is alike on all devices: few of the cells have most of the mask.
masks[8:] *= images[8:, ..., 1] > 250
run("sam", sam, sam.trainable("lora"), segmentation_objective(sam.config), {"image": images, "mask": masks})

config = CaeConfig(16, 4, encoder_depth=2, decoder_depth=1, heads=2, projection=5, head_channels=(8, 8, 8, 8))
arrays = {
    "feature": rng.standard_normal((24, 4, 4, 16), np.float32),
    "crop": rng.integers(0, 256, (24, config.image_size, config.image_size, 3), dtype=np.uint8),
    "domain": np.arange(24, dtype=np.int32) % 3,
}
run("cae", Cae(config, rngs=nnx.Rngs(0)), nnx.Param, cae_objective(config, 3, 1.0), arrays)

if model_axis > 1:
    placed = parameter_shardings(nnx.state(sam, nnx.Param), make_mesh(model_axis))
    assert any("model" in str(leaf.spec) for leaf in jax.tree.leaves(placed))
print(jax.device_count())
"""


# No loss depends on it, for it shifts all means alike: its gradient is rounding, which AdamW scales up.
BLIND = "projector.bias"


def train(folder: Path, devices: int, model_axis: int) -> dict[str, tuple[np.ndarray, dict[str, np.ndarray]]]:
    folder.mkdir()
    tests = Path(__file__).parents[1]
    environment = {
        **os.environ,
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": os.pathsep.join([str(tests), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, "-c", SCRIPT, str(folder), str(model_axis)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == str(devices)
    out = {}
    for name in ("sam", "cae"):
        lines = (folder / name / "metrics.csv").read_text().splitlines()
        columns = lines[0].split(",")
        kept = [i for i, column in enumerate(columns) if column in ("loss", "dice", "discrepancy", "mse", "ssim")]
        losses = np.array([[float(line.split(",")[i]) for i in kept] for line in lines[1:]])
        with np.load(folder / f"{name}.npz") as arrays:
            out[name] = losses, {key: arrays[key] for key in arrays.files if key != BLIND}
    return out


@pytest.mark.slow
def test_the_number_of_devices_does_not_matter(tmp_path: Path) -> None:
    expected = train(tmp_path / "one", 1, 1)
    for devices, model_axis in ((2, 1), (8, 1), (8, 2)):
        found = train(tmp_path / f"{devices}_{model_axis}", devices, model_axis)
        for name, (losses, parameters) in expected.items():
            assert losses.shape[0] == 10
            assert np.ptp(losses[:, 0]) > 0.01
            # Ten steps of losses that look across the batch: overlaps (Dice), means of laboratories.
            np.testing.assert_allclose(found[name][0], losses, rtol=1e-5, atol=2e-6, err_msg=f"{name}, {devices}")
            assert found[name][1].keys() == parameters.keys()
            for key, values in parameters.items():
                np.testing.assert_allclose(
                    found[name][1][key], values, rtol=1e-4, atol=1e-4, err_msg=f"{name}.{key}, {devices}"
                )
