"""Is the laboratory of new cells one that a classifier knows? Each laboratory that they name is asked about alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Shaped

from dorl_jax.errors import name_some
from dorl_jax.evaluation.familiarity import SetFamiliarity, of_set
from dorl_jax.vectors import Vectors


@dataclass(frozen=True)
class Origin:
    """How the cells of one laboratory lie to those that are known.

    Attributes:
      laboratory: what the cells say it is; "" where they say nothing.
      cells: their number.
      known: the laboratories that were trained on, the nearest first.
      adapted_to: those of them, and those too small to compare with, that the classifier was adapted to.
    """

    laboratory: str
    cells: int
    known: tuple[SetFamiliarity, ...]
    adapted_to: tuple[str, ...] = ()

    @property
    def nearest(self) -> SetFamiliarity | None:
        """The nearest laboratory; of several that the cells are like, the one that was adapted to."""
        like = (one for one in self.known if one.verdict == "known" and one.laboratory in self.adapted_to)
        return next(like, self.known[0] if self.known else None)

    @property
    def by_name_alone(self) -> bool:
        """Whether the name is that of a laboratory adapted to whose cells are not kept to compare with."""
        return self.laboratory in self.adapted_to and all(one.laboratory != self.laboratory for one in self.known)


def find_origins(
    vectors: Vectors,
    names: Sequence[str],
    p_values: Float[np.ndarray, "n l"],
    adapted_to: tuple[str, ...] = (),
) -> tuple[Origin, ...]:
    """An origin for each value of the column `laboratory`, in their order.

    Cells of two known laboratories taken together would be like those of neither.

    Args:
      vectors: the new cells.
      names: of the laboratories that were trained on.
      p_values: of each cell in each of them (see `familiarity.Familiarity.of_cells`).
      adapted_to: the laboratories that the classifier was adapted to.
    """
    laboratories = _said(vectors)
    origins = []
    for name in np.unique(laboratories).tolist():
        own = laboratories == name
        origins.append(Origin(name, int(own.sum()), tuple(of_set(list(names), p_values[own])), adapted_to))
    return tuple(origins)


def describe_origins(origins: Sequence[Origin]) -> str:
    """Whether each is known, a line an origin."""
    if not any(origin.known or origin.by_name_alone for origin in origins):
        return "Whether the laboratory is known cannot be told: none that was trained on has enough cells."
    return "\n".join(_described(origin, len(origins)) for origin in origins)


def other_than_adapted(origins: Sequence[Origin]) -> list[str]:
    """A note on each whose cells are not like those that the classifier was adapted to, where it was."""
    notes = []
    for origin in origins:
        first = origin.nearest
        like = first is not None and first.verdict != "unknown" and first.laboratory in origin.adapted_to
        if origin.adapted_to and not like and not origin.by_name_alone:
            notes.append(
                f"{origin.laboratory or 'these cells'}: the classifier was adapted to the cells of "
                f"{name_some(origin.adapted_to)} and no others; it is for cells like those"
            )
    return notes


def _described(origin: Origin, of: int) -> str:
    cells = "These cells" if of == 1 else "The cells without a laboratory"
    if origin.laboratory:
        cells = f"The cells of {origin.laboratory}"
    first = origin.nearest
    if origin.by_name_alone:
        return f"{cells} bear the name of one that the classifier was adapted to, but it keeps none to compare with."
    if first is None:
        return f"{cells} cannot be compared with any."
    known = first.laboratory
    if known in origin.adapted_to:
        known += ", which the classifier was adapted to"
    compared = {one.laboratory for one in origin.known}
    trained = "trained in or adapted to" if compared.intersection(origin.adapted_to) else "trained in"
    said = {
        "known": f"{cells} are like those of {known}",
        "shifted": f"{cells} are nearest to those of {known}, but shifted",
        "unknown": f"{cells} are from no laboratory the classifier was {trained}: check its classes before use",
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
