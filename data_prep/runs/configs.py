"""Reads YAMLs strictly into dataclasses: an unknown key, a wrong type or a value out of range is one clear error.

Stages, data jobs and evaluations read their settings through here. `recipes.commandline` adds what a stage's command
line says. Nothing here imports torch, TRL or `datasets`.
"""

import contextlib
import dataclasses
import difflib
import math
import os
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from data_prep.runs.identity import PUBLISHING

import yaml


class ConfigError(ValueError):
    """A setting is invalid. The message names the file and the key, and says what to write instead."""


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, except that a repeated key is an error."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        keys = [(key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.MarkedYAMLError(problem=f"the key `{key[1]}` is given twice", problem_mark=node.start_mark)
        return node


def load_config(path: Path, override: Path | None = None) -> dict[str, Any]:
    """The mapping of a YAML file, updated with the values that the file `override` has under that file's name.

    Raises ConfigError if the file does not exist or is not a mapping.
    """
    path = Path(path)
    if override:
        values = load_config(override).get(path.stem)
        if not isinstance(values, dict):
            raise ConfigError(f"{override}: write `{path.stem}:` and `key: value` lines below it, for {path}")
        return load_config(path) | values
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (FileNotFoundError, IsADirectoryError):
        fault, folder = ("a folder, not a file", path) if path.is_dir() else ("no such file", path.parent)
        siblings = ", ".join(sorted(p.name for p in folder.glob("*.yaml"))) or "no YAML"
        there = f"{folder} holds {siblings}" if folder.is_dir() else f"there is no folder {folder}"
        raise ConfigError(f"{path}: {fault}; {there}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: holds a {type(content).__name__}; write `key: value` lines")
    return content


def settings(kind: type, config: Path | Mapping[str, Any], where: str = "", **overrides: Any) -> Any:
    """An instance of the dataclass `kind` with the values of a YAML (or of a mapping that came from one).

    Every key must be a field or one of `PUBLISHING`, and every field without a default must be given. Overrides that
    are None are ignored. Raises ConfigError with the file, the key and the remedy.
    """
    if isinstance(config, str | os.PathLike):
        where, config = str(config), load_config(Path(config))
    values = dict(config) | {key: value for key, value in overrides.items() if value is not None}
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init}
    values = {key: value for key, value in values.items() if key in fields or key not in PUBLISHING}
    require_known(where, values, fields)
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise ConfigError(f"{where}: the key `{name}` is missing; write `{name}: ...`")
    hints = typing.get_type_hints(kind, include_extras=True)
    read = {key: typed(value, hints[key], f"{where}: `{key}`") for key, value in values.items()}
    try:
        return kind(**read)
    except ValueError as error:  # two values that exclude each other
        raise ConfigError(f"{where}: {error}") from error


def require_known(where: str, keys: Iterable[str], known: Iterable[str]) -> None:
    """Raises ConfigError for the first key that is not among the `known` ones, with the nearest of these."""
    known = list(known)
    for key in keys:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            listed = f"the keys are {', '.join(known)}" if len(known) <= 40 else "`--help` lists the keys"
            hint = f"did you mean `{near[0]}`?" if near else listed
            raise ConfigError(f"{where}: unknown key `{key}`; {hint}")


def typed(value: Any, hint: Any, where: str) -> Any:
    """The value of a YAML converted to a type hint, which may be a dataclass or have a range (`rewards.settings`).

    A float may be an int or have a form such as `1e-4`, which YAML reads as text. Raises ConfigError with `where` if
    the value does not fit.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin is Annotated:
        kind, allowed = arguments[:2]
        if not isinstance(value, int | float) or value in allowed:
            value = typed(value, kind, where)
        if value in allowed:
            return value
        raise ConfigError(f"{where} is {value!r}; write {allowed}")
    if isinstance(value, int | float) and not math.isfinite(value):
        raise ConfigError(f"{where} is {value!r}; write a finite number")
    if origin in (typing.Union, types.UnionType):
        options = [option for option in arguments if option is not types.NoneType]
        if value is not None and len(options) == 1:
            return typed(value, options[0], where)
        for option in arguments:
            try:
                return typed(value, option, where)
            except ConfigError:
                continue
    elif origin is Literal:
        if value in arguments:
            return value
        raise ConfigError(f"{where} is {value!r}; write one of {', '.join(map(repr, arguments))}")
    elif dataclasses.is_dataclass(hint):
        if isinstance(value, Mapping):
            return settings(hint, value, where)
    elif origin in (list, tuple) and isinstance(value, list):
        item = arguments[0] if arguments else Any
        return origin(typed(part, item, f"{where}[{i}]") for i, part in enumerate(value))
    elif origin is dict and isinstance(value, Mapping):
        return {key: typed(part, arguments[1], f"{where}.{key}") for key, part in value.items()}
    elif hint is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        with contextlib.suppress(ValueError, OverflowError):
            if math.isfinite(number := float(value)):
                return number
    elif hint is Path and isinstance(value, str):
        return Path(value)
    elif hint is types.NoneType and value is None:
        return None
    elif isinstance(hint, type) and isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    if dataclasses.is_dataclass(hint):
        keys = ", ".join(field.name for field in dataclasses.fields(hint))
        raise ConfigError(f"{where} is {value!r}; write a mapping with keys among {keys}")
    wanted = getattr(hint, "__name__", str(hint)) if origin is None else str(hint)
    raise ConfigError(f"{where} is {value!r}; write a value of type {wanted}")
