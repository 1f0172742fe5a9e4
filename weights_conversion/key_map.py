"""A declarative table between the names of a state dict and the paths of a model, applied strictly, both ways."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from dorl_jax.errors import InputError, name_some
from dorl_jax.models.abstract import abstract_model, traced_rngs
from dorl_jax.parallel import parameter_sharding
from weights_conversion.layouts import AS_IS, LINEAR, Layout
from weights_conversion.report import Row
from weights_conversion.sources import Tensor, Tensors

M = TypeVar("M", bound=nnx.Module)


@dataclass(frozen=True)
class Rule:
    """One row of a table; `{}` stands for a number, the same on both sides.

    Attributes:
      source: name in the state dict.
      target: path in the model, its parts joined by dots.
      layout: how the two order the values.
    """

    source: str
    target: str
    layout: Layout = AS_IS


def module_rules(source: str, target: str, kernel: Layout = LINEAR, *, bias: bool = True) -> list[Rule]:
    """Weight (and bias) of a linear or convolution layer."""
    rules = [Rule(f"{source}.weight", f"{target}.kernel", kernel)]
    return [*rules, Rule(f"{source}.bias", f"{target}.bias")] if bias else rules


def norm_rules(source: str, target: str) -> list[Rule]:
    """Weight and bias of a normalisation layer."""
    return [Rule(f"{source}.weight", f"{target}.scale"), Rule(f"{source}.bias", f"{target}.bias")]


def under(prefix: str, rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """The rules of a model that is part of another."""
    return tuple(Rule(rule.source, f"{prefix}.{rule.target}", rule.layout) for rule in rules)


@lru_cache(maxsize=1024)
def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(r"(\d+)".join(map(re.escape, template.split("{}"))))


def target_of(rules: Iterable[Rule], name: str) -> tuple[str, Layout] | None:
    """Path in the model of a name in the state dict; None if no rule has it."""
    for rule in rules:
        match = _pattern(rule.source).fullmatch(name)
        if match:
            return rule.target.format(*match.groups()), rule.layout
    return None


def source_of(rules: Iterable[Rule], path: str) -> tuple[str, Layout] | None:
    """Name in the state dict of a path in the model; None if no rule has it."""
    for rule in rules:
        match = _pattern(rule.target).fullmatch(path)
        if match:
            return rule.source.format(*match.groups()), rule.layout
    return None


def load(
    make: Callable[[nnx.Rngs], M],
    source: Tensors,
    rules: Sequence[Rule],
    *,
    ignore: Callable[[str], bool] = lambda name: False,
    fresh: Callable[[str], bool] = lambda path: False,
    seed: int = 0,
    spell: Callable[[str], str] = lambda name: name,
    mesh: Mesh | None = None,
    report: list[Row] | None = None,
) -> M:
    """A model filled from a state dict.

    Three things are checked before anything is read: every source name is mapped or ignored; every tensor of the model
    is filled exactly once; shapes and types are equal. Then one tensor after the other is read, put on its device and
    taken out of `source`, so that memory holds the model and one tensor.

    Args:
      make: builds the model with these random numbers; it is traced, and only what is `fresh` is computed.
      source: the state dict, which is used up.
      rules: the table.
      ignore: source names that are left out on purpose.
      fresh: paths of the model that keep their initial value.
      seed: of these values.
      spell: what messages call a source name, where it was renamed.
      mesh: devices to spread the model over (see `parallel.parameter_sharding`); None for the default device.
      report: gets a row for every tensor.

    Raises:
      InputError: a check fails; the message lists both differences.
    """
    graph, state = nnx.split(abstract_model(make))
    leaves = {_join(path): leaf for path, leaf in nnx.to_flat_state(state)}
    taken = {name: tensor for name, tensor in source.items() if not ignore(name)}
    plan = _plan(taken, leaves, rules, fresh, spell)
    rows = [
        Row(spell(name), tensor.shape, "", None, "ignored: of no use to the model")
        for name, tensor in source.items()
        if name not in taken
    ]
    del taken
    for name, (path, layout) in plan.items():
        tensor = source.pop(name)
        leaf = leaves[path]
        leaf.set_value(_place(layout.to_jax(tensor.read()), mesh))
        how = layout.name if tensor.was is None else "resized"
        rows.append(Row(spell(name), tensor.was or tensor.shape, path, leaf.get_value().shape, how))
    for path, value in _initial(make, seed, leaves.keys() - {path for path, _ in plan.values()}).items():
        leaves[path].set_value(_place(value, mesh))
        rows.append(Row("", None, path, value.shape, "fresh"))
    if report is not None:
        report.extend(rows)
    return nnx.merge(graph, state)


def _join(path: Iterable[Any]) -> str:
    return ".".join(str(part) for part in path)


def _plan(
    source: Tensors,
    leaves: dict[str, nnx.Variable[Any]],
    rules: Sequence[Rule],
    fresh: Callable[[str], bool],
    spell: Callable[[str], str],
) -> dict[str, tuple[str, Layout]]:
    """For every source name its path and layout, or an error with all that does not match."""
    plan: dict[str, tuple[str, Layout]] = {}
    filled: dict[str, str] = {}
    unknown, wrong = [], []
    for name, tensor in source.items():
        found = target_of(rules, name)
        if found is None or found[0] not in leaves:
            unknown.append(spell(name))
            continue
        path, layout = found
        if path in filled:
            wrong.append(f"{spell(name)} and {filled[path]} both map to {path}")
            continue
        filled[path], plan[name] = spell(name), found
        problem = _mismatch(tensor, layout, leaves[path].get_value())
        if problem:
            wrong.append(f"{spell(name)}: {problem}")
    missing = [path for path in leaves if path not in filled and not fresh(path)]
    names = [source_of(rules, path) for path in missing]
    missing = [spell(name[0]) if name else path for name, path in zip(names, missing, strict=True)]
    _refuse(unknown, missing, wrong)
    return plan


def _mismatch(tensor: Tensor, layout: Layout, expected: jax.ShapeDtypeStruct) -> str | None:
    """Why the tensor does not fit, if so."""
    dtype = layout.torch_dtype or str(expected.dtype)
    if tensor.dtype != dtype:
        return f"type {tensor.dtype}, expected {dtype}; cast it first"
    try:
        shape = layout.shape_in_jax(tensor.shape)
        needed = layout.to_torch(np.broadcast_to(np.int8(0), expected.shape)).shape
    except ValueError:  # axes that the layout cannot take
        return f"shape {tensor.was or tensor.shape} does not fit the model's {tuple(expected.shape)}"
    return None if shape == expected.shape else f"shape {tensor.was or tensor.shape}, expected {needed}"


def _refuse(unknown: list[str], missing: list[str], wrong: list[str]) -> None:
    problems = []
    if unknown:
        problems.append(f"{len(unknown)} tensors the model has no place for: {name_some(unknown)}")
    if missing:
        problems.append(f"{len(missing)} tensors missing from the state dict: {name_some(missing)}")
    if wrong:
        problems.append(f"{len(wrong)} tensors that do not fit: {name_some(wrong)}")
    if problems:
        raise InputError("the state dict does not match the model. " + "; ".join(problems))


def _place(value: np.ndarray | jax.Array, mesh: Mesh | None) -> jax.Array:
    """The values on the device, waited for, so that no more than one tensor is on its way."""
    if isinstance(value, np.ndarray):
        # A copy that nobody else holds: on CPUs JAX may keep using the memory it is given, which the caller may change.
        value = np.array(value, order="C")
    where = None if mesh is None else parameter_sharding(value.shape, mesh)
    return jax.block_until_ready(jax.device_put(value, where))


def _initial(make: Callable[[nnx.Rngs], nnx.Module], seed: int, paths: Iterable[str]) -> dict[str, jax.Array]:
    """Initial values of some tensors; the compiler drops all others unmade."""
    wanted = sorted(paths)

    @jax.jit
    def values() -> list[jax.Array]:
        leaves = {_join(path): leaf for path, leaf in nnx.to_flat_state(nnx.state(make(traced_rngs(seed))))}
        return [leaves[path].get_value() for path in wanted]

    return dict(zip(wanted, values(), strict=True)) if wanted else {}


def unload(
    model: nnx.Module,
    rules: Sequence[Rule],
    *,
    leave_out: Callable[[str], bool] = lambda path: False,
    report: list[Row] | None = None,
) -> dict[str, np.ndarray]:
    """The state dict of a model: `load` backwards, to the last bit.

    Args:
      model: on whatever devices.
      rules: the table.
      leave_out: paths of the model that are not written.
      report: gets a row for every tensor.

    Raises:
      InputError: the model holds tensors that the table has no name for.
    """
    tensors, unnamed = {}, []
    for path, leaf in nnx.to_flat_state(nnx.state(model)):
        if leave_out(_join(path)):
            continue
        found = source_of(rules, _join(path))
        if found is None:
            unnamed.append(_join(path))
            continue
        name, layout = found
        value = leaf.get_value()
        tensors[name] = np.asarray(layout.to_torch(np.asarray(value)), order="C")
        if report is not None:
            report.append(Row(name, tensors[name].shape, _join(path), value.shape, layout.name))
    if unnamed:
        raise InputError(f"{len(unnamed)} tensors have no name in the original code: {name_some(unnamed)}")
    return tensors


def shapes_in_torch(make: Callable[[nnx.Rngs], nnx.Module], rules: Sequence[Rule]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the state dict that a model would be loaded from; nothing is computed."""
    shapes = {}
    for path, leaf in nnx.to_flat_state(nnx.state(abstract_model(make))):
        found = source_of(rules, _join(path))
        if found is not None:
            shapes[found[0]] = found[1].to_torch(np.broadcast_to(np.int8(0), leaf.get_value().shape)).shape
    return shapes
