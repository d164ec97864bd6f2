"""Weighted samples: mean, error, effective sample size, Pareto k, and an interval on the logarithm.

For weights w_i >= 0 with mean mu the estimators here are

    ESS = (sum w)^2 / sum w^2          the number of equal-weight samples that are worth as much
    k   = shape of the generalised Pareto distribution fitted to the largest weights
    interval = mu exp(-+ t s / (mu sqrt(n))),    t with 2 n / (kurtosis - 1) degrees of freedom

Weights are kept as logarithms until an interval is offered (``offered``), because exp of one can overflow or
underflow.

If fixed numbers n_j were drawn from proposals j, n in all, differences between proposals are no error: s^2 =
sum_j n_j s_j^2 / n of their own variances, and the degrees of freedom are Satterthwaite's for that sum.

k estimates how many moments the weights have. The mean's error can be estimated while k < 1/2, and is usable
in practice up to k = 0.7. Beyond that neither the mean nor its error can be believed. An estimate that rests
on few weights can lie orders of magnitude *below* the truth with a small reported error; only k shows it.

Sources: Kong 1992 (ESS); A. Vehtari, D. Simpson, A. Gelman, Y. Yao, J. Gabry, JMLR 25 (2024), arXiv
1507.02646 (Pareto k); J. Zhang, M. Stephens, Technometrics 51 (2009) (the fit); A. Owen, Y. Zhou, "Safe and
effective importance sampling", JASA 95 (2000) (fixed numbers from a mixture).
"""

import math
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]

BELIEVED = 30
"""Effective samples below which neither a mean nor its error is believed."""

LARGEST_K = 0.7
"""Above this Pareto k an average of weights is not believed (Vehtari et al. 2024, section 3.2.4)."""

LIGHT = 0.05
"""If no weight has more than this share of the sum, a shape fitted to the largest weights says nothing about
the sum: of Pareto weights with k = 0.7 the largest of a few hundred has about a fifth.
"""

SMALLEST = math.log(np.finfo(np.float64).tiny)
"""Logarithm of the smallest estimate that is offered."""

STRATUM = 8
"""Fewest weights whose variance is computed separately; proposals with fewer are joined with the next."""


@dataclass(frozen=True)
class Weighted:
    """Mean of n weights with its diagnostics; the weight of a miss is zero.

    Attributes:
        log_mean: logarithm of the estimate of q; -inf if every weight is zero.
        error: relative standard error of the mean.
        effective: effective sample size.
        pareto_k: None if fewer than 25 weights are positive.
        largest: the largest weight's share of the sum.
        freedom: degrees of freedom of ``error``, because heavy tails make the estimated error itself
            uncertain.
        n: the number drawn, misses included.
    """

    log_mean: float
    error: float
    effective: float
    pareto_k: float | None
    largest: float
    freedom: float
    n: int

    def distrusted(self) -> str | None:
        """Why the mean cannot be believed, as the end of "not reliable because ..."; None if it can."""
        if self.effective < BELIEVED or self.pareto_k is None:
            return f"the weights are worth {self.effective:.0f} samples, {BELIEVED} are needed"
        if self.pareto_k > LARGEST_K and self.largest > LIGHT:
            return f"the weights have Pareto k {self.pareto_k:.2f}, above {LARGEST_K}: few carry the estimate"
        return None


def weighted(log_weights: Floats, proposals: NDArray[np.int64] | None = None) -> Weighted:
    """Summary of weights given by their logarithms, shape (n,); -inf for a miss.

    ``proposals``: (n,) the proposal that each was drawn from, neighbours next to each other, if the number
    drawn from each was fixed beforehand. Without it, all are draws of one law.
    """
    logs = np.asarray(log_weights, dtype=np.float64)
    if logs.ndim != 1 or logs.size < 2:
        raise ValueError(f"at least two weights are needed, got shape {logs.shape}")
    if bool(np.isnan(logs).any()) or bool((logs == np.inf).any()):
        raise ValueError("the logarithm of a weight must be finite, or -inf for a miss")
    if proposals is not None and proposals.shape != logs.shape:
        raise ValueError(f"{logs.size} weights need as many proposals, got shape {proposals.shape}")
    top = float(logs.max())
    if top == -np.inf:
        return Weighted(-math.inf, math.inf, 0.0, None, 0.0, 1.0, logs.size)
    scaled = np.exp(logs - top)
    mean = float(scaled.mean())
    error, freedom = _error([scaled] if proposals is None else _strata(scaled, proposals))
    positive = logs > -np.inf
    return Weighted(
        log_mean=top + math.log(mean),
        error=error / mean,
        effective=float(scaled.sum() ** 2 / (scaled**2).sum()),
        pareto_k=pareto_k(logs[positive]),
        largest=1 / float(scaled.sum()),
        freedom=freedom,
        n=logs.size,
    )


def _strata(weights: Floats, proposals: NDArray[np.int64]) -> list[Floats]:
    """The weights by proposal, joined with those of the next proposal until there are ``STRATUM``."""
    found, open_ = list[Floats](), weights[:0]
    for proposal in np.unique(proposals):
        open_ = np.concatenate([open_, weights[proposals == proposal]])
        if open_.size >= STRATUM:
            found.append(open_)
            open_ = weights[:0]
    if not found:
        return [open_]
    return [*found[:-1], np.concatenate([found[-1], open_])]


def _error(strata: list[Floats]) -> tuple[float, float]:
    """Standard error of the overall mean, each stratum weighted by its size, and its degrees of freedom."""
    n = sum(stratum.size for stratum in strata)
    parts = [stratum.size * float(stratum.var(ddof=1)) for stratum in strata]
    spread = sum(part**2 / _freedom(own - own.mean()) for part, own in zip(parts, strata, strict=True))
    if spread == 0:
        return 0.0, n - 1.0
    return math.sqrt(sum(parts)) / n, max(1.0, sum(parts) ** 2 / spread)


def _freedom(centred: Floats) -> float:
    """``2 n / (kurtosis - 1)`` (Satterthwaite), between 1 and n - 1."""
    n, variance = centred.size, float((centred**2).mean())
    if variance == 0:
        return n - 1.0
    kurtosis = float(((centred**2 / variance) ** 2).mean())  # the square of a small variance is 0
    return n - 1.0 if kurtosis <= 1 else min(n - 1.0, max(1.0, 2 * n / (kurtosis - 1)))


def pareto_k(log_weights: Floats) -> float | None:
    """Pareto shape of the largest weights: the upper min(n/5, 3 sqrt(n)) of them, at least 5.

    None for fewer than 25 weights; -inf if the largest are all equal (no tail at all).
    """
    logs = np.sort(np.asarray(log_weights, dtype=np.float64))
    n = logs.size
    if n < 25:
        return None
    size = int(max(5, min(n / 5, 3 * math.sqrt(n))))
    tail = np.exp(logs[-size:] - logs[-1]) - math.exp(float(logs[-size - 1] - logs[-1]))
    if tail[-1] <= 0 or tail[-1] - tail[0] < 1e-12:
        return -math.inf
    return _fit_pareto(tail[tail > 0])


def _fit_pareto(excess: Floats) -> float:
    """Zhang and Stephens' estimate of k from sorted excesses, drawn towards 1/2 as if by ten more points."""
    n = excess.size
    grid = 30 + int(math.sqrt(n))
    quartile = excess[int(n / 4 + 0.5) - 1]
    theta = 1 / excess[-1] + (1 - np.sqrt(grid / (np.arange(1, grid + 1) - 0.5))) / (3 * quartile)
    shape = np.log1p(-theta[:, None] * excess).mean(axis=1)
    profile = n * (np.log(-theta / shape) - shape - 1)
    posterior = np.exp(profile - profile.max())
    best = float((theta * posterior).sum() / posterior.sum())
    k = float(np.log1p(-best * excess).mean())
    return (n * k + 10 * 0.5) / (n + 10)


@dataclass(frozen=True)
class Offered:
    """An estimate with its interval, all in [0, 1]."""

    rate: float
    low: float
    high: float


def offered(log_mean: float, error: float, freedom: float, level: float) -> Offered | str:
    """``exp(log_mean -+ t error)``, cut at 1: the interval of a mean with relative standard error ``error``.

    ``freedom`` are the degrees of freedom of the error itself: replicates - 1, or ``Weighted.freedom``. If
    the interval is not within (0, 1], or not a number, the end of "not reliable because ..." is returned
    instead.
    """
    half = float(cast(Any, stats).t.ppf((1 + level) / 2, max(freedom, 1.0))) * error
    if log_mean - half > 0:
        return (
            f"the interval lies above 1, from 10^{(log_mean - half) / math.log(10):.2g} on, where no "
            "probability does: the weights are not what they are taken for"
        )
    if log_mean < SMALLEST:
        return f"the estimate, 10^{log_mean / math.log(10):.0f}, is smaller than any number that can be held"
    rate, high = math.exp(min(log_mean, 0.0)), math.exp(min(log_mean + half, 0.0))
    return Offered(rate, min(rate, math.exp(log_mean - half)), high)
