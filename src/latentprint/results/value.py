"""What every value of the results has in common: frozen, checked when made, no unknown keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Annotated, Generic, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from latentprint.stats import Trials

LEVEL = 0.95
"""Confidence of the intervals, unless a value states another."""

Count = Annotated[int, Field(ge=0, le=2**53)]
"""A whole number that JSON keeps exactly."""

Chance = Annotated[float, Field(ge=0, le=1)]
"""A probability, a rate or a share."""

Level = Annotated[float, Field(gt=0, lt=1)]
"""Confidence of an interval or a test."""

Time = Annotated[float, Field(gt=0)]
"""A noise level t, or where a schedule starts."""

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Value(BaseModel):
    """A frozen value: equal if its numbers are; unknown keys, NaN and infinities are refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, populate_by_name=True, serialize_by_alias=True
    )

    def plain(self) -> dict[str, object]:
        """Plain JSON values, keys as they stand in the file."""
        return self.model_dump(mode="json")


def require_counts(grid: Sequence[float], hits: Sequence[int], trials: Sequence[int]) -> None:
    """Check that at each noise level of the rising ``grid`` 0 <= hits <= trials.

    Raises:
        ValueError: they are of different lengths, no counts, or the grid does not rise.
    """
    if not len(grid) == len(hits) == len(trials):
        raise ValueError(f"{len(grid)} noise levels, {len(hits)} hits, {len(trials)} trials")
    for k, n in zip(hits, trials, strict=True):
        Trials(k, n)
    if any(later <= earlier for earlier, later in pairwise(grid)):
        raise ValueError("noise levels must rise, each once")


class Spread(Value):
    """Least, middle and greatest of some values."""

    min: float
    median: float
    max: float


Kind = TypeVar("Kind", bound=Value)


@dataclass(frozen=True)
class Stage:
    """A stage of an audit: its name in run.json, under which its rows stand as well."""

    name: str

    def part(self, part: str) -> str:
        """The purpose under which one part of its rows stands."""
        return f"{self.name}.{part}"


@dataclass(frozen=True)
class Note(Stage, Generic[Kind]):
    """What a stage notes when it is finished: ``assemble`` reads the very class that the stage wrote."""

    key: str
    kind: type[Kind]

    def of(self, value: Kind) -> dict[str, object]:
        """The value as run.json keeps it."""
        return {self.key: value.plain()}

    def at(self, label: str) -> Self:
        """The same of a further stage of this kind: another sampler, prompt or checkpoint."""
        return replace(self, name=self.part(label))
