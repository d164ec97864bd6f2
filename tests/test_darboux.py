"""Held to a Gaussian model, where E_t, its integral over sigma and q(p) are known.

x_0 ~ N(0, s^2 I); the probability-flow ODE takes x_t back to x' = k x_t, k = s / sqrt(alpha^2 s^2 +
sigma^2), so from x_t ~ N(alpha x_p, sigma^2 I) comes x' ~ N(k alpha x_p, k^2 sigma^2 I), and E_t is the
density of N(0, (s^2 + k^2 sigma^2) I) at k alpha x_p.
"""

from __future__ import annotations

import math
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from scipy import integrate, stats

from latentprint.keys import generator

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from darboux import LogSum, riemann_sum, upper_darboux_sum


class Model:
    """VP with alpha^2 = 1 - sigma^2; the grid's times are named by their sigma."""

    def __init__(self, dims: int, s: float, x_p: float) -> None:
        self.dims, self.s, self.x_p = dims, s, np.full(dims, x_p)

    def back(self, sigma: float) -> tuple[float, float]:
        """(mean factor, standard deviation) of x' given x_p."""
        alpha = math.sqrt(1 - sigma**2)
        k = self.s / math.sqrt(alpha**2 * self.s**2 + sigma**2)
        return k * alpha, k * sigma

    def log_expectation(self, sigma: float) -> float:
        factor, sd = self.back(sigma)
        return float(stats.norm.logpdf(factor * self.x_p, 0, math.hypot(self.s, sd)).sum())

    def log_integral(self, low: float, high: float) -> float:
        peak = max(self.log_expectation(v) for v in np.linspace(low, high, 400))
        value, _ = integrate.quad(lambda v: math.exp(self.log_expectation(v) - peak), low, high, epsrel=1e-11)
        return math.log(value) + peak

    def log_p(self, sigma: float, n: int, scale: float = 1.0) -> np.ndarray:
        """Log densities of n reverse images, with pixels in units of 1 / scale."""
        factor, sd = self.back(sigma)
        z = generator(0, "darboux", round(sigma * 1e9)).normal(size=(n, self.dims))
        x = factor * self.x_p + sd * z
        return stats.norm.logpdf(scale * x, 0, scale * self.s).sum(1)


def exact(model: Model, sigma: np.ndarray) -> list[np.ndarray]:
    return [np.array([model.log_expectation(v)]) for v in sigma]


def test_both_sums_close_in_on_the_integral_and_the_upper_one_from_above():
    model = Model(64, 0.5, 0.3)
    truth = model.log_integral(0.01, 0.8)
    gaps = []
    for n in (20, 40, 80, 160):
        sigma = np.linspace(0.01, 0.8, n + 1)
        upper = upper_darboux_sum(sigma, sigma, exact(model, sigma), sigma[-1]).log
        riemann = riemann_sum(sigma, sigma, exact(model, sigma), sigma[-1]).log
        assert upper > truth
        assert upper >= riemann
        gaps.append((upper - truth, abs(riemann - truth)))
    for coarse, fine in pairwise(gaps):  # both are of first order in the mesh
        assert coarse[0] / fine[0] == pytest.approx(2, abs=0.2)
        assert coarse[1] / fine[1] == pytest.approx(2, abs=0.2)


def test_the_sums_are_what_they_are_on_paper():
    # E = 2, 5, 3 at sigma = 1, 2, 4: Riemann 1*5 + 2*3 = 11; Darboux 1*5 + 2*5 = 15; one interval of 3: 15.
    t, sigma = [0.1, 0.2, 0.3, 0.4], [1.0, 2.0, 4.0, 9.0]
    log_p = [np.log([2.0, 2.0]), np.log([4.0, 6.0]), np.log([3.0]), np.log([100.0])]
    assert riemann_sum(t, sigma, log_p, 0.3).log == pytest.approx(math.log(11))
    assert upper_darboux_sum(t, sigma, log_p, 0.3).log == pytest.approx(math.log(15))
    assert upper_darboux_sum(t, sigma, log_p, 0.3, every=2).log == pytest.approx(math.log(15))
    assert riemann_sum(t, sigma, log_p, 0.4).log == pytest.approx(math.log(511))
    assert upper_darboux_sum(t, sigma, log_p, 0.4, every=2).log == pytest.approx(math.log(515))
    assert upper_darboux_sum(t, sigma, log_p, 0.4, every=7).log == pytest.approx(math.log(800))
    # Darboux to t' = 0.3 puts all weight, 3, on the values 4 and 6: relative error 1 / 5, shares 0.4 and 0.6.
    got = upper_darboux_sum(t, sigma, log_p, 0.3)
    assert got.standard_error == pytest.approx(0.2)
    assert got.effective == pytest.approx(1 / (0.4**2 + 0.6**2))
    assert math.isinf(riemann_sum(t, sigma, log_p, 0.3).standard_error)


def test_logarithms_that_no_float_can_hold_are_summed():
    t, sigma = [0.0, 0.5, 1.0], [0.0, 1.0, 2.0]
    for offset in (-1e5, 1e5):
        log_p = [np.array([offset]), np.array([offset, offset + 1]), np.array([offset - 1, offset])]
        want = offset + math.log((1 + math.e) / 2 + (1 + math.exp(-1)) / 2)
        assert riemann_sum(t, sigma, log_p, 1.0).log == pytest.approx(want, abs=1e-9)
    nothing = [np.array([-np.inf])] * 3
    assert riemann_sum(t, sigma, nothing, 1.0) == LogSum(-math.inf, math.inf, 0.0)


def test_the_monte_carlo_error_is_the_spread_of_repetitions():
    model, sigma = Model(8, 0.5, 0.2), np.linspace(0.05, 0.8, 9)
    m, repeats = 60, 300
    pool = [model.log_p(v, m * repeats).reshape(repeats, m) for v in sigma]
    truth = riemann_sum(sigma, sigma, exact(model, sigma), sigma[-1]).log
    sums = [riemann_sum(sigma, sigma, [p[i] for p in pool], sigma[-1]) for i in range(repeats)]
    z = np.array([(s.log - truth) / s.standard_error for s in sums])
    assert z.std() == pytest.approx(1, abs=0.16)  # 300 repetitions fix a standard deviation to 4 %
    assert abs(z.mean()) < 0.3
    uppers = [upper_darboux_sum(sigma, sigma, [p[i] for p in pool], sigma[-1]) for i in range(repeats)]
    assert np.std([u.log for u in uppers]) == pytest.approx(
        np.mean([u.standard_error for u in uppers]), rel=0.35
    )


def test_how_far_the_upper_sum_lies_from_q_is_decided_by_the_units_of_pixels():
    """64 pixels, q = 3e-6: the sum is e^39 q in [0, 1], e^-4 q in [-1, 1] and e^-310 q in grey levels."""
    model, sigma = Model(64, 0.5, 0.0), np.linspace(0.01, 0.8, 80)
    # Omega: a ball of radius 2.5 around x_p = 0, where |x|^2 / s^2 is chi-square with 64 degrees.
    log_q = float(stats.chi2.logcdf(2.5**2 / 0.5**2, 64))
    sums = {}
    for scale in (0.5, 1.0, 127.5):
        log_p = [model.log_p(v, 1000, scale) for v in sigma]
        sums[scale] = upper_darboux_sum(sigma, sigma * scale, log_p, sigma[-1])
    assert sums[0.5].log - log_q == pytest.approx(39.4, abs=0.5)
    assert sums[1.0].log - log_q == pytest.approx(-4.3, abs=0.5)
    assert sums[127.5].log - log_q == pytest.approx(-310, abs=1)
    # Yet it is the integral of Eq. 7, from above, as it claims to be.
    assert 0 < sums[1.0].log - model.log_integral(0.01, 0.8) < 0.3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"t": [0.1, 0.1, 0.3]}, "t must be finite and rise"),
        ({"sigma": [1.0, 3.0, 2.0]}, "sigma must be finite and rise"),
        ({"sigma": [1.0, 2.0]}, "one entry per grid point"),
        ({"log_p": [[0.0], [0.0]]}, "one entry per grid point"),
        ({"log_p": [[0.0], [float("nan")], [0.0]]}, "t = 0.2 must be"),
        ({"log_p": [[0.0], [float("inf")], [0.0]]}, "t = 0.2 must be"),
        ({"log_p": [[0.0], [], [0.0]]}, "t = 0.2 must be"),
        ({"t_prime": 0.25}, "a point of the grid"),
        ({"t_prime": 0.1}, "above its first"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    case = {
        "t": [0.1, 0.2, 0.3],
        "sigma": [1.0, 2.0, 3.0],
        "log_p": [[0.0], [0.0], [0.0]],
        "t_prime": 0.3,
    } | change
    for function in (riemann_sum, upper_darboux_sum):
        with pytest.raises(ValueError, match=message):
            function(case["t"], case["sigma"], case["log_p"], case["t_prime"])
    with pytest.raises(ValueError, match="every"):
        upper_darboux_sum([0.1, 0.2], [1.0, 2.0], [[0.0], [0.0]], 0.2, every=0)
