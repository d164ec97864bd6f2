"""How many kinds there are when only some were seen, estimated from how often each kind was seen.

There are n draws. Kind i (a training image) occurs with probability q_i each time, and sum q_i <= 1, because
other draws are no copies. x_i is how often it occurred, c = sum x_i, f_j how many kinds occurred exactly j
times, and S how many occurred at all. Then

    unseen        f_0 >= (n - 1) / n  f_1 (f_1 - 1) / (2 (f_2 + 1))                (Chao 1984, bias-corrected)
    coverage      1 - f_1 / c  (n - 1) f_1 / ((n - 1) f_1 + 2 f_2)                 (Good; Chao, Jost 2012)
    curve         m <= n:  S - sum_i C(n - x_i, m) / C(n, m)                       (Hurlbert 1971, exact)
                  m > n:   S + f_0 (1 - (1 - f_1 / (n f_0 + f_1))^(m - n))         (Chao et al. 2014)

The expectation of the first is a lower bound on the number unseen whatever the q_i, and equals it if the
unseen kinds are about as likely as those seen once. There is no upper bound, because any number of kinds may
be arbitrarily unlikely. Kinds with q_i >= 1/n occur at least once in n draws on average. For these

    (1 - q)^n <= n q (1 - q)^(n - 1)

and no more are missed than occur once, up to chance. The upper end is the larger of this bound and the
log-normal one (Chao 1987). Intervals of the curve are bootstrapped from an estimated population that includes
the unseen kinds (Chao et al. 2014, appendix G).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special  # pyright: ignore[reportMissingTypeStubs]
from scipy import stats as scipy_stats  # pyright: ignore[reportMissingTypeStubs]

from latentprint.stats.counts import check_level

_special = cast(Any, special)
_normal, _poisson = cast(Any, scipy_stats).norm, cast(Any, scipy_stats).poisson

REPEATS = 2
"""Kinds that must have occurred twice or more before anything is said about unseen kinds."""


class TooFewRepeats(ValueError):
    """Too few kinds occurred repeatedly to say how many have not occurred yet."""


@dataclass(frozen=True)
class Richness:
    """How many kinds there are, at least.

    Attributes:
        seen: kinds that occurred.
        once, twice: f_1 and f_2.
        unseen: f_0, the estimated least number of kinds that did not occur.
        low, high: its interval at ``level``, whole numbers: ``low`` holds whatever the kinds' chances are,
            ``high`` for kinds that occur at least once in as many draws on average.
        coverage: the estimated share of future draws, among those of any kind, that show a kind already seen.
    """

    seen: int
    once: int
    twice: int
    unseen: float
    low: float
    high: float
    coverage: float
    level: float


def richness(counts: ArrayLike, draws: int, level: float = 0.95, most: int | None = None) -> Richness:
    """How many kinds there are.

    Args:
        counts: how often each kind occurred; zeros are allowed.
        draws: how many draws there were.
        most: the largest possible number of kinds (training images); None: any number.

    Raises:
        TooFewRepeats: fewer than REPEATS kinds occurred twice or more.
        ValueError: numbers that are no counts, or counts that add up to more than the draws.
    """
    check_level(level)
    x = _counts(counts, draws)
    once, twice, seen = int((x == 1).sum()), int((x == 2).sum()), len(x)
    if int((x >= 2).sum()) < REPEATS:
        raise TooFewRepeats(
            f"in {draws:,} images {seen:,} different ones were seen, fewer than {REPEATS} of them twice; how"
            " many more there are cannot be told from that, and more images would tell"
        )
    scale = (draws - 1) / draws
    unseen = scale * once * (once - 1) / (2 * (twice + 1))
    z = float(_normal.ppf((1 + level) / 2))
    if unseen > 0:
        variance = (
            unseen
            + scale**2 * once * (2 * once - 1) ** 2 / (4 * (twice + 1) ** 2)
            + scale**2 * once**2 * twice * (once - 1) ** 2 / (4 * (twice + 1) ** 4)
        )
        spread = math.exp(z * math.sqrt(math.log1p(variance / unseen**2)))
        low, high = unseen / spread, unseen * spread
    else:
        # Hardly any occurred once. Of those that occurred j times or more, a share e^-j of equally likely
        # ones is missed.
        missed = float(np.exp(-x).mean())
        variance = float((np.exp(-x) - np.exp(-2.0 * x)).sum() - (x * np.exp(-x)).sum() ** 2 / draws)
        low, high = 0.0, (missed * seen + z * math.sqrt(max(variance, 0.0))) / (1 - missed)
    side = (1 + level) / 2
    mean = float(_special.gammaincinv(once + 1, (1 + side) / 2))  # of f_1, at most
    high = max(high, float(_poisson.ppf((1 + side) / 2, mean)))
    limit = math.inf if most is None else most - seen
    copies = int(x.sum())
    gone = once / copies * ((draws - 1) * once / ((draws - 1) * once + 2 * twice) if once else 0.0)
    ends = [min(value, limit) for value in (unseen, math.floor(low), math.ceil(high))]
    return Richness(seen, once, twice, ends[0], ends[1], ends[2], 1 - gone, level)


@dataclass(frozen=True)
class Expected:
    """How many different kinds are expected after ``draws`` draws, with an interval."""

    draws: int
    kinds: float
    low: float
    high: float


def curve(
    counts: ArrayLike,
    draws: int,
    sizes: Sequence[int],
    rng: np.random.Generator,
    level: float = 0.95,
    most: int | None = None,
    rounds: int = 200,
) -> tuple[Expected, ...]:
    """How many different kinds are expected in each of ``sizes`` draws; see the module.

    Beyond twice the number of draws it is an extrapolation without any guarantee.

    Raises:
        TooFewRepeats, ValueError: see ``richness``.
    """
    x = _counts(counts, draws)
    found = richness(x, draws, level, most)
    centre = _different(x, draws, sizes, found.unseen)
    unseen = math.ceil(found.unseen)
    share = np.concatenate([_corrected(x, draws, found), _evenly(unseen, x, draws, found)])
    other = max(0.0, 1.0 - float(share.sum()))
    drawn = rng.multinomial(draws, np.append(share, other) / (float(share.sum()) + other), size=rounds)[
        :, :-1
    ]
    again = np.array([_different(one[one > 0], draws, sizes, _chao(one, draws, most)) for one in drawn])
    reach = float(_normal.ppf((1 + level) / 2)) * again.std(0, ddof=1)
    top = math.inf if most is None else float(most)
    return tuple(
        Expected(
            int(m), float(c), max(float(len(x)) if m >= draws else 0.0, float(c - r)), min(top, float(c + r))
        )
        for m, c, r in zip(sizes, centre, reach, strict=True)
    )


def _counts(counts: ArrayLike, draws: int) -> NDArray[np.int64]:
    x = np.asarray(counts, dtype=np.int64).ravel()
    if (x < 0).any() or int(x.sum()) > draws:
        raise ValueError(f"counts are 0 or more and no more than the {draws} draws together, got {x.sum()}")
    return x[x > 0]


def _chao(x: NDArray[np.int64], draws: int, most: int | None) -> float:
    once, twice = int((x == 1).sum()), int((x == 2).sum())
    unseen = (draws - 1) / draws * once * (once - 1) / (2 * (twice + 1))
    return unseen if most is None else min(unseen, most - int((x > 0).sum()))


def _different(x: NDArray[np.int64], n: int, sizes: Sequence[int], unseen: float) -> NDArray[np.float64]:
    """The curve at ``sizes``; ``unseen`` is f_0."""
    once, out = int((x == 1).sum()), list[float]()
    for m in sizes:
        if m <= n:
            # C(n - x, m) / C(n, m), and 0 if fewer than m draws are left
            left = np.maximum(n - x - m, -1)
            logs = _special.gammaln(n - x + 1) + _special.gammaln(n - m + 1) - math.lgamma(n + 1)
            none = np.where(left >= 0, np.exp(logs - _special.gammaln(np.maximum(left, 0) + 1)), 0.0)
            out.append(len(x) - float(none.sum()))
        else:
            rate = once / (n * unseen + once) if once else 0.0
            out.append(len(x) + unseen * (1 - (1 - rate) ** (m - n)))
    return np.array(out)


def _corrected(x: NDArray[np.int64], n: int, found: Richness) -> NDArray[np.float64]:
    """Probabilities of the seen kinds: their shares, reduced by what belongs to the unseen (Chao et al.
    2014)."""
    share = x / n
    gone = (1 - found.coverage) * float(share.sum())
    weight = share * (1 - share) ** n
    return share * (1 - gone * (1 - share) ** n / weight.sum()) if weight.sum() > 0 else share


def _evenly(unseen: int, x: NDArray[np.int64], n: int, found: Richness) -> NDArray[np.float64]:
    gone = (1 - found.coverage) * float(x.sum()) / n
    return np.full(unseen, gone / unseen) if unseen else np.zeros(0)
