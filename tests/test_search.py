"""The searches against coins: a probe that hits with a known P(return | t)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray
from scipy import special
from scipy import stats as reference

from latentprint.contracts import Ids, Outcome, Times
from latentprint.execute import MemorySink, Stored
from latentprint.search import (
    Against,
    NullLaw,
    Plan,
    TPrime,
    bisection,
    conclude,
    even_grid,
    exhaustive,
    falling_test,
    ids_of,
    index_of,
    null_law,
    reduced_range,
    scan,
    sequential,
    subsample,
    target_of,
    trials_from_rows,
)
from latentprint.stats import Trials, false_discovery

Curve = Callable[[Times], NDArray[np.float64]]


def uniform(ids: Ids, seed: int) -> NDArray[np.float64]:
    """A number in [0, 1) for every (seed, id): SplitMix64 (Steele, Lea, Flood 2014)."""
    with np.errstate(over="ignore"):
        x = ids.astype(np.uint64) + np.uint64((seed + 1) * 0x9E3779B97F4A7C15 % 2**64)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    return (x >> np.uint64(11)).astype(np.float64) * 2.0**-53


@dataclass
class Coin:
    """Hits with probability curve(t); costs 10 t evaluations, rounded up. Remembers what it was asked."""

    curve: Curve
    seed: int = 0
    calls: int = 0
    asked: list[Ids] = field(default_factory=list[Ids])

    def __call__(self, t: Times, ids: Ids) -> Outcome:
        self.calls += 1
        self.asked.append(ids)
        return Outcome(uniform(ids, self.seed) < self.curve(t), np.ceil(10 * t).astype(np.int64))


def slope(t: Times) -> NDArray[np.float64]:
    """Falls from 1 to 0 around t = 0.55; 0.05 is crossed at 0.697."""
    return 1 / (1 + np.exp((t - 0.55) / 0.05))


def step(t: Times) -> NDArray[np.float64]:
    return np.where(t <= 0.43, 1.0, 0.0)


def bump(t: Times) -> NDArray[np.float64]:
    """Not monotone: returns below 0.3 and again between 0.6 and 0.85."""
    return np.where((t < 0.3) | ((t > 0.6) & (t < 0.85)), 0.9, 0.0)


def truth(curve: Curve, plan: Plan, p: float | None = None) -> float | None:
    """t'_p of a curve, by its definition."""
    above = [t for t in plan.grid if curve(np.array([t]))[0] >= (plan.threshold if p is None else p)]
    return above[-1] if above else None


# ---- what is asked --------------------------------------------------------------------------------


def test_ids_are_the_documented_formula_and_are_read_back():
    assert ids_of(3, 5, 7) == (3 * 4096 + 5) * 1048576 + 7
    ids = ids_of(2**31 - 1, [0, 4095], [2**20 - 1, 0])
    assert (ids >= 0).all()
    assert index_of(ids).tolist() == [0, 4095]
    assert target_of(ids).tolist() == [2**31 - 1] * 2


@pytest.mark.parametrize(
    ("target", "index", "attempt", "name"),
    [(-1, 0, 0, "target"), (0, 4096, 0, "grid index"), (0, 0, 2**20, "try"), (2**31, 0, 0, "target")],
)
def test_ids_do_not_run_into_each_other(target, index, attempt, name):
    with pytest.raises(ValueError, match=f"a {name} lies in"):
        ids_of(target, index, attempt)


@pytest.mark.parametrize(
    ("grid", "sentence"),
    [
        ((), "grid of noise levels is empty"),
        ((0.2, 0.1), "must rise, each once, got 0.2 before 0.1"),
        ((0.1, 0.1), "must rise, each once, got 0.1 before 0.1"),
        ((0.1, 1.5), r"lie in \[0, 1\], got 0.1 to 1.5"),
        ((-0.1, 0.5), r"lie in \[0, 1\]"),
        ((0.1, math.nan), r"lie in \[0, 1\]"),
    ],
)
def test_a_grid_that_makes_no_sense_is_refused(grid, sentence):
    with pytest.raises(ValueError, match=sentence):
        Plan(grid)


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ({"tries": 0}, "M, the tries at each noise level"),
        ({"threshold": 0.0}, "threshold lies strictly between 0 and 1"),
        ({"level": 1.0}, "level lies strictly between 0 and 1"),
        ({"false_positives": Trials(0, 0)}, "false-positive rate was measured on no image"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(setting, sentence):
    with pytest.raises(ValueError, match=sentence):
        Plan((0.5,), **setting)


def test_a_horizon_beyond_one_is_for_schedules_that_start_there():
    assert Plan(even_grid(4, 80.0), horizon=80.0).grid == (20.0, 40.0, 60.0, 80.0)
    for k in range(1, 1001):  # 20 (k / 1000) / 20 may be rounded to more than k / 1000
        assert Plan(even_grid(20, k / 1000), horizon=k / 1000).grid[-1] == k / 1000


def test_a_probe_that_answers_for_too_few_is_refused():
    def short(t: Times, ids: Ids) -> Outcome:
        return Outcome(np.zeros(len(ids) - 1, np.bool_), np.zeros(len(ids) - 1, np.int64))

    with pytest.raises(ValueError, match="asked for 8 ids"):
        exhaustive(short, Plan((0.5,), tries=8))


# ---- Alg. 1 ---------------------------------------------------------------------------------------


def algorithm_1(probe: Coin, plan: Plan) -> list[int]:
    """The paper's two loops, one trajectory at a time, without the early return: hits at each level."""
    return [
        sum(bool(probe(np.array([t]), ids_of(0, [index], [m])).hit[0]) for m in range(plan.tries))
        for index, t in enumerate(plan.grid)
    ]


def test_the_one_pass_hits_equal_those_of_the_loop_and_are_asked_in_one_call():
    plan = Plan(even_grid(30), tries=8)
    probe = Coin(slope)
    found = exhaustive(probe, plan)
    assert probe.calls == 1
    hits = algorithm_1(Coin(slope), plan)
    assert [one.k for one in found.trials] == hits
    assert {one.n for one in found.trials} == {8}
    assert found.value == plan.grid[max(i for i, k in enumerate(hits) if k)]
    assert found.network_evaluations == sum(8 * math.ceil(10 * t) for t in plan.grid)


def test_levels_are_asked_from_high_to_low():
    probe = Coin(slope)
    exhaustive(probe, Plan(even_grid(10), tries=3))
    assert (np.diff(index_of(probe.asked[0])) <= 0).all()
    assert index_of(probe.asked[0])[0] == 9


@settings(deadline=None, max_examples=25)
@given(unit=st.integers(1, 200), seed=st.integers(0, 3), cut=st.integers(0, 125))
def test_the_search_depends_neither_on_units_nor_on_what_was_already_stored(unit, seed, cut):
    plan = Plan(even_grid(25), tries=5)
    whole = exhaustive(Coin(slope, seed), plan)
    sink, first = MemorySink(), np.random.default_rng(cut).permutation(125)[:cut]
    index, attempt = np.divmod(first, 5)
    ids = ids_of(0, index, attempt)
    Stored(Coin(slope, seed), "search", sink, 7)(np.asarray(plan.grid)[index], ids)
    rest = Coin(slope, seed)
    assert exhaustive(Stored(rest, "search", sink, unit), plan) == whole
    assert sum(len(part) for part in rest.asked) == 125 - cut
    assert trials_from_rows(plan, sink.rows("search")) == whole.trials


def test_more_tries_keep_the_ones_already_made():
    few, many = (exhaustive(Coin(slope), Plan(even_grid(20), tries=m)) for m in (4, 40))
    assert all(a.k <= b.k for a, b in zip(few.trials, many.trials, strict=True))
    sink, again = MemorySink(), Coin(slope)
    exhaustive(Stored(Coin(slope), sink=sink), Plan(even_grid(20), tries=4))
    assert exhaustive(Stored(again, sink=sink), Plan(even_grid(20), tries=40)) == many
    assert sum(len(part) for part in again.asked) == 20 * 36


def test_never_is_a_value_with_a_sentence():
    for search in (exhaustive, bisection, sequential):
        found = search(Coin(np.zeros_like), Plan(even_grid(20), tries=16))
        assert found.value is None
        assert found.certain is None
        assert found.interval.low is None
        assert found.sentence.startswith("Never")
        assert found.to_dict()["value"] is None


def test_a_hit_at_the_highest_level_asked_says_that_t_prime_may_lie_above():
    found = reduced_range(Coin(np.ones_like), Plan(even_grid(10)), 0.2, 0.5)
    assert found.value == 0.5
    assert "may lie above" in found.sentence
    assert [i for i, one in enumerate(found.trials) if one.n] == [1, 2, 3, 4]


def test_results_list_only_what_was_asked():
    found = reduced_range(Coin(slope), Plan(even_grid(10), tries=4), 0.25, 0.6).to_dict()
    assert found["grid"] == [0.3, 0.4, 0.5, 0.6]
    assert found["tries_at"] == [4] * 4
    assert len(found["hits"]) == len(found["band"]) == 4


# ---- faster searches ------------------------------------------------------------------------------


@pytest.mark.parametrize("edge", [0.0, 0.01, 0.13, 0.43, 0.5, 0.995, 1.0])
def test_bisection_finds_a_sharp_edge_wherever_it_is(edge):
    plan = Plan(even_grid(100))
    found = bisection(Coin(lambda t: np.where(t <= edge, 1.0, 0.0)), plan)
    assert found.value == exhaustive(Coin(lambda t: np.where(t <= edge, 1.0, 0.0)), plan).value
    assert sum(one.n > 0 for one in found.trials) <= 5 + 5


def agreement(rates: NDArray[np.float64], plan: Plan, anchors: list[int]) -> float:
    """P(bisection's t' is Alg. 1's), by enumeration of every pattern of levels with and without a hit."""
    any_hit = 1 - (1 - rates) ** plan.tries
    total = 0.0
    for pattern in product((False, True), repeat=len(rates)):
        low = max((i for i in anchors if pattern[i]), default=-1)
        high = min((i for i in anchors if i > low), default=len(rates))
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if pattern[middle] else (low, middle)
        best = max((i for i, hit in enumerate(pattern) if hit), default=-1)
        total += (low == best) * np.prod(np.where(pattern, any_hit, 1 - any_hit))
    return float(total)


def test_bisection_agrees_with_alg_1_as_often_as_the_enumeration_says():
    plan = Plan(even_grid(12), tries=3)
    curve: Curve = lambda t: np.exp(-5 * t)  # noqa: E731
    expected = agreement(curve(np.asarray(plan.grid)), plan, [0, 4, 7, 11])
    assert 0.2 < expected < 0.9
    runs = 800
    same = sum(
        bisection(Coin(curve, seed), plan, anchors=4).value == exhaustive(Coin(curve, seed), plan).value
        for seed in range(runs)
    )
    low, high = Trials(same, runs).interval(0.999)
    assert low < expected < high


def test_bisection_reads_the_hits_of_a_finished_exhaustive_pass():
    plan, sink, fresh = Plan(even_grid(50)), MemorySink(), Coin(slope)
    whole = exhaustive(Stored(Coin(slope), sink=sink), plan)
    found = bisection(Stored(fresh, sink=sink), plan)
    assert fresh.calls == 0
    assert all(one in (Trials(0, 0), other) for one, other in zip(found.trials, whole.trials, strict=True))


def test_bisection_says_when_the_curve_rises():
    found = bisection(Coin(bump), Plan(even_grid(100)))
    assert found.falling.rises is not None
    low, high = found.falling.rises
    assert low < 0.7 < high
    assert found.falling.sentence in found.sentence
    quiet = bisection(Coin(slope), Plan(even_grid(100)))
    assert quiet.falling.rises is None
    assert quiet.falling.sentence not in quiet.sentence


def test_the_test_of_falling_keeps_its_level_on_flat_curves_and_finds_slow_rises():
    plan = Plan(even_grid(24), tries=8, level=0.9)
    rng = np.random.default_rng(1)
    every = range(24)

    def rejected(rates: NDArray[np.float64], runs: int) -> int:
        return sum(
            falling_test(plan, [Trials(int(k), 8) for k in rng.binomial(8, rates)], every).rises is not None
            for _ in range(runs)
        )

    flat = rejected(np.full(24, 0.5), 600)
    assert reference.binom.sf(flat - 1, 600, 0.1) > 0.001
    # A rise of 0.02 a level shows in no pair of neighbours, but in blocks.
    assert rejected(np.linspace(0.15, 0.85, 24), 100) > 80


def test_a_subsample_is_drawn_by_the_generator_it_is_given():
    plan = Plan(even_grid(60), tries=4)
    one, two, other = (subsample(Coin(step), plan, 9, np.random.default_rng(s)) for s in (1, 1, 2))
    assert one == two
    drawn = [i for i, seen in enumerate(one.trials) if seen.n]
    assert len(drawn) == 9
    assert drawn != [i for i, seen in enumerate(other.trials) if seen.n]
    assert one.value == max(plan.grid[i] for i in drawn if plan.grid[i] <= 0.43)
    whole = subsample(Coin(slope), plan, 60, np.random.default_rng(0))
    assert whole.trials == exhaustive(Coin(slope), plan).trials


@pytest.mark.parametrize("count", [0, 61])
def test_a_subsample_of_no_or_too_many_levels_is_refused(count):
    with pytest.raises(ValueError, match="1 to 60 levels"):
        subsample(Coin(step), Plan(even_grid(60)), count, np.random.default_rng(0))


def test_a_range_without_a_level_is_refused():
    with pytest.raises(ValueError, match=r"no noise level of the grid lies in \[0.31, 0.39\]"):
        reduced_range(Coin(step), Plan(even_grid(10)), 0.31, 0.39)


def test_bisection_needs_two_anchors_except_on_one_level():
    with pytest.raises(ValueError, match="at least 2 anchors"):
        bisection(Coin(step), Plan(even_grid(10)), anchors=1)
    assert bisection(Coin(step), Plan((0.3,)), anchors=1).value == 0.3


# ---- the sequential search ------------------------------------------------------------------------


def kept(found: TPrime, curve: Curve, slack: float) -> bool:
    """The guarantee of ``sequential``, from the curve itself."""
    plan = found.plan
    rates = curve(np.asarray(plan.grid))
    index = -1 if found.value is None else plan.grid.index(found.value)
    from_it = index < 0 or rates[index] > plan.threshold / slack
    from_next = index + 1 == len(rates) or rates[index + 1] < plan.threshold * slack
    return bool(from_it and from_next)


def flat(t: Times) -> NDArray[np.float64]:
    return np.full_like(t, 0.12)


@pytest.mark.parametrize("curve", [slope, bump, flat, lambda t: 0.02 / (t + 0.02)])
def test_the_sequential_guarantee_holds_as_often_as_it_says(curve):
    # The level is low and the slack small, so that a sequence that is too eager would be caught.
    plan, runs = Plan(even_grid(40), threshold=0.1, level=0.6), 150
    found = [sequential(Coin(curve, seed), plan, slack=1.5, chunk=8, cap=600) for seed in range(runs)]
    broken = sum(not kept(one, curve, 1.5) for one in found if "did not decide" not in one.sentence)
    assert reference.binom.sf(broken - 1, runs, 0.4) > 0.001
    if curve is not bump:
        missed = sum(not one.interval_if_falling.holds(truth(curve, plan)) for one in found)
        assert reference.binom.sf(missed - 1, runs, 0.4) > 0.001
    outside = sum(not one.interval.holds(truth(curve, plan)) for one in found)
    assert reference.binom.sf(outside - 1, runs, 0.4) > 0.001


def log_evidence(n: int, p: float) -> float:
    """log of the Beta(1/4, 3/4) mixture's likelihood ratio against p after n misses."""
    return float(special.betaln(0.25, 0.75 + n) - special.betaln(0.25, 0.75) - n * math.log1p(-p))


def test_a_level_without_hits_is_left_at_the_try_that_the_formula_names():
    # 100 levels: D = 7 visits, so the evidence against p slack = 0.15 must reach 7 / 0.05.
    found = sequential(Coin(np.zeros_like), Plan(even_grid(100)), chunk=1)
    first = next(n for n in range(1000) if log_evidence(n, 0.15) >= math.log(7 / 0.05))
    assert {one.n for one in found.trials} == {0, first}
    # The detector's rates take half of the error, and returns are overlooked: p slack * tpr's lower end.
    plan = Plan(even_grid(100), true_positives=Trials(90, 100), false_positives=Trials(0, 1000))
    bound = 0.15 * reference.beta.ppf(0.05 / 4, 90, 11)
    first = next(n for n in range(1000) if log_evidence(n, bound) >= math.log(7 / 0.025))
    assert {one.n for one in sequential(Coin(np.zeros_like), plan, chunk=1).trials} == {0, first}


def test_the_sequential_interval_needs_the_evidence_of_all_visits():
    plan = Plan(even_grid(100))
    enough, short = math.log(7 / 0.05), math.log(1 / 0.05)
    assert short < log_evidence(100, 0.05) < enough < log_evidence(140, 0.05)
    assert sequential(Coin(np.zeros_like), plan, chunk=100).interval_if_falling.high == 1.0
    assert sequential(Coin(np.zeros_like), plan, chunk=140).interval_if_falling.high is None


def test_the_sequential_search_spends_less_than_the_exhaustive_one_where_it_decides():
    plan = Plan(even_grid(100))
    whole = 100 * plan.tries
    found = [sequential(Coin(slope, seed), plan) for seed in range(40)]
    assert np.mean([sum(one.n for one in run.trials) for run in found]) < whole / 2
    assert np.mean([abs((run.value or 0) - 0.69) for run in found]) < 0.05


def test_a_chunk_changes_the_price_and_a_cap_is_kept_and_told():
    plan = Plan(even_grid(30))
    found = sequential(Coin(lambda t: np.full_like(t, 0.05)), plan, cap=20, chunk=6)
    assert max(one.n for one in found.trials) == 20
    assert "did not decide" in found.sentence
    # Nothing was decided, so nothing is claimed.
    assert (found.interval_if_falling.low, found.interval_if_falling.high) == (None, 1.0)
    assert "did not decide" not in sequential(Coin(step), plan, chunk=1).sentence


def test_anchors_of_the_sequential_search_see_a_rise_and_do_not_steer():
    plan = Plan(even_grid(100))
    blind, warned = (sequential(Coin(bump), plan, anchors=a) for a in (0, 8))
    assert blind.value == warned.value
    assert blind.falling.p_value is None
    assert warned.falling.rises is not None
    assert warned.falling.sentence in warned.sentence


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ({"slack": 1.0}, "slack must be above 1"),
        ({"slack": 20.0}, "threshold \\* slack below 1"),
        ({"chunk": 0}, "chunk and a cap of tries must be at least 1"),
        ({"cap": 0}, "chunk and a cap of tries must be at least 1"),
    ],
)
def test_a_sequential_search_that_makes_no_sense_is_refused(setting, sentence):
    with pytest.raises(ValueError, match=sentence):
        sequential(Coin(slope), Plan(even_grid(10)), **setting)


def test_detectors_too_uncertain_for_the_question_are_refused_by_the_sequential_search():
    plan = Plan(even_grid(10), true_positives=Trials(10, 10), false_positives=Trials(0, 10))
    with pytest.raises(ValueError, match="calibrate on more images"):
        sequential(Coin(slope), plan)


# ---- what the counts say --------------------------------------------------------------------------


def draw(plan: Plan, rates: NDArray[np.float64], rng: np.random.Generator) -> TPrime:
    trials = [Trials(int(k), plan.tries) for k in rng.binomial(plan.tries, rates)]
    return conclude(plan, trials, 0, "exhaustive", range(len(plan.grid)))


@pytest.mark.parametrize("curve", [slope, bump, flat, lambda t: np.full_like(t, 0.05)])
@pytest.mark.parametrize("tries", [4, 16, 100])
def test_the_intervals_and_the_band_hold_the_truth_as_often_as_they_say(curve, tries):
    plan, runs = Plan(even_grid(25), tries=tries, threshold=0.1, level=0.8), 400
    rates, rng = curve(np.asarray(plan.grid)), np.random.default_rng(tries)
    found = [draw(plan, rates, rng) for _ in range(runs)]
    true = truth(curve, plan)
    for what in ("interval", "interval_if_falling") if curve is not bump else ("interval",):
        missed = sum(not getattr(one, what).holds(true) for one in found)
        assert reference.binom.sf(missed - 1, runs, 0.2) > 0.001, what
    outside = sum(
        any(not low <= p <= high for (low, high), p in zip(one.band, rates, strict=True)) for one in found
    )
    assert reference.binom.sf(outside - 1, runs, 0.2) > 0.001


def test_each_end_of_the_intervals_misses_no_more_than_its_half():
    # At the threshold exactly the high end works at its limit: a doubled or halved error would show.
    plan, runs = Plan(even_grid(10), tries=60, threshold=0.1, level=0.6), 1500
    rates, rng = np.where(np.asarray(plan.grid) <= 0.5, 0.1, 0.0), np.random.default_rng(0)
    found = [draw(plan, rates, rng) for _ in range(runs)]
    for what in ("interval", "interval_if_falling"):
        short = sum((getattr(one, what).high or 0.0) < 0.5 for one in found)
        assert 0.1 * runs < short
        assert reference.binom.sf(short - 1, runs, 0.2) > 0.001


def test_the_intervals_are_those_worked_out_by_hand():
    # p = 0.5 and one-sided error 0.05. 5 tries: P(X >= 5) = 0.031 passes, P(X >= 4) = 0.19 does not;
    # P(X <= 0) = 0.031 excludes, P(X <= 1) = 0.19 does not, so one level without a hit is a window.
    plan = Plan((0.2, 0.4, 0.6, 0.8), tries=5, threshold=0.5, level=0.9)
    found = conclude(plan, [Trials(k, 5) for k in (5, 5, 2, 0)], 0, "exhaustive", range(4))
    assert (found.interval_if_falling.low, found.interval_if_falling.high) == (0.4, 0.6)
    # Bonferroni over the 3 levels above 0.2 needs 0.017, over all 4 0.0125: five of five do not suffice.
    assert (found.interval.low, found.interval.high) == (None, 0.6)
    more = replace(plan, tries=7)  # 2**-7 = 0.0078
    found = conclude(more, [Trials(k, 7) for k in (7, 7, 2, 0)], 0, "exhaustive", range(4))
    assert found.interval.low == 0.4
    assert found.value == found.certain == 0.6


def test_a_window_pools_the_fewest_levels_that_could_exclude_the_threshold():
    # ln 0.025 / ln 0.95 = 71.9: 72 tries without a hit, which are 5 levels of 16.
    plan = Plan(even_grid(20))
    hits = [16] * 10 + [1] + [0] * 9
    found = conclude(plan, [Trials(k, 16) for k in hits], 0, "exhaustive", range(20))
    assert found.value == plan.grid[10]
    assert found.interval_if_falling.high == plan.grid[10 + 4]
    assert found.interval.high == 1.0


def test_a_window_grows_where_the_detector_overlooks_returns():
    plan = Plan(even_grid(40), true_positives=Trials(50, 100))
    found = conclude(plan, [Trials(k, 16) for k in [16] * 10 + [1] + [0] * 29], 0, "exhaustive", range(40))
    # Of 2.5 % a half is spent on tpr's lower end, a half on the window.
    bound = 0.05 * reference.beta.ppf(0.0125, 50, 51)
    width = math.ceil(math.log(0.0125) / math.log1p(-bound) / 16)
    assert width > 5
    assert found.interval_if_falling.high == plan.grid[10 + width - 1]


def test_levels_that_were_not_asked_are_unknown():
    plan = Plan(even_grid(10), tries=200)
    trials = [Trials(200, 200)] * 3 + [Trials(0, 0)] * 4 + [Trials(0, 200)] * 2 + [Trials(0, 0)]
    found = conclude(plan, trials, 0, "subsample", [0, 1, 2, 7, 8])
    # The highest level was not asked: nothing but falling excludes it.
    assert (found.interval.low, found.interval.high) == (0.3, 1.0)
    assert (found.interval_if_falling.low, found.interval_if_falling.high) == (0.3, 0.7)
    assert found.band[3] == (0.0, 1.0)
    assert found.band[7][1] == pytest.approx(1 - (0.05 / 5 / 2) ** (1 / 200))


def test_hits_that_the_detector_may_have_invented_are_not_certain():
    grid, hits = even_grid(10), [16, 16, 16, 12, 6, 1, 0, 1, 0, 0]
    trials = [Trials(k, 16) for k in hits]
    every = range(10)
    word = conclude(Plan(grid), trials, 0, "exhaustive", every)
    assert word.value == word.certain == 0.8
    # 0 of 100 false: up to 3.6 % at one-sided 97.5 %. One hit of 16 has probability 0.45 then, six 1e-5.
    careful = conclude(Plan(grid, false_positives=Trials(0, 100)), trials, 0, "exhaustive", every)
    assert careful.value == 0.8
    assert careful.certain == 0.5
    # 30 of 100 false: up to 40 %, where 12 of 16 or more has probability 0.0049 and 0.025 / 7 is 0.0036.
    poor = conclude(Plan(grid, false_positives=Trials(30, 100)), trials, 0, "exhaustive", every)
    assert poor.certain == 0.3


def test_intervals_hold_the_true_returns_behind_a_detector_that_errs():
    plan, runs, tpr, fpr = Plan(even_grid(20), tries=40, threshold=0.1, level=0.8), 200, 0.8, 0.15
    returns = slope(np.asarray(plan.grid))
    seen = returns * tpr + (1 - returns) * fpr
    rng = np.random.default_rng(3)
    missed, naive, false = 0, 0, 0
    for _ in range(runs):
        rates = Trials(int(rng.binomial(200, tpr)), 200), Trials(int(rng.binomial(200, fpr)), 200)
        asked = replace(plan, true_positives=rates[0], false_positives=rates[1])
        found = draw(asked, seen, rng)
        missed += not found.interval_if_falling.holds(truth(slope, plan))
        naive += not replace(draw(plan, seen, rng)).interval_if_falling.holds(truth(slope, plan))
        false += found.certain is not None and slope(np.array([found.certain]))[0] < 1e-3
    assert reference.binom.sf(missed - 1, runs, 0.2) > 0.001
    assert reference.binom.sf(false - 1, runs, 0.2) > 0.001
    assert naive > 0.3 * runs  # what ignoring the detector's errors would do


def test_counts_of_another_grid_are_refused():
    with pytest.raises(ValueError, match="a grid of 3 levels needs as many counts, got 2"):
        conclude(Plan(even_grid(3)), [Trials(0, 1)] * 2, 0, "exhaustive", range(3))


# ---- baseline and profile -------------------------------------------------------------------------


def test_the_p_value_is_the_rank_and_never_lies_below_everything():
    law = NullLaw((0.1, None, 0.3, 0.2, None))
    assert law.p_value(0.2) == pytest.approx(3 / 6)
    assert law.p_value(0.31) == pytest.approx(1 / 6)
    assert law.p_value(None) == 1.0
    assert law.exceeds(0.31)
    assert not law.exceeds(0.3)
    assert law.median == 0.1
    assert law.excess(0.31) == pytest.approx(0.21)
    assert law.excess(None) is None
    assert NullLaw((None, None, 0.2)).excess(0.3) is None
    assert "hold out 19 or more" in law.sentence(0.31)
    assert NullLaw((0.1,) * 18).shows_nothing() and not NullLaw((0.1,) * 19).shows_nothing()
    assert "hold out 99 or more" in NullLaw((0.1,) * 98).shows_nothing(0.99)[0]


def test_null_p_values_are_uniform_when_the_model_knows_no_image_better():
    rng = np.random.default_rng(0)

    def one() -> float | None:
        """t' on a grid of 400 levels of an image that comes back below a random edge."""
        return int(rng.integers(0, 401)) / 400 or None

    p = [NullLaw(tuple(one() for _ in range(19))).p_value(one()) for _ in range(600)]
    # With 19 nulls the law is uniform on 1/20 .. 20/20, ties are rare.
    counts = np.bincount(np.round(np.array(p) * 20).astype(int), minlength=21)[1:]
    assert reference.chisquare(counts).pvalue > 0.001


def test_a_null_law_needs_images_searched_alike():
    with pytest.raises(ValueError, match="at least one held-out image"):
        null_law([])
    searches = [exhaustive(Coin(slope, s), Plan(even_grid(20))) for s in range(3)]
    assert null_law(searches).values == tuple(one.value for one in searches)
    with pytest.raises(ValueError, match="searched alike"):
        null_law([*searches, exhaustive(Coin(slope), Plan(even_grid(10)))])
    # Each image has its own detector, whose rates may differ.
    own = [exhaustive(Coin(slope), Plan(even_grid(5), false_positives=Trials(0, n))) for n in (50, 60)]
    assert len(null_law(own).values) == 2


def test_a_target_is_held_against_images_that_were_asked_the_same():
    def searched(top: float, plan: Plan) -> TPrime:
        return exhaustive(Many(np.array([top])), plan)

    plan = Plan(even_grid(20), tries=8, false_positives=Trials(5, 500))
    null = [searched(top, plan) for top in (0.2, 0.3, 0.0)]
    found = Against.of(searched(0.9, plan), null)
    assert (found.value, found.law.values) == (0.9, (0.2, 0.3, None))
    assert found.p_value == 1 / 4 and found.excess == pytest.approx(0.7)
    never = Against.of(searched(0.0, plan), null)
    assert (never.value, never.p_value, never.excess) == (None, 1.0, None)
    with pytest.raises(ValueError, match="searched alike"):
        Against.of(searched(0.9, Plan(even_grid(20), tries=16)), null)
    with pytest.raises(ValueError, match="at least one held-out image"):
        Against.of(searched(0.9, plan), [])


def test_a_single_false_alarm_lifts_no_t_prime():
    """One hit far up among 20 levels of 8 tries is what a false-alarm rate of 1 % gives by itself."""
    plan = Plan(even_grid(20), tries=8, false_positives=Trials(5, 500))
    trials = [Trials(8 if i < 6 else int(i == 18), 8) for i in range(20)]
    found = conclude(plan, trials, 0, "exhaustive", range(20))
    assert found.value == 0.95 and null_law([found]).values == (0.3,)


@dataclass
class Many:
    """Target i comes back below edges[i]; remembers the largest request."""

    edges: NDArray[np.float64]
    largest: int = 0

    def __call__(self, t: Times, ids: Ids) -> Outcome:
        self.largest = max(self.largest, len(ids))
        return Outcome(t <= self.edges[target_of(ids)], np.full(len(ids), 3))


def test_a_scan_finds_what_one_search_per_target_finds():
    plan = Plan(even_grid(20), tries=2)
    edges = np.array([0.1, 0.9, 0.0, 0.55, 0.3])
    together = list(scan(Many(edges), plan, range(5), chunk=3))
    assert together == [(i, exhaustive(Many(edges), plan, target=i)) for i in range(5)]
    assert [found.value for _, found in together] == [0.1, 0.9, None, 0.55, 0.3]


def test_false_discoveries_stay_below_their_rate():
    """Benjamini-Hochberg over the rank p-values of many targets, which share one null sample."""
    plan, rng = Plan(even_grid(40), tries=1), np.random.default_rng(2)
    shares = []
    for _ in range(40):
        edges = np.concatenate([rng.uniform(0, 0.5, 30), np.full(10, 0.9)])
        law = NullLaw(tuple(float(np.floor(e * 40)) / 40 or None for e in rng.uniform(0, 0.5, 99)))
        p = [law.p_value(found.value) for _, found in scan(Many(edges), plan, range(40))]
        chosen = np.flatnonzero(false_discovery(p, 0.8)).tolist()
        assert set(range(30, 40)) <= set(chosen)
        shares.append(sum(target < 30 for target in chosen) / max(1, len(chosen)))
    spread = np.std(shares, ddof=1) / math.sqrt(len(shares))
    assert np.mean(shares) < 0.2 * 0.75 + 3.3 * spread
    assert np.mean(shares) > 0.02


def test_a_scan_needs_chunks_of_at_least_one():
    with pytest.raises(ValueError, match="a chunk needs at least one target"):
        scan(Many(np.zeros(3)), Plan(even_grid(4)), [1], chunk=0)


def test_the_hash_of_the_coins_is_uniform_and_independent_between_ids():
    # The tests above rest on it.
    u = np.stack([uniform(ids_of(0, np.arange(50)[:, None], np.arange(40)), seed) for seed in range(20)])
    assert reference.kstest(u.ravel(), "uniform").pvalue > 0.001
    neighbours = np.corrcoef(u[:, :, 1:].ravel(), u[:, :, :-1].ravel())[0, 1]
    assert_allclose(neighbours, 0, atol=4 / math.sqrt(u.size))
    assert_array_equal(u[3], uniform(ids_of(0, np.arange(50)[:, None], np.arange(40)), 3))
