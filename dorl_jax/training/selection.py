"""What trains of a model: freezing by pattern, and the table that shows it."""

import logging
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from flax import nnx

from dorl_jax.errors import InputError, name_some, suggest
from dorl_jax.files import write_text
from dorl_jax.parallel import is_main

logger = logging.getLogger(__name__)


def freeze(model: nnx.Module, trainable: nnx.filterlib.Filter, patterns: Sequence[str]) -> nnx.filterlib.Filter:
    """What trains, without the parameters whose name matches one of the patterns.

    Args:
      model: whose parameters are meant.
      trainable: NNX filter of what trains otherwise.
      patterns: as in file names, `*` for anything: `sam.image_encoder.blocks.0.*`, `*.rel_pos_?`.

    Raises:
      InputError: a pattern that matches no parameter, or nothing is left to train.
    """
    names = [_name(path) for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Param))]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            near = suggest(pattern, names) or f"; there are {name_some(names, 3)}"
            raise InputError(f"freeze: {pattern!r} matches no parameter{near}")

    def stays(path: tuple[Any, ...], value: Any) -> bool:
        return not any(fnmatchcase(_name(path), pattern) for pattern in patterns)

    left = nnx.All(trainable, stays)
    if not nnx.to_flat_state(nnx.state(model, left)):
        raise InputError("nothing is left to train: take less into `freeze`")
    return left


def trained_table(model: nnx.Module, trainable: nnx.filterlib.Filter, depth: int = 2) -> str:
    """A table of what trains: a row for each part of the model, trained and frozen parameters in it, and their sum.

    Args:
      model: its parameters are counted.
      trainable: NNX filter of what trains.
      depth: how many names deep parts are told apart.
    """
    trained = {path for path, _ in nnx.to_flat_state(nnx.state(model, trainable))}
    rows: dict[str, list[int]] = {}
    for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        kind = " (LoRA)" if isinstance(leaf, nnx.LoRAParam) else ""
        counts = rows.setdefault(_name(path[:depth]) + kind, [0, 0])
        counts[path not in trained] += leaf.size
    rows["all"] = [sum(counts[column] for counts in rows.values()) for column in (0, 1)]
    width = max(map(len, rows))
    lines = [f"{'part':{width}}  {'trained':>13}  {'frozen':>13}"]
    lines += [f"{name:{width}}  {trains:13,}  {frozen:13,}" for name, (trains, frozen) in rows.items()]
    return "\n".join(lines)


def show_trained(model: nnx.Module, trainable: nnx.filterlib.Filter, folder: Path) -> None:
    """Log `trained_table`, and write it to `trained.txt`."""
    table = trained_table(model, trainable)
    logger.info("%s", table)
    if is_main():
        write_text(folder / "trained.txt", table + "\n")


def _name(path: Sequence[Any]) -> str:
    return ".".join(map(str, path))
