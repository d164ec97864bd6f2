"""The searches for t': Alg. 1 in one staggered pass, and the faster ones that section 6 of the paper names.

    exhaustive     M tries at every t. Its t' is Alg. 1's.
    bisection      M tries at a few t, then at about log2(levels) more. Its t' is Alg. 1's if hits fall.
    subsample      M tries at a random share of the levels. Its t' is Alg. 1's on the levels drawn.
    reduced_range  M tries at the levels between two bounds. Its t' is Alg. 1's if that lies between them.
    sequential     at about log2(levels) levels, the tries that tell on which side of p P(return | t) is.
                   Its t' is t'_p up to a stated factor in p; its guarantee holds whenever it stops.

All searches use the same id for the same try, so a bisection over the rows of a finished exhaustive pass
finds the hits of that pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from latentprint.contracts import Probe
from latentprint.search.boundary import FALLS, NOTHING, Interval, TPrime, conclude, falling_test
from latentprint.search.plan import Answers, Plan, ask, depth
from latentprint.stats import Trials, confidence_sequence, log_mixture

ANCHORS = 5
"""Levels that bisection asks whatever the hits: enough to notice a curve that rises."""

PRIOR = (0.25, 0.75)
"""Of the mixture in ``sequential``. Most levels return nearly always or never, so the ends get weight."""


def exhaustive(probe: Probe, plan: Plan, *, target: int = 0) -> TPrime:
    """Alg. 1 at every t of the grid, all tries of all t in one request (t falls within it).

    Raises:
        ValueError: the probe answered with another number of hits than it was asked for.
    """
    return _fixed(probe, plan, range(len(plan.grid)), "exhaustive", target)


def subsample(probe: Probe, plan: Plan, count: int, rng: np.random.Generator, *, target: int = 0) -> TPrime:
    """M tries at ``count`` levels drawn at random from the grid (paper section 6).

    Raises:
        ValueError: the grid does not have ``count`` levels; as for ``exhaustive``.
    """
    if not 1 <= count <= len(plan.grid):
        raise ValueError(f"a subsample holds 1 to {len(plan.grid)} levels of this grid, got {count}")
    drawn = np.sort(rng.choice(len(plan.grid), count, replace=False))
    return _fixed(probe, plan, [int(i) for i in drawn], "subsample", target)


def reduced_range(probe: Probe, plan: Plan, low: float, high: float, *, target: int = 0) -> TPrime:
    """M tries at the levels in [low, high] only (paper section 6).

    Raises:
        ValueError: no level of the grid lies in the range; as for ``exhaustive``.
    """
    inside = [i for i, t in enumerate(plan.grid) if low <= t <= high]
    if not inside:
        raise ValueError(f"no noise level of the grid lies in [{low:g}, {high:g}]")
    return _fixed(probe, plan, inside, "reduced_range", target)


def bisection(probe: Probe, plan: Plan, *, anchors: int = ANCHORS, target: int = 0) -> TPrime:
    """Halve the interval between the highest level with a hit and the next level asked, M tries at a time.

    ``anchors`` evenly spaced levels are asked first. They test that P(return | t) falls (``falling``), and
    set the first interval: from the highest anchor with a hit to the anchor above it. t' is Alg. 1's unless a
    level above one without a hit has a hit.

    Raises:
        ValueError: ``anchors`` is below 2 on a grid of two or more levels; as for ``exhaustive``.
    """
    count = len(plan.grid)
    if anchors < min(2, count):
        raise ValueError(f"bisection needs at least 2 anchors, got {anchors}")
    design = _spread(count, anchors)
    book = _Book(probe, plan, target)
    book.ask(design, range(plan.tries))
    hit = [i for i in design if book.trials[i].k]
    low = hit[-1] if hit else -1
    high = min((i for i in design if i > low), default=count)
    while high - low > 1:
        middle = (low + high) // 2
        book.ask([middle], range(plan.tries))
        low, high = (middle, high) if book.trials[middle].k else (low, middle)
    return _warned(conclude(plan, book.trials, book.evaluations, "bisection", design))


def sequential(
    probe: Probe,
    plan: Plan,
    *,
    slack: float = 3.0,
    cap: int = 2000,
    chunk: int = 16,
    anchors: int = 0,
    target: int = 0,
) -> TPrime:
    """Find the largest t from which a share p = ``plan.threshold`` comes back, certain up to a factor
    ``slack`` in p.

    Bisection over the grid. At each level tries are added in chunks until a confidence sequence for P(return
    | t) lies above p / slack (go on to higher t) or below p slack (to lower t); if it lies between the two,
    the estimate decides.

    Guarantee, with probability >= level: from t' more than p / slack of the trajectories return, and from the
    next level of the grid fewer than p slack do. If t' is at the grid's end, only one of the two applies. A
    run visits at most D = ceil(log2(levels + 1)) levels (and the anchors). It visits a level because of the
    hits at *other* levels, which are independent of its own (their ids differ). Each sequence fails, at any
    time, with probability <= (1 - level) / D. Hence the guarantee holds for any ``chunk``, any curve and any
    stopping time. If P(return | t) falls, t'_(p slack) <= t' <= t'_(p / slack), and ``interval_if_falling``
    holds t'_p in the same event. ``interval`` assumes nothing: its high end uses the sequence at t'_p alone,
    its low end those of all levels (Bonferroni). For comparison, one hit in M = 16, which decides in Alg. 1,
    happens with probability 0.1 at P = 0.007 and with 0.9 at P = 0.13. That is a factor of 20; with the
    default slack it is 9.

    If the detector's rates are given, p is translated by them, and a quarter of the error probability is
    spent on each rate's bound. A level still undecided after ``cap`` tries is left, which ``sentence`` says.
    The estimate then chooses the direction, and the guarantee does not cover that level. ``anchors`` evenly
    spaced levels get M tries each to test that P(return | t) falls; they do not steer.

    Sources: Robbins 1970 (the sequence, ``stats.confidence_sequence``); Burnashev and Zigangirov 1974
    (bisection with noisy answers).

    Raises:
        ValueError: a chunk or cap below 1; ``slack`` not above 1, or p slack not below 1; detector rates that
            are too uncertain to tell p / slack from p slack; as for ``exhaustive``.
    """
    if chunk < 1 or cap < 1:
        raise ValueError(f"a chunk and a cap of tries must be at least 1, got {chunk} and {cap}")
    book, rule = _Book(probe, plan, target), _rule(plan, slack)
    design = _spread(len(plan.grid), anchors) if anchors else []
    if design:
        book.ask(design, range(plan.tries))
    fixed = list(book.trials)
    levels = depth(len(plan.grid)) + len(design)
    low, open_levels = _walk(book, rule, levels, cap, chunk)
    each = 1 - (1 - plan.level) / len(plan.grid)
    free, falling, certain = _by_sequences(book, rule, levels)
    return _warned(
        TPrime(
            method="sequential",
            plan=plan,
            trials=tuple(book.trials),
            value=plan.grid[low] if low >= 0 else None,
            definition=(
                f"more than {plan.threshold / slack:.3g} come back from it, fewer than "
                f"{plan.threshold * slack:.3g} from the next level"
            ),
            certain=certain,
            interval=free,
            interval_if_falling=falling,
            band=tuple(confidence_sequence(one.k, one.n, each, PRIOR) for one in book.trials),
            falling=falling_test(plan, fixed, design),
            network_evaluations=book.evaluations,
            sentence=_sequential_sentence(book, low, open_levels),
        )
    )


class _Book:
    """Counts of one search as they grow: which tries were asked, their hits, and their cost."""

    def __init__(self, probe: Probe, plan: Plan, target: int) -> None:
        self.probe, self.plan, self.target = probe, plan, target
        self.trials = [Trials(0, 0)] * len(plan.grid)
        self.evaluations = 0

    def ask(self, indices: Sequence[int], tries: range) -> None:
        """Further tries at some levels; each level's tries are asked in order from 0."""
        seen: Answers = ask(self.probe, self.plan, indices, tries, [self.target])
        for index in indices:
            self.trials[index] = self.trials[index] + seen.trials[self.target, index]
        self.evaluations += seen.evaluations[self.target]


def _fixed(probe: Probe, plan: Plan, design: Sequence[int], method: str, target: int) -> TPrime:
    book = _Book(probe, plan, target)
    book.ask(design, range(plan.tries))
    return conclude(plan, book.trials, book.evaluations, method, design)


def _spread(count: int, anchors: int) -> list[int]:
    """Evenly spaced indices of a grid, including its ends."""
    return sorted({int(i) for i in np.round(np.linspace(0, count - 1, anchors))})


def _warned(found: TPrime) -> TPrime:
    """Add a warning to the result's sentence if the curve, which the search assumed to fall, rises."""
    if found.falling.rises is None:
        return found
    return replace(found, sentence=f"{found.sentence} {found.falling.sentence}")


@dataclass(frozen=True)
class _Rule:
    """Bounds of P(hit | t), the detector's errors included, with which sequences are compared.

    ``up`` and ``down`` decide the direction: for P(return | t) = p / slack and p slack. ``above`` and
    ``below`` belong to p itself, ``false`` bounds fpr, ``error`` is the probability left for the sequences.
    """

    up: float
    down: float
    above: float
    below: float
    false: float
    error: float

    def way(self, seen: Trials, levels: int) -> int:
        """1 up, -1 down, 0 undecided; wrong at any time with probability ``error / levels`` at most."""
        error = self.error / levels
        up, down = _excluded(seen, self.up, error) > 0, _excluded(seen, self.down, error) < 0
        if up and down:
            return 1 if seen.rate >= self.above else -1
        return int(up) - int(down)


def _excluded(seen: Trials, bound: float, error: float) -> int:
    """1 if the sequence at 1 - ``error`` lies above ``bound``, -1 if below it, 0 if it contains it."""
    if not seen.n or log_mixture(seen.k, seen.n, bound, PRIOR) < -math.log(error):
        return 0
    return 1 if seen.rate > bound else -1


def require_slack(plan: Plan, slack: float) -> None:
    """Check that ``sequential`` can tell p / slack from p slack with the plan's detector."""
    _rule(plan, slack)


def _rule(plan: Plan, slack: float) -> _Rule:
    p = plan.threshold
    if not slack > 1 or p * slack >= 1:
        raise ValueError(
            f"slack must be above 1 and threshold * slack below 1, got slack {slack} with threshold {p}"
        )
    error = spent = 1 - plan.level
    false, true = 0.0, 1.0
    if plan.false_positives is not None:
        spent -= error / 4
        false = plan.false_positives.upper(1 - error / 4)
    if plan.true_positives is not None:
        spent -= error / 4
        true = plan.true_positives.lower(1 - error / 4)
    up, above = (share + (1 - share) * false for share in (p / slack, p))
    down, below = p * slack * true, p * true
    if up >= down:
        raise ValueError(
            f"the detector's false-positive rate may be {false:.3g} and its true-positive rate {true:.3g}: "
            f"too uncertain to tell {p / slack:.3g} of returns from {p * slack:.3g}; calibrate on more images"
        )
    return _Rule(up, down, above, below, false, spent)


def _walk(book: _Book, rule: _Rule, levels: int, cap: int, chunk: int) -> tuple[int, int]:
    """(index of t', -1 below the grid; how many levels on the way stayed undecided)."""
    low, high, open_levels = -1, len(book.plan.grid), 0
    while high - low > 1:
        middle = (low + high) // 2
        while not (way := rule.way(book.trials[middle], levels)):
            done = book.trials[middle].n
            if done >= cap:
                open_levels += 1
                way = 1 if book.trials[middle].rate >= book.plan.threshold else -1
                break
            book.ask([middle], range(done, min(done + chunk, cap)))
        low, high = (middle, high) if way > 0 else (low, middle)
    return low, open_levels


def _by_sequences(book: _Book, rule: _Rule, levels: int) -> tuple[Interval, Interval, float | None]:
    """Intervals of t'_p, without assumptions and if P(return | t) falls, and the largest certain t."""
    plan, count = book.plan, len(book.plan.grid)

    def where(bound: float, error: float, sides: Sequence[int]) -> list[float]:
        at = [_excluded(one, bound, error) for one in book.trials]
        return [t for t, side in zip(plan.grid, at, strict=True) if side in sides]

    def interval(low: list[float], high: list[float], assumes: str) -> Interval:
        ends = low[-1] if low else None, high[-1] if high else None
        return Interval(*ends, threshold=plan.threshold, level=plan.level, assumes=assumes)

    one_of_all, alone, visited = rule.error / 2 / count, rule.error / 2, rule.error / levels
    free = interval(where(rule.above, one_of_all, (1,)), where(rule.below, alone, (0, 1)), NOTHING)
    lowest = min(where(rule.below, visited, (-1,)), default=math.inf)
    falling = interval(where(rule.above, visited, (1,)), [t for t in plan.grid if t < lowest], FALLS)
    certain = where(rule.false, one_of_all, (1,))
    return free, falling, certain[-1] if certain else None


def _sequential_sentence(book: _Book, low: int, open_levels: int) -> str:
    plan = book.plan
    asked = sum(1 for one in book.trials if one.n)
    price = f"{sum(one.n for one in book.trials)} tries at {asked} of {len(plan.grid)} levels"
    doubt = f" At {open_levels} of the levels visited the tries did not decide." if open_levels else ""
    if low < 0:
        return (
            f"Never: already at t = {plan.grid[0]:.4g}, {book.trials[0].k} of {book.trials[0].n} tries came "
            f"back ({price}).{doubt}"
        )
    seen = book.trials[low]
    text = f"{seen.k} of {seen.n} tries came back from t = {plan.grid[low]:.4g}"
    if low + 1 < len(plan.grid):
        above = book.trials[low + 1]
        text += f", {above.k} of {above.n} from the next level"
    return f"{text} ({price}).{doubt}"
