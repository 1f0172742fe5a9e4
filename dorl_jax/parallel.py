"""Devices: the mesh, and where arrays live on it. The only file that knows how many devices there are."""

import math
import resource
import sys
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from dorl_jax.errors import InputError

T = TypeVar("T")


def make_mesh(model: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """Devices along two axes, `data` and `model`.

    Batches are spread over all of them, parameters over those along `model` (see `partition`): with 1 every device
    holds all parameters; with more each holds a part, and they hand it to each other when a layer needs it (FSDP).

    Args:
      model: devices along `model`.
      devices: by default all of all processes.

    Raises:
      InputError: the devices do not divide.
    """
    devices = jax.devices() if devices is None else devices
    if model < 1 or len(devices) % model:
        raise InputError(f"{len(devices)} devices cannot be split over {model} along the axis `model`: take a divisor")
    shape = (len(devices) // model, model)
    return jax.make_mesh(shape, ("data", "model"), axis_types=(AxisType.Auto,) * 2, devices=devices)


def parameter_shardings(tree: Any, mesh: Mesh) -> Any:
    """For every array (or its shape) of the tree where it lives: split over `model`, whole along `data`."""
    return jax.tree.map(lambda x: NamedSharding(mesh, partition(x.shape, mesh)), tree)


def place(tree: T, mesh: Mesh) -> T:
    """The tree with every array where `parameter_shardings` says; all processes give the same values."""
    return jax.device_put(tree, parameter_shardings(tree, mesh))


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


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows spread over all devices."""
    return NamedSharding(mesh, PartitionSpec(mesh.axis_names))


def on_every_device(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def shard_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """A batch (this process's part of it) spread over all devices along its first axis.

    Raises:
      InputError: the batch does not divide over the devices.
    """
    local = max(1, jax.local_device_count())
    sharding = batch_sharding(mesh)
    for name, array in batch.items():
        if len(array) % local:
            raise InputError(f"batch of {len(array)} ({name}) does not divide over {local} devices: change batch_size")
    return {name: jax.make_array_from_process_local_data(sharding, array) for name, array in batch.items()}


def local_copy(tree: T, mesh: Mesh) -> T:
    """The tree with every array whole on this process's first device; all processes ask for it together."""
    whole = jax.jit(lambda tree: tree, out_shardings=on_every_device(mesh))(tree)
    return jax.tree.map(lambda x: x.addressable_data(0), whole)


def is_main() -> bool:
    """Whether this process is the one that writes what all share."""
    return jax.process_index() == 0


def memory_in_use() -> dict[str, float]:
    """The most memory that was in use, in MB: of this process's fullest device, or of the process on a CPU."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    peaks = [found["peak_bytes_in_use"] for found in stats if found and "peak_bytes_in_use" in found]
    if peaks:
        return {"device_memory_mb": max(peaks) / 2**20}
    # Kilobytes on Linux, bytes on macOS.
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return {"memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit}
