"""Representations to be judged on the same cells: each a name and some files of vectors."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from dorl_jax.errors import InputError, name_some
from dorl_jax.evaluation.latents import Latents, take_rows
from dorl_jax.evaluation.sources import laboratories_of


@dataclass(frozen=True)
class Method:
    """A representation.

    Attributes:
      name: in the tables.
      latents: vectors of the same cells, one for each seed of the training. Where a method is trained anew for each
        laboratory held out, there is one for each of these, too: `Latents.seen` tells them apart; where it is trained
        on the classes of each source, one for each source (`Latents.serves`).
    """

    name: str
    latents: tuple[Latents, ...]


@dataclass(frozen=True)
class Run:
    """One file of vectors of a method.

    Attributes:
      method: its name.
      seed: number of the training among those of the method whose files are tested alike, from 0: no two files of one
        number have seen equally much of a laboratory that both are tested on.
      latents: the vectors, in the order of cells that all runs share.
      targets: laboratories it is tested on. Of a method with files that leave laboratories out and others, each file
        that leaves some out is tested on these alone.
      mark: hash of the vectors.
    """

    method: str
    seed: int
    latents: Latents
    targets: tuple[str, ...]
    mark: str


def align(methods: Sequence[Method]) -> tuple[Latents, list[Run]]:
    """All runs with their cells in one order.

    Returns:
      The cells, with the vectors of the first run and the groups of the first that knows any; the runs.

    Raises:
      InputError: no method, a repeated name, a method without vectors, or vectors of other cells, laboratories or
        classes than those of the first method.
    """
    if not methods:
        raise InputError("no vectors to judge")
    names = [method.name for method in methods]
    repeated = {name for name in names if names.count(name) > 1}
    if repeated:
        raise InputError(f"two methods are called {name_some(sorted(repeated))}")
    empty = [method.name for method in methods if not method.latents]
    if empty:
        raise InputError(f"method {name_some(empty)} has no vectors")
    cells = methods[0].latents[0]
    known = [
        one.groups
        for method in methods
        for one in _ordered(cells, method)
        if one.groups is not None and (one.groups != "").any()
    ]
    cells = replace(cells, groups=known[0] if known else None)
    laboratories = np.unique(cells.laboratories).tolist()
    runs = []
    for method in methods:
        ordered = _ordered(cells, method)
        patterns = [(one.serves, b"" if one.seen is None else one.seen.astype("<U10").tobytes()) for one in ordered]
        several = any(len({seen for serves, seen in patterns if serves == one.serves}) > 1 for one in ordered)
        taken: dict[tuple[str, str, str], set[int]] = defaultdict(set)
        for one in ordered:
            left_out = _left_out(one, laboratories) if several else []
            if one.serves and not laboratories_of(one.serves, laboratories):
                raise InputError(
                    f"method {method.name!r} has vectors for classifiers trained on {one.serves!r}, which is neither "
                    f"one of the laboratories ({name_some(laboratories, 10)}) nor all but one"
                )
            targets = tuple(left_out or laboratories)
            alike = [(one.serves, target, _seen_of(one, target)) for target in targets]
            others = set().union(*(taken[test] for test in alike))
            seed = next(number for number in range(len(others) + 1) if number not in others)
            for test in alike:
                taken[test].add(seed)
            mark = hashlib.sha256(str(one.vectors.shape).encode() + one.vectors.tobytes()).hexdigest()
            runs.append(Run(method.name, seed, one, targets, mark))
    return cells, runs


def _ordered(cells: Latents, method: Method) -> list[Latents]:
    place = {name: number for number, name in enumerate(cells.ids.tolist())}
    ordered = []
    for one in method.latents:
        strange = [repr(name) for name in one.ids.tolist() if name not in place]
        if strange or len(one) != len(cells):
            missing = [repr(name) for name in place.keys() - set(one.ids.tolist())]
            raise InputError(
                f"method {method.name!r} has vectors of other cells than the first method: "
                f"{name_some(sorted(strange)) or 'none'} too many, {name_some(sorted(missing)) or 'none'} missing. "
                "Methods are compared on the same cells"
            )
        order = np.argsort([place[name] for name in one.ids.tolist()])
        again = take_rows(one, order)
        for what, mine, theirs in (
            ("laboratory", again.laboratories, cells.laboratories),
            ("class", again.labels, cells.labels),
        ):
            if (mine != theirs).any():
                row = int(np.flatnonzero(mine != theirs)[0])
                raise InputError(
                    f"method {method.name!r}: the {what} of {str(cells.ids[row])!r} is {str(mine[row])!r}, in the "
                    f"first method it is {str(theirs[row])!r}"
                )
        ordered.append(again)
    return ordered


def _seen_of(latents: Latents, laboratory: str) -> str:
    """What was seen of any of its cells: it decides in which settings the laboratory is tested."""
    if latents.seen is None:
        return ""
    return " ".join(np.unique(latents.seen[latents.laboratories == laboratory]).tolist())


def _left_out(latents: Latents, laboratories: Sequence[str]) -> list[str]:
    if latents.seen is None:
        return []
    return [name for name in laboratories if (latents.seen[latents.laboratories == name] == "no").all()]
