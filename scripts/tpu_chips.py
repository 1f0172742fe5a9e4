"""What a TPU chip is said to do, and a model of how a step scales over many of them."""

from collections.abc import Iterable
from dataclasses import dataclass

from hlo_collectives import Collective

from dorl_jax.errors import InputError


@dataclass(frozen=True)
class Chip:
    """Published figures of one chip.

    Attributes:
      hbm: bytes of memory.
      flops: peak bf16 operations a second.
      hbm_bandwidth: bytes a second.
      ici_bandwidth: bytes a second that it sends to its neighbours over all its links together.
      clock: cycles a second, None where it is not published.
      accelerator: stem of the names of its slices in Cloud TPU, which libtpu is told, and what they count.
    """

    hbm: float
    flops: float
    hbm_bandwidth: float
    ici_bandwidth: float
    clock: float | None
    accelerator: tuple[str, int]


# Memory, FLOP/s and bandwidths: docs.cloud.google.com/tpu/docs/{v5e,v5p,v6e} (read 2026). The interconnect of v5e and
# v6e is given there as 400 and 800 GB/s both ways, and as 51.2 and 102.4 TB/s of all-reduce for 256 chips, which is
# half of it a chip; that of v5p as 4800 Gbit/s. The clocks follow from FLOP/s = 2 * 128^2 * MXUs * clock with 4 MXUs
# (v5e) and 2 * 4 (v5p); what is published of v6e gives no plausible one.
CHIPS = {
    "v5e": Chip(16e9, 197e12, 819e9, 200e9, 1.5e9, ("v5litepod", 1)),
    "v5p": Chip(95e9, 459e12, 2765e9, 600e9, 1.75e9, ("v5p", 2)),
    "v6e": Chip(32e9, 918e12, 1638e9, 400e9, None, ("v6e", 1)),
}


def chip_of(topology: str) -> Chip:
    """The chip of a topology such as "v5e:2x4".

    Raises:
      InputError: a kind that is not in the table.
    """
    kind = topology.partition(":")[0]
    if kind not in CHIPS:
        raise InputError(f"topology {topology!r}: known are cpu:N, and {', '.join(CHIPS)} such as v5e:2x4, v5p:2x2x1")
    return CHIPS[kind]


def roofline(chip: Chip, flops: float, accessed: float) -> float:
    """Seconds that the arithmetic or the memory takes, whichever is more."""
    return max(flops / chip.flops, accessed / chip.hbm_bandwidth)


def network_seconds(chip: Chip, collectives: Iterable[Collective], chips: int, of: int, model: int = 1) -> float:
    """Seconds that the collectives of a step take on `of` chips, if every link is always in use.

    Groups along the axis `model` keep their size, the others grow with the chips.

    Args:
      chip: on each end of the links.
      collectives: of a step compiled for `chips`.
      chips: see there.
      of: chips that the step is thought to run on.
      model: chips along the mesh's axis `model`.
    """
    sent = 0.0
    for collective in collectives:
        group = collective.group if collective.group == model != chips else max(1, collective.group * of // chips)
        sent += collective.sent(group)
    return sent / chip.ici_bandwidth


def efficiency(compute: float, network: float) -> tuple[float, float]:
    """Share of the time that is computing: if nothing overlaps, and if all communication that can be is hidden."""
    return compute / (compute + network), compute / max(compute, network)
