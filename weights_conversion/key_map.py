"""A declarative table from the names of a state dict to those of a model, applied strictly."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dorl_jax.errors import InputError, name_some

Transform = Callable[[np.ndarray], np.ndarray]
M = TypeVar("M", bound=nnx.Module)


def identity(x: np.ndarray) -> np.ndarray:
    """As it is."""
    return x


def linear(x: np.ndarray) -> np.ndarray:
    """PyTorch's (out, in) -> (in, out); a 1x1 convolution (out, in, 1, 1) likewise."""
    return x.reshape(x.shape[0], -1).T


def conv(x: np.ndarray) -> np.ndarray:
    """(out, in, h, w) -> (h, w, in, out)."""
    return x.transpose(2, 3, 1, 0)


def patches(x: np.ndarray) -> np.ndarray:
    """A convolution whose stride is its kernel (out, in, h, w) -> a linear map of the flattened patch."""
    return x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0])


def conv_transpose(x: np.ndarray) -> np.ndarray:
    """(in, out, h, w) -> (h, w, in, out)."""
    return x.transpose(2, 3, 0, 1)


@dataclass(frozen=True)
class Rule:
    """One row of a table.

    Attributes:
      pattern: regular expression for the whole source name.
      target: path in the model, parts joined by dots; `{0}`, `{1}` stand for the pattern's groups.
      transform: source array -> target array.
    """

    pattern: str
    target: str
    transform: Transform = identity


def module_rules(source: str, target: str, kernel: Transform = linear, *, bias: bool = True) -> list[Rule]:
    """Weight (and bias) of a linear or convolution layer."""
    rules = [Rule(rf"{source}\.weight", f"{target}.kernel", kernel)]
    return [*rules, Rule(rf"{source}\.bias", f"{target}.bias")] if bias else rules


def norm_rules(source: str, target: str) -> list[Rule]:
    """Weight and bias of a normalisation layer."""
    return [Rule(rf"{source}\.weight", f"{target}.scale"), Rule(rf"{source}\.bias", f"{target}.bias")]


def load(
    make: Callable[[], M],
    source: Mapping[str, np.ndarray],
    rules: Iterable[Rule],
    ignore: Iterable[str] = (),
    fresh: Callable[[str], bool] | None = None,
) -> M:
    """A model filled from a state dict.

    Three things are checked: every source name is mapped or ignored; every tensor of the model is filled exactly once;
    shapes and types are equal.

    Args:
      make: builds the model with any values.
      source: the state dict.
      rules: the table.
      ignore: regular expressions for source names that are left out on purpose.
      fresh: model paths that keep their initial value; without it `make` is only traced, and nothing initialised.

    Raises:
      InputError: a check fails; the message lists both differences.
    """
    rules, ignored = list(rules), [re.compile(pattern) for pattern in ignore]
    graph, state = nnx.split(nnx.eval_shape(make) if fresh is None else make())
    leaves = {_join(path): leaf for path, leaf in nnx.to_flat_state(state)}
    keep = {path for path in leaves if fresh is not None and fresh(path)}
    filled: dict[str, str] = {}
    unknown, wrong = [], []
    for name, array in source.items():
        if any(pattern.fullmatch(name) for pattern in ignored):
            continue
        found = _target(rules, name)
        if found is None or found[0] not in leaves:
            unknown.append(name)
            continue
        path, transform = found
        if path in filled:
            wrong.append(f"{name} and {filled[path]} both map to {path}")
            continue
        filled[path] = name
        problem = _fill(leaves[path], array, transform)
        if problem:
            wrong.append(f"{name}: {problem}")
    missing = [path for path in leaves if path not in filled and path not in keep]
    _report(unknown, [_source_name(rules, path) for path in missing], wrong)
    return nnx.merge(graph, state)


def _join(path: Iterable[Any]) -> str:
    return ".".join(str(part) for part in path)


def _target(rules: list[Rule], name: str) -> tuple[str, Transform] | None:
    for rule in rules:
        match = re.fullmatch(rule.pattern, name)
        if match:
            return rule.target.format(*match.groups()), rule.transform
    return None


def _fill(leaf: nnx.Variable[Any], array: np.ndarray, transform: Transform) -> str | None:
    """Put the array into the leaf, or say why it does not fit."""
    expected = leaf.get_value()
    if array.dtype != expected.dtype:
        return f"type {array.dtype}, expected {expected.dtype}"
    try:
        value = transform(array)
    except (ValueError, IndexError):  # a number of axes that the transform cannot take
        return f"shape {array.shape} does not fit the model's {tuple(expected.shape)}"
    if value.shape != expected.shape:
        return f"shape {array.shape} becomes {value.shape}, expected {tuple(expected.shape)}"
    leaf.set_value(jax.device_put(jnp.asarray(value)))
    return None


def _source_name(rules: list[Rule], path: str) -> str:
    """The state-dict name that would fill a path of the model, for messages."""
    for rule in rules:
        parts = re.split(r"\{\d\}", rule.target)
        match = re.fullmatch(r"(\d+)".join(map(re.escape, parts)), path)
        if match:
            name = rule.pattern
            for group in match.groups():
                name = re.sub(r"\(.*?\)", group, name, count=1)
            return name.replace("\\", "")
    return path


def _report(unknown: list[str], missing: list[str], wrong: list[str]) -> None:
    problems = []
    if unknown:
        problems.append(f"{len(unknown)} tensors the model has no place for: {name_some(unknown)}")
    if missing:
        problems.append(f"{len(missing)} tensors missing from the state dict: {name_some(missing)}")
    if wrong:
        problems.append(f"{len(wrong)} tensors that do not fit: {name_some(wrong)}")
    if problems:
        raise InputError("the state dict does not match the model. " + "; ".join(problems))
