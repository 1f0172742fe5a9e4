"""What of a report the reader should do something about, worst first."""

from collections.abc import Sequence

from dorl_jax.data.check.report import Copies, LaboratoryReport, Leak, Problem
from dorl_jax.errors import name_some

_FEW = 5
"""Cells of a class; with fewer not every one of five folds holds one."""


def find_problems(
    laboratories: Sequence[LaboratoryReport],
    copies: Sequence[Copies],
    leaks: Sequence[Leak],
    torn: tuple[float, float],
    remarks: Sequence[tuple[str, str]],
) -> tuple[Problem, ...]:
    """The problems, errors first.

    Args:
      laboratories, copies, leaks, torn: as in `Report`.
      remarks: laboratory and remark of its reader.
    """
    found = [problem for laboratory in laboratories for problem in _of_laboratory(laboratory)]
    found += _of_leaks(leaks)
    found += _of_copies(copies, torn, split=any(laboratory.splits for laboratory in laboratories))
    found += [Problem("note", f"{name}: {remark.rstrip('.')}") for name, remark in remarks]
    if len(laboratories) == 1:
        found.append(Problem("note", "there is one laboratory", "a comparison across laboratories needs two"))
    order = ("error", "warning", "note")
    return tuple(sorted(found, key=lambda problem: order.index(problem.severity)))


def _of_laboratory(one: LaboratoryReport) -> list[Problem]:
    found = []
    if one.unmapped:
        spelled = (
            f"{label!r} ({count}{f', near {one.nearest[label]!r}' if one.nearest[label] else ''})"
            for label, count in one.unmapped.items()
        )
        advice = "map or drop them in laboratory.toml, or choose another taxonomy"
        found.append(Problem("error", f"{one.name}: unmapped labels {name_some(spelled, 10)}", advice))
    if one.unusable:
        listed = name_some((f"{bad.file} ({bad.reason})" for bad in one.unusable), 3)
        advice = "a run leaves them out, but stops where a file is not there"
        found.append(Problem("error", f"{one.name}: {len(one.unusable)} cells cannot be used: {listed}", advice))
    if not sum(one.classes.values()):
        found.append(Problem("error", f"{one.name}: no cell of any class"))
    few = [f"{count} {label}" for label, count in one.classes.items() if 0 < count < _FEW]
    if few:
        advice = "not every fold of five will hold one"
        found.append(Problem("warning", f"{one.name}: few cells of a class: {', '.join(few)}", advice))
    absent = [label for label, count in one.classes.items() if not count]
    if absent and sum(one.classes.values()):
        advice = "classifiers trained here cannot name them"
        found.append(Problem("note", f"{one.name}: no cell of {', '.join(absent)}", advice))
    if one.dropped:
        listed = name_some((f"{count} {label}" for label, count in one.dropped.items()), 10)
        found.append(Problem("note", f"{one.name}: left out as dropped labels: {listed}"))
    if one.declared:
        found.append(Problem("note", f"{one.name}: {one.declared} rows are listed as duplicates and left out"))
    if one.used_bits:
        what = f"{one.name}: images of 16 bits look like {one.used_bits} bits in 16: none has a larger value"
        advice = f"they are read too dark: multiply their values by {2 ** (16 - one.used_bits)}"
        found.append(Problem("warning", what, advice))
    found += [Problem("note", f"{one.name}: {count} images: {note}") for note, count in one.notes.items()]
    return found + _of_masks(one)


def _of_masks(one: LaboratoryReport) -> list[Problem]:
    if one.masks is None:
        return [Problem("note", f"{one.name}: no masks", "the segmenter cannot learn from it")]
    found = []
    read = one.rows - one.declared
    for count, severity, what in (
        (read - one.masks.count, "note", "cells have no mask that can be used"),
        (one.masks.stray, "note", "masks have values other than 0, 128 and 255; they are rounded"),
        (one.masks.in_pieces, "note", "masks are in several pieces; the largest counts"),
        (one.masks.touching, "note", "masks touch the border of their image: the cell may be cut"),
    ):
        if count:
            found.append(Problem(severity, f"{one.name}: {count} {what}"))  # type: ignore[arg-type]
    if one.masks.all_corners > one.masks.count / 2:
        what = f"{one.name}: {one.masks.all_corners} of {one.masks.count} masks cover all four corners of their image"
        found.append(Problem("warning", what, "are they inverted? 0 is the background"))
    if one.masks.coverage[2] > 0.9:
        advice = "are these masks of the cell?"
        found.append(Problem("warning", f"{one.name}: half of the masks cover over 90 % of their image", advice))
    return found


def _of_leaks(leaks: Sequence[Leak]) -> list[Problem]:
    if not leaks:
        return []
    listed = name_some((f"{leak.laboratory}: {leak.what} in {' and '.join(leak.splits)}" for leak in leaks), 3)
    advice = "results on such a split are too good: move each to one side"
    return [Problem("error", f"{len(leaks)} leaks between splits: {listed}", advice)]


def _of_copies(copies: Sequence[Copies], torn: tuple[float, float], *, split: bool) -> list[Problem]:
    found = []
    across = [one for one in copies if len(set(one.laboratories)) > 1]
    within = [one for one in copies if len(set(one.laboratories)) == 1]
    if across:
        listed = name_some((" = ".join(one.cells) for one in across), 3)
        advice = "a test across them is none: keep each in one laboratory"
        found.append(Problem("error", f"{len(across)} cells are in several laboratories: {listed}", advice))
    if contrary := [one for one in within if len(set(one.labels)) > 1]:
        listed = name_some((f"{' = '.join(one.cells)} ({', '.join(one.labels)})" for one in contrary), 3)
        advice = "one of the labels is wrong"
        found.append(Problem("warning", f"{len(contrary)} cells are there under several labels: {listed}", advice))
    if within:
        exact = sum(one.exact for one in within)
        listed = name_some((" = ".join(one.cells) for one in within), 3)
        advice = "name the repeated ones in the column duplicate_of, or give the copies one group"
        what = f"{len(within)} cells are there more than once ({exact} with the same pixels): {listed}"
        found.append(Problem("warning", what, advice))
    if not split:
        groups, sets = torn
        if groups >= 0.5 or sets >= 0.5:
            what = f"five random folds would tear apart about {groups:.0f} groups and {sets:.0f} sets of copies"
            found.append(Problem("warning", what, "let folds respect groups"))
    return found
