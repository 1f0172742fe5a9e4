"""The study of the compiled step, on eight CPU devices; for TPUs if asked for."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from compiled_step import StepToCompile, lower_step
from flax import nnx
from hlo_collectives import Collective, collectives, costly_operations, estimated_cycles, holds_square
from tpu_chips import CHIPS, efficiency, network_seconds, roofline

from dorl_jax.errors import InputError
from dorl_jax.models import Cae, CaeConfig, LoraConfig, LoraSam, Sam, SamConfig
from dorl_jax.models.abstract import abstract_model

SCRIPT = Path(__file__).parents[2] / "scripts" / "scaling_study.py"


def run(*options: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[1])}
    command = [sys.executable, str(SCRIPT), *options]
    return subprocess.run(command, check=check, capture_output=True, text=True, env=environment)


def study(*options: str) -> list[dict]:
    return json.loads(run(*options, "--json").stdout)


def trained_numbers(variant: str, step: str) -> int:
    if step == "cae":
        model = abstract_model(lambda rngs: Cae(CaeConfig.preset(variant), rngs=rngs))
        return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    size = 112 if variant == "tiny" else 224
    sam = abstract_model(lambda rngs: LoraSam(SamConfig.preset(variant, size), LoraConfig(), rngs=rngs))
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(sam, sam.trainable("lora"))))


# Beside the gradients. Fine-tuning: of Dice, for both classes, the overlap and the two sums of squares, and of
# cross-entropy the sum and its weights. Autoencoder: of each of three laboratories its cells and the sum of its 50
# projections; SSIM, and the squares and absolute differences.
STATISTICS = {"finetune": range(1, 9), "cae": range(3 * 51 + 1, 3 * 51 + 5)}


@pytest.mark.slow
@pytest.mark.parametrize("step", ["finetune", "cae"])
def test_a_step_sends_gradients_and_statistics_alone(step):
    options = ("--variant", "tiny", "--step", step, "--topology", "cpu:8", "--dtype", "float32", "--batch", "2")
    [record] = study(*options)
    trained = trained_numbers("tiny", step)
    assert record["trained_parameters"] == trained
    [reduced] = record["collectives"]
    assert (reduced["kind"], reduced["group"]) == ("all-reduce", 8)
    assert reduced["bytes"] - 4 * trained in [4 * count for count in STATISTICS[step]]
    assert record["sent_bytes"] == pytest.approx(2 * 7 / 8 * reduced["bytes"])


@pytest.mark.slow
def test_the_encoder_alone():
    options = ("--variant", "tiny", "--step", "forward", "--topology", "cpu:2", "--dtype", "float32", "--batch", "2")
    [record] = study(*options)
    sam = abstract_model(lambda rngs: Sam(SamConfig.preset("tiny", 112), rngs=rngs))
    weights = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(sam.image_encoder)))
    assert record["frozen_parameters"] == weights
    assert record["collectives"] == []
    grid, config = 112 // sam.config.encoder.patch_size, sam.config.encoder
    results = grid * grid * (config.width + config.out_channels) * 4
    assert record["least_bytes"] == 4 * weights + 2 * (112 * 112 * 3 + results)
    assert 1 <= record["flops"] / record["analytic_flops"] < 1.15
    assert record["scores_of_all_tokens"]  # 49 tokens need no parts


@pytest.mark.slow
def test_many_tokens_have_no_array_of_all_scores():
    options = ("--variant", "tiny", "--step", "forward", "--topology", "cpu:1", "--batch", "1", "--image-size", "1024")
    [record] = study(*options)
    assert not record["scores_of_all_tokens"]  # 4096 x 4096
    assert 1 <= record["flops"] / record["analytic_flops"] < 1.15


@pytest.mark.slow
def test_the_axis_model_sends_parameters_too():
    options = ("--variant", "tiny", "--topology", "cpu:4", "--model", "2", "--dtype", "float32", "--batch", "2")
    [record] = study(*options)
    assert any(one["kind"] == "all-gather" and one["group"] == 2 for one in record["collectives"])
    whole = 4 * (3 * record["trained_parameters"] + record["frozen_parameters"])
    # Half of every table, but for what does not divide; the batch is 75 kB.
    assert whole / 2 <= record["memory"]["arguments"] <= 0.55 * whole


def test_bad_options_are_refused_by_name():
    for options, words in [
        ((), "--topology"),
        (("--topology", "v9:2x4"), "v9:2x4"),
        (("--topology", "cpu:many"), "cpu:many"),
        (("--topology", "cpu:2x4"), "cpu:2x4"),
        (
            ("--topology", "cpu:1", "--step", "forward", "--accumulate", "2"),
            "takes no --model, --remat or --accumulate",
        ),
        (("--topology", "cpu:1", "--step", "cae", "--image-size", "64"), "takes no --image-size"),
    ]:
        ran = run(*options, check=False)
        assert ran.returncode == 1
        assert words in ran.stderr
        assert "Traceback" not in ran.stderr


def test_a_step_of_nothing_is_refused():
    for changes, words in (({"accumulate": 0}, "--accumulate 0"), ({"batch": 0}, "--batch 0")):
        with pytest.raises(InputError, match=words):
            lower_step(StepToCompile(variant="tiny", **changes), jax.devices())


TEXT = """\
HloModule jit_step

%sum (a: f32[], b: f32[]) -> f32[] {
  ROOT %add = f32[] add(%a, %b)
}

%body (p: (s32[], f32[3])) -> (s32[], f32[3]) {
  %x = f32[3]{0} get-tuple-element(%p), index=1
  %r = f32[3]{0} all-reduce(%x), replica_groups={{0,1},{2,3}}, to_apply=%sum
}

ENTRY %main (p0: bf16[4,2], /*index=1*/p1: f32[3]) -> f32[3] {
  %r0 = (bf16[4,2]{1,0:T(8,128)(2,1)}, f32[3]{0}) all-reduce(%p0, %p1), replica_groups=[1,4]<=[4], to_apply=%sum
  %g = (bf16[4,2], bf16[8,2]) all-gather-start(%p0), replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}
  %d = bf16[8,2]{1,0} all-gather-done(%g)
  %alone = f32[3]{0} all-reduce(%p1), replica_groups={{0},{1},{2},{3}}, to_apply=%sum
  %f = f32[3]{0} fusion(%p1), kind=kLoop, calls=%none, backend_config={"window_config":{"estimated_cycles":"70"}}
  %w = (s32[], f32[3]{0}) while(%t), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"5"}}
}
"""


def test_collectives_are_read_off_the_text():
    assert collectives(TEXT, 4) == [
        Collective("all-gather", 2, 1, 16, 32),
        Collective("all-reduce", 2, 5, 15, 60),
        Collective("all-reduce", 4, 1, 11, 28),
    ]
    assert estimated_cycles(TEXT) == 70


def test_costly_operations_are_summed_by_kind_and_source():
    text = TEXT.replace(
        "  %f = ",
        """  %copy.7 = f32[3]{0} copy(%p1), metadata={op_name="jit(f)/split"}, x={"estimated_cycles":"50"}
  %copy.12 = f32[3]{0} copy(%p1), metadata={op_name="jit(f)/split"}, x={"estimated_cycles":"30"}
  %f = """,
    )
    assert costly_operations(text) == [("copy of split", 2, 80), ("f", 1, 70)]
    assert estimated_cycles(text) == 150


def test_a_square_array_is_seen():
    assert not holds_square(TEXT, 4)
    assert holds_square(TEXT + "  %s = f32[2,4,8,4]{3,2,1,0} dot(%q, %k)", 4)


def test_bytes_sent_are_those_of_a_ring():
    assert Collective("all-reduce", 4, 1, 25, 100).sent() == 150  # three quarters scattered, then gathered
    assert Collective("all-gather", 4, 1, 25, 100).sent() == 75  # of a result of 100, its own 25 to three others
    assert Collective("reduce-scatter", 4, 1, 25, 100).sent() == 300  # each keeps 100 of 400
    assert Collective("all-reduce", 4, 1, 25, 100).sent(1) == 0


def test_the_model_of_scaling():
    chip = CHIPS["v5e"]
    assert roofline(chip, 197e12, 0) == 1
    assert roofline(chip, 197e12, 2 * 819e9) == 2
    gradients, parameters = Collective("all-reduce", 8, 1, 25, 100), Collective("all-gather", 2, 1, 25, 100)
    assert network_seconds(chip, [gradients], 8, 1) == 0
    assert network_seconds(chip, [gradients], 8, 256) == pytest.approx(2 * 255 / 256 * 100 / 200e9)
    assert network_seconds(chip, [parameters], 8, 256, model=2) == pytest.approx(50 / 200e9)  # the group stays two
    assert efficiency(3.0, 1.0) == (0.75, 1.0)
    assert efficiency(1.0, 4.0) == (0.2, 0.25)


@pytest.mark.slow
@pytest.mark.skipif(
    os.environ.get("DORL_JAX_TPU_AOT") != "1",
    reason="compiles for TPUs, minutes each: install the extra `aot` in an environment of its own, and set "
    "DORL_JAX_TPU_AOT=1",
)
@pytest.mark.parametrize("topology", ["v5e:2x4", "v5p:2x2x1", "v6e:2x4"])
@pytest.mark.parametrize("step", ["finetune", "cae"])
def test_compiled_for_tpus(topology, step):
    [record] = study("--variant", "vit_b", "--step", step, "--topology", topology)
    trained = trained_numbers("vit_b", step)
    assert {one["kind"] for one in record["collectives"]} == {"all-reduce"}
    assert record["reduced_beside_gradients"] in STATISTICS[step]
    # bf16 for the matrices, fp32 for what is not multiplied.
    assert 2 * trained <= record["collectives"][0]["bytes"] <= 2.2 * trained
    assert record["loops"] == 0  # the convolutions written for CPUs are loops
    assert record["fits"]
    assert 0.9 < record["scaling"][-1]["efficiency"] <= 1
