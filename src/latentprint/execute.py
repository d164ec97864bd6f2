"""Long work as units of ids. Each id is asked once, and each finished unit is passed on at once.

A probe's outcome for an id depends on (t, id) alone (``contracts.Probe``). So the work can be divided into
units of any size and computed in any order, by anything with the form of ``map`` (the built-in one, a process
pool, a Ray pool). It can be stopped at any moment and continued, and the rows are the same. Stored rows are
looked up by id, so continuing means asking for the missing ids.

Source of the idea of a pool as "anything with ``map``": Foreman-Mackey et al. 2013 (emcee), section 3.2.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from latentprint.contracts import Ids, Map, Outcome, Probe, Times

UNIT = 1024
"""Default number of ids per unit: a kill loses at most these, and they are several full batches of a
sampler."""

_OWN = ("id", "t", "hit", "evaluations")


class Sink(Protocol):
    """Where finished rows go. ``store.Run`` is one on disk, ``MemorySink`` one in memory."""

    def append(self, purpose: str, columns: Mapping[str, NDArray[Any]], /) -> object:
        """Keep the rows of one unit: columns (n,), among them ``id``, none of which is kept already."""
        ...

    def rows(self, purpose: str, /) -> Mapping[str, NDArray[Any]]:
        """All rows kept under ``purpose``, sorted by id, each id once; an empty mapping if there are none."""
        ...


class Progress(Protocol):
    """Called with the ids done so far, stored ones included, and the ids asked for.

    The first call comes before any work and counts what was stored, so a rate is (done - first done) divided
    by the seconds since the first call, and a resumed run does not look fast.
    """

    def __call__(self, done: int, total: int, /) -> object: ...


def silent(done: int, total: int, /) -> None:
    """A Progress that says nothing."""


class MemorySink:
    """A Sink that keeps the parts in memory."""

    def __init__(self) -> None:
        self._parts: dict[str, list[dict[str, NDArray[Any]]]] = {}

    def append(self, purpose: str, columns: Mapping[str, NDArray[Any]], /) -> None:
        """See Sink.

        Raises:
            ValueError: other columns than the parts before, or columns of different lengths.
        """
        parts = self._parts.setdefault(purpose, [])
        if parts and set(parts[0]) != set(columns):
            raise ValueError(
                f"{purpose} keeps the columns {', '.join(parts[0])}; this part has {', '.join(columns)}"
            )
        if len({len(column) for column in columns.values()}) > 1:
            sizes = {name: len(column) for name, column in columns.items()}
            raise ValueError(f"the columns of a part need one length, got {sizes}")
        parts.append({name: np.array(column) for name, column in columns.items()})

    def rows(self, purpose: str, /) -> dict[str, NDArray[Any]]:
        """See Sink."""
        parts = self._parts.get(purpose)
        if not parts:
            return {}
        whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        _, first = np.unique(whole["id"], return_index=True)
        return {name: column[first] for name, column in whole.items()}


def units(ids: Ids, size: int) -> Iterator[Ids]:
    """Divide ids (n,) into units of at most ``size``, in the order given.

    Raises:
        ValueError: ``size`` is not at least 1.
    """
    if size < 1:
        raise ValueError(f"a unit of work needs at least 1 id, got {size}")
    return (ids[first : first + size] for first in range(0, len(ids), size))


def run_probe(
    probe: Probe,
    t: Times,
    ids: Ids,
    *,
    purpose: str = "probe",
    unit: int = UNIT,
    sink: Sink | None = None,
    progress: Progress = silent,
    map: Map = map,  # noqa: A002 (it is one)
) -> Outcome:
    """Ask the probe for ids (n,) at noise levels t (n,), unit by unit; the outcome is in the order asked.

    Ids that the sink already holds under ``purpose`` are not asked again. Each unit is appended to the sink
    as soon as it is finished, as the columns ``id``, ``t``, ``hit``, ``evaluations`` and the outcome's own,
    so that an interruption only loses the units in flight. ``map`` may run units in parallel and yield them
    in any order.

    Raises:
        ValueError: t and ids differ in length; an id is repeated or negative; the probe answered with another
            number of rows, or with a hit that is not bool; the sink has an id at another noise level.
    """
    t, ids = np.asarray(t, np.float64), np.asarray(ids, np.int64)
    _check_request(t, ids)
    sink = MemorySink() if sink is None else sink
    stored = sink.rows(purpose)
    place, held = _find(stored, ids)
    _check_levels(stored, place, held, t, ids, purpose)
    done, missing = int(held.sum()), np.flatnonzero(~held)
    progress(done, len(ids))
    work = ((t[rows], ids[rows]) for rows in units(missing, unit))
    for columns in map(_Ask(probe), work):
        sink.append(purpose, columns)
        done += len(columns["id"])
        progress(done, len(ids))
    return _collect(sink.rows(purpose), ids, purpose)


@dataclass(frozen=True)
class _Ask:
    """One unit (t, ids) -> its rows; a class and not a closure so that process pools can send it."""

    probe: Probe

    def __call__(self, unit: tuple[Times, Ids]) -> dict[str, NDArray[Any]]:
        t, ids = unit
        seen = self.probe(t, ids)
        if seen.hit.shape != ids.shape:
            raise ValueError(
                f"the probe was asked for {len(ids)} ids and answered with hits of shape {seen.hit.shape}"
            )
        if seen.hit.dtype != np.bool_:
            raise ValueError(f"the probe's hits must be booleans, got {seen.hit.dtype}")
        clash = sorted(set(seen.columns) & set(_OWN))
        if clash:
            raise ValueError(f"the probe's column {clash[0]!r} takes a name that the rows need themselves")
        return {"id": ids, "t": t, "hit": seen.hit, "evaluations": seen.evaluations, **seen.columns}


@dataclass(frozen=True)
class Stored:
    """A probe with its storage. It is itself a Probe, for searches that ask more than once.

    Every call goes through ``run_probe``, so known outcomes are read and not computed again.
    """

    probe: Probe
    purpose: str = "probe"
    sink: Sink = field(default_factory=MemorySink)
    unit: int = UNIT
    progress: Progress = silent
    map: Map = map

    def __call__(self, t: Times, ids: Ids) -> Outcome:
        return run_probe(
            self.probe,
            t,
            ids,
            purpose=self.purpose,
            unit=self.unit,
            sink=self.sink,
            progress=self.progress,
            map=self.map,
        )


def ids_held(sink: Sink, purpose: str) -> Ids:
    """The ids that the sink has under ``purpose``, (n,), rising."""
    return np.asarray(sink.rows(purpose).get("id", np.empty(0, np.int64)), np.int64)


def held(rows: Mapping[str, NDArray[Any]], t: Times, ids: Ids, purpose: str) -> Outcome:
    """The outcomes of ids (n,) at noise levels t (n,) from the rows of a purpose, in the order asked.

    Raises:
        ValueError: an id has no row, or one of another noise level.
    """
    place, known = _find(rows, ids)
    _check_levels(rows, place, known, t, ids, purpose)
    return _collect(rows, ids, purpose)


def _check_request(t: Times, ids: Ids) -> None:
    if t.shape != ids.shape or ids.ndim != 1:
        raise ValueError(f"a probe is asked with one noise level per id, got {t.shape} for ids {ids.shape}")
    if len(ids) and ids.min() < 0:
        raise ValueError(f"ids count from 0, got {ids.min()}")
    if len(np.unique(ids)) != len(ids):
        raise ValueError(f"each id may be asked once, got {len(ids)} of which {len(np.unique(ids))} differ")


def _find(rows: Mapping[str, NDArray[Any]], ids: Ids) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """The place of each id in the rows (sorted by id), and whether it is there at all."""
    known = rows.get("id", np.empty(0, np.int64))
    place = np.searchsorted(known, ids)
    inside = place < len(known)
    held = np.zeros(len(ids), np.bool_)
    held[inside] = known[place[inside]] == ids[inside]
    return place, held


def _check_levels(
    rows: Mapping[str, NDArray[Any]],
    place: NDArray[np.intp],
    held: NDArray[np.bool_],
    t: Times,
    ids: Ids,
    purpose: str,
) -> None:
    if not held.any():
        return
    was, asked = rows["t"][place[held]], t[held]
    other = np.flatnonzero(was != asked)
    if len(other):
        at = other[0]
        raise ValueError(
            f"{purpose} already holds id {ids[held][at]} at t = {was[at]:g}, now it is asked at "
            f"t = {asked[at]:g}: another grid needs another run or purpose"
        )


def _collect(rows: Mapping[str, NDArray[Any]], ids: Ids, purpose: str) -> Outcome:
    place, held = _find(rows, ids)
    if not held.all():
        lost = ids[~held]
        raise ValueError(
            f"{purpose} lacks {len(lost)} of the {len(ids)} ids asked for, the first is {lost[0]}"
        )
    if not len(ids):
        return Outcome(np.zeros(0, np.bool_), np.zeros(0, np.int64))
    own = {name: column[place] for name, column in rows.items()}
    return Outcome(
        hit=own["hit"].astype(np.bool_),
        evaluations=own["evaluations"].astype(np.int64),
        columns={name: column for name, column in own.items() if name not in _OWN},
    )
