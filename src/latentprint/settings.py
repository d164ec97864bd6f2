"""Settings: nested frozen dataclasses in, plain dictionaries and TOML out, and back.

Every module keeps its own settings in a frozen dataclass beside what it configures. This module reads a
mapping (parsed TOML or JSON) into such a class: unknown keys are refused with the nearest known one, values
are checked against the annotated type, and the path of a wrong value is named, e.g. ``train.steps``.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from latentprint.contracts import InputError

Settings = TypeVar("Settings")


class SettingsError(InputError):
    """A setting that cannot be used; the message is one sentence that names it."""


def read(kind: type[Settings], values: Mapping[str, Any], *, path: str = "") -> Settings:
    """Build ``kind``, a (nested) frozen dataclass, from a mapping; missing keys take their defaults.

    Raises:
        SettingsError: an unknown key, a value of the wrong type, or one that the class itself refuses.
    """
    hints = get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(cast(Any, kind)) if field.init}
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{path}{key}"
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            hint = f"did you mean {path}{near[0]}?" if near else f"known here: {', '.join(fields)}."
            raise SettingsError(f"{name} is not a setting; {hint}")
        arguments[key] = _value(hints[key], value, name)
    try:
        return kind(**arguments)
    except (ValueError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        where = path.rstrip(".") or "the settings"
        raise SettingsError(f"{where} cannot be used: {error}") from error


def _value(hint: Any, value: Any, name: str) -> Any:
    nested = _dataclass_in(hint)
    if nested is not None and isinstance(value, Mapping):
        return read(nested, cast(Mapping[str, Any], value), path=f"{name}.")
    if nested is not None and (value is not None or type(None) not in get_args(hint)):
        raise SettingsError(f"{name} needs a table of settings, got {value!r}.")
    try:
        return TypeAdapter(hint).validate_python(value)
    except ValidationError as error:
        what = error.errors()[0]["msg"]
        raise SettingsError(f"{name} = {value!r} cannot be used: {what[0].lower()}{what[1:]}.") from error


def _dataclass_in(hint: Any) -> type[Any] | None:
    """The dataclass that ``hint`` is, or the one beside None in ``Class | None``."""
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    found = [option for option in options if isinstance(option, type) and dataclasses.is_dataclass(option)]
    return found[0] if found else None


def plain(settings: Any) -> dict[str, Any]:
    """A nested settings object as plain values that JSON and TOML can hold; tuples become lists."""
    return {field.name: _plain(getattr(settings, field.name)) for field in dataclasses.fields(settings)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain(value)
    if isinstance(value, tuple | list):
        return [_plain(item) for item in cast(list[Any], value)]
    if isinstance(value, Path):
        return str(value)
    return value


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with the values of ``over``, table by table; neither is changed."""
    out = dict(base)
    for key, value in over.items():
        below = out.get(key)
        both_tables = isinstance(value, Mapping) and isinstance(below, Mapping)
        out[key] = merge(cast(Any, below), cast(Any, value)) if both_tables else value
    return out
