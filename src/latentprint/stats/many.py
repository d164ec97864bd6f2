"""Many rates or many p-values at once, and a value compared with a sample of the null.

Sources: Y. Benjamini, Y. Hochberg, JRSS B 57 (1995); B. Phipson, G. K. Smyth, SAGMB 9 (2010).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from latentprint.stats.counts import Trials, check_level


def simultaneous_band(trials: Sequence[Trials], level: float = 0.95) -> list[tuple[float, float]]:
    """Intervals that hold **all** the rates at once with probability >= level.

    Each is a Clopper-Pearson interval at ``1 - (1 - level) / m``. Bonferroni, because the noise levels of a
    search may share their noise ids: the band then holds under any dependence between the counts. Sidak's
    correction would not, and at m = 100 the band is less than 0.2 % wider than Sidak's.
    """
    check_level(level)
    each = 1 - (1 - level) / max(len(trials), 1)
    return [one.interval(each) for one in trials]


def false_coverage(chosen: Sequence[Trials], of: int, level: float = 0.95) -> list[tuple[float, float]]:
    """Intervals of rates that were selected by their data: on average at most ``1 - level`` of them miss.

    Of ``of`` rates R were chosen (those that are not 0, or the largest); each gets its Clopper-Pearson
    interval at ``1 - R (1 - level) / of``.

    Source: Y. Benjamini, D. Yekutieli, JASA 100 (2005), the false coverage-statement rate.

    Raises:
        ValueError: more were chosen than there are.
    """
    check_level(level)
    if len(chosen) > of:
        raise ValueError(f"{len(chosen)} rates cannot be chosen of {of}")
    each = 1 - len(chosen) * (1 - level) / max(of, 1)
    return [one.interval(each) for one in chosen]


def false_discovery(p_values: ArrayLike, level: float = 0.95) -> NDArray[np.bool_]:
    """Benjamini-Hochberg: which hypotheses to reject, on average at most ``1 - level`` of them falsely.

    Rejects the i smallest, i the largest rank with ``p_(i) <= i (1 - level) / m``. Valid for independent or
    positively dependent p-values (Benjamini and Yekutieli 2001). Shape (m,) in, (m,) out.

    Raises:
        ValueError: not one-dimensional, or a value outside [0, 1].
    """
    check_level(level)
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

    Exact if value and null are exchangeable under H0. It is never 0: n null values cannot give less than 1/(n
    + 1) (Phipson and Smyth 2010).

    Raises:
        ValueError: the null sample is empty, or something is not a number.
    """
    sample = np.asarray(null, dtype=np.float64).ravel()
    if sample.size == 0 or math.isnan(value) or bool(np.isnan(sample).any()):
        raise ValueError(f"a null sample of at least one number is needed, got {sample.size}, value {value}")
    return (1 + int(np.count_nonzero(sample >= value))) / (sample.size + 1)
