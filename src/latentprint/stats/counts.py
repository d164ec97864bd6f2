"""Hits among independent trials: exact intervals, tests, and what zero hits leave possible.

With k hits in n trials of rate q, ``X ~ Binomial(n, q)``, and everything here inverts ``P(X <= k | q)``. That
holds for every n and q, even where a normal approximation fails: at zero hits, the usual case of an audit.

Source: C. J. Clopper, E. S. Pearson, Biometrika 26 (1934).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

from scipy import special, stats  # pyright: ignore[reportMissingTypeStubs]

_binom = cast(Any, stats).binom
_special = cast(Any, special)


def check_level(level: float) -> None:
    """Refuse a number that is no confidence level.

    Raises:
        ValueError: not between 0 and 1.
    """
    if not 0 < level < 1:
        raise ValueError(f"a confidence level lies strictly between 0 and 1, got {level}")


@dataclass(frozen=True)
class Trials:
    """k hits in n independent trials. Counts are kept and rates derived, so that results can be added.

    Raises:
        ValueError: not 0 <= k <= n, or k or n is no whole number.
    """

    k: int
    n: int

    def __post_init__(self) -> None:
        if int(self.k) != self.k or int(self.n) != self.n or not 0 <= self.k <= self.n:
            raise ValueError(f"trials need whole numbers with 0 <= k <= n, got k = {self.k}, n = {self.n}")
        object.__setattr__(self, "k", int(self.k))
        object.__setattr__(self, "n", int(self.n))

    def __add__(self, other: Trials) -> Trials:
        return Trials(self.k + other.k, self.n + other.n)

    @property
    def rate(self) -> float:
        """k / n.

        Raises:
            ValueError: there was no trial.
        """
        if self.n == 0:
            raise ValueError("the rate of zero trials is not defined; at least one trial is needed")
        return self.k / self.n

    def lower(self, level: float = 0.95) -> float:
        """One-sided lower bound: the smallest q with P(X >= k | q) >= 1 - level; 0 if k = 0."""
        check_level(level)
        if self.k == 0:
            return 0.0
        return float(_special.betaincinv(self.k, self.n - self.k + 1, 1 - level))

    def upper(self, level: float = 0.95) -> float:
        """One-sided upper bound: the largest q with P(X <= k | q) >= 1 - level; 1 if k = n."""
        check_level(level)
        if self.k == self.n:
            return 1.0
        return float(_special.betainccinv(self.k + 1, self.n - self.k, 1 - level))

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Two-sided Clopper-Pearson interval: it contains q with probability >= level for every n and q."""
        check_level(level)
        side = (1 + level) / 2
        return self.lower(side), self.upper(side)


def binomial_test_less(k: int, n: int, p0: float) -> float:
    """p-value of H0: q = p0 against H1: q < p0 after k hits in n, ``P(X <= k | p0)`` (paper §5.3, exact).

    Raises:
        ValueError: not 0 <= k <= n, or p0 is not a probability.
    """
    trials = Trials(k, n)
    if not 0 <= p0 <= 1:
        raise ValueError(f"p0 is a probability, got {p0}")
    return float(_binom.cdf(trials.k, trials.n, p0))


def missable(k: int, n: int, level: float = 0.95) -> float:
    """The largest q under which a count of at most k in n still has probability 1 - level.

    An audit must print it with every zero: "a leak of up to this rate could have been missed". For k = 0 it
    is ``1 - (1 - level)^(1/n)``, about 3/n at 95 %.
    """
    return Trials(k, n).upper(level)


def samples_to_exclude(q: float, level: float = 0.95) -> int:
    """The smallest n for which zero hits exclude a rate of q: ``ceil(log(1 - level) / log(1 - q))``.

    Raises:
        ValueError: q does not lie strictly between 0 and 1.
    """
    check_level(level)
    if not 0 < q < 1:
        raise ValueError(f"a rate to exclude lies strictly between 0 and 1, got {q}")
    return math.ceil(math.log(1 - level) / math.log1p(-q))
