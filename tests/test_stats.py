"""Counts held to formulas written out here, and to coverage by enumeration rather than by simulation."""

import math
from itertools import pairwise

import numpy as np
import pytest

from latentprint import stats
from latentprint.stats import Trials


def pmf(n: int, q: float) -> list[float]:
    return [math.comb(n, k) * q**k * (1 - q) ** (n - k) for k in range(n + 1)]


def cdf(k: int, n: int, q: float) -> float:
    return sum(pmf(n, q)[: k + 1])


@pytest.mark.parametrize(("k", "n"), [(3, 2), (-1, 5), (0, -1), (0.5, 2)])
def test_impossible_counts_are_refused(k: float, n: int):
    with pytest.raises(ValueError, match="0 <= k <= n"):
        Trials(k, n)  # pyright: ignore[reportArgumentType]


def test_trials_add_as_counts_not_as_rates():
    both = Trials(1, 2) + Trials(0, 8)
    assert both == Trials(1, 10)
    assert both.rate == 0.1
    with pytest.raises(ValueError, match="zero trials"):
        _ = Trials(0, 0).rate


@pytest.mark.parametrize(("k", "n"), [(1, 10), (5, 10), (9, 10), (2, 57)])
@pytest.mark.parametrize("level", [0.8, 0.95, 0.999])
def test_bounds_invert_the_binomial_tails(k: int, n: int, level: float):
    low, high = Trials(k, n).interval(level)
    assert 1 - cdf(k - 1, n, low) == pytest.approx((1 - level) / 2, rel=1e-8)
    assert cdf(k, n, high) == pytest.approx((1 - level) / 2, rel=1e-8)
    assert cdf(k, n, Trials(k, n).upper(level)) == pytest.approx(1 - level, rel=1e-8)
    assert 1 - cdf(k - 1, n, Trials(k, n).lower(level)) == pytest.approx(1 - level, rel=1e-8)


def test_bounds_at_the_edges_in_closed_form():
    assert Trials(0, 20).interval(0.95) == (0.0, pytest.approx(1 - 0.025 ** (1 / 20), rel=1e-12))
    assert Trials(20, 20).interval(0.95) == (pytest.approx(0.025 ** (1 / 20), rel=1e-12), 1.0)
    assert Trials(0, 0).interval(0.95) == (0.0, 1.0)


@pytest.mark.parametrize("q", [0.003, 0.1, 0.37, 0.9])
def test_interval_covers_for_every_rate_by_enumeration(q: float):
    n, level = 30, 0.9
    held = sum(
        p for k, p in enumerate(pmf(n, q)) if Trials(k, n).lower(0.95) <= q <= Trials(k, n).upper(0.95)
    )
    assert held >= level
    narrow = sum(p for k, p in enumerate(pmf(n, q)) if abs(k / n - q) <= 1e-3)
    assert narrow < level


def test_p_value_of_the_paper_in_closed_form():
    assert stats.binomial_test_less(0, 150, 1 / 50) == pytest.approx(0.98**150, rel=1e-10)
    assert stats.binomial_test_less(2, 40, 0.1) == pytest.approx(cdf(2, 40, 0.1), rel=1e-10)
    assert stats.binomial_test_less(40, 40, 0.1) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="probability"):
        stats.binomial_test_less(0, 1, 1.5)


def test_missable_is_the_rate_that_five_percent_of_audits_would_miss():
    assert stats.missable(0, 1000) == pytest.approx(1 - 0.05 ** (1 / 1000), rel=1e-10)
    assert cdf(3, 200, stats.missable(3, 200, 0.9)) == pytest.approx(0.1, rel=1e-8)
    assert stats.missable(5, 5) == 1.0


@pytest.mark.parametrize("q", [0.2, 1e-3, 1e-6])
def test_samples_to_decide_is_the_smallest_that_does(q: float):
    n = stats.samples_to_decide(q)

    def evidence(n: int) -> float:  # the mixture over Beta(1/2, b) against q, all trials without a hit
        b = 0.5 * (1 - q) / q
        return sum(math.log(b + i) - math.log(0.5 + b + i) for i in range(n)) - n * math.log1p(-q)

    if q >= 1e-3:  # the product of n factors, written out
        assert evidence(n - 1) < math.log(20) <= evidence(n)
    assert n > stats.samples_to_exclude(q)  # the price of looking whenever one likes
    assert stats.running_interval([stats.Trials(0, n)], 0.95, q)[1] < q
    assert stats.running_interval([stats.Trials(0, n - 1)], 0.95, q)[1] >= q


def test_samples_to_exclude_is_the_smallest_that_does():
    n = stats.samples_to_exclude(1e-3)
    assert stats.missable(0, n) <= 1e-3 < stats.missable(0, n - 1)


def test_band_holds_all_rates_at_once_by_enumeration():
    n, rates, level = 12, (0.05, 0.3, 0.8), 0.8
    held = 0.0
    joint = {
        (i, j, k): a * b * c
        for (i, a) in enumerate(pmf(n, rates[0]))
        for (j, b) in enumerate(pmf(n, rates[1]))
        for (k, c) in enumerate(pmf(n, rates[2]))
    }
    for counts, p in joint.items():
        band = stats.simultaneous_band([Trials(k, n) for k in counts], level)
        held += p * all(low <= q <= high for (low, high), q in zip(band, rates, strict=True))
    assert level <= held < 1
    one = stats.simultaneous_band([Trials(3, n)], level)[0]
    assert one == Trials(3, n).interval(level)
    # the same counts three times over: Bonferroni survives full dependence
    dependent = sum(
        p
        for k, p in enumerate(pmf(n, 0.3))
        if all(low <= 0.3 <= high for low, high in stats.simultaneous_band([Trials(k, n)] * 3, level))
    )
    assert dependent >= level


def test_mixture_is_a_martingale_of_mean_one():
    q = 0.3
    for n in (1, 7, 40):
        mean = sum(p * math.exp(stats.log_mixture(k, n, q, (0.7, 2.0))) for k, p in enumerate(pmf(n, q)))
        assert mean == pytest.approx(1.0, rel=1e-9)
    wrong = sum(p * math.exp(stats.log_mixture(k, 40, q)) for k, p in enumerate(pmf(40, 0.5)))
    assert wrong > 2


@pytest.mark.parametrize(("k", "n"), [(0, 50), (1, 50), (25, 50), (50, 50), (3, 10_000_000)])
def test_sequence_ends_where_the_martingale_reaches_its_bar(k: int, n: int):
    low, high = stats.confidence_sequence(k, n, 0.95)
    if k == 0:
        assert low == 0.0
    else:
        assert stats.log_mixture(k, n, low) == pytest.approx(math.log(20), abs=1e-5)
    if k == n:
        assert high == 1.0
    else:
        assert stats.log_mixture(k, n, high) == pytest.approx(math.log(20), abs=1e-5)
    fixed_low, fixed_high = Trials(k, n).interval(0.95)
    assert low <= fixed_low <= fixed_high <= high


def ever_missed(q: float, level: float, horizon: int, interval: object) -> float:
    """Exact probability that the interval ever misses q up to the horizon, by walking over the counts."""
    alive, missed = np.array([1.0]), 0.0
    for n in range(1, horizon + 1):
        alive = np.append(alive, 0.0) * (1 - q) + np.insert(alive, 0, 0.0) * q
        for k in np.flatnonzero(alive > 1e-12):
            low, high = interval(int(k), n, level)  # type: ignore[operator]
            if not low <= q <= high:
                missed += float(alive[k])
                alive[k] = 0.0
    return missed


@pytest.mark.parametrize("q", [0.05, 0.4])
def test_sequence_covers_at_all_times_together_and_a_fixed_n_interval_does_not(q: float):
    level, horizon = 0.8, 120

    def by_bar(k: int, n: int, at: float) -> tuple[float, float]:
        inside = stats.log_mixture(k, n, q) < -math.log1p(-at)
        return (0.0, 1.0) if inside else (2.0, 2.0)

    anytime = ever_missed(q, level, horizon, by_bar)
    assert 0.01 < anytime <= 1 - level
    peeked = ever_missed(q, level, horizon, lambda k, n, at: Trials(k, n).interval(at))
    assert peeked > 1 - level


def test_sequence_refuses_a_prior_that_is_no_prior():
    with pytest.raises(ValueError, match="positive"):
        stats.confidence_sequence(1, 2, prior=(0.0, 1.0))
    with pytest.raises(ValueError, match="between 0 and 1"):
        stats.confidence_sequence(1, 2, level=1.0)


def test_benjamini_hochberg_on_the_example_of_their_paper():
    # Benjamini and Hochberg 1995, section 3.2: 0.05 rejects four of the fifteen, Bonferroni three
    p = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459, 0.3240, 0.4262, 0.5719]
    p += [0.6528, 0.7590, 1.0000]
    mixed = [p[i] for i in (14, 3, 0, 7, 2, 1, 4, 5, 6, 8, 9, 10, 11, 12, 13)]
    rejected = stats.false_discovery(mixed, 0.95)
    assert [x for x, r in zip(mixed, rejected, strict=True) if r] == [0.0095, 0.0001, 0.0019, 0.0004]
    # a step-up procedure: 0.04 fails on its own rank but is carried by 0.05
    assert stats.false_discovery([0.04, 0.05], 0.95).tolist() == [True, True]
    assert stats.false_discovery([0.2, 0.9], 0.95).tolist() == [False, False]
    assert stats.false_discovery([], 0.95).tolist() == []


def test_empirical_p_counts_ties_and_never_claims_zero():
    assert stats.empirical_p(3.0, [1.0, 2.0, 3.0, 4.0]) == 3 / 5
    assert stats.empirical_p(9.0, np.arange(9)) == 1 / 10
    with pytest.raises(ValueError, match="at least one"):
        stats.empirical_p(1.0, [])
    with pytest.raises(ValueError, match="number"):
        stats.empirical_p(float("nan"), [1.0])


def test_rogan_gladen_estimate_and_corners():
    found = stats.corrected_rate(Trials(30, 100), Trials(900, 1000), Trials(100, 1000), 0.95)
    assert found.rate == pytest.approx((0.3 - 0.1) / (0.9 - 0.1))
    each = 1 - 0.05 / 3
    (p0, p1), (t0, t1), (f0, f1) = (
        t.interval(each) for t in (Trials(30, 100), Trials(900, 1000), Trials(100, 1000))
    )
    grid = [
        (p - f) / (t - f)
        for p in np.linspace(p0, p1, 9)
        for t in np.linspace(t0, t1, 9)
        for f in np.linspace(f0, f1, 9)
    ]
    assert found.low == pytest.approx(min(grid))
    assert found.high == pytest.approx(max(grid))


def test_detector_error_cannot_be_wished_away():
    # five positives in 150,000 and a false-positive rate known only to be below 3/1000: they may all be false
    few = stats.corrected_rate(Trials(5, 150_000), Trials(990, 1000), Trials(0, 1000))
    assert few.low == 0.0
    assert "may all be false" in few.note
    assert few.high >= Trials(5, 150_000).interval(0.95)[1]
    # a detector that is no better than chance says nothing
    chance = stats.corrected_rate(Trials(50, 100), Trials(5, 10), Trials(5, 10))
    assert (chance.rate, chance.low, chance.high) == (None, 0.0, 1.0)
    assert "chance" in chance.note


def test_contradicted_detector_rates_widen_the_answer():
    fewer = stats.corrected_rate(Trials(0, 10_000), Trials(990, 1000), Trials(500, 1000))
    assert fewer.low == 0.0
    assert 0 < fewer.high < 1e-3
    assert "not used" in fewer.note
    more = stats.corrected_rate(Trials(100, 100), Trials(500, 1000), Trials(0, 1000))
    assert 0.9 < more.low < 1
    assert more.high == 1.0


def test_corrected_interval_covers_when_everything_is_estimated():
    rng = np.random.default_rng(5)
    q, tpr, fpr, n, cases = 0.04, 0.9, 0.02, 400, 400
    held = 0
    for _ in range(cases):
        seen = Trials(int(rng.binomial(n, q * tpr + (1 - q) * fpr)), n)
        t, f = Trials(int(rng.binomial(80, tpr)), 80), Trials(int(rng.binomial(200, fpr)), 200)
        found = stats.corrected_rate(seen, t, f, 0.9)
        held += found.low <= q <= found.high
    assert Trials(held, cases).upper(0.999) >= 0.9
    assert held / cases >= 0.9


def test_conjunction_bounds_assume_no_independence():
    presence, identity = (Trials(95, 100), Trials(1, 1000)), (Trials(90, 100), Trials(20, 1000))
    found = stats.corrected_rate_of_both(Trials(40, 1000), presence, identity)
    assert found.rate == pytest.approx(0.04 / 0.85)
    each = 1 - 0.05 / 5
    high = Trials(40, 1000).interval(each)[1]
    finds = Trials(95, 100).interval(each)[0] + Trials(90, 100).interval(each)[0] - 1
    assert found.high == pytest.approx(high / finds)
    # an image with the fingerprint but another identity passes c_p rightly: only c_id's error protects
    assert found.low == 0.0
    sharper = (Trials(90, 100), Trials(0, 1000))
    assert stats.corrected_rate_of_both(Trials(40, 1000), presence, sharper).low > 0


def test_band_is_wider_than_its_parts():
    parts = [Trials(k, 50) for k in (0, 3, 10)]
    for (low, high), one in zip(stats.simultaneous_band(parts), parts, strict=True):
        assert low <= one.interval()[0]
        assert high > one.interval()[1]
    widths = [h - low for low, h in (Trials(5 * i, 50 * i).interval() for i in (1, 4, 16))]
    assert all(a > b for a, b in pairwise(widths))
