"""Devices and processes: how they find each other, the mesh, and where arrays live on it.

The only file that knows how many there are.
"""

import logging
import math
import resource
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from dorl_jax.errors import InputError

logger = logging.getLogger(__name__)

T = TypeVar("T")
# What `done_by_main` tells of work that was not done.
_FAILED = -1


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
    shardings = parameter_shardings(tree, mesh)
    return (
        jax.tree.map(_from_every_process, tree, shardings) if several_processes() else jax.device_put(tree, shardings)
    )


def _from_every_process(array: Any, sharding: NamedSharding) -> jax.Array:
    # device_put refuses an array that is bound to a device, as those of a loaded model are.
    values = np.asarray(array)
    return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])


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


def initialise(
    coordinator: str | None = None, processes: int | None = None, process: int | None = None, timeout: int = 300
) -> None:
    """Make this process one of a run over several, before anything else is asked of JAX.

    Without arguments the cluster tells them: Cloud TPU, GKE, Slurm, Open MPI, Kubernetes (JobSet).

    Args:
      coordinator: HOST:PORT of process 0, by which all find each other; the port must be free there.
      processes: how many there are.
      process: number of this one, 0..processes - 1.
      timeout: seconds to wait for the others.

    Raises:
      InputError: some of the arguments but not all, a number out of range, a port that is taken, nobody at the address
        in time, or no cluster that JAX knows. Process 0, in whose time the others do not come, is ended by JAX.
    """
    given = {"coordinator": coordinator, "processes": processes, "process": process}
    missing = [name for name, value in given.items() if value is None]
    if 0 < len(missing) < len(given):
        raise InputError(f"{' and '.join(missing)} missing: give coordinator, processes and process, or none of them")
    if coordinator is not None and not _is_address(coordinator):
        raise InputError(f"coordinator {coordinator!r}: expected HOST:PORT, of process 0 and a free port there")
    if processes is not None and process is not None and not 0 <= process < processes:
        raise InputError(f"process {process} of {processes}: expected a number from 0 to {processes - 1}")
    if coordinator is not None and process is not None:
        _try(coordinator, process, timeout)
    # JAX itself ends a process whose partners do not come, in words of its own.
    warning = threading.Timer(timeout, _say_who_is_missing, [process, timeout])
    warning.daemon = True
    warning.start()
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            # What is given is not to be mixed with what a cluster says.
            cluster_detection_method="deactivate" if coordinator else None,
            initialization_timeout=timeout + 5,
            # Who fails alone waits this long for the others, which wait for it in the middle of a computation; then all
            # of them are ended. Who ends well does so together with the others.
            shutdown_timeout_seconds=30,
        )
    except (ValueError, RuntimeError) as error:
        if coordinator is not None:
            raise
        raise InputError(
            f"no cluster tells which processes belong together: {error} JAX asks Cloud TPU, GKE, Slurm, Open MPI and "
            "Kubernetes; elsewhere give coordinator, processes and process"
        ) from error
    finally:
        warning.cancel()


def several_processes() -> bool:
    """Whether this is a run of several processes; with one, JAX is not woken to tell."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_main() -> bool:
    """Whether this process is the one that writes what all share."""
    return not several_processes() or jax.process_index() == 0


def barrier(name: str) -> None:
    """Wait until all processes are here; with one process nothing is done."""
    if several_processes():
        multihost_utils.sync_global_devices(name)


def done_by_main(work: Callable[[], int | None]) -> int:
    """The number (0 for None) that process 0 comes to; all others wait for it.

    Args:
      work: done by process 0 alone; a number that it gives is 0 or more.

    Raises:
      InputError: on the other processes, where the work failed; process 0 raises what the work raised.
    """
    if not several_processes():
        return work() or 0
    found = _FAILED
    try:
        if is_main():
            found = work() or 0
    finally:
        # Also of a failure: the others would wait for ever.
        told = int(multihost_utils.broadcast_one_to_all(np.int32(found)))
    if told == _FAILED:
        raise InputError("process 0 failed; its log says why")
    return told


def memory_in_use() -> dict[str, float]:
    """The most memory that was in use, in MB: of this process's fullest device, or of the process on a CPU."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    peaks = [found["peak_bytes_in_use"] for found in stats if found and "peak_bytes_in_use" in found]
    if peaks:
        return {"device_memory_mb": max(peaks) / 2**20}
    # Kilobytes on Linux, bytes on macOS.
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return {"memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit}


def _is_address(text: str) -> bool:
    host, _, port = text.rpartition(":")
    return bool(host) and port.isdecimal() and 0 < int(port) < 2**16


def _try(coordinator: str, process: int, timeout: int) -> None:
    """Refuse an address at which JAX would not come back: a port that is taken, or where nobody answers."""
    host, _, port = coordinator.rpartition(":")
    if process == 0:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", int(port)))
            except OSError as error:
                raise InputError(f"coordinator {coordinator}: {error.strerror}; take another port") from error
        return
    end = time.monotonic() + timeout
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > end:
                raise InputError(
                    f"process {process} found nobody at {coordinator} within {timeout} s ({error.strerror or error}): "
                    "start process 0 with the same address, and let its port through"
                ) from error
        time.sleep(0.5)


def _say_who_is_missing(process: int | None, timeout: int) -> None:
    own = "this process" if process is None else f"process {process}"
    logger.error(
        "%s waited %d s for the others: start all of them, with the same address and number of processes", own, timeout
    )
