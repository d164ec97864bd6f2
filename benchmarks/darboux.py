"""The paper's sums over t <= t': Riemann (Eq. 8) and upper Darboux (Eq. 9), in log space.

    E_t = E[p(x'_t)],    x_t ~ N(alpha_t x_p, sigma_t^2 I),  x'_t the image that x_t comes back to
    integral of E_t d sigma  ~  sum_i (sigma_i - sigma_(i-1)) E_i                  Riemann (Eq. 7, 8)
                             <= sum_i (sigma_(i+1) - sigma_i) sup of E_t in [t_i, t_(i+1)]    Darboux (Eq. 9)

The paper calls the values computationally infeasible: densities of images leave float range. Their
logarithms do not: each expectation is a log-mean-exp over trajectories, each sum a log-sum-exp.

What the sums are, plainly. They integrate a **density value** over a **noise level**. A density has the
unit 1/x^d and sigma the unit x, so the sums have the unit x^(1-d): their logarithm moves by (1 - d) log c
when pixels are rescaled by c, and q(p) does not. The Darboux sum bounds the integral of Eq. 7 from above;
neither bounds the probability q(p) of Eq. 6, except by accident of units. They are here to reproduce the
paper's quantity and to compare models on one data set in one scaling; for q(p) itself use the estimators
beside this module.

On a grid, the supremum over an interval is taken over the grid's points in it. That is the supremum where
E_t is monotone between neighbours; elsewhere take a finer grid and let ``every`` join its intervals. A
maximum of noisy estimates is biased upwards, by about their standard error.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class LogSum:
    """The logarithm of a sum, with its Monte Carlo error.

    Attributes:
        log: natural logarithm of the sum; minus infinity where every density was zero.
        standard_error: of ``log``, to first order (the relative standard error of the sum); infinite where
            a point that counts has a single trajectory. Above some 0.5 the first order no longer holds.
        effective: how many equally weighted trajectories would be as noisy: 1 / sum of squared shares.
            A few of them means that the sum is the density of a few lucky images.
    """

    log: float
    standard_error: float
    effective: float


def riemann_sum(t: ArrayLike, sigma: ArrayLike, log_p: Sequence[ArrayLike], t_prime: float) -> LogSum:
    """Eq. 8: each interval's width in sigma times E_t at its upper end.

    Args:
        t: (n,) rising times; the integral begins at the first and ends at t_prime.
        sigma: (n,) noise levels at t, rising.
        log_p: n arrays, the log densities in nats of the images that the trajectories from t came back to.
        t_prime: t', one of t (Alg. 1).

    Raises:
        ValueError: arrays that do not fit each other, do not rise, hold NaN or plus infinity, or are empty;
            t_prime that is not a point of the grid, or is its first.
    """
    widths, logs = _checked(t, sigma, log_p, t_prime)
    return _weighted(np.concatenate([[0.0], widths]), logs)


def upper_darboux_sum(
    t: ArrayLike, sigma: ArrayLike, log_p: Sequence[ArrayLike], t_prime: float, *, every: int = 1
) -> LogSum:
    """Eq. 9: each interval's width in sigma times the largest E_t in it.

    Args:
        t: as for `riemann_sum`, and so are the next three.
        sigma: (n,) noise levels at t.
        log_p: n arrays of log densities in nats.
        t_prime: one of t.
        every: how many intervals of the grid make one interval of the sum (the last one may have fewer).

    Raises:
        ValueError: as for `riemann_sum`; ``every`` below 1.
    """
    if every < 1:
        raise ValueError(f"every must be 1 or more, got {every}")
    widths, logs = _checked(t, sigma, log_p, t_prime)
    expectations = np.array([_log_mean(values) for values in logs])
    weights = np.zeros(len(logs))
    for first in range(0, len(widths), every):
        last = min(first + every, len(widths))
        highest = first + int(np.argmax(expectations[first : last + 1]))
        weights[highest] += widths[first:last].sum()
    return _weighted(weights, logs)


def _weighted(weights: Floats, logs: list[Floats]) -> LogSum:
    """log of the sum over points j of weights[j] times the mean of exp(logs[j])."""
    terms = [math.log(w) + v - math.log(len(v)) for w, v in zip(weights, logs, strict=True) if w > 0]
    total = _log_sum(np.concatenate(terms))
    if total == -math.inf:
        return LogSum(total, math.inf, 0.0)
    shares = [np.exp(term - total) for term in terms]
    variance = sum(len(s) * float(s.var(ddof=1)) if len(s) > 1 else math.inf for s in shares if s.any())
    return LogSum(total, math.sqrt(variance), 1 / float(sum(np.sum(s**2) for s in shares)))


def _log_mean(values: Floats) -> float:
    return _log_sum(values) - math.log(len(values))


def _log_sum(values: Floats) -> float:
    return float(np.logaddexp.reduce(values))


def _checked(
    t: ArrayLike, sigma: ArrayLike, log_p: Sequence[ArrayLike], t_prime: float
) -> tuple[Floats, list[Floats]]:
    """(widths in sigma (k,), log densities at k + 1 points) of the grid up to t_prime."""
    times, noise = np.asarray(t, dtype=np.float64), np.asarray(sigma, dtype=np.float64)
    if times.ndim != 1 or noise.shape != times.shape or len(log_p) != len(times):
        raise ValueError(
            f"t, sigma, log_p need one entry per grid point, got {times.shape}, {noise.shape}, {len(log_p)}"
        )
    for name, values in (("t", times), ("sigma", noise)):
        if not np.isfinite(values).all() or not (np.diff(values) > 0).all():
            raise ValueError(f"{name} must be finite and rise strictly along the grid")
    at = np.flatnonzero(times == t_prime)
    if len(at) == 0 or at[0] == 0:
        raise ValueError(f"t' must be a point of the grid above its first, {times[:1]}; got {t_prime}")
    points = int(at[0]) + 1
    logs = [np.asarray(values, dtype=np.float64).ravel() for values in log_p[:points]]
    for time, values in zip(times, logs, strict=False):
        if len(values) == 0 or np.isnan(values).any() or (values == np.inf).any():
            raise ValueError(
                f"log densities at t = {time:g} must be at least one, below infinity and not NaN"
            )
    return np.diff(noise[:points]), logs
