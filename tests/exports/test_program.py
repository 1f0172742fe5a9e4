"""The exported program, run by JAX alone in a process of its own."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.export
import numpy as np
import pytest
from flax import nnx
from jaxtyping import config as jaxtyping_config
from small_run import CAE, write_small_run

from dorl_jax.cli import main
from dorl_jax.data.cut import cut_cells
from dorl_jax.data.light import in_light
from dorl_jax.data.resize import resize_image
from dorl_jax.dorl import DoRL
from dorl_jax.exports.program import PLATFORMS, write_program
from dorl_jax.models import Cae, CaeConfig, ImageEncoderConfig, LoraConfig, LoraSam, MaskDecoderConfig, SamConfig
from dorl_jax.models.regions import REGION_NUMBERS, SIZE_NUMBERS

# As the documentation says, after a ban on what must not be needed.
ALONE = """
import json, sys

class Ban:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("dorl_jax", "flax", "orbax", "cv2", "sklearn"):
            raise ImportError(f"{name} is banned")

sys.meta_path.insert(0, Ban())
import jax.export
import numpy as np

file = np.load(sys.argv[1])
header = json.loads(file["header.json"])

weights = [jax.device_put(file[name]) for name in header["weights"]]

def function(name):
    program = jax.export.deserialize(bytearray(file[name]))
    return lambda images: np.asarray(jax.jit(program.call)(weights, images))

with np.load(sys.argv[2]) as images:
    margin, vector = function("margin"), function("vector")
    np.savez(sys.argv[3], margin=margin(images["many"]), vector=vector(images["many"]), one=vector(images["one"]))
assert "dorl_jax" not in sys.modules
"""


@pytest.fixture(scope="module")
def models() -> tuple[LoraSam, Cae]:
    encoder = ImageEncoderConfig(32, 8, 24, 2, 3, (1,), window=3, out_channels=32)
    segmenter = LoraSam(SamConfig(encoder, MaskDecoderConfig(hidden=32)), LoraConfig(rank=2), rngs=nnx.Rngs(0))
    cae = Cae(
        CaeConfig(width=24, grid=4, encoder_depth=2, decoder_depth=1, heads=3, head_channels=(8, 8, 8, 8)),
        rngs=nnx.Rngs(1),
    )
    return segmenter, cae


@pytest.fixture
def symbols(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks of shapes know no symbols, which the size of a batch is while a program is exported."""
    monkeypatch.setattr(jaxtyping_config, "jaxtyping_disable", True)


@pytest.mark.slow
def test_jax_alone_gives_the_same_vectors(models, symbols, tmp_path: Path) -> None:
    segmenter, cae = models
    for number, (_, leaf) in enumerate(nnx.to_flat_state(nnx.state(segmenter, nnx.LoRAParam))):
        leaf.set_value(np.random.default_rng(number).standard_normal(leaf.shape).astype(np.float32))
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    out = segmenter(images)  # before the merge: by another way than what is exported
    logits = np.asarray(out["low_res_logits"])
    vectors = np.asarray(cae.encode(out["feature"]))
    path = tmp_path / "model.jaxexport"
    write_program(segmenter.merge(), cae, path, zoom=1.25, provenance={"weights": "abc"})
    np.savez(tmp_path / "images.npz", many=images, one=images[2:3])
    (tmp_path / "alone.py").write_text(ALONE)
    files = [str(path), str(tmp_path / "images.npz"), str(tmp_path / "found.npz")]
    subprocess.run([sys.executable, "-W", "error", str(tmp_path / "alone.py"), *files], check=True, cwd=tmp_path)
    with np.load(tmp_path / "found.npz") as found:
        scale = np.abs(vectors).max()
        np.testing.assert_allclose(found["vector"], vectors, atol=1e-5 * scale)
        np.testing.assert_allclose(found["one"], vectors[2:3], atol=1e-5 * scale)
        margins = logits[..., 1] - logits[..., 0]
        np.testing.assert_allclose(found["margin"], margins, atol=1e-5 * np.abs(margins).max())
    assert np.ptp(vectors, axis=0).max() > 1e-3 * scale  # the images tell

    with np.load(path) as file:
        header = json.loads(file["header.json"])
        assert header["preprocessing"]["zoom"] == 1.25
        assert header["provenance"] == {"weights": "abc"}
        assert jax.export.deserialize(bytearray(file["vector"])).platforms == PLATFORMS
        weights = [file[name] for name in file.files if name.startswith("weight_")]
    # neither what the merge keeps, nor the autoencoder's decoder and head
    stored = sum(weight.size for weight in weights)
    everything = sum(leaf.size for leaf in jax.tree.leaves(nnx.state((segmenter, cae))))
    encoder = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(cae.encoder)))
    assert encoder < stored < everything - sum(leaf.size for leaf in jax.tree.leaves(nnx.state(cae.image_head)))


def load(path: Path) -> tuple[dict[str, Any], dict[str, Callable[..., np.ndarray]]]:
    with np.load(path) as file:
        header = json.loads(file["header.json"])
        weights = [file[name] for name in header["weights"]]
        programs = {name: jax.export.deserialize(bytearray(file[name])) for name in header["functions"]}
    return header, {
        name: partial(lambda run, *arrays: np.asarray(run(weights, *arrays)), program.call)
        for name, program in programs.items()
    }


@pytest.mark.slow
def test_a_run_is_exported(symbols, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_small_run(tmp_path / "run", zoom=0.0)
    path = tmp_path / "model.jaxexport"
    assert main(["export", str(run), "--to", str(path)]) == 0
    assert "images (b, 32, 32, 3) to vectors (b, 24), for cpu, cuda, tpu" in capsys.readouterr().out
    images = np.random.default_rng(1).integers(0, 256, (3, 32, 32, 3), np.uint8)
    expected = DoRL.load(run).embed(images)
    header, functions = load(path)
    assert header["functions"]["vector"] == ["images"]
    found = functions["vector"](images)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    assert header["provenance"]["weights"] == DoRL.load(run).provenance["weights"]
    assert main(["export", str(tmp_path), "--to", str(path)]) == 2
    assert "no run at" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(("parity", "resize"), [(False, "bilinear"), (True, "cv2_bilinear")])
def test_two_functions_with_the_cut_between(symbols, tmp_path: Path, parity: bool, resize: str) -> None:
    """Images of any size, a window, and a vector of all that it can be made of."""
    config = replace(
        CAE, vector=("cls", "tokens", "features", "pixels", "regions", "size"), pixel_channels=(8, 16), pixel_size=16
    )
    dorl = DoRL.load(write_small_run(tmp_path / "run", cae=config))
    dorl.lora_sam.config = replace(dorl.lora_sam.config, light="white_patch", resize=resize)
    dorl.parity = parity
    path = tmp_path / "model.jaxexport"
    write_program(dorl.lora_sam, dorl.cae, path, zoom=dorl.zoom, parity=parity)
    rng = np.random.default_rng(2)
    images = [rng.integers(0, 256, (40 + 7 * place, 60 - 5 * place, 3), np.uint8) for place in range(4)]
    expected = dorl.embed(images, batch_size=4)
    header, functions = load(path)
    assert header["functions"]["vector"] == ["windows", "foreground", "crops", "areas"]
    assert header["inputs"]["areas"] == "float32 (b)"
    how = header["preprocessing"]
    assert (how["parity"], how["resize"], how["crop"]) == (parity, resize, dorl.cae.config.image_size)
    images = [in_light(image, how["light"]) for image in images]
    margins = functions["margin"](np.stack([resize_image(image, 32, how["resize"]) for image in images]))
    cut = cut_cells(
        images,
        margins,
        how["crop"],
        4,
        parity=how["parity"],
        zoom=how["zoom"],
        view_size=32,
        resize=how["resize"],
    )
    assert not cut.empty.all()
    found = functions["vector"](cut.views, cut.foreground, cut.crops, cut.areas)
    assert found.shape == (4, 24 + 48 + 48 + 16 + REGION_NUMBERS + SIZE_NUMBERS)
    learned = 24 + 48 + 48 + 16
    # Of noise the nucleus is grains, and in Hu's moments of these large numbers cancel.
    for part, within in ((np.s_[:, :learned], 1e-5), (np.s_[:, learned:], 1e-4)):
        np.testing.assert_allclose(found[part], expected[part], atol=within * np.abs(expected[part]).max())
