"""Models are read as written; a checkpoint that does not fit says where."""

import json

import jax
import numpy as np
import pytest
from flax import nnx

from dorl_jax.errors import InputError
from dorl_jax.models import Cae, CaeConfig, LoraSam
from dorl_jax.training.checkpoints import load_model, save_model

CONFIG = CaeConfig(
    width=16, grid=4, encoder_depth=2, decoder_depth=1, heads=2, projection=5, head_channels=(8, 6, 4, 3)
)


@pytest.fixture
def folder(tmp_path):
    save_model(tmp_path / "model", Cae(CONFIG, rngs=nnx.Rngs(0)))
    return tmp_path / "model"


def rewrite(folder, **config):
    described = json.loads((folder / "model.json").read_text())
    described["config"].update(config)
    (folder / "model.json").write_text(json.dumps(described))


def test_round_trip(folder):
    loaded, written = load_model(folder, Cae), Cae(CONFIG, rngs=nnx.Rngs(0))
    assert loaded.config == CONFIG
    for a, b in zip(jax.tree.leaves(nnx.state(loaded)), jax.tree.leaves(nnx.state(written)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_later_model_replaces_an_earlier_one(folder):
    other = Cae(CONFIG, rngs=nnx.Rngs(1))
    save_model(folder, other)
    np.testing.assert_array_equal(load_model(folder, Cae).projector.kernel[...], other.projector.kernel[...])


def test_a_key_too_few(folder):
    rewrite(folder, encoder_depth=3)
    with pytest.raises(InputError, match=r"does not fit the model: missing encoder.blocks.2.attn.proj.bias, .* more"):
        load_model(folder, Cae)


def test_a_key_too_many(folder):
    rewrite(folder, encoder_depth=1)
    with pytest.raises(InputError, match=r"does not fit the model: unknown encoder.blocks.1.attn.proj.bias"):
        load_model(folder, Cae)


def test_another_shape(folder):
    rewrite(folder, projection=6)
    with pytest.raises(InputError, match=r"other shape projector.bias: \(5,\) float32, not \(6,\) float32"):
        load_model(folder, Cae)


def test_no_model(folder, tmp_path):
    with pytest.raises(InputError, match="model.json is missing"):
        load_model(tmp_path / "none", Cae)
    with pytest.raises(InputError, match="describes a Cae, expected a LoraSam"):
        load_model(folder, LoraSam)
    rewrite(folder, width="wide")
    with pytest.raises(InputError, match="does not describe a model"):
        load_model(folder, Cae)


@pytest.mark.usefixtures("others_left_unread")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("lost", ["manifest.ocdbt", "_METADATA", "d", "ocdbt.process_0/d"])
@pytest.mark.parametrize("cut", [False, True])
def test_half_a_copy_of_a_model_is_told(folder, lost, cut):
    for path in (folder / "weights").rglob("*"):
        if path.is_file() and f"/{lost}" in str(path) and ("ocdbt.process_0/d" in lost or "process_0" not in str(path)):
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]) if cut else path.unlink()
    with pytest.raises(InputError, match=r"the weights in .*weights are damaged \(.*copy the model again"):
        load_model(folder, Cae)
