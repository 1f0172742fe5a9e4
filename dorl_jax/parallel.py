"""Devices: the mesh, and where arrays live on it. The only file that knows how many devices there are."""

import math
from collections.abc import Mapping
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from dorl_jax.errors import InputError

T = TypeVar("T")


def data_mesh() -> Mesh:
    """All devices of all processes along one axis, `data`."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def replicate(tree: T, mesh: Mesh) -> T:
    """The tree with every array whole on every device."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def partition(shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """How a parameter is split: along its largest axis that divides, not at all if none does.

    It is split over the mesh's `model` axis, or over all its devices if it has none of that name.
    """
    names = ("model",) if "model" in mesh.axis_names else mesh.axis_names
    parts = math.prod(mesh.shape[name] for name in names)
    dividing = [axis for axis, size in enumerate(shape) if size and size % parts == 0]
    if not dividing or parts == 1:
        return PartitionSpec()
    chosen = max(dividing, key=lambda axis: shape[axis])
    return PartitionSpec(*[None] * chosen, names)


def parameter_sharding(shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    """Where a parameter lives (see `partition`)."""
    # The compiler shall choose how intermediate values are split, also on a mesh with explicit axes, today's default.
    automatic = Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))
    return NamedSharding(automatic, partition(shape, mesh))


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
