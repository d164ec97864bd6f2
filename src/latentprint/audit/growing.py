"""What a run may still be asked for when it is finished: more images, and estimators that were off.

    samples 0 ... n - 1 of a larger number are those that are there, for noise follows from their ids
    an estimator draws paths of its own; no other number follows from it

Nothing is trained, fitted or drawn again. That the number of images was raised after the results of the first
ones had been seen is part of the results: their interval then holds at any stopping time
(``results.stopping``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from latentprint.rate.table import ESTIMATORS
from latentprint.results.model import FID, MEMORISED
from latentprint.store import Growth

_AGAIN = ("samples.", MEMORISED.name, FID.name)
"""Stages whose numbers follow from how many images were drawn."""


def grown(held: Mapping[str, object], wanted: Mapping[str, object]) -> Growth:
    """How a run with the settings ``held`` may go on with those that are wanted."""
    may, again = _estimators(_table(held, "rare")), ()
    before, now = (_table(one, "samples").get("count") for one in (held, wanted))
    if isinstance(before, int) and isinstance(now, int) and now > before:
        may, again = (*may, "samples.count"), _AGAIN
    return Growth(may, again)


def _estimators(rare: Mapping[str, object]) -> tuple[str, ...]:
    """Switches that are off, and what is asked of all estimators while none is on."""
    off = tuple(row.name for row in ESTIMATORS if rare.get(row.name) is False)
    shared = ("relative", "most") if len(off) == len(ESTIMATORS) else ()
    return tuple(f"rare.{name}" for name in (*off, *shared))


def _table(settings: Mapping[str, object], name: str) -> Mapping[str, object]:
    found = settings.get(name)
    return cast("Mapping[str, object]", found) if isinstance(found, Mapping) else {}
