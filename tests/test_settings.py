"""Settings are read strictly: what is not understood is refused by name."""

from __future__ import annotations

import dataclasses
from typing import Literal

import pytest
from pydantic.dataclasses import dataclass

from latentprint.settings import STRICT, SettingsError, Some, merge, plain, read


@dataclasses.dataclass(frozen=True)
class Plain:
    low: float = 0.0


@dataclass(frozen=True, config=STRICT)
class Inner:
    steps: Some = 10
    kind: Literal["a", "b"] = "a"
    odd: int = 1

    def __post_init__(self) -> None:
        if self.odd == 3:
            raise ValueError("odd is odd")


@dataclass(frozen=True, config=STRICT)
class Outer:
    inner: Inner = dataclasses.field(default_factory=Inner)
    maybe: Inner | None = None
    radius: tuple[float, float] = (0.1, 0.2)
    name: str | None = None
    many: tuple[Inner, ...] = ()
    either: Literal["all"] | int = 0
    plain: Plain = dataclasses.field(default_factory=Plain)


def test_round_trip() -> None:
    settings = Outer(inner=Inner(steps=3, kind="b"), maybe=Inner(), radius=(0.3, 0.4), name="x")
    assert read(Outer, plain(settings)) == settings
    assert plain(read(Outer, plain(settings))) == plain(settings)
    assert read(Outer, {}) == Outer()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"iner": {}}, "did you mean inner"),
        ({"inner": {"stesp": 3}}, "inner.stesp is not a setting; did you mean inner.steps"),
        ({"inner": {"steps": "many"}}, r"inner.steps = 'many' cannot be used: it should be a valid integer"),
        ({"inner": {"kind": "c"}}, "inner.kind = 'c'"),
        ({"inner": {"steps": 0}}, r"inner.steps = 0 cannot be used: it should be greater than or equal to 1"),
        ({"inner": 3}, "inner needs a table"),
        ({"inner": None}, "inner needs a table"),
        ({"inner": {"steps": "3"}}, r"inner.steps = '3' cannot be used"),
        ({"inner": {"steps": True}}, r"inner.steps = True cannot be used"),
        ({"inner": {"odd": 3}}, "inner.odd|inner cannot be used: odd"),
        ({"maybe": {"kind": 3}}, r"maybe.kind = 3 cannot be used: it should be 'a' or 'b'"),
        ({"many": [{}, {"steps": 0}]}, r"many\[1\].steps = 0"),
        ({"either": "some"}, r"either = 'some' cannot be used: it should be 'all' or a valid integer"),
        ({"plain": {"x": 1}}, r"plain.x is not a setting; known: low"),
        ({"plain": {"low": "1"}}, r"plain.low = '1' cannot be used"),
        ({"x" * 500: 1}, r"^x{58}\.\.\.x{58} is not a setting"),
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


@pytest.mark.parametrize("value", ["thorough", 5, [{}]])
def test_a_value_in_the_place_of_a_table_is_not_lost(value: object) -> None:
    with pytest.raises(SettingsError, match="needs a table"):
        merge({"search": value}, {"search": {}})
