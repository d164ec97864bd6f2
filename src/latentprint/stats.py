"""Counts, and what may be concluded from them: exact intervals, tests, bands and sequences. No torch.

With k hits in n independent trials of rate q, ``X ~ Binomial(n, q)`` and everything here is an inversion of
``P(X <= k | q)`` (Clopper and Pearson 1934) or of a nonnegative martingale (Robbins 1970; Ville 1939), so it
holds for every n and q, also where a normal approximation fails: at zero hits, which is where an audit lives.

Sources: C. J. Clopper, E. S. Pearson, Biometrika 26 (1934); H. Robbins, Ann. Math. Stat. 41 (1970);
S. Howard, A. Ramdas, J. McAuliffe, J. Sekhon, Ann. Stat. 49 (2021), arXiv 1810.08240; Y. Benjamini,
Y. Hochberg, JRSS B 57 (1995); W. J. Rogan, B. Gladen, Am. J. Epidemiol. 107 (1978).
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats  # pyright: ignore[reportMissingTypeStubs]

_binom = cast(Any, stats).binom
_special = cast(Any, special)


def _check_level(level: float) -> None:
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
        """One-sided lower bound: the smallest q with P(X >= k | q) >= 1 - level; 0 where k = 0."""
        _check_level(level)
        if self.k == 0:
            return 0.0
        return float(_special.betaincinv(self.k, self.n - self.k + 1, 1 - level))

    def upper(self, level: float = 0.95) -> float:
        """One-sided upper bound: the largest q with P(X <= k | q) >= 1 - level; 1 where k = n."""
        _check_level(level)
        if self.k == self.n:
            return 1.0
        return float(_special.betainccinv(self.k + 1, self.n - self.k, 1 - level))

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Two-sided Clopper-Pearson interval: it holds q with probability >= level for every n and q."""
        _check_level(level)
        side = (1 + level) / 2
        return self.lower(side), self.upper(side)


def binomial_test_less(k: int, n: int, p0: float) -> float:
    """p-value of H0: q = p0 against H1: q < p0 after k hits in n, ``P(X <= k | p0)`` (paper §5.3, exact).

    Raises:
        ValueError: not 0 <= k <= n, or p0 is no probability.
    """
    trials = Trials(k, n)
    if not 0 <= p0 <= 1:
        raise ValueError(f"p0 is a probability, got {p0}")
    return float(_binom.cdf(trials.k, trials.n, p0))


def missable(k: int, n: int, level: float = 0.95) -> float:
    """The largest q under which a count of at most k in n still had probability 1 - level.

    What an audit must print beside every zero: "a leak of up to this rate could have been missed".
    For k = 0 it is ``1 - (1 - level)^(1/n)``, about 3/n at 95 %.
    """
    return Trials(k, n).upper(level)


def samples_to_exclude(q: float, level: float = 0.95) -> int:
    """The smallest n for which zero hits exclude a rate of q: ``ceil(log(1 - level) / log(1 - q))``.

    Raises:
        ValueError: q does not lie strictly between 0 and 1.
    """
    _check_level(level)
    if not 0 < q < 1:
        raise ValueError(f"a rate to exclude lies strictly between 0 and 1, got {q}")
    return math.ceil(math.log(1 - level) / math.log1p(-q))


def simultaneous_band(trials: Sequence[Trials], level: float = 0.95) -> list[tuple[float, float]]:
    """Intervals that hold **all** the rates at once with probability >= level.

    Each is a Clopper-Pearson interval at ``1 - (1 - level) / m``. Bonferroni, because the noise levels of a
    search may share their noise ids: the band then holds under any dependence between the counts, which
    Sidak's correction would not, and at m = 100 it is wider than Sidak's by less than 0.2 %.
    """
    _check_level(level)
    each = 1 - (1 - level) / max(len(trials), 1)
    return [one.interval(each) for one in trials]


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
    """Anytime-valid interval for q: it may be looked at after every trial, and sampling stopped on sight.

    The set ``{p : M_n(p) < 1 / (1 - level)}`` with the martingale of ``log_mixture``. With probability
    >= level it holds q at **all** n together. The default prior is Jeffreys' (Krichevsky-Trofimov mixture); a
    prior with mean near the expected rate sharpens the sequence there and never breaks its coverage, as
    long as it was fixed before the first trial.

    Raises:
        ValueError: not 0 <= k <= n, a level outside (0, 1), or a prior that is not positive.
    """
    trials = Trials(k, n)
    _check_level(level)
    if min(prior) <= 0:
        raise ValueError(f"both parameters of the mixture's beta prior must be positive, got {prior}")
    if n == 0:
        return 0.0, 1.0
    bar = -math.log1p(-level)

    def excess(p: float) -> float:
        return log_mixture(k, n, p, prior) - bar

    # M is log-convex in p with its minimum at k/n, and there M <= 1: the set is one interval around k/n.
    peak = trials.rate
    low = 0.0 if k == 0 else _root(excess, peak, 0.0)
    high = 1.0 if k == n else _root(excess, peak, 1.0)
    return low, high


def looks(most: int, first: int) -> list[int]:
    """Sample sizes at which a count that may stop is looked at: first, then a quarter more each time, most.

    All but ``most`` are multiples of ``first``: units of work stay whole.

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

    q lies in the intervals of all looks at once, hence in their intersection; where that is empty
    (probability below 1 - level) the latest stands. ``near`` is the rate asked about: the mixture's prior
    Beta(1/2, b) has its mean there, which sharpens the sequence there and never breaks its coverage.

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
    """One look more of ``running_interval``: its interval so far, cut with that of the counts ``now``."""
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
    """p-value of H0: q >= p0 against q < p0 that holds whenever sampling was stopped.

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


def false_discovery(p_values: ArrayLike, level: float = 0.95) -> NDArray[np.bool_]:
    """Benjamini-Hochberg: which hypotheses to reject so that on average at most ``1 - level`` falsely.

    Rejects the i smallest, i the largest rank with ``p_(i) <= i (1 - level) / m``. Valid for independent or
    positively dependent p-values (Benjamini and Yekutieli 2001). Shape (m,) in, (m,) out.

    Raises:
        ValueError: not one-dimensional, or a value outside [0, 1].
    """
    _check_level(level)
    p = np.asarray(p_values, dtype=np.float64)
    if p.ndim != 1 or not bool(np.all((p >= 0) & (p <= 1))):
        raise ValueError(f"p-values must be a list of numbers in [0, 1], got shape {p.shape}")
    m = p.size
    order = np.argsort(p, kind="stable")
    passes = p[order] <= np.arange(1, m + 1) * (1 - level) / max(m, 1)
    last = int(np.flatnonzero(passes)[-1]) + 1 if bool(passes.any()) else 0
    rejected = np.zeros(m, dtype=np.bool_)
    rejected[order[:last]] = True
    return rejected


def empirical_p(value: float, null: ArrayLike) -> float:
    """Rank-based p-value of a large ``value`` against a null sample: ``(1 + #{null >= value}) / (n + 1)``.

    Exact when value and null are exchangeable under H0; never 0, so n nulls cannot claim less than 1/(n + 1)
    (Phipson and Smyth 2010).

    Raises:
        ValueError: the null sample is empty, or something is not a number.
    """
    sample = np.asarray(null, dtype=np.float64).ravel()
    if sample.size == 0 or math.isnan(value) or bool(np.isnan(sample).any()):
        raise ValueError(f"a null sample of at least one number is needed, got {sample.size}, value {value}")
    return (1 + int(np.count_nonzero(sample >= value))) / (sample.size + 1)


@dataclass(frozen=True)
class CorrectedRate:
    """The true rate behind a detector that errs.

    Attributes:
        rate: Rogan and Gladen's ``(p - fpr) / (tpr - fpr)`` cut to [0, 1]; None where it is undefined.
        low, high: interval of the true rate, at ``level``, detector uncertainty included.
        note: one sentence on what the detector's errors did to the answer.
    """

    rate: float | None
    low: float
    high: float
    level: float
    note: str


def through_detector(
    seen: tuple[float, float], tpr: tuple[float, float], fpr: tuple[float, float]
) -> tuple[float, float, str]:
    """Interval of the true rate, given intervals of the detector's hit rate and of its two error rates.

    With ``p = q tpr + (1 - q) fpr`` the true rate ``q = (p - fpr) / (tpr - fpr)`` rises with p and falls with
    tpr and with fpr wherever fpr <= p <= tpr, so its extremes lie in two corners of the box. Where the box
    contradicts that order, the detector's rates do not carry over from the calibration split to these images;
    the contradicted rate is then treated as unknown, which only widens the answer.
    """
    (p_low, p_high), (t_low, t_high), (f_low, f_high) = seen, tpr, fpr
    notes: list[str] = []
    if p_high < f_low:
        notes.append("fewer positives than the false-positive rate alone predicts, so that rate was not used")
        f_low = 0.0
    if p_low > t_high:
        notes.append("more positives than the true-positive rate allows, so that rate was not used")
        t_high = 1.0
    low = min(1.0, (p_low - f_high) / (t_high - f_high)) if f_high < min(p_low, t_high) else 0.0
    high = min(1.0, (p_high - f_low) / (t_low - f_low)) if t_low > f_low else 1.0
    if t_low <= f_high:
        notes.append("the calibration split is too small to tell the detector from chance")
    elif low == 0.0 and p_low > 0:
        notes.append("the positives may all be false: the false-positive rate is not known to be smaller")
    return low, high, "; ".join(notes) if notes else "detector errors are carried into the interval"


def corrected_rate(hits: Trials, tpr: Trials, fpr: Trials, level: float = 0.95) -> CorrectedRate:
    """The rate of Omega itself, from detector hits and the detector's own measured error rates.

    Three Clopper-Pearson intervals at ``1 - (1 - level) / 3`` (Bonferroni) and the extremes of Rogan and
    Gladen's formula over their box: conservative, and valid for every n, also at zero false positives seen.
    """
    each = 1 - (1 - level) / 3
    low, high, note = through_detector(hits.interval(each), tpr.interval(each), fpr.interval(each))
    gain = tpr.rate - fpr.rate
    rate = min(1.0, max(0.0, (hits.rate - fpr.rate) / gain)) if gain > 0 else None
    return CorrectedRate(rate, low, high, level, note)


def corrected_rate_of_both(
    hits: Trials, presence: tuple[Trials, Trials], identity: tuple[Trials, Trials], level: float = 0.95
) -> CorrectedRate:
    """``corrected_interval`` of a count, for the conjunction of c_p and c_id (Eq. 6), each (tpr, fpr)."""
    return corrected_interval(hits.rate, hits.interval, (presence, identity), level=level)


def corrected_interval(
    rate: float,
    interval: Callable[[float], tuple[float, float]],
    detectors: Sequence[tuple[Trials, Trials]],
    *,
    control: Trials | None = None,
    level: float = 0.95,
) -> CorrectedRate:
    """The rate of what the m ``detectors`` look for, from how often they fire together, by any estimator.

    Nothing is assumed on how the detectors' errors depend on one another: together they find at least
    ``sum of tpr - (m - 1)`` and at most the least tpr of Omega (Frechet), and outside Omega at least one of
    the signs is missing, so they err with at most the largest fpr. A control, the same recipe without the
    image, counts their joint false alarms on generated images; the lower of the two bounds is used.
    Bonferroni over all intervals that enter. ``rate`` is corrected for misses only: the joint rate of false
    alarms is bounded, not known.

    Args:
        interval: of the rate at which they fire, by confidence level.
        detectors: (tpr, fpr) of each, as counts.
        control: joint detections of the control.

    Raises:
        ValueError: no detector.
    """
    if not detectors:
        raise ValueError("a corrected rate needs the error rates of at least one detector, got none")
    m = len(detectors)
    each = 1 - (1 - level) / (1 + 2 * m + (control is not None))
    one_sided = (1 + each) / 2
    found = [tpr.interval(each) for tpr, _ in detectors]
    tpr = (max(0.0, sum(low for low, _ in found) - (m - 1)), min(high for _, high in found))
    alarms = max(fpr.upper(one_sided) for _, fpr in detectors)
    if control is not None:
        alarms = min(alarms, control.upper(one_sided))
    low, high, note = through_detector(interval(each), tpr, (0.0, alarms))
    joint = max(0.0, sum(tpr.rate for tpr, _ in detectors) - (m - 1))
    return CorrectedRate(min(1.0, rate / joint) if joint > 0 else None, low, high, level, note)
