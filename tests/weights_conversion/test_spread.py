"""A checkpoint spread over several devices as it is read."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from dorl_jax.parallel import parameter_sharding, partition

SCRIPT = """
import jax
import numpy as np
from flax import nnx
from small_sam import assert_same_tensors, small_lora, small_sam
from weights_conversion import convert_lora_sam, convert_sam, export_lora_sam, export_sam

for shape, names, parts in (((4,), ("data",), 4), ((2, 2), ("data", "model"), 2)):
    mesh = jax.make_mesh(shape, names)
    source = small_sam()
    model = convert_sam(source, mesh=mesh)
    kernel = model.image_encoder.blocks[2].attn.qkv.kernel.get_value()  # (24, 72)
    for shard in kernel.addressable_shards:
        assert shard.data.shape == (24, 72 // parts), shard.data.shape
    held = sum(shard.data.nbytes for leaf in jax.tree.leaves(nnx.state(model)) for shard in leaf.addressable_shards[:1])
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(model)))
    assert held < 1.2 * whole / parts, (held, whole)
    assert_same_tensors(export_sam(model), source)
    images = np.random.RandomState(0).randint(0, 256, (1, 32, 32, 3)).astype(np.uint8)
    run = jax.jit(lambda state: nnx.merge(nnx.graphdef(model), state).encode_image(images)["embedding"])
    plain = convert_sam(source).encode_image(images)["embedding"]
    np.testing.assert_allclose(run(nnx.state(model)), plain, atol=1e-5 * np.abs(plain).max())
lora = convert_lora_sam(source, small_lora(), image_size=32, mesh=mesh)
assert_same_tensors(export_lora_sam(lora).lora, small_lora())
"""


@pytest.mark.slow
def test_a_sam_on_four_devices():
    tests = Path(__file__).parents[1]
    path = os.pathsep.join([str(tests), os.environ.get("PYTHONPATH", "")])
    flags = "--xla_force_host_platform_device_count=4"
    environment = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": path}
    subprocess.run([sys.executable, "-c", SCRIPT], env=environment, check=True)


@pytest.mark.parametrize(
    ("shape", "mesh", "expected"),
    [
        ((768, 2304), {"data": 2, "model": 4}, (None, ("model",))),
        ((3072, 768), {"data": 2, "model": 4}, (("model",),)),
        ((769, 3), {"data": 2, "model": 4}, ()),
        ((6, 10), {"data": 2, "model": 4}, ()),
        ((6, 10, 4), {"data": 2, "model": 2}, (None, ("model",))),
        ((768, 2304), {"data": 8}, (None, ("data",))),
        ((768, 2304), {"fsdp": 2, "data": 3}, (None, ("fsdp", "data"))),
        ((768, 2304), {"data": 8, "model": 1}, ()),
        ((), {"data": 8}, ()),
    ],
)
def test_the_largest_axis_that_divides_is_split(shape, mesh, expected):
    assert partition(shape, AbstractMesh(tuple(mesh.values()), tuple(mesh))) == PartitionSpec(*expected)


def test_one_device_is_no_mesh():
    mesh = jax.make_mesh((1,), ("model",))
    assert parameter_sharding((4, 8), mesh).spec == PartitionSpec()
