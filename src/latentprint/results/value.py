"""What every value of the results has in common: frozen, checked when made, no unknown keys."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

LEVEL = 0.95
"""Confidence of the intervals, unless a value states another."""

Count = Annotated[int, Field(ge=0, le=2**53)]
"""A whole number that JSON keeps exactly."""

Chance = Annotated[float, Field(ge=0, le=1)]
"""A probability, a rate or a share."""

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Value(BaseModel):
    """A frozen value: equal if its numbers are; unknown keys, NaN and infinities are refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, populate_by_name=True, serialize_by_alias=True
    )

    def plain(self) -> dict[str, object]:
        """Plain JSON values, keys as they stand in the file."""
        return self.model_dump(mode="json")


class Spread(Value):
    """Least, middle and greatest of some values."""

    min: float
    median: float
    max: float
