"""Label maps: the words of each laboratory onto common classes."""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path

from dorl_jax.errors import InputError, name_some, suggest

BUILT_IN = ("five_classes", "thirteen_classes")


@dataclass(frozen=True)
class Taxonomy:
    """Common classes and the raw labels that stand for them.

    Attributes:
      name: how messages call it.
      classes: the common classes; their order is the order of the class numbers.
      mapping: raw label -> common class. Every class stands for itself without being listed.
      dropped: raw labels whose cells are left out.
    """

    name: str
    classes: tuple[str, ...]
    mapping: Mapping[str, str]
    dropped: frozenset[str]

    def resolve(self, raw_label: str) -> str | None:
        """The common class of a raw label, or None where its cells are left out.

        The exact spelling is tried first, then one blind to case and to spaces, hyphens and underscores.

        Raises:
          InputError: unknown label, or one whose spellings differ in meaning and that is spelled like
            neither.
        """
        if raw_label in self._meanings:
            return self._meanings[raw_label]
        found = self._spellings.get(_plain(raw_label), ())
        if not found:
            raise InputError(
                f"unknown label {raw_label!r}{suggest(_plain(raw_label), self._spellings)}: the classes of "
                f"taxonomy {self.name} are {', '.join(self.classes)}; map or drop it in a taxonomy file"
            )
        meanings = {self._meanings[spelling] for spelling in found}
        if len(meanings) > 1:
            listed = ", ".join(f"{label!r} is {self._meanings[label] or 'dropped'}" for label in found)
            raise InputError(f"label {raw_label!r} is ambiguous in taxonomy {self.name}: {listed}")
        return meanings.pop()

    @cached_property
    def _meanings(self) -> dict[str, str | None]:
        return {name: name for name in self.classes} | dict(self.mapping) | dict.fromkeys(self.dropped)

    @cached_property
    def _spellings(self) -> dict[str, tuple[str, ...]]:
        spellings: dict[str, tuple[str, ...]] = {}
        for label in self._meanings:
            spellings[_plain(label)] = (*spellings.get(_plain(label), ()), label)
        return spellings


def load_taxonomy(name_or_path: str) -> Taxonomy:
    """A built-in taxonomy by its name, or one from a TOML file.

    The file holds `classes = [...]`, optionally `dropped = [...]` and a table `[labels]` of `raw = "class"`.

    Args:
      name_or_path: `"five_classes"`, `"thirteen_classes"`, or a path that ends in `.toml`.

    Raises:
      InputError: unknown name, no such file, or a file that contradicts itself.
    """
    if name_or_path in BUILT_IN:
        text = files("dorl_jax.data").joinpath("taxonomies", f"{name_or_path}.toml").read_text("utf-8")
        return _parse(text, name_or_path, f"built-in taxonomy {name_or_path}")
    path = Path(name_or_path)
    if path.suffix.lower() != ".toml":
        raise InputError(
            f"unknown taxonomy {name_or_path!r}{suggest(name_or_path, BUILT_IN)}: "
            f"give one of {', '.join(BUILT_IN)} or the path of a .toml file"
        )
    if not path.is_file():
        raise InputError(f"no taxonomy file at {path}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not valid TOML: {error}") from error
    return _parse(text, path.stem, str(path))


def _parse(text: str, name: str, origin: str) -> Taxonomy:
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{origin} is not valid TOML: {error}") from error
    keys = ("classes", "dropped", "labels")
    for key in tree:
        if key not in keys:
            raise InputError(f"{origin}: unknown key {key!r}{suggest(key, keys)}")
    classes = _texts(tree.get("classes", []), "classes", origin)
    dropped = _texts(tree.get("dropped", []), "dropped", origin)
    mapping = tree.get("labels", {})
    if not isinstance(mapping, dict) or not all(isinstance(value, str) for value in mapping.values()):
        raise InputError(f'{origin}: [labels] must be a table of raw = "class"')
    if not classes:
        raise InputError(f"{origin}: `classes` is missing or empty")
    if len(set(classes)) < len(classes):
        raise InputError(f"{origin}: `classes` names a class twice")
    for raw, target in mapping.items():
        if target not in classes:
            raise InputError(f"{origin}: {raw!r} maps to {target!r}, which is no class{suggest(target, classes)}")
        if raw in classes and raw != target:
            raise InputError(f"{origin}: {raw!r} is a class and cannot map to {target!r}")
    both = sorted(set(dropped) & (set(classes) | set(mapping)))
    if both:
        raise InputError(f"{origin}: both kept and dropped: {name_some(both)}")
    return Taxonomy(name, tuple(classes), mapping, frozenset(dropped))


def _texts(value: object, key: str, origin: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise InputError(f"{origin}: `{key}` must be a list of strings")
    return value


def _plain(label: str) -> str:
    return re.sub(r"[\s_-]+", "_", label.strip().casefold())
