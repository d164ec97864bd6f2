"""From counts to t': what the hits at every noise level show, and what they do not.

Let theta_i = P(hit | t_i), and r_i = P(return | t_i) the share of trajectories from t_i that end in Omega_p
(Eq. 6):

    t'       =  max {t_i : at least one hit in M tries}        paper section 3.4; it depends on M
    t'_p     =  max {t_i : r_i >= p}                           what the intervals are about
    theta_i  =  r_i tpr + (1 - r_i) fpr                        the detector's part in a hit

**Interval without assumptions.** Both ends invert tests. The high end is the largest t_i at which r_i >= p is
not rejected at (1 - level) / 2. It misses t'_p only if the one true hypothesis at t'_p itself is rejected, so
no correction for the number of levels is needed. For the low end, "t'_p <= t_j" is rejected if some level
above t_j has r above p at (1 - level) / 2 over the number of those levels (Bonferroni). The low end is the
smallest t_j not rejected. Together they contain t'_p with probability >= level for any curve. Levels that
were not asked count as unknown.

**Interval if r falls with t** (the paper's assumption, which ``Falling`` tests). High end: r_j >= p then
means r_i >= p at all i <= j, so the tries of the w levels up to j are one sample. w is the smallest number of
levels that could reject with no hit at all, fixed before the data. Low end: levels are passed from the
smallest t upwards while r is above p, each at (1 - level) / 2, up to the first failure (fixed sequence: to
end above t'_p, the first level below p must be passed, which happens with probability (1 - level) / 2 at
most).

Both intervals include the detector's errors if its rates are given. A hit may be false with probability up to
the upper bound of fpr, and a return overlooked with probability up to 1 - the lower bound of tpr. Half of
each end's error probability is spent on that bound.

Sources: Berger 1982 (intersection-union and inversion); Maurer, Hothorn, Lehmacher 1995 (fixed sequence);
Clopper and Pearson 1934.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats  # pyright: ignore[reportMissingTypeStubs]

from latentprint.search.plan import Plan
from latentprint.stats import Trials, samples_to_exclude, simultaneous_band

_special = cast(Any, special)
_hypergeom = cast(Any, stats).hypergeom
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Interval:
    """Where t'_p lies, with probability >= ``level`` (see the module).

    Attributes:
        low: None if no level is certain to give the image back more often than ``threshold``.
        high: None if it certainly comes back more rarely at every level; the top of the grid if nothing above
            is excluded.
        assumes: what is assumed about P(return | t).
    """

    low: float | None
    high: float | None
    threshold: float
    level: float
    assumes: str

    def holds(self, value: float | None) -> bool:
        """Whether the interval contains ``value``; None (no level at all) lies below every t."""
        if value is None:
            return self.low is None
        return self.high is not None and value <= self.high and (self.low is None or self.low <= value)

    @property
    def sentence(self) -> str:
        """The interval in words."""
        share = f"{self.threshold:.3g}"
        low = f"at least {self.low:.4g}" if self.low is not None else "not shown to be above any tested level"
        high = f"at most {self.high:.4g}" if self.high is not None else "below every tested level"
        return (
            f"The largest t from which a share of {share} or more comes back is {low} and {high} "
            f"({100 * self.level:g} % confidence, assuming {self.assumes})."
        )


@dataclass(frozen=True)
class Falling:
    """Test of "P(return | t) does not rise with t".

    Attributes:
        p_value: of that hypothesis; None if the design asked fewer than two levels.
        rises: (t, t) between which it rises most clearly, if the test rejects.
        sentence: the finding in words.
    """

    p_value: float | None
    rises: tuple[float, float] | None
    sentence: str


@dataclass(frozen=True)
class TPrime:
    """t' and all the evidence for it.

    Attributes:
        method: exhaustive, bisection, subsample, reduced_range or sequential.
        plan: the question.
        trials: hits and tries at each t of ``plan.grid``; Trials(0, 0) if it was not asked.
        value: None if no tried level gave the image back.
        definition: the set of which ``value`` is the largest t.
        certain: the largest t whose hits cannot all be false positives, at ``plan.level``; None if there is
            no such t. Equals the largest t with a hit if the detector's rates are not given.
        interval, interval_if_falling: of t'_p, without and with the assumption that P(return | t) falls.
        band: (low, high) at each t; it contains all P(hit | t) of the grid together, with probability >=
            level.
        falling: the test of that assumption.
        network_evaluations: cost of the search, stored tries included.
        sentence: the finding in words.
    """

    method: str
    plan: Plan
    trials: tuple[Trials, ...]
    value: float | None
    definition: str
    certain: float | None
    interval: Interval
    interval_if_falling: Interval
    band: tuple[tuple[float, float], ...]
    falling: Falling
    network_evaluations: int
    sentence: str

    def to_dict(self) -> dict[str, object]:
        """The ``t_prime`` object of results.json, as plain values; it lists only levels that were asked."""
        asked = [i for i, seen in enumerate(self.trials) if seen.n]
        intervals = (self.interval, self.interval_if_falling)
        return {
            "value": self.value,
            "definition": self.definition,
            "sentence": self.sentence,
            "method": self.method,
            "tries": self.plan.tries,
            "grid": [self.plan.grid[i] for i in asked],
            "hits": [self.trials[i].k for i in asked],
            "tries_at": [self.trials[i].n for i in asked],
            "band": [list(self.band[i]) for i in asked],
            "level": self.plan.level,
            "threshold": self.plan.threshold,
            "certain": self.certain,
            "intervals": [
                {"low": one.low, "high": one.high, "assumes": one.assumes, "sentence": one.sentence}
                for one in intervals
            ],
            "falling": {
                "p_value": self.falling.p_value,
                "rises": None if self.falling.rises is None else list(self.falling.rises),
                "sentence": self.falling.sentence,
            },
            "network_evaluations": self.network_evaluations,
        }


ANY_HIT = "at least one hit in M tries"
FALLS = "P(return | t) does not rise with t"
NOTHING = "nothing about the curve"


def conclude(
    plan: Plan, trials: Sequence[Trials], evaluations: int, method: str, design: Sequence[int]
) -> TPrime:
    """t' and its uncertainty from the counts at each level of the grid.

    ``design`` holds the indices that were chosen before any hit was seen. The windows, the fixed sequence and
    the test of falling use only these. Every other statement also holds for levels chosen by hits, because
    the tries of a level do not depend on whether one looks at them (ids), and Bonferroni counts them all.

    Raises:
        ValueError: there is not one count per level of the grid.
    """
    if len(trials) != len(plan.grid):
        raise ValueError(f"a grid of {len(plan.grid)} levels needs as many counts, got {len(trials)}")
    k = np.array([one.k for one in trials], np.int64)
    n = np.array([one.n for one in trials], np.int64)
    hit = np.flatnonzero(k)
    value = plan.grid[hit[-1]] if hit.size else None
    falling = falling_test(plan, trials, design)
    return TPrime(
        method=method,
        plan=plan,
        trials=tuple(trials),
        value=value,
        definition=ANY_HIT,
        certain=_certain(plan, k, n),
        interval=_interval_free(plan, k, n),
        interval_if_falling=_interval_falling(plan, k, n, sorted(design)),
        band=_band(plan, trials, design),
        falling=falling,
        network_evaluations=evaluations,
        sentence=_sentence(plan, trials, value),
    )


def _sentence(plan: Plan, trials: Sequence[Trials], value: float | None) -> str:
    asked = [i for i, one in enumerate(trials) if one.n]
    span = f"{len(asked)} of the {len(plan.grid)} levels" if len(asked) < len(plan.grid) else "the levels"
    span = f"{span} between {plan.grid[asked[0]]:.4g} and {plan.grid[asked[-1]]:.4g}" if asked else "no level"
    if value is None:
        return f"Never: no try came back from {span}."
    at = plan.grid.index(value)
    seen = f"{trials[at].k} of {trials[at].n} tries came back from t = {value:.4g}"
    if at == asked[-1]:
        return f"{seen}, the highest level asked ({span}): t' may lie above it."
    return f"{seen}, and none from above ({span})."


def false_positive_bound(plan: Plan, error: float) -> float:
    """Upper bound of fpr that fails with probability <= ``error``; 0 if the detector's rates are not
    given."""
    return 0.0 if plan.false_positives is None else plan.false_positives.upper(1 - error)


def _low_side(plan: Plan, share: float, error: float) -> tuple[float, float]:
    """(the largest theta compatible with r <= share, the remaining error probability)."""
    if plan.false_positives is None:
        return share, error
    bound = false_positive_bound(plan, error / 2)
    return share + (1 - share) * bound, error / 2


def _high_side(plan: Plan, error: float) -> tuple[float, float]:
    """(the smallest theta compatible with r >= threshold, the remaining error probability)."""
    if plan.true_positives is None:
        return plan.threshold, error
    return plan.threshold * plan.true_positives.lower(1 - error / 2), error / 2


def at_least(k: Counts, n: Counts, p: float) -> NDArray[np.float64]:
    """P(X >= k) for X ~ Binomial(n, p), elementwise."""
    return np.where(k > 0, _special.bdtrc(np.maximum(k, 1) - 1, np.maximum(n, 1), p), 1.0)


def at_most(k: Counts, n: Counts, p: float) -> NDArray[np.float64]:
    """P(X <= k) for X ~ Binomial(n, p), elementwise; 1 if n = 0."""
    return np.where(n > 0, _special.bdtr(k, np.maximum(n, 1), p), 1.0)


def _certain(plan: Plan, k: Counts, n: Counts) -> float | None:
    bound, error = _low_side(plan, 0.0, 1 - plan.level)
    if bound == 0:
        hit = np.flatnonzero(k)
        return plan.grid[hit[-1]] if hit.size else None
    return _lowest_not_rejected(plan, at_least(k, n, bound), error)


def _lowest_not_rejected(plan: Plan, p_values: NDArray[np.float64], error: float) -> float | None:
    """The smallest t_j (None: below the grid) such that no level above it contradicts "t'_p <= t_j"."""
    count = len(plan.grid)
    # best[j + 1] is the smallest p-value among the levels above j, for j = -1 .. count - 2.
    best = np.minimum.accumulate(p_values[::-1])[::-1]
    kept = np.flatnonzero(best > error / np.arange(count, 0, -1))
    first = int(kept[0]) - 1 if kept.size else count - 1
    return plan.grid[first] if first >= 0 else None


def _interval_free(plan: Plan, k: Counts, n: Counts) -> Interval:
    error = (1 - plan.level) / 2
    bound, left = _low_side(plan, plan.threshold, error)
    low = _lowest_not_rejected(plan, at_least(k, n, bound), left) if bound < 1 else None
    bound, left = _high_side(plan, error)
    kept = np.flatnonzero(at_most(k, n, bound) > left)
    high = plan.grid[kept[-1]] if kept.size else None
    return Interval(low, high, plan.threshold, plan.level, NOTHING)


def window(plan: Plan) -> int:
    """How many levels of M tries must be pooled for "no hit" to exclude a share of ``threshold``."""
    bound, left = _high_side(plan, (1 - plan.level) / 2)
    return -(-samples_to_exclude(bound, 1 - left) // plan.tries) if bound > 0 else len(plan.grid)


def _interval_falling(plan: Plan, k: Counts, n: Counts, design: Sequence[int]) -> Interval:
    error = (1 - plan.level) / 2
    bound, left = _low_side(plan, plan.threshold, error)
    low = None
    for index in design:
        if bound >= 1 or at_least(k[[index]], n[[index]], bound)[0] > left:
            break
        low = plan.grid[index]
    bound, left = _high_side(plan, error)
    width, chosen, high = window(plan), np.asarray(design, np.int64), None
    for index in range(len(plan.grid) - 1, -1, -1):
        pool = chosen[chosen <= index][-width:]
        if at_most(k[pool].sum(keepdims=True), n[pool].sum(keepdims=True), bound)[0] > left:
            high = plan.grid[index]
            break
    return Interval(low, high, plan.threshold, plan.level, FALLS)


def _band(plan: Plan, trials: Sequence[Trials], design: Sequence[int]) -> tuple[tuple[float, float], ...]:
    """Bonferroni over the levels of the design, or over the whole grid if hits chose further levels."""
    chosen = {i for i, one in enumerate(trials) if one.n} - set(design)
    over = list(range(len(trials))) if chosen else list(design)
    bounds = dict(zip(over, simultaneous_band([trials[i] for i in over], plan.level), strict=True))
    return tuple(bounds.get(i, (0.0, 1.0)) for i in range(len(trials)))


def falling_test(plan: Plan, trials: Sequence[Trials], design: Sequence[int]) -> Falling:
    """Exact test of "P(return | t) does not rise", against a rise between neighbouring blocks of levels.

    For every boundary and block length 1, 2, 4, ... the hits in the block below and in the block above are
    compared by Fisher's one-sided exact test; the smallest p-value is multiplied by the number of tests
    (Bonferroni). If the curve does not rise, the block below has stochastically at least the hits of a
    homogeneous block at its smallest rate, and the block above at most those of one at its largest. Fisher's
    rejection region is monotone in both, so the level also holds for curves that fall within blocks.
    """
    points = [i for i in sorted(design) if trials[i].n]
    if len(points) < 2:
        return Falling(
            None, None, "Whether P(return | t) falls was not tested: fewer than two levels to compare."
        )
    sums_k = np.concatenate([[0], np.cumsum([trials[i].k for i in points])])
    sums_n = np.concatenate([[0], np.cumsum([trials[i].n for i in points])])
    pairs = [
        (b - length, b, b + length)
        for length in (2**e for e in range(len(points).bit_length()))
        for b in range(length, len(points) - length + 1)
    ]
    a, b, c = np.array(pairs).T
    k_low, n_low = sums_k[b] - sums_k[a], sums_n[b] - sums_n[a]
    k_high, n_high = sums_k[c] - sums_k[b], sums_n[c] - sums_n[b]
    each = cast(NDArray[np.float64], _hypergeom.cdf(k_low, n_low + n_high, k_low + k_high, n_low))
    best = int(np.argmin(each))
    p_value = float(min(1.0, len(pairs) * each[best]))
    if p_value > 1 - plan.level:
        return Falling(
            p_value, None, f"Nothing speaks against P(return | t) falling with t (p = {p_value:.2g})."
        )
    span = plan.grid[points[a[best]]], plan.grid[points[c[best] - 1]]
    return Falling(
        p_value,
        span,
        f"P(return | t) rises between t = {span[0]:.4g} and t = {span[1]:.4g}: {k_low[best]} of "
        f"{n_low[best]} tries came back from the lower levels and {k_high[best]} of {n_high[best]} from the "
        f"higher ones (p = {p_value:.2g}). Results that assume a falling curve do not hold.",
    )
