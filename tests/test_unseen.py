"""What was not seen: estimators on populations whose answer is known, and the coverage of their intervals."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.stats import binom

from latentprint.stats import Trials
from latentprint.stats.many import false_coverage
from latentprint.stats.unseen import TooFewRepeats, curve, richness

RUNS = 300


def weights(kind: str, kinds: int, share: float) -> np.ndarray:
    rng = np.random.default_rng(7)
    w = {
        "even": np.ones(kinds),
        "uneven": np.exp(rng.normal(size=kinds)),
        "favourites": 1 / np.arange(1, kinds + 1),
    }
    return share * w[kind] / w[kind].sum()


def draws(q: np.ndarray, n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).multinomial(n, np.append(q, max(0.0, 1 - q.sum())))[:-1]


@pytest.mark.parametrize("n", [100, 400])
@pytest.mark.parametrize("share", [1.0, 0.4])
@pytest.mark.parametrize("kind", ["even", "uneven", "favourites"])
def test_the_interval_of_the_unseen_holds_what_it_says(kind: str, share: float, n: int) -> None:
    """Over 300 draws: the lower end under any weights, the upper one for kinds with q >= 1/n."""
    q = weights(kind, 80, share)
    low = high = used = 0
    for seed in range(RUNS):
        x = draws(q, n, seed)
        try:
            found = richness(x, n, most=500)
        except TooFewRepeats:
            continue
        used += 1
        low += found.low > (x == 0).sum()
        high += found.high < ((x == 0) & (q >= 1 / n)).sum()
    assert used >= 200
    assert low <= binom.ppf(0.999, used, 0.025) and high <= binom.ppf(0.999, used, 0.025)


def test_even_weights_are_estimated_without_bias() -> None:
    found = [richness(draws(weights("even", 100, 0.5), 400, s), 400) for s in range(RUNS)]
    assert np.mean([f.seen + f.unseen for f in found]) == pytest.approx(100, abs=1.5)


def test_coverage_is_the_share_of_what_comes_next() -> None:
    q = weights("uneven", 80, 0.7)
    apart = list[float]()
    for seed in range(RUNS):
        x = draws(q, 150, seed)
        apart.append(richness(x, 150).coverage - q[x > 0].sum() / q.sum())
    assert np.mean(apart) == pytest.approx(0, abs=0.01)


def test_the_curve_within_the_draws_is_the_mean_over_all_subsets() -> None:
    x = np.array([3, 2, 2, 1])
    labels = np.repeat(np.arange(4), x)
    labels = np.append(labels, [-1, -1])  # two draws of no kind
    for m in (1, 3, 6):
        slow = np.mean([len(set(s) - {-1}) for s in itertools.combinations(labels.tolist(), m)])
        (point,) = curve(x, 10, [m], np.random.default_rng(0))
        assert point.kinds == pytest.approx(slow, rel=1e-9)


@pytest.mark.parametrize("kind", ["even", "uneven", "favourites"])
def test_half_of_the_draws_foretell_the_whole(kind: str) -> None:
    """The curve from the first half, against what both showed: mean within 3 %, 85 % of the intervals."""
    q, inside, ratio = weights(kind, 80, 0.6), 0, list[float]()
    for seed in range(200):
        first, second = draws(q, 200, 2 * seed), draws(q, 200, 2 * seed + 1)
        (point,) = curve(first, 200, [400], np.random.default_rng(seed), rounds=60)
        came = int(((first + second) > 0).sum())
        ratio.append(point.kinds / came)
        inside += point.low <= came <= point.high
    assert np.mean(ratio) == pytest.approx(1, abs=0.03)
    assert inside >= 170


def test_too_few_repeats_and_counts_that_cannot_be() -> None:
    with pytest.raises(TooFewRepeats, match="fewer than 2 of them twice"):
        richness([1, 1, 2, 0], 10)
    with pytest.raises(ValueError, match="no more than the 3 draws"):
        richness([2, 2], 3)
    every = richness([5] * 10, 50, most=10)
    assert (every.unseen, every.low, every.high, every.coverage) == (0, 0, 0, 1)


def test_false_coverage_is_held_for_rates_chosen_for_what_was_seen() -> None:
    """Of 200 rates those that came are chosen; on average at most 5 % of their intervals miss."""
    rng = np.random.default_rng(0)
    q, missed = rng.beta(0.3, 30, 200), list[float]()
    for _ in range(200):
        k = rng.binomial(100, q)
        chosen = np.flatnonzero(k)
        ends = false_coverage([Trials(int(k[i]), 100) for i in chosen], 200)
        missed.append(
            float(np.mean([not low <= q[i] <= high for i, (low, high) in zip(chosen, ends, strict=True)]))
        )
    assert np.mean(missed) <= 0.05
    assert false_coverage([], 5) == []
    with pytest.raises(ValueError, match="cannot be chosen"):
        false_coverage([Trials(1, 2)] * 3, 2)
    one = false_coverage([Trials(3, 10)], 1)[0]
    assert math.isclose(one[0], Trials(3, 10).interval()[0])
