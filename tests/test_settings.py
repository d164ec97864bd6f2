"""Settings are read strictly: what is not understood is refused by name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import pytest

from latentprint.settings import SettingsError, merge, plain, read


@dataclass(frozen=True)
class Inner:
    steps: int = 10
    kind: Literal["a", "b"] = "a"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")


@dataclass(frozen=True)
class Outer:
    inner: Inner = field(default_factory=Inner)
    maybe: Inner | None = None
    radius: tuple[float, float] = (0.1, 0.2)
    name: str | None = None


def test_round_trip() -> None:
    settings = Outer(inner=Inner(steps=3, kind="b"), maybe=Inner(), radius=(0.3, 0.4), name="x")
    assert read(Outer, plain(settings)) == settings
    assert read(Outer, {}) == Outer()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"iner": {}}, "did you mean inner"),
        ({"inner": {"stesp": 3}}, "inner.stesp is not a setting; did you mean inner.steps"),
        ({"inner": {"steps": "many"}}, "inner.steps = 'many' cannot be used"),
        ({"inner": {"kind": "c"}}, "inner.kind = 'c'"),
        ({"inner": {"steps": 0}}, "inner cannot be used: steps must be at least 1"),
        ({"inner": 3}, "inner needs a table"),
        ({"inner": None}, "inner needs a table"),
        ({"radius": [1.0]}, "radius"),
    ],
)
def test_what_is_wrong_is_named(values: dict[str, object], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        read(Outer, values)


def test_merge_goes_table_by_table() -> None:
    base = {"a": {"b": 1, "c": 2}, "d": 3}
    assert merge(base, {"a": {"b": 5}, "e": 6}) == {"a": {"b": 5, "c": 2}, "d": 3, "e": 6}
    assert base == {"a": {"b": 1, "c": 2}, "d": 3}
