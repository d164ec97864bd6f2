"""The Gaussian mass of a ball, in logarithms: the noncentral chi-square far below float64's range.

For x ~ N(m, h^2 I) in d dimensions |x - c|^2 / h^2 is noncentral chi-square with d degrees of freedom and
noncentrality |m - c|^2 / h^2 (Johnson, Kotz, Balakrishnan 1995, chapter 29).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import special


def log_ball(dims: int, noncentrality: float, x: float) -> float:
    """log P(chi2'_dims(noncentrality) <= x), to about 1e-10, even if the probability is below float64's
    range.

    sum_j Poisson(j; noncentrality / 2) P(dims / 2 + j, x / 2), with P the regularised incomplete gamma
    function. The logarithm of a term is concave in j, so the sum is taken around its largest term.

    Raises:
        ValueError: dims < 1, or a negative or non-finite noncentrality or x.
    """
    if dims < 1 or not (0 <= noncentrality < math.inf and 0 <= x < math.inf):
        raise ValueError(f"needs dims >= 1 and finite values >= 0, got {dims}, {noncentrality} and {x}")
    if x == 0:
        return -math.inf
    mean = noncentrality / 2
    if mean == 0:
        return float(_log_gamma_p(np.array([dims / 2]), x / 2)[0])

    def log_term(j: NDArray[np.float64]) -> NDArray[np.float64]:
        poisson = j * math.log(mean) - special.gammaln(j + 1) - mean
        return poisson + _log_gamma_p(dims / 2 + j, x / 2)

    low, high = 0, math.ceil(mean)  # the second factor falls in j: the largest term is at or below the mean
    while low < high:
        middle = (low + high) // 2
        now, after = log_term(np.array([middle, middle + 1.0]))
        low, high = (middle + 1, high) if after > now else (low, middle)
    reach = 12 * math.sqrt(low + 1) + 60
    j = np.arange(max(0, math.floor(low - reach)), math.ceil(low + reach) + 1, dtype=np.float64)
    return float(special.logsumexp(log_term(j)))


def _log_gamma_p(a: NDArray[np.float64], z: float) -> NDArray[np.float64]:
    """log of the regularised lower incomplete gamma function, by its power series below float64's range."""
    plain = special.gammainc(a, z)
    tiny = plain < 1e-280
    with np.errstate(divide="ignore"):
        out = np.log(plain)
    if tiny.any():
        b = a[tiny]
        term, total, k = np.ones_like(b), np.ones_like(b), 1
        while (term > 1e-17 * total).any():  # z / (a + k) < 1: P is tiny only for a far above z
            term = term * z / (b + k)
            total, k = total + term, k + 1
        out[tiny] = b * math.log(z) - z - special.gammaln(b + 1) + np.log(total)
    return out
