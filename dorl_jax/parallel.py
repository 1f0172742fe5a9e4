"""Devices: the mesh, and where arrays live on it. The only file that knows how many devices there are."""

from collections.abc import Mapping
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dorl_jax.errors import InputError

T = TypeVar("T")


def data_mesh() -> Mesh:
    """All devices of all processes along one axis, `data`."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def replicate(tree: T, mesh: Mesh) -> T:
    """The tree with every array whole on every device."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def shard_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """A batch (this process's part of it) spread over the `data` axis along its first axis.

    Raises:
      InputError: the batch does not divide over the devices.
    """
    local = max(1, jax.local_device_count())
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    for name, array in batch.items():
        if len(array) % local:
            raise InputError(f"batch of {len(array)} ({name}) does not divide over {local} devices: change batch_size")
    return {name: jax.make_array_from_process_local_data(sharding, array) for name, array in batch.items()}
