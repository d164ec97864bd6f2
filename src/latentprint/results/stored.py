"""What a run holds: settings, rows, and the notes of its stages. All results follow from these."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from latentprint.contracts import Ids, Outcome, Probe, Times, quoted
from latentprint.execute import held
from latentprint.results.value import Note, Value
from latentprint.settings import read
from latentprint.store import Run, RunError

Rows = Mapping[str, NDArray[Any]]
Kind = TypeVar("Kind")
Noted = TypeVar("Noted", bound=Value)


_FLAGS = ("hit", "presence_hit", "identity_hit", "member")
_WHOLE = ("evaluations", "nearest", "whose", "unit", "canary", "copies", "change", "person", "own", "place")
_OPEN = ("presence", "standard_error")
"""Columns of flags, and of whole numbers from -1 on; those that need not be finite (no mark; one probe)."""


def _typed(purpose: str, rows: Rows) -> Rows:
    """The rows, if each column holds values of its kind."""
    for name, column in rows.items():
        bare = name.removeprefix("pool_").removeprefix("whole_")
        if bare in _FLAGS:
            good = column.dtype.kind == "b"
        elif bare in _WHOLE or bare.endswith("_of"):
            good = column.dtype.kind in "iu" and bool(column.min() >= -1) and bool(column.max() < 2**53)
        else:
            good = column.dtype.kind in "bi" or bare in _OPEN or bool(np.isfinite(column).all())
        if not good:
            raise RunError(
                f"the rows of {purpose} (in probes/) hold values in {name!r} that no run writes; restore them"
            )
    return rows


def require(holds: bool, purpose: str, what: str) -> None:
    """Check that stored rows are what a run writes.

    Raises:
        RunError: they are not: ``what`` says of them what ought to hold.
    """
    if not holds:
        raise RunError(
            f"the rows of {purpose} (in probes/) were changed, or lost in part: {what}; restore them"
        )


class _Columns(dict[str, NDArray[Any]]):
    """Rows that answer a missing column with a sentence, because results cannot be put together without
    it."""

    def __init__(self, purpose: str, rows: Rows) -> None:
        super().__init__(rows)
        self.purpose = purpose

    def __missing__(self, name: str) -> NDArray[Any]:
        raise RunError(
            f"the rows of {self.purpose} (in probes/) are gone or lack the column {name!r}, so the results"
            " cannot be put together; repeat the command that made the run, or restore them"
        )


@dataclass(frozen=True)
class Stored:
    """A run as ``assemble`` reads it.

    Attributes:
        settings: plain values, as the run keeps them.
        notes: what each finished stage noted, by the stage's name.
        kept: the rows of a purpose; an empty mapping if there are none.
        earlier: settings with which there were results before, if the run was then asked for more.
    """

    settings: Mapping[str, object]
    notes: Mapping[str, Mapping[str, object]]
    kept: Callable[[str], Rows]
    earlier: tuple[Mapping[str, object], ...] = ()

    def rows(self, purpose: str) -> Rows:
        """The rows of a purpose; empty if there are none. A missing column is refused in a sentence."""
        return _Columns(purpose, _typed(purpose, self.kept(purpose)))

    @classmethod
    def of(cls, run: Run) -> Stored:
        """What a run holds."""
        notes = {one.name: one.payload for one in run.finished}
        return cls(run.settings, notes, run.rows, run.earlier)

    @property
    def seed(self) -> int:
        """The seed from which everything random follows."""
        seed = self.settings.get("seed")
        if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
            raise RunError(f"run.json: the seed must be a whole number from 0 on, got {quoted(seed)}")
        return seed

    def setting(self, kind: type[Kind], name: str) -> Kind:
        """A table of the settings as the class that defines it."""
        return _table(self.settings, kind, name)

    def before(self, kind: type[Kind], name: str) -> tuple[Kind, ...]:
        """The same table each time that there were results before, oldest first."""
        return tuple(_table(one, kind, name) for one in self.earlier)

    def note(self, note: Note[Noted]) -> Noted | None:
        """What a stage noted; None if it did not finish or noted none."""
        found = self.notes.get(note.name, {}).get(note.key)
        if found is None:
            return None
        try:
            return note.kind.model_validate_json(json.dumps(found), strict=True)
        except ValidationError as error:
            raise RunError(
                f"run.json: the note {note.key!r} of stage {note.name!r} cannot be used: {first(error)}"
            ) from error

    def needed(self, note: Note[Noted]) -> Noted:
        """What a stage must have noted."""
        found = self.note(note)
        if found is None:
            raise RunError(
                f"run.json holds no {note.key!r} of stage {note.name!r}: the run has not got that far, or"
                " another version began it; repeat the command to continue it, or start again with --fresh"
            )
        return found

    def probe(self, purpose: str) -> Probe:
        """A probe that answers from the stored rows alone, so that a search is repeated without a model."""
        rows = self.rows(purpose)
        if rows:
            require({"t", "hit", "evaluations"} <= set(rows), purpose, "each has t, hit and evaluations")

        def answer(t: Times, ids: Ids) -> Outcome:
            try:
                return held(rows, t, ids, purpose)
            except ValueError as error:
                raise RunError(f"the rows are not those that this run's settings ask for: {error}") from error

        return answer

    def outcome(self, purpose: str) -> Outcome:
        """All rows of a purpose, by rising id."""
        rows = self.rows(purpose)
        columns = {
            name: column for name, column in rows.items() if name not in {"id", "t", "hit", "evaluations"}
        }
        return Outcome(
            rows["hit"].astype(bool), rows["evaluations"].astype("int64"), _Columns(purpose, columns)
        )


def _table(settings: Mapping[str, object], kind: type[Kind], name: str) -> Kind:
    return read(kind, cast("Mapping[str, object]", settings.get(name, {})))


def first(error: ValidationError) -> str:
    """The first error in a value, in one line: where it is, and what."""
    wrong = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in wrong["loc"])[:120] or "the value"
    return f"{where}: {wrong['msg']}"[:300].replace("\n", " ")
