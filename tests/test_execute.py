"""Units of work: the rows must not depend on how they were cut, ordered, spread or interrupted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from numpy.typing import NDArray

from latentprint.contracts import Ids, Outcome, Times
from latentprint.execute import MemorySink, Stored, ids_held, run_probe, units
from latentprint.store import Run


@dataclass(frozen=True)
class Parity:
    """Hits where 3 id + 100 t is even: an answer that can be written down, and depends on both arguments."""

    def __call__(self, t: Times, ids: Ids) -> Outcome:
        value = 3 * ids + np.round(100 * t).astype(np.int64)
        return Outcome(value % 2 == 0, value + 1, {"value": value.astype(np.float32)})


class Recorder:
    """Remembers which ids were asked; dies after ``lives`` calls."""

    def __init__(self, lives: int = 10**9) -> None:
        self.asked: list[int] = []
        self.lives = lives

    def __call__(self, t: Times, ids: Ids) -> Outcome:
        if self.lives == 0:
            raise KeyboardInterrupt
        self.lives -= 1
        self.asked += ids.tolist()
        return Parity()(t, ids)


def backwards(function: Callable[[Any], Any], work: Iterable[Any], /) -> Iterator[Any]:
    """A pool that finishes its units in the wrong order."""
    return map(function, reversed(list(work)))


def request(n: int, seed: int = 0) -> tuple[Times, Ids]:
    rng = np.random.default_rng(seed)
    ids = rng.permutation(10 * n)[:n].astype(np.int64)
    return rng.integers(1, 100, n) / 100, ids


def same(seen: Outcome, t: Times, ids: Ids) -> None:
    value = 3 * ids + np.round(100 * t).astype(np.int64)
    assert_array_equal(seen.hit, value % 2 == 0)
    assert_array_equal(seen.evaluations, value + 1)
    assert_array_equal(seen.columns["value"], value)
    assert set(seen.columns) == {"value"}


def test_units_keep_every_id_once_and_in_order():
    ids = np.array([5, 3, 9, 1, 7], np.int64)
    assert [part.tolist() for part in units(ids, 2)] == [[5, 3], [9, 1], [7]]
    assert [part.tolist() for part in units(ids, 5)] == [[5, 3, 9, 1, 7]]
    assert list(units(ids[:0], 3)) == []


def test_a_unit_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least 1 id, got 0"):
        units(np.arange(3), 0)


@given(n=st.integers(0, 40), unit=st.integers(1, 50), seed=st.integers(0, 5), reverse=st.booleans())
def test_the_outcome_depends_neither_on_unit_size_nor_on_the_order_of_the_units(n, unit, seed, reverse):
    t, ids = request(n, seed)
    if not n:
        assert len(run_probe(Parity(), t, ids, unit=unit).hit) == 0
        return
    same(run_probe(Parity(), t, ids, unit=unit, map=backwards if reverse else map), t, ids)


@given(unit=st.integers(1, 12), lives=st.integers(0, 9), again=st.integers(1, 12))
def test_an_interrupted_run_continues_with_the_missing_ids_only(unit, lives, again):
    t, ids = request(30)
    sink, first, second = MemorySink(), Recorder(lives), Recorder()
    try:
        run_probe(first, t, ids, unit=unit, sink=sink)
    except KeyboardInterrupt:
        # Nothing that was finished is lost: one unit per life.
        assert len(ids_held(sink, "probe")) == min(30, lives * unit)
    same(run_probe(second, t, ids, unit=again, sink=sink), t, ids)
    assert sorted(first.asked + second.asked) == sorted(ids.tolist())


def test_rows_are_stored_sorted_by_id_with_their_noise_level_under_their_purpose():
    t, ids = request(20)
    sink = MemorySink()
    run_probe(Parity(), t, ids, purpose="a", unit=3, sink=sink)
    run_probe(Parity(), t[:5], ids[:5], purpose="b", unit=3, sink=sink)
    rows = sink.rows("a")
    order = np.argsort(ids)
    assert_array_equal(rows["id"], ids[order])
    assert_array_equal(rows["t"], t[order])
    assert_array_equal(rows["hit"], (3 * ids + np.round(100 * t))[order] % 2 == 0)
    assert ids_held(sink, "b").tolist() == sorted(ids[:5].tolist())
    assert ids_held(sink, "c").tolist() == []


def test_keeping_a_part_twice_changes_nothing():
    sink = MemorySink()
    part: Mapping[str, NDArray[Any]] = {"id": np.array([2, 1]), "hit": np.array([True, False])}
    sink.append("a", part)
    sink.append("a", part)
    assert sink.rows("a")["id"].tolist() == [1, 2]
    assert sink.rows("a")["hit"].tolist() == [False, True]


def test_a_sink_keeps_its_own_copy():
    sink, column = MemorySink(), np.array([1, 2])
    sink.append("a", {"id": column})
    column[:] = 0
    assert sink.rows("a")["id"].tolist() == [1, 2]


def test_progress_begins_with_what_was_stored_and_ends_with_everything():
    t, ids = request(10)
    sink, seen = MemorySink(), list[tuple[int, int]]()
    run_probe(Parity(), t[:4], ids[:4], sink=sink)
    run_probe(Parity(), t, ids, unit=4, sink=sink, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(4, 10), (8, 10), (10, 10)]


def test_a_stored_probe_asks_for_each_id_once_over_all_its_calls():
    t, ids = request(30)
    inner = Recorder()
    probe = Stored(inner, unit=7)
    same(probe(t[:20], ids[:20]), t[:20], ids[:20])
    same(probe(t[::-1], ids[::-1]), t[::-1], ids[::-1])
    assert len(inner.asked) == 30


def test_a_run_on_disk_is_a_sink(tmp_path):
    t, ids = request(20)
    with Run.open(tmp_path / "run", {"seed": 0}) as run, pytest.raises(KeyboardInterrupt):
        run_probe(Recorder(2), t, ids, unit=6, sink=run)
    rest = Recorder()
    with Run.open(tmp_path / "run", {"seed": 0}) as run:
        same(run_probe(rest, t, ids, unit=5, sink=run), t, ids)
    assert len(rest.asked) == 8


def test_a_process_pool_is_a_map():
    t, ids = request(25)
    with ProcessPoolExecutor(2, mp_context=get_context("fork")) as pool:
        same(run_probe(Parity(), t, ids, unit=6, map=pool.map), t, ids)


@dataclass(frozen=True)
class Answers:
    outcome: Outcome

    def __call__(self, t: Times, ids: Ids) -> Outcome:
        return self.outcome


@pytest.mark.parametrize(
    ("outcome", "sentence"),
    [
        (Outcome(np.zeros(2, np.bool_), np.zeros(2, np.int64)), "asked for 3 ids and answered with hits of"),
        (Outcome(np.zeros(3), np.zeros(3, np.int64)), "hits must be booleans, got float64"),  # type: ignore[arg-type]
        (
            Outcome(np.zeros(3, np.bool_), np.zeros(3, np.int64), {"t": np.zeros(3)}),
            "column 't' takes a name",
        ),
    ],
)
def test_a_probe_that_answers_wrongly_is_refused(outcome, sentence):
    with pytest.raises(ValueError, match=sentence):
        run_probe(Answers(outcome), np.ones(3), np.arange(3))


@pytest.mark.parametrize(
    ("t", "ids", "sentence"),
    [
        (np.ones(2), np.arange(3), "one noise level per id"),
        (np.ones(3), np.array([0, 1, 1]), "each id may be asked once, got 3 of which 2 differ"),
        (np.ones(3), np.array([0, -1, 1]), "ids count from 0, got -1"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(t, ids, sentence):
    with pytest.raises(ValueError, match=sentence):
        run_probe(Parity(), t, ids)


def test_a_run_is_not_continued_on_another_grid():
    sink = MemorySink()
    run_probe(Parity(), np.array([0.1, 0.2]), np.array([0, 1]), sink=sink)
    with pytest.raises(ValueError, match=r"holds id 1 at t = 0\.2, now it is asked at t = 0\.3"):
        run_probe(Parity(), np.array([0.1, 0.3]), np.array([0, 1]), sink=sink)


def test_parts_with_other_columns_or_ragged_ones_are_refused():
    sink = MemorySink()
    sink.append("a", {"id": np.array([1])})
    with pytest.raises(ValueError, match="keeps the columns id; this part has id, hit"):
        sink.append("a", {"id": np.array([2]), "hit": np.array([True])})
    with pytest.raises(ValueError, match="one length"):
        sink.append("b", {"id": np.array([2]), "hit": np.array([True, False])})


class Forgetful(MemorySink):
    """A sink that loses what it was given."""

    def append(self, purpose: str, columns: Mapping[str, NDArray[Any]], /) -> None:
        super().append(purpose, {name: column[1:] for name, column in columns.items()})


def test_rows_that_did_not_arrive_are_missed_aloud():
    with pytest.raises(ValueError, match="lacks 2 of the 4 ids asked for, the first is 0"):
        run_probe(Parity(), np.ones(4), np.arange(4), unit=2, sink=Forgetful())


def test_features_outlive_a_kill_before_their_rows_and_another_batch_size(tmp_path):
    """Features are written before rows; after a kill between them units are cut differently."""
    from types import SimpleNamespace

    import torch

    from latentprint.audit.features import Features, Keeping

    def watched(features):
        def unit(ids):
            features(ids, torch.as_tensor(ids, dtype=torch.float32)[:, None])
            return ids

        return unit

    ids = np.arange(12)
    with Run.open(tmp_path / "run", {}) as run:
        work = SimpleNamespace(run=run, map=map)
        for batch in (4, 6):  # the first leaves features of 0..3 and no rows
            features = Features(100, lambda x: x)
            keeping = Keeping(work, "features", features)
            units = [ids[i : i + batch] for i in range(0, 12, batch)]
            for _ in keeping(watched(features), units[: 1 if batch == 4 else None]):
                pass
        held, values = run.array("features")
    assert held.tolist() == ids.tolist() and values[:, 0].tolist() == ids.tolist()
