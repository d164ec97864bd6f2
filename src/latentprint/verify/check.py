"""One number beside what it follows from, and how two such values are compared."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, cast

Source = Literal["counts", "rows", "files"]


@dataclass(frozen=True)
class Check:
    """One number, as it stands in results.json and as it follows from ``source``."""

    path: str
    stored: Any
    derived: Any
    source: Source

    @property
    def agrees(self) -> bool:
        """Whether both are the same, numbers to rounding."""
        return alike(self.stored, self.derived)

    @property
    def sentence(self) -> str:
        """What was found, with the first place where they differ."""
        if self.agrees:
            return f"{self.path} agrees with the {self.source}."
        stored, derived = first_difference(self.stored, self.derived)
        return f"{self.path} says {stored}, but the {self.source} say {derived}."


def alike(stored: Any, derived: Any) -> bool:
    """Equal, with numbers equal to rounding (1e-9 relative): other processors round sums differently."""
    if isinstance(derived, bool) or isinstance(stored, bool) or derived is None or stored is None:
        return stored is derived
    if isinstance(derived, (int, float)) and isinstance(stored, (int, float)):
        return math.isclose(stored, derived, rel_tol=1e-9, abs_tol=1e-300)
    if isinstance(derived, list) and isinstance(stored, list):
        ours, theirs = cast(list[Any], derived), cast(list[Any], stored)
        return len(ours) == len(theirs) and all(map(alike, theirs, ours))
    return bool(stored == derived)


def first_difference(stored: Any, derived: Any) -> tuple[str, str]:
    """The two values, or the first entries that differ where both are lists of one length."""
    if isinstance(stored, list) and isinstance(derived, list):
        theirs, ours = cast(list[Any], stored), cast(list[Any], derived)
        if len(theirs) == len(ours):
            i = next(i for i, pair in enumerate(zip(theirs, ours, strict=True)) if not alike(*pair))
            return f"{_short(theirs[i])} at position {i}", _short(ours[i])
        return f"{len(theirs)} values", f"{len(ours)}"
    return _short(stored), _short(derived)


def _short(value: Any) -> str:
    text = f"{value:.10g}" if isinstance(value, float) else repr(value)
    return text if len(text) <= 100 else text[:97] + "..."
