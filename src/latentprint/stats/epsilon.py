"""A lower bound on epsilon from one training: m canaries, each in or out by a fair coin, guessed from a
score.

The r canaries with the most extreme scores are guessed: in if the score is high, out if it is low. v guesses
are right, and no (epsilon, delta)-private training allows many. With B ~ Binomial(r, e^epsilon / (1 +
e^epsilon))

    P(V >= v) <= P(B >= v) + 2 m delta max_i ( P(B >= v - i) - P(B >= v) ) / i       (Steinke et al. 2023)

The second form uses more of what privacy forbids. Let r_j and h_j be the chances that a canary drawn at
random is guessed right, or wrong, while at least j guesses are right. Flipping its coin makes a right guess
wrong and leaves the others as they are, and both chances count the same events, so that

    h_j >= F(r_{j+1})        r_j - r_{j+1} = j / (r - j) (h_j - h_{j+1})     (Mahloujifar et al. 2024)

with F(y) the least chance, under a neighbouring data set, of an event of chance y. From P(V >= v) = a, r_v =
a v / m and h_v = a (r - v) / m on, both only grow as j falls. If r_0 + h_0 exceeds r / m, the chance was
below a. F is that of (epsilon, delta), which assumes nothing, or that of a Gaussian mechanism, which DP-SGD
approximates and which gives larger bounds.

The number of guesses must not depend on whether they were right. Several numbers are tried, each at a level
at which all hold together (Bonferroni).

Sources: Steinke, Nasr, Jagielski 2023, arXiv 2305.08846, Theorem 5.2; Mahloujifar, Melis, Chaudhuri 2024,
arXiv 2410.22235; Dong, Roth, Su 2022 (Gaussian privacy); Balle, Wang 2018 (its epsilon at a delta).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray
from scipy import (  # pyright: ignore[reportMissingTypeStubs]
    optimize,  # pyright: ignore[reportMissingTypeStubs]
    special,
    stats,
)

from latentprint.stats.counts import check_level

_binomial, _special = cast(Any, stats).binom, cast(Any, special)
_brentq = cast(Any, optimize).brentq

LEAST_CANARIES = 8
"""Fewest canaries: with fewer, no number of right guesses shows anything at 95 %."""

_GUESSES = (1, 2, 4, 8, 16, 32)  # the m canaries over these
_MOST = 60.0

Form = Literal["coins", "exact", "gaussian"]


@dataclass(frozen=True)
class EpsilonBound:
    """The training is not (e, delta)-private for any e below ``low``, at ``level``.

    Attributes:
        canaries: their number.
        guesses, right: for the number of guesses with the largest bound.
        form: "coins" (Steinke et al.), "exact" (any mechanism) or "gaussian" (DP-SGD and the like).
    """

    low: float
    delta: float
    level: float
    canaries: int
    guesses: int
    right: int
    form: Form


def epsilon_bound(
    scores: NDArray[np.float64],
    member: NDArray[np.bool_],
    *,
    delta: float,
    level: float = 0.95,
    form: Form = "exact",
) -> EpsilonBound:
    """The bound from scores (m,), higher for images that seem trained on, and the coins ``member`` (m,).

    Raises:
        ValueError: fewer than LEAST_CANARIES, lengths that differ, a score that is not finite, or a delta
            outside [0, 1).
    """
    check_level(level)
    m = len(scores)
    if m < LEAST_CANARIES or member.shape != scores.shape or not np.isfinite(scores).all():
        raise ValueError(
            f"a bound needs {LEAST_CANARIES} or more canaries with finite scores, got {scores.shape}"
        )
    if not 0 <= delta < 1:
        raise ValueError(f"delta is a probability below 1, got {delta}")
    order = np.argsort(scores, kind="stable")
    sizes = sorted({2 * max(2, m // (2 * part)) for part in _GUESSES})
    each = (1 - level) / len(sizes)
    best = EpsilonBound(0.0, delta, level, m, sizes[-1], 0, form)
    for guesses in sizes:
        half = guesses // 2
        right = int(member[order[m - half :]].sum() + (~member[order[:half]]).sum())
        low = epsilon_of_guesses(right, guesses, m, delta=delta, alpha=each, form=form)
        if low > best.low or not best.right:
            best = EpsilonBound(max(low, best.low), delta, level, m, guesses, right, form)
    return best


def epsilon_of_guesses(
    right: int, guesses: int, canaries: int, *, delta: float, alpha: float, form: Form = "exact"
) -> float:
    """The largest epsilon at which so many right guesses of so many had a chance of ``alpha`` or less.

    Raises:
        ValueError: impossible counts, or a Gaussian mechanism with delta 0.
    """
    if not 0 <= right <= guesses <= canaries or guesses < 1:
        raise ValueError(f"right guesses, guesses and canaries rise, got {right}, {guesses}, {canaries}")
    if form == "gaussian":
        if delta == 0:
            raise ValueError("a Gaussian mechanism has no epsilon at delta 0")
        mu = _largest(lambda mu: _forbidden(right, guesses, canaries, alpha, _gaussian(mu)))
        return gaussian_epsilon(mu, delta)
    if form == "coins":
        return _largest(lambda e: _by_coins(right, guesses, canaries, e, delta) <= alpha)
    return _largest(lambda e: _forbidden(right, guesses, canaries, alpha, _approximate(e, delta)))


def gaussian_epsilon(mu: float, delta: float) -> float:
    """epsilon at ``delta`` of a mechanism that is mu-Gaussian private: of N(0, 1) against N(mu, 1).

        delta = Phi(mu / 2 - epsilon / mu) - e^epsilon Phi(-mu / 2 - epsilon / mu)

    Raises:
        ValueError: delta outside (0, 1), or a negative mu.
    """
    if not 0 < delta < 1 or mu < 0:
        raise ValueError(f"delta lies in (0, 1) and mu is 0 or more, got {delta} and {mu}")

    def excess(epsilon: float) -> float:
        second = math.exp(epsilon + float(_special.log_ndtr(-mu / 2 - epsilon / mu)))
        return float(_special.ndtr(mu / 2 - epsilon / mu)) - second - delta

    if mu == 0 or excess(0.0) <= 0:
        return 0.0
    # log(1 / delta) and the tail of the Gaussian bound epsilon from above
    return float(_brentq(excess, 0.0, mu**2 / 2 + mu * math.sqrt(2 * math.log(1 / delta)) + 1e-9))


def _largest(forbidden: Callable[[float], bool]) -> float:
    """The largest value that is forbidden, less 1e-6; 0 if 0 is not forbidden."""
    if not forbidden(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while forbidden(high) and high < _MOST:
        low, high = high, 2 * high
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if forbidden(middle) else (low, middle)
    return low


def _by_coins(right: int, guesses: int, canaries: int, epsilon: float, delta: float) -> float:
    chance = 1 / (1 + math.exp(-epsilon))
    above = float(_binomial.sf(right - 1, guesses, chance))
    i = np.arange(1, right + 1)
    more = (_binomial.sf(right - i - 1, guesses, chance) - above) / i
    return min(1.0, above + 2 * canaries * delta * float(more.max(initial=0.0)))


def _forbidden(
    right: int, guesses: int, canaries: int, alpha: float, least: Callable[[float], float]
) -> bool:
    """Whether ``right`` or more right guesses have a chance below alpha: the recursion of the module."""
    r, h = alpha * right / canaries, alpha * (guesses - right) / canaries
    for j in range(right - 1, -1, -1):
        grown = max(h, least(r))
        r, h = r + j / (guesses - j) * (grown - h), grown
        if r + h > guesses / canaries:
            return True
    return False


def _approximate(epsilon: float, delta: float) -> Callable[[float], float]:
    big, small = math.exp(min(epsilon, 700.0)), math.exp(-epsilon)
    return lambda y: max(0.0, small * (y - delta), 1 - delta - big * (1 - y))


def _gaussian(mu: float) -> Callable[[float], float]:
    return lambda y: float(_special.ndtr(_special.ndtri(min(y, 1.0)) - mu))
