"""Is the laboratory of new cells one that a classifier knows? Each laboratory that they name is asked about alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Shaped

from dorl_jax.evaluation.familiarity import SetFamiliarity, of_set
from dorl_jax.vectors import Vectors


@dataclass(frozen=True)
class Origin:
    """How the cells of one laboratory lie to those that are known.

    Attributes:
      laboratory: what the cells say it is; "" where they say nothing.
      cells: their number.
      known: the known laboratories, the nearest first.
    """

    laboratory: str
    cells: int
    known: tuple[SetFamiliarity, ...]


def find_origins(vectors: Vectors, names: Sequence[str], p_values: Float[np.ndarray, "n l"]) -> tuple[Origin, ...]:
    """An origin for each value of the column `laboratory`, in their order.

    Cells of two known laboratories taken together would be like those of neither.

    Args:
      vectors: the new cells.
      names: of the known laboratories.
      p_values: of each cell in each of them (see `familiarity.Familiarity.of_cells`).
    """
    laboratories = _said(vectors)
    origins = []
    for name in np.unique(laboratories).tolist():
        own = laboratories == name
        origins.append(Origin(name, int(own.sum()), tuple(of_set(list(names), p_values[own]))))
    return tuple(origins)


def describe_origins(origins: Sequence[Origin]) -> str:
    """Whether each is known, a line an origin."""
    if not any(origin.known for origin in origins):
        return "Whether the laboratory is known cannot be told: no training laboratory has enough cells."
    return "\n".join(_described(origin, len(origins)) for origin in origins)


def _described(origin: Origin, of: int) -> str:
    first = origin.known[0]
    cells = "These cells" if of == 1 else "The cells without a laboratory"
    if origin.laboratory:
        cells = f"The cells of {origin.laboratory}"
    said = {
        "known": f"{cells} are like those of {first.laboratory}",
        "shifted": f"{cells} are nearest to those of {first.laboratory}, but shifted",
        "unknown": f"{cells} are from no laboratory the classifier was trained in: check its classes before use",
    }[first.verdict]
    shares = ", ".join(f"{one.laboratory} {one.outside:.0%}" for one in origin.known)
    return (
        f"{said}. Cells farther out than 95 % of a laboratory's own: {shares}; "
        f"of a laboratory's own at most {first.limit:.0%} are to be expected."
    )


def _said(vectors: Vectors) -> Shaped[np.ndarray, " n"]:
    """The laboratory of each cell; unlike `Vectors.laboratories` it takes cells that say none, "" for them."""
    if "laboratory" not in vectors.columns.column_names:
        return np.full(len(vectors), "")
    said = vectors.columns.column("laboratory").to_pylist()
    return np.array(["" if value is None else str(value) for value in said], np.str_)
