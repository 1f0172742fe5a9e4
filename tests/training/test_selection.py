import pytest
from flax import nnx
from small_sam import lora_sam
from small_training import Net

from dorl_jax.errors import InputError
from dorl_jax.models import LoraConfig
from dorl_jax.training.selection import freeze, trained_table


def names(model, filter):
    return {".".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(model, filter))}


def test_patterns_freeze_what_they_match():
    model = Net()
    assert names(model, freeze(model, nnx.Param, ["first.*"])) == {"last.kernel", "last.bias"}
    assert names(model, freeze(model, nnx.Param, ["*.bias"])) == {"first.kernel", "last.kernel"}
    assert names(model, freeze(model, nnx.Param, [])) == {"first.kernel", "first.bias", "last.kernel", "last.bias"}


def test_a_pattern_that_matches_nothing():
    with pytest.raises(InputError, match=r"'frst.kernel' matches no parameter \(did you mean 'first.kernel'"):
        freeze(Net(), nnx.Param, ["frst.kernel"])
    with pytest.raises(InputError, match="nothing is left to train"):
        freeze(Net(), nnx.Param, ["*"])


def test_the_table_counts():
    rows = [line.split() for line in trained_table(Net(), freeze(Net(), nnx.Param, ["*.bias"]), depth=1).splitlines()]
    assert rows[1:] == [["first", "48", "8"], ["last", "16", "2"], ["all", "64", "10"]]


def test_lora_alone():
    model = lora_sam(LoraConfig(rank=2))
    trained = names(model, model.trainable("lora_only"))
    assert len(trained) == 4 * 2 * 2  # blocks, q and v, A and B
    assert all(".lora." in name for name in trained)
    assert trained < names(model, model.trainable("lora"))
    table = trained_table(model, model.trainable("lora_only"))
    row = next(line for line in table.splitlines() if "(LoRA)" in line)
    assert row.split()[-2:] == [f"{4 * 2 * 2 * 2 * 24}", "0"]
