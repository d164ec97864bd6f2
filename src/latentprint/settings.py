"""Settings: nested frozen dataclasses in, plain dictionaries and TOML out, and back.

Every module defines its own settings as a frozen pydantic dataclass next to the code they configure, with the
range of a number in its type. This module reads a mapping (parsed TOML or JSON) into such a class, strictly:
no text becomes a number, and no key is ignored. An error becomes one sentence that names the setting by its
path, e.g. ``train.steps``.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
import types
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from latentprint.contracts import InputError, quoted, shortened
from latentprint.files import parse_toml

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
"""How a settings class is made: ``@dataclass(frozen=True, config=STRICT)`` of ``pydantic.dataclasses``."""

MOST = 10**9
"""The largest number for anything that is counted."""

Some = Annotated[int, Field(ge=1, le=MOST)]
"""A whole number above 0."""

Any0 = Annotated[int, Field(ge=0, le=MOST)]
"""A whole number, 0 included."""

Share = Annotated[float, Field(gt=1e-12, lt=1)]
"""A number strictly between 0 and 1, by more than rounding."""

Positive = Annotated[float, Field(gt=1e-12, lt=1e12)]
"""A number above 0, by more than rounding."""

NotNegative = Annotated[float, Field(ge=0, lt=1e12)]
"""A number that is 0 or more."""

UNKNOWN = "unexpected_keyword_argument"
"""What pydantic calls a key that a class does not know."""

Settings = TypeVar("Settings")


class SettingsError(InputError):
    """A setting that cannot be used; the message is one sentence that names it."""


def read(kind: type[Settings], values: Mapping[str, object]) -> Settings:
    """Build ``kind``, a (nested) frozen dataclass, from a mapping; missing keys take their defaults.

    Raises:
        SettingsError: an unknown key, a value of the wrong type, or one that the class itself refuses.
    """
    try:
        # In a tuple: a class by itself would be read by its own configuration, which ignores unknown keys.
        adapter = TypeAdapter[Any](cast(Any, tuple)[kind], config=STRICT)
        return adapter.validate_json(json.dumps([values], default=str), strict=True)[0]
    except ValidationError as error:
        raise SettingsError(sentence(error, kind)) from error


def sentence(error: ValidationError, kind: type[Any] | None = None) -> str:
    """The first thing that pydantic refused in what was to be a ``kind``, where it was `read`."""
    every = error.errors(include_url=False)
    first = next((one for one in every if one["type"] == UNKNOWN), every[0])
    (name, owner), value = _place(first["loc"], kind), quoted(first["input"])
    if first["type"] == UNKNOWN:
        key, known = str(first["loc"][-1]), list(get_type_hints(owner or object))
        near = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean {name.removesuffix(key)}{near[0]}?" if near else f"known: {', '.join(known)}"
        return f"{quoted(name)[1:-1]} is not a setting; {hint}"
    if first["type"] == "missing":
        return f"{name} is missing"
    if first["type"] == "dataclass_type":
        return f"{name} needs a table of settings, got {value}"
    if (own := first.get("ctx", {}).get("error")) is not None:
        return f"{name} cannot be used: {shortened(str(own), 250)}"
    said = [one["msg"] for one in every if _place(one["loc"], kind)[0] == name]
    wanted = " or ".join(dict.fromkeys(re.sub(r"^\w+ should (be|have) ", "", text) for text in said))
    return f"{name} = {value} cannot be used: it should be {wanted}"


def _place(loc: tuple[int | str, ...], kind: Any) -> tuple[str, type[Any] | None]:
    """A value's path and the class it belongs to, without the alternatives that pydantic inserts."""
    if kind is None:
        return ".".join(map(str, loc)) or "the whole", None
    name, hint, owner = "", kind, kind
    for part in loc[1:]:
        if (inner := _dataclass_in(hint)) is not None:
            owner, hint = inner, get_type_hints(inner).get(str(part))
            name = f"{name}.{part}".removeprefix(".")
        elif get_origin(hint) in (tuple, list, dict, Mapping):
            hint = next((one for one in reversed(get_args(hint)) if one is not ...), None)
            name = f"{name}[{part}]" if isinstance(part, int) else f"{name}.{part}"
        else:
            break
    return name or "the whole", owner


def _dataclass_in(hint: Any) -> type[Any] | None:
    """The dataclass that ``hint`` is, or the one in ``Class | None``."""
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    found = [option for option in options if isinstance(option, type) and dataclasses.is_dataclass(option)]
    return found[0] if found else None


def plain(settings: Any) -> dict[str, object]:
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


def merge(base: Mapping[str, object], over: Mapping[str, object]) -> dict[str, object]:
    """``base`` overridden by the values of ``over``, table by table; neither is changed.

    Raises:
        SettingsError: ``over`` has a table where ``base`` has a value, which would be lost.
    """
    out = dict(base)
    for key, value in over.items():
        below = out.get(key)
        if isinstance(value, Mapping) and below is not None:
            if not isinstance(below, Mapping):
                raise SettingsError(f"{quoted(key)} needs a table of settings, got {quoted(below)}")
            out[key] = merge(cast(Any, below), cast(Any, value))
        else:
            out[key] = value
    return out


def presets() -> tuple[str, ...]:
    """The names of the presets that ship."""
    folder = resources.files("latentprint") / "presets"
    return tuple(sorted(f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml")))


def read_preset(name: str) -> dict[str, Any]:
    """The settings of a preset.

    Raises:
        SettingsError: there is none of that name.
    """
    if name not in presets():
        raise SettingsError(f"{quoted(name)} is not a preset; there are {', '.join(presets())}")
    text = (resources.files("latentprint") / "presets" / f"{name}.toml").read_text(encoding="utf-8")
    return parse_toml(text, f"preset {name}")


OWN_STEPS = 100
"""Steps of a given model's own sampler, at most, where the preset has time for few and nobody says how many.

What a model gives back depends on them: of a DDPM that repeats its training images 36 in 100 samples are
copies after 24 of its 1,000 steps, and 57 in 100 after 100.
"""

_OWN_LEAST = {"samples": ("count", 200), "baseline": ("tries", 2)}
"""What there is less of for it, and the least."""


def own_settings(preset: str) -> dict[str, dict[str, object]]:
    """Settings of an audit by a given model's own sampler, for about as many evaluations as the preset takes.

    Fewer images as the model's users make them tell more than many that nobody would ever see.
    """
    found = read_preset(preset)
    most = found["sampler"]["steps"]
    if 2 * most > OWN_STEPS:
        return {"sampler": {"name": "own", "at_most": most}}
    less: dict[str, dict[str, object]] = {
        table: {name: min(found[table][name], max(least, found[table][name] * most // OWN_STEPS))}
        for table, (name, least) in _OWN_LEAST.items()
    }
    return {"sampler": {"name": "own", "at_most": OWN_STEPS}, **less}
