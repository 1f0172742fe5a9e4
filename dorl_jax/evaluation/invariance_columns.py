"""Invariance beside accuracy: what the tables of methods say of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from dorl_jax.errors import InputError
from dorl_jax.evaluation.invariance import LEAST_CELLS, Invariance
from dorl_jax.evaluation.results import Summary


@dataclass(frozen=True)
class Measure:
    """A column of the table of methods; `needs` is why it may be missing."""

    name: str
    title: str
    about: str
    needs: str = ""


MEASURES = (
    Measure(
        "probe",
        "probe",
        "balanced accuracy of a linear probe that tells the laboratory",
        "The probes were not made: they need two groups of cells, or two cells on their own, in every laboratory.",
    ),
    Measure("probe_forest", "probe, forest", "the same of a random forest"),
    Measure(
        "robustness",
        "robustness",
        "whether neighbours are alike in class (1) or in laboratory (0)",
        f"The robustness index was not measured: it needs, in two laboratories, {LEAST_CELLS} cells of two classes.",
    ),
    Measure("kbet", "kBET", "share of neighbourhoods within a class in which laboratories are mixed"),
    Measure("ilisi", "iLISI", "laboratories in a neighbourhood, from one (0) to all (1)"),
    Measure("silhouette_batch", "silhouette, laboratory", "1 where laboratories lie over each other"),
    Measure("silhouette_class", "silhouette, class", "1 where classes lie apart"),
)


@dataclass(frozen=True)
class _File:
    remark: str
    measured: list[Invariance]


class InvarianceColumns:
    """What stands beside accuracy in tables of methods: `measures`, and a remark on all of them."""

    def __init__(self, measured: Sequence[Invariance] = (), remark: str = "") -> None:
        self._measured = measured
        self.measures = [
            one for one in MEASURES if any(getattr(found, one.name) is not None for found in self._measured)
        ]
        said = []
        if measured:
            if measured[0].probe_of_class is not None:
                said.append(
                    f"Chance is {1 / measured[0].laboratories:.2f} for the probes; a vector of nothing but the class "
                    f"would give {measured[0].probe_of_class:.2f}."
                )
            said += [one.needs for one in MEASURES if one.needs and one not in self.measures]
        self.remark = " ".join([*said, remark]).strip()

    def of(self, summary: Summary, measure: Measure) -> str:
        """The mean over seeds; self-training works on vectors in their laboratory's units."""
        adaptation = "none" if summary.adaptation == "none" else "own"
        values = [
            value
            for one in self._measured
            if (one.method, one.adaptation) == (summary.method, adaptation)
            and (value := getattr(one, measure.name)) is not None
        ]
        return f"{np.mean(values):.2f}" if values else ""


def read_invariance(path: Path) -> InvarianceColumns:
    """The columns of `invariance.json`."""
    try:
        file = msgspec.json.decode(path.read_bytes(), type=_File)
    except msgspec.DecodeError as error:
        raise InputError(f"{path} cannot be read: {error}; run the stage `evaluate` again") from error
    return InvarianceColumns(file.measured, file.remark)
