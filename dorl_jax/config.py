"""Typed settings: read from TOML, override, save. Unknown keys are errors that name the nearest known one."""

import dataclasses
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import msgspec
import tomli_w

from dorl_jax.errors import InputError, suggest
from dorl_jax.files import write_text

T = TypeVar("T")

# Of a run, in its folder.
SETTINGS_FILE = "settings.toml"


def setting(default: Any, help: str, *, least: int | float | None = None, most: int | float | None = None) -> Any:
    """A dataclass field with a default and the sentence that `--help` shows for it.

    Numbers, and those of a tuple, are from `least` to `most` (see `Settings`).
    """
    if isinstance(default, list | dict):
        raise TypeError("settings are immutable: use a tuple")
    return dataclasses.field(default=default, metadata={"help": help, "least": least, "most": most})


@dataclasses.dataclass(frozen=True)
class Settings:
    """What has settings: numbers outside of their bounds are refused, in a file, on a command line and in Python."""

    def __post_init__(self) -> None:
        """Refuse them, before a run has trained for hours.

        Raises:
          InputError: names the setting, its value and what it may be.
        """
        for field in dataclasses.fields(self):
            least, most = field.metadata.get("least"), field.metadata.get("most")
            value = getattr(self, field.name)
            for number in value if isinstance(value, tuple) else (value,):
                # So written that NaN is outside of any.
                low, high = least is not None and not number >= least, most is not None and not number <= most
                if low or high:
                    bounds = [f"at {name} {end}" for name, end in (("least", least), ("most", most)) if end is not None]
                    shown = list(value) if isinstance(value, tuple) else value
                    raise InputError(f"{field.name} = {shown}: {' and '.join(bounds)} is needed")


def load(settings_type: type[T], path: str | os.PathLike[str], overrides: Mapping[str, str] | None = None) -> T:
    """Settings from a TOML file.

    Args:
      settings_type: a (nested) frozen dataclass.
      path: the file.
      overrides: dotted key -> text, as typed on a command line (`{"train_cae.steps": "100"}`).

    Raises:
      InputError: no such file, no TOML, an unknown key, or a value of another type or outside of its bounds.
    """
    return build(settings_type, _read(Path(path)), overrides, origin=str(path))


def load_section(
    settings_type: type[T],
    path: str | os.PathLike[str],
    section: str,
    overrides: Mapping[str, str] | None = None,
) -> T:
    """One section of a TOML file, without regard to the others; all defaults where the file has none (see `load`)."""
    tree = _read(Path(path)).get(section, {})
    if not isinstance(tree, dict):
        raise InputError(f"{path}: {section!r} is not a section")
    return build(settings_type, tree, overrides, origin=f"{path}, section [{section}]")


def build(
    settings_type: type[T],
    tree: Mapping[str, Any],
    overrides: Mapping[str, str] | None = None,
    origin: str = "settings",
) -> T:
    """Settings from a tree of plain values, as TOML gives it, with `overrides` on top (see `load`)."""
    merged = _copy(tree)
    for key, text in (overrides or {}).items():
        _override(settings_type, merged, key, text)
    _check_keys(settings_type, merged, origin)
    try:
        # strict=False reads the numbers and truth values of a command line from their text.
        return msgspec.convert(merged, settings_type, strict=False)
    except msgspec.ValidationError as error:
        if overrides and _fits(settings_type, tree):
            origin = "override"
        raise InputError(f"{origin}: {error}{_choices(settings_type, str(error))}") from error


def _fits(settings_type: Any, tree: Mapping[str, Any]) -> bool:
    try:
        msgspec.convert(tree, settings_type, strict=False)
    except msgspec.ValidationError:
        return False
    return True


def _choices(settings_type: Any, message: str) -> str:
    """What the setting that the message is about may be, where it is one of a few texts, or a list."""
    if one := re.search(r"Expected `array`, got `(\w+)` - at `\$\.([\w.]+)`", message):
        value = '"..."' if one[1] == "str" else "1"
        return f"; it is a list also of one: {one[2].rpartition('.')[2]} = [{value}], quoted for a shell"
    place = re.search(r"Invalid enum value .* at `\$\.([\w.]+)`", message)
    if place is None:
        return ""
    *sections, last = place[1].split(".")
    for name in sections:
        settings_type = _section_type(settings_type, name)
    kind = next(field.type for field in dataclasses.fields(settings_type) if field.name == last)
    return f"; it may be {', '.join(map(repr, get_args(kind)))}"


def as_tree(settings: Any) -> dict[str, Any]:
    """The settings as plain values; keys without a value (None) are left out, as TOML has no null."""
    return _without_none(_plain(settings))


def save(settings: Any, path: str | os.PathLike[str]) -> None:
    """Write the settings as TOML, every default spelled out, atomically."""
    write_text(Path(path), tomli_w.dumps(as_tree(settings)))


def expand_path(text: str, key: str) -> Path:
    """A path in which `${NAME}` stands for an environment variable and `~` for the home folder.

    Raises:
      InputError: the variable is not set; `key` names the setting in the message.
    """

    def value(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in os.environ:
            raise InputError(f"{key} = {text!r} needs the environment variable {name}, which is not set")
        return os.environ[name]

    return Path(re.sub(r"\$\{(\w+)\}", value, text)).expanduser()


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"no settings file at {path}")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid TOML: {error}") from error


def _copy(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, Mapping) else value for key, value in tree.items()}


def _plain(value: Any) -> Any:
    """Dataclasses as dictionaries, tuples as the lists they will be when read again."""
    if dataclasses.is_dataclass(value):
        # Field by field: msgspec leaves out the defaults of what it has itself read.
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return value


def _without_none(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _without_none(value) for key, value in tree.items() if value is not None}
    return tree


def _section_type(settings_type: Any, key: str) -> Any:
    """The dataclass behind the field `key`, or None where the field is a plain value."""
    found = next(f.type for f in dataclasses.fields(settings_type) if f.name == key)
    return found if dataclasses.is_dataclass(found) else None


def _check_keys(settings_type: Any, tree: Mapping[str, Any], origin: str, prefix: str = "") -> None:
    known = [f.name for f in dataclasses.fields(settings_type)]
    for key, value in tree.items():
        if key not in known:
            raise InputError(f"{origin}: unknown key {prefix + key!r}{suggest(key, known)}")
        inner = _section_type(settings_type, key)
        if inner is not None and isinstance(value, Mapping):
            _check_keys(inner, value, origin, f"{prefix}{key}.")


def _has(settings_type: Any, key: str) -> bool:
    return any(field.name == key for field in dataclasses.fields(settings_type))


def _override(settings_type: Any, tree: dict[str, Any], key: str, text: str) -> None:
    *sections, last = key.split(".")
    for depth, name in enumerate(sections):
        known = [f.name for f in dataclasses.fields(settings_type)]
        if name not in known or (settings_type := _section_type(settings_type, name)) is None:
            raise InputError(f"override {key!r}: no section {'.'.join(sections[: depth + 1])!r}{suggest(name, known)}")
        tree = tree.setdefault(name, {})
    known = [f.name for f in dataclasses.fields(settings_type)]
    if last not in known:
        inside = [name for name in known if (one := _section_type(settings_type, name)) and _has(one, last)]
        hint = f" (in the section {' or '.join(inside)}?)" if inside else suggest(last, known)
        raise InputError(f"override: unknown key {key!r}{hint}")
    try:
        tree[last] = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        tree[last] = text  # a bare word is a string
