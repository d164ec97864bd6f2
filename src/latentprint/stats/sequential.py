"""Counts that may be looked at while they grow: anytime-valid intervals and p-values.

    M_n(p) = B(a + k, b + n - k) / (B(a, b) p^k (1 - p)^(n - k))    a martingale from 1 if q = p
    P(M_n(q) >= 1 / c for any n) <= c                               (Ville 1939)

so the p with M_n(p) < 1 / (1 - level) contain q at all n together, at any stopping time.

Sources: H. Robbins, Ann. Math. Stat. 41 (1970); S. Howard, A. Ramdas, J. McAuliffe, J. Sekhon, Ann. Stat. 49
(2021), arXiv 1810.08240.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, cast

from scipy import special  # pyright: ignore[reportMissingTypeStubs]

from latentprint.stats.counts import Trials, check_level

_special = cast(Any, special)


def log_mixture(k: int, n: int, p: float, prior: tuple[float, float] = (0.5, 0.5)) -> float:
    """log M_n(p), the beta-binomial mixture martingale of the hypothesis q = p.

    ``M_n(p) = B(a + k, b + n - k) / (B(a, b) p^k (1 - p)^(n - k))``: the likelihood ratio of a rate drawn
    from Beta(a, b) against p. Under q = p it is a nonnegative martingale from 1, so by Ville's inequality
    it ever reaches 1/c with probability <= c (Robbins 1970, section 3; Howard et al. 2021, proposition 7).
    """
    a, b = prior
    evidence = float(_special.betaln(a + k, b + n - k) - _special.betaln(a, b))
    return evidence - float(_special.xlogy(k, p) + _special.xlog1py(n - k, -p))


def confidence_sequence(
    k: int, n: int, level: float = 0.95, prior: tuple[float, float] = (0.5, 0.5)
) -> tuple[float, float]:
    """Anytime-valid interval for q: one may look at it after every trial, and stop at any time.

    The set ``{p : M_n(p) < 1 / (1 - level)}`` with the martingale of ``log_mixture``. With probability >=
    level it contains q at **all** n together. The default prior is Jeffreys' (Krichevsky-Trofimov mixture); a
    prior with its mean near the expected rate narrows the interval there and never breaks its coverage, as
    long as it was fixed before the first trial.

    Raises:
        ValueError: not 0 <= k <= n, a level outside (0, 1), or a prior that is not positive.
    """
    trials = Trials(k, n)
    check_level(level)
    if min(prior) <= 0:
        raise ValueError(f"both parameters of the mixture's beta prior must be positive, got {prior}")
    if n == 0:
        return 0.0, 1.0
    bar = -math.log1p(-level)

    def excess(p: float) -> float:
        return log_mixture(k, n, p, prior) - bar

    # M is log-convex in p with its minimum at k/n, where M <= 1: the set is one interval around k/n.
    peak = trials.rate
    low = 0.0 if k == 0 else _root(excess, peak, 0.0)
    high = 1.0 if k == n else _root(excess, peak, 1.0)
    return low, high


def looks(most: int, first: int) -> list[int]:
    """Sample sizes at which a count that may stop early is looked at: first, then a quarter more each time,
    most.

    All except ``most`` are multiples of ``first``, so that units of work stay whole.

    Raises:
        ValueError: a size below 1.
    """
    if most < 1 or first < 1:
        raise ValueError(f"a count needs at least 1 sample and 1 per look, got {most} and {first}")
    sizes, n = list[int](), first
    while n < most:
        sizes.append(n)
        n += first * max(1, n // (4 * first))
    return [*sizes, most]


def running_interval(counts: Sequence[Trials], level: float, near: float) -> tuple[float, float]:
    """The anytime-valid interval after looks at the growing counts ``counts``, the latest last.

    q lies in the intervals of all looks at once, hence in their intersection. If that is empty (probability
    below 1 - level), the latest interval counts. ``near`` is the rate asked about. The mixture's prior
    Beta(1/2, b) has its mean there, which narrows the interval there and never breaks its coverage.

    Raises:
        ValueError: near outside (0, 1), or counts that do not grow.
    """
    prior = prior_near(near)
    if any(a.n > b.n or a.k > b.k for a, b in itertools.pairwise(counts)):
        raise ValueError("the counts of later looks include those of earlier ones")
    interval = (0.0, 1.0)
    for one in counts:
        interval = narrowed(interval, one, level, prior)
    return interval


def narrowed(
    before: tuple[float, float], now: Trials, level: float, prior: tuple[float, float]
) -> tuple[float, float]:
    """One further look of ``running_interval``: its interval so far, intersected with that of the counts
    ``now``."""
    now_low, now_high = confidence_sequence(now.k, now.n, level, prior)
    low, high = max(before[0], now_low), min(before[1], now_high)
    return (low, high) if low <= high else (now_low, now_high)


def samples_to_decide(q: float, level: float = 0.95) -> int:
    """The smallest n at which zero hits put the anytime-valid interval (``running_interval``) below q.

    Raises:
        ValueError: q does not lie strictly between 0 and 1.
    """
    prior, most = prior_near(q), 1
    while confidence_sequence(0, most, level, prior)[1] >= q:
        most *= 2
    return bisect.bisect_left(range(most), True, key=lambda n: confidence_sequence(0, n, level, prior)[1] < q)


def running_p_value(counts: Sequence[Trials], p0: float, near: float) -> float:
    """p-value of H0: q >= p0 against q < p0 that holds at any stopping time.

    The smallest 1 / M_n(p0) over the looks with k/n < p0 (Ville's inequality). M_n rises with p beyond k/n,
    so what excludes p0 excludes every larger rate.
    """
    prior = prior_near(near)
    evidence = [log_mixture(one.k, one.n, p0, prior) for one in counts if one.n and one.rate < p0 < 1]
    return min([1.0, *(math.exp(-value) for value in evidence)])


def prior_near(near: float) -> tuple[float, float]:
    """Beta(1/2, b) with mean ``near``.

    Raises:
        ValueError: near outside (0, 1).
    """
    if not 0 < near < 1:
        raise ValueError(f"near must lie strictly between 0 and 1, got {near}")
    return 0.5, 0.5 * (1 - near) / near


def _root(excess: Callable[[float], float], inside: float, outside: float) -> float:
    """Bisection for the point where ``excess`` turns positive, rounded outwards (the safe side)."""
    for _ in range(200):
        middle = _between(inside, outside)
        if middle in (inside, outside):
            break
        if excess(middle) < 0:
            inside = middle
        else:
            outside = middle
    return outside


def _between(inside: float, outside: float) -> float:
    """A point between, geometrically far below 1, so that tiny rates keep relative precision."""
    small, large = sorted((inside, outside))
    if large > 0.1:
        return (small + large) / 2
    return math.sqrt(small) * math.sqrt(large) if small > 0 else large / 1e6
