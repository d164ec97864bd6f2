"""What a search for t' asks: noise levels, tries, and the id of every trajectory.

    id = (target * 2^12 + index of t in the grid) * 2^20 + try

A trajectory's noise is a pure function of its id (``streams``), so this number identifies a try. It is the
same in the exhaustive pass and in every faster search, for any unit, order or machine. More tries later keep
the tries already made (try counts from 0 at every t). Two targets, or two t, never share noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from latentprint.contracts import Ids, Outcome, Probe, Times
from latentprint.stats import Trials

GRID = 2**12
"""Most noise levels of one grid."""

TRIES = 2**20
"""Most tries at one noise level."""

TARGETS = 2**31
"""Most target images: ids stay below 2^63."""


def ids_of(target: int, index: ArrayLike, attempt: ArrayLike) -> Ids:
    """The id of each (target, grid index, try), shapes broadcast against each other.

    Raises:
        ValueError: a number outside its range.
    """
    index, attempt = np.asarray(index, np.int64), np.asarray(attempt, np.int64)
    for name, value, limit in (
        ("target", np.asarray(target, np.int64), TARGETS),
        ("grid index", index, GRID),
        ("try", attempt, TRIES),
    ):
        if value.size and (value.min() < 0 or value.max() >= limit):
            raise ValueError(f"a {name} lies in [0, {limit}), got {value.min()} to {value.max()}")
    return (target * GRID + index) * TRIES + attempt


def target_of(ids: Ids) -> NDArray[np.int64]:
    """Which target image each id belongs to: what a probe for many targets reads."""
    return ids // (GRID * TRIES)


def index_of(ids: Ids) -> NDArray[np.int64]:
    """Which noise level of the grid each id belongs to."""
    return ids // TRIES % GRID


@dataclass(frozen=True)
class Plan:
    """The question that a search answers.

    Attributes:
        grid: noise levels t, rising, within [0, horizon].
        tries: M of Alg. 1, trajectories at each t.
        horizon: T, where the reverse process starts.
        threshold: p of t'_p, the largest t from which more than a share p of the tries comes back. The
            paper's t' = max {t : q_M > 0} grows with M towards T, and t'_p does not depend on M.
        level: confidence of every interval, test and band.
        true_positives, false_positives: the detector's counts on its calibration split. If they are given,
            intervals include the detector's errors; if not, every answer of the detector counts as true.

    Raises:
        ValueError: an empty, falling, repeating or non-finite grid, one outside [0, horizon]; no tries;
            a threshold or level outside (0, 1).
    """

    grid: tuple[float, ...]
    tries: int = 16
    horizon: float = 1.0
    threshold: float = 0.05
    level: float = 0.95
    true_positives: Trials | None = None
    false_positives: Trials | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "grid", tuple(float(t) for t in self.grid))
        grid = np.asarray(self.grid)
        if not len(grid):
            raise ValueError("the grid of noise levels is empty; at least one t is needed")
        if len(grid) > GRID:
            raise ValueError(f"a grid may have {GRID} noise levels, got {len(grid)}")
        if not np.isfinite(grid).all() or grid.min() < 0 or grid.max() > self.horizon:
            raise ValueError(
                f"noise levels lie in [0, {self.horizon:g}], got {grid.min():g} to {grid.max():g}"
            )
        if (np.diff(grid) <= 0).any():
            at = int(np.flatnonzero(np.diff(grid) <= 0)[0])
            raise ValueError(f"noise levels must rise, each once, got {grid[at]:g} before {grid[at + 1]:g}")
        if not 1 <= self.tries <= TRIES:
            raise ValueError(f"M, the tries at each noise level, lies in [1, {TRIES}], got {self.tries}")
        for name, value in (("threshold", self.threshold), ("level", self.level)):
            if not 0 < value < 1:
                raise ValueError(f"the {name} lies strictly between 0 and 1, got {value}")
        for name, trials in (("true", self.true_positives), ("false", self.false_positives)):
            if trials is not None and trials.n == 0:
                raise ValueError(f"the detector's {name}-positive rate was measured on no image at all")


def even_grid(count: int, horizon: float = 1.0) -> tuple[float, ...]:
    """``count`` noise levels, evenly spaced, the last one T: i T / count for i = 1..count.

    Raises:
        ValueError: ``count`` is not at least 1.
    """
    if count < 1:
        raise ValueError(f"a grid needs at least one noise level, got {count}")
    return (*(horizon * i / count for i in range(1, count)), horizon)  # T itself, whatever rounding says


@dataclass(frozen=True)
class Answers:
    """A probe's answers: Trials of each (target, grid index), network evaluations of each target."""

    trials: dict[tuple[int, int], Trials]
    evaluations: dict[int, int]


def ask(
    probe: Probe, plan: Plan, indices: Sequence[int], tries: range, targets: Sequence[int] = (0,)
) -> Answers:
    """All (target, t, try) of a request in one call, t falling: long trajectories start first."""
    t, ids = request(plan, indices, tries, targets)
    outcome = probe(t, ids)
    check(outcome, len(ids))
    shape = len(indices), len(targets), len(tries)
    hits = outcome.hit.reshape(shape).sum(axis=2)
    cost = outcome.evaluations.reshape(shape).sum(axis=(0, 2))
    falling = sorted(indices, reverse=True)
    trials = {
        (target, index): Trials(int(hits[row, column]), len(tries))
        for row, index in enumerate(falling)
        for column, target in enumerate(targets)
    }
    return Answers(trials, {target: int(cost[column]) for column, target in enumerate(targets)})


def request(
    plan: Plan, indices: Sequence[int], tries: range, targets: Sequence[int] = (0,)
) -> tuple[Times, Ids]:
    """(t, ids), both (len(indices) * len(targets) * len(tries),), t falling, then by target, then by try."""
    falling = np.asarray(sorted(indices, reverse=True), np.int64)
    attempts = np.asarray(tries, np.int64)
    blocks = [ids_of(target, falling[:, None], attempts[None]) for target in targets]
    ids = np.stack(blocks, axis=1).reshape(-1) if blocks else np.empty(0, np.int64)
    return np.asarray(plan.grid)[index_of(ids)], ids


def check(outcome: Outcome, asked: int) -> None:
    """Refuse an outcome that does not have one hit per id asked for."""
    if outcome.hit.shape != (asked,):
        raise ValueError(f"the probe was asked for {asked} ids, it answered with hits {outcome.hit.shape}")


def trials_from_rows(plan: Plan, rows: dict[str, NDArray[Any]], target: int = 0) -> tuple[Trials, ...]:
    """Trials at each t from stored rows (``id``, ``hit``): what a report counts again without a model.

    Raises:
        ValueError: a row lies above the grid of the plan.
    """
    ids, hit = cast(Ids, rows["id"]), rows["hit"].astype(np.bool_)
    mine = target_of(ids) == target
    index = index_of(ids[mine])
    if index.size and index.max() >= len(plan.grid):
        raise ValueError(
            f"the rows reach grid index {index.max()}, the grid has {len(plan.grid)} noise levels"
        )
    n = np.bincount(index, minlength=len(plan.grid))
    k = np.bincount(index[hit[mine]], minlength=len(plan.grid))
    return tuple(Trials(int(a), int(b)) for a, b in zip(k, n, strict=True))


def depth(points: int) -> int:
    """Most points that a bisection over ``points`` grid points visits: ceil(log2(points + 1))."""
    return math.ceil(math.log2(points + 1))
