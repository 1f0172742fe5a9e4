"""Folds of each laboratory: stratified by class, and never through a group of cells that belong together."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, Shaped
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from dorl_jax.errors import InputError
from dorl_jax.evaluation.latents import Latents


@dataclass(frozen=True)
class Split:
    """Rows of one laboratory, and for each fold which of them are fitted on and which are tested."""

    rows: Int[np.ndarray, " m"]
    folds: list[tuple[Int[np.ndarray, " _"], Int[np.ndarray, " _"]]]


def split_laboratories(latents: Latents, folds: int, seed: int, grouped: bool = True) -> dict[str, Split]:
    """Folds of every laboratory, in the order of their names.

    Args:
      latents: the cells.
      folds: at least 2.
      seed: of the shuffle.
      grouped: keep the cells of a group together, where `latents.groups` names groups of more than one cell; without,
        and in laboratories without such groups, the folds are those of scikit-learn's `StratifiedKFold`.

    Raises:
      InputError: a laboratory too small for the folds: fewer cells (or groups) than folds, no class with as many cells
        as there are folds, or a training part without two cells of two classes.
    """
    names = np.unique(latents.laboratories).tolist()
    return {name: _split(latents, name, folds, seed, grouped) for name in names}


def whole_groups(groups: Shaped[np.ndarray, " n"] | None, cells: int) -> Int[np.ndarray, " n"]:
    """A number for the group of each cell; cells named "" are groups of one."""
    if groups is None:
        return np.arange(cells)
    alone = groups == ""
    numbers = np.unique(groups, return_inverse=True)[1]
    numbers[alone] = len(groups) + np.arange(int(alone.sum()))
    return np.unique(numbers, return_inverse=True)[1]


def groups_across(latents: Latents) -> dict[str, tuple[str, ...]]:
    """Groups that have cells in more than one laboratory, with these."""
    across: dict[str, set[str]] = {}
    if latents.groups is not None:
        for group, laboratory in zip(latents.groups.tolist(), latents.laboratories.tolist(), strict=True):
            across.setdefault(group, set()).add(laboratory)
    return {group: tuple(sorted(names)) for group, names in across.items() if group and len(names) > 1}


def _split(latents: Latents, laboratory: str, folds: int, seed: int, grouped: bool) -> Split:
    rows = np.flatnonzero(latents.laboratories == laboratory)
    labels = latents.labels[rows]
    names, counts = np.unique(labels, return_counts=True)
    listed = ", ".join(f"{count} {name}" for name, count in zip(names, counts, strict=True))
    if len(rows) < folds or counts.max() < folds:
        raise InputError(
            f"laboratory {laboratory!r} has too few cells for {folds} folds ({listed}): at least one class "
            f"needs {folds}; add cells, set fewer folds, or leave the laboratory out"
        )
    if (counts >= 3).sum() < 2:
        raise InputError(
            f"laboratory {laboratory!r} ({listed}) needs two classes with at least 3 cells to train a "
            "classifier; add cells or leave the laboratory out"
        )
    groups = whole_groups(latents.groups[rows] if grouped and latents.groups is not None else None, len(rows))
    number = len(np.unique(groups))
    if number < folds:
        raise InputError(
            f"laboratory {laboratory!r} has {number} groups (patients, slides) for {folds} folds: set fewer folds, or "
            "grouped = false to let a group stand on both sides"
        )
    with warnings.catch_warnings():
        # Known, and said in the notes.
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        if number == len(rows):
            parts = list(StratifiedKFold(folds, shuffle=True, random_state=seed).split(rows, labels))
        else:
            parts = list(StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(rows, labels, groups))
    for fitted, tested in parts:
        if not len(tested) or (np.unique(labels[fitted], return_counts=True)[1] >= 2).sum() < 2:
            what, way_out = (
                ("cells", "add cells, set fewer folds, or leave the laboratory out")
                if number == len(rows)
                else ("groups", "set fewer folds, or grouped = false to let a group stand on both sides")
            )
            raise InputError(
                f"laboratory {laboratory!r}: its {number} {what} leave a fold without cells to test or without two "
                f"classes to train on; {way_out}"
            )
    return Split(rows, [(rows[fitted], rows[tested]) for fitted, tested in parts])


def fold_numbers(splits: Mapping[str, Split], cells: int) -> Int[np.ndarray, " n"]:
    """The fold in which each cell is tested in its own laboratory."""
    numbers = np.zeros(cells, int)
    for split in splits.values():
        for fold, (_, tested) in enumerate(split.folds):
            numbers[tested] = fold
    return numbers
