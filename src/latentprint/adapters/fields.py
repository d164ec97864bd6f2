"""Checks of the values of a foreign configuration: each function returns a value, or refuses it by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import Any, cast

from latentprint.networks import ModelError

Field = Callable[[object, str], Any]
"""(value, name) -> the value as the constructor takes it; raises ModelError."""


def short(value: object) -> str:
    """The received value, short enough for a sentence."""
    # Python itself refuses to write a whole number of thousands of digits
    text = "a very large number" if isinstance(value, int) and abs(value) >= 10**40 else str(value)
    text = " ".join(text.split())
    return repr(text if len(text) <= 80 else f"{text[:77]}...")


def some(names: Iterable[str], like: object, most: int = 3) -> str:
    """Names for a sentence: those most like what came, and how many more there are."""
    every = list(names)
    if len(every) <= most:
        return ", ".join(every)
    first = get_close_matches(short(like), every, most, cutoff=0.0)
    return f"{', '.join(first)} and {len(every) - most} more (docs/models.md)"


def whole_number(value: object, name: str, low: int, high: int) -> int:
    """A whole number from low to high."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ModelError(f"{name} must be a whole number from {low} to {high}, got {short(value)}")
    return value


def number(value: object, name: str, low: float, high: float) -> float:
    """A number from low to high."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ModelError(f"{name} must be a number from {low:g} to {high:g}, got {short(value)}")
    return float(value)


def a_whole(low: int, high: int) -> Field:
    """The field of a whole number."""
    return lambda value, name: whole_number(value, name, low, high)


def a_number(low: float, high: float) -> Field:
    """The field of a number."""
    return lambda value, name: number(value, name, low, high)


def a_flag(value: object, name: str) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise ModelError(f"{name} must be true or false, got {short(value)}")
    return value


def one_of(*words: str) -> Field:
    """One of these words."""

    def field(value: object, name: str) -> str:
        if not isinstance(value, str) or value not in words:
            raise ModelError(f"{name} must be one of {', '.join(words)}, got {short(value)}")
        return value

    return field


def nothing(value: object, name: str) -> None:
    """Null, because any other value of this setting is not supported."""
    if value is not None:
        raise ModelError(f"{name} is not supported and must be null, got {short(value)}")


def never(value: object, name: str) -> bool:
    """False, because true is not supported."""
    if value is not False:
        raise ModelError(f"{name} is not supported and must be false, got {short(value)}")
    return value


def maybe(field: Field) -> Field:
    """Null, or a value for ``field``."""
    return lambda value, name: None if value is None else field(value, name)


def either(one: Field, other: Field) -> Field:
    """A value for ``one`` or, if it is a list, for ``other``."""
    return lambda value, name: (other if isinstance(value, list | tuple) else one)(value, name)


def several(field: Field, low: int, high: int) -> Field:
    """A list of low to high entries, as a tuple."""

    def read(value: object, name: str) -> tuple[Any, ...]:
        entries = cast(list[object], value) if isinstance(value, list | tuple) else []
        if not low <= len(entries) <= high:
            raise ModelError(f"{name} must be a list of {low} to {high} entries, got {short(value)}")
        return tuple(field(entry, f"an entry of {name}") for entry in entries)

    return read


def a_size(high: int) -> Field:
    """A side in pixels, or [height, width]."""

    def read(value: object, name: str) -> int | tuple[int, int]:
        if isinstance(value, list | tuple):
            return several(a_whole(1, high), 2, 2)(cast(object, value), name)
        return whole_number(value, name, 1, high)

    return read


def read_fields(config: Mapping[str, object], fields: Mapping[str, Field], what: str) -> dict[str, Any]:
    """The configuration as arguments. Every key is checked; keys that begin with an underscore are ignored.

    Names such as ``_name_or_path`` are notes about a model's origin; nothing is ever read from there.
    """
    unknown = sorted(key for key in config if key not in fields and not key.startswith("_"))
    if unknown:
        raise ModelError(f"{what} has the setting {short(unknown[0])}, which is not supported")
    return {key: fields[key](value, f"{key} of {what}") for key, value in config.items() if key in fields}
