"""Finite sets of images, as points (Memorised) or under Gaussian kernels (Mixture).

With x_t = alpha x_0 + sigma e it is p_t = sum_i w_i N(alpha x_i, V I), V = alpha^2 h^2 + sigma^2, and

    w_i(x, t) ~ w_i exp(-|x - alpha x_i|^2 / 2V)              the probability that x came from image i
    D(x, t)   = k x + (1 - k alpha) sum_i w_i(x, t) x_i,      k = alpha h^2 / V

The exponents are formed in float64 whatever the type of x, and rows are taken in chunks, so that memory grows
with the set and not with its product with the batch.

Source: Tweedie's formula for a Gaussian mixture.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from latentprint.contracts import Ids
from latentprint.known.ball import log_ball
from latentprint.schedule import Schedule, expand
from latentprint.streams import Streams

_ENTRIES = 2**22  # of the (rows, images) table held at once: 32 MiB in float64


@dataclass(frozen=True)
class Estimate:
    """A Monte Carlo mean of exact values, its standard error and the number of draws behind it."""

    value: float
    standard_error: float
    samples: int


def _column(value: Tensor, x: Tensor) -> Tensor:
    return value.to(x.device).reshape(-1, 1)


class _Kernels(ABC):
    """Kernels of one width on the images of a finite set; final in Mixture and Memorised."""

    images: Tensor
    schedule: Schedule
    copies: Tensor | Sequence[float] | None

    @property
    @abstractmethod
    def h(self) -> float:
        """Standard deviation of a kernel."""

    def _check(self) -> None:
        n = len(self.images)
        if self.images.ndim < 2 or n == 0 or not bool(self.images.isfinite().all()):
            raise ValueError(f"images must be finite, shape (n, ...), n > 0; got {tuple(self.images.shape)}")
        if self._shares.shape != (n,) or not bool((self._shares > 0).all()):
            raise ValueError(f"{n} images need {n} positive copies, got {self.copies}")

    @cached_property
    def _shares(self) -> Tensor:
        """w_i, (n,) float64, summing to 1."""
        copies = torch.ones(len(self.images)) if self.copies is None else torch.as_tensor(self.copies)
        copies = copies.to(self.images.device, torch.float64)
        return copies / copies.sum()

    @cached_property
    def _flat(self) -> Tensor:
        return self.images.flatten(1).to(torch.float64)

    @cached_property
    def _half_squares(self) -> Tensor:
        return self._flat.square().sum(dim=1) / 2

    def _variance(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        variance = (alpha * self.h) ** 2 + sigma**2
        if not bool((variance > 0).all()):
            raise ValueError("a set of points has no density at t = 0: t must lie above 0")
        return variance

    def _moments(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and V, (len(x), 1) float64 on x's device."""
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        variance = self._variance(alpha, sigma)
        return _column(alpha, x).expand(len(x), 1), _column(variance, x).expand(len(x), 1)

    def _exponents(self, flat: Tensor, alpha: Tensor, variance: Tensor) -> Tensor:
        """log w_i - |x - alpha x_i|^2 / 2V, (b, n) float64."""
        half = flat.square().sum(dim=1, keepdim=True) / 2
        distance = half - alpha * (flat @ self._flat.T) + alpha**2 * self._half_squares
        return self._shares.log() - distance / variance

    def _by_rows(self, function: Callable[[Tensor, Tensor, Tensor], Tensor], x: Tensor, t: Tensor) -> Tensor:
        """function(flat x, alpha, V) over chunks of rows, joined."""
        flat, (alpha, variance) = x.flatten(1).to(torch.float64), self._moments(x, t)
        rows = max(1, _ENTRIES // len(self.images))
        parts = [
            function(flat[i : i + rows], alpha[i : i + rows], variance[i : i + rows])
            for i in range(0, len(x), rows)
        ]
        return torch.cat(parts) if parts else flat.new_zeros((0, 1))

    def weights(self, x: Tensor, t: Tensor) -> Tensor:
        """w_i(x, t), the probability that x_t = x came from image i: (B, n) float64, rows summing to 1."""
        return self._by_rows(lambda f, a, v: self._exponents(f, a, v).softmax(dim=1), x, t)

    def log_density(self, x: Tensor, t: Tensor) -> Tensor:
        """log p_t(x) in nats, (B,) float64."""
        d = self._flat.shape[1]

        def part(flat: Tensor, alpha: Tensor, variance: Tensor) -> Tensor:
            constant = d / 2 * (2 * math.pi * variance).log()
            return self._exponents(flat, alpha, variance).logsumexp(dim=1) - constant[:, 0]

        return self._by_rows(part, x, t).flatten()

    def denoise(self, x: Tensor, t: Tensor) -> Tensor:
        """E[x_0 | x_t = x], shape and type of x."""

        def part(flat: Tensor, alpha: Tensor, variance: Tensor) -> Tensor:
            gain = alpha * self.h**2 / variance
            mean = self._exponents(flat, alpha, variance).softmax(dim=1) @ self._flat
            return gain * flat + (1 - gain * alpha) * mean

        return self._by_rows(part, x, t).reshape(x.shape).to(x.dtype)

    def draw(self, streams: Streams, purpose: str, ids: Ids | Tensor, t: float) -> Tensor:
        """Exact draws of x_t, (len(ids), *shape), of the images' type and device."""
        edges = self._shares.cumsum(dim=0)
        u = streams.uniform(purpose, ids, 0, (), device=self.images.device, dtype=torch.float64)
        chosen = torch.searchsorted(edges, u).clamp(max=len(edges) - 1)
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        spread = ((alpha * self.h) ** 2 + sigma**2).sqrt()
        return self._noised(self.images[chosen], alpha, spread, streams, purpose, ids)

    def _from(self, image: Tensor, t: float, streams: Streams, purpose: str, ids: Tensor) -> Tensor:
        """Draws of r_t = N(alpha image, sigma^2 I), where Alg. 1 starts."""
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        whole = image.expand(len(ids), *image.shape)
        return self._noised(whole, alpha, sigma, streams, purpose, ids)

    def _noised(
        self, x: Tensor, alpha: Tensor, spread: Tensor, streams: Streams, purpose: str, ids: Ids | Tensor
    ) -> Tensor:
        shape = tuple(x.shape[1:])
        noise = streams.noise(purpose, ids, 0, shape, device=x.device, dtype=x.dtype, draw=1)
        return expand(alpha, x) * x + expand(spread, x) * noise


def _mean_over(
    function: Callable[[Tensor], Tensor], samples: int, device: torch.device, chunk: int = 4096
) -> Estimate:
    """Mean of function(ids) -> (n,) over ids 0 .. samples - 1."""
    if samples < 2:
        raise ValueError(f"a standard error needs at least 2 samples, got {samples}")
    ids = torch.arange(samples, device=device)
    values = torch.cat([function(ids[i : i + chunk]) for i in range(0, samples, chunk)])
    return Estimate(float(values.mean()), float(values.std() / math.sqrt(samples)), samples)


@dataclass(frozen=True, eq=False)
class Memorised(_Kernels):
    """The exact denoiser of a finite set: images (n, *shape), each counted ``copies`` times.

    Raises:
        ValueError: no images, NaN, or copies that are not positive numbers, one per image.
    """

    images: Tensor
    schedule: Schedule
    copies: Tensor | Sequence[float] | None = None

    def __post_init__(self) -> None:
        self._check()

    @property
    def h(self) -> float:
        return 0.0

    def __call__(self, x: Tensor, t: Tensor, /) -> Tensor:
        return self.denoise(x, t)

    def same(self, index: int) -> Tensor:
        """Which images equal image ``index`` in every pixel, (n,) bool."""
        return (self._flat == self._flat[index]).all(dim=1)

    def q(self, index: int) -> float:
        """The probability that sampling from the prior returns image ``index``: its copies / all copies."""
        return float(self._shares[self.same(index)].sum())

    def return_probability(self, index: int, t: float, streams: Streams, samples: int = 4096) -> Estimate:
        """P(return | t) = E[w_p(x_t)] for x_t ~ N(alpha x_p, sigma^2 I): Monte Carlo over exact weights.

        It holds for the reverse SDE. The probability-flow ODE from the same x_t is a deterministic map, and
        its probability differs.
        """
        mask = self.same(index).to(torch.float64)

        def weight(ids: Tensor) -> Tensor:
            x = self._from(self.images[index], t, streams, f"known.return.{index}.{t!r}", ids)
            return self.weights(x, torch.tensor(t, dtype=torch.float64)) @ mask

        return _mean_over(weight, samples, self.images.device)


@dataclass(frozen=True, eq=False)
class Mixture(_Kernels):
    """Gaussian kernels of standard deviation ``width`` on images (n, *shape), weighted by ``copies``.

    Raises:
        ValueError: as ``Memorised``, or width is not positive.
    """

    images: Tensor
    width: float
    schedule: Schedule
    copies: Tensor | Sequence[float] | None = None

    def __post_init__(self) -> None:
        self._check()
        if not (math.isfinite(self.width) and self.width > 0):
            raise ValueError(f"width must be a positive number, got {self.width}")

    @property
    def h(self) -> float:
        return self.width

    def __call__(self, x: Tensor, t: Tensor, /) -> Tensor:
        return self.denoise(x, t)

    def log_q(self, centre: Tensor, radius: float) -> float:
        """log of the probability that x_0 lies within ``radius`` (Euclidean) of ``centre`` (*shape): exact.

        sum_i w_i P(chi2'_d(|x_i - centre|^2 / h^2) <= radius^2 / h^2), with d the number of pixels. The
        farther an image, the smaller its term, so the sum stops when the rest cannot matter in float64.
        """
        squares = (self._flat - centre.flatten().to(self._flat)).square().sum(dim=1)
        order = torch.argsort(squares)
        distances = (squares[order] / self.width**2).cpu().numpy()
        shares = self._shares[order].cpu().numpy()
        left = np.cumsum(shares[::-1])[::-1]
        total, d = -math.inf, self._flat.shape[1]
        for distance, share, rest in zip(distances, shares, left, strict=True):
            term = log_ball(d, float(distance), (radius / self.width) ** 2)
            if term + math.log(rest) < total - 40:
                break
            total = float(np.logaddexp(total, term + math.log(share)))
        return total

    def q(self, centre: Tensor, radius: float) -> float:
        """exp(log_q); 0.0 below float64's range."""
        return math.exp(self.log_q(centre, radius))

    def hit_probability(self, x: Tensor, t: float, centre: Tensor, radius: float) -> Tensor:
        """h_t(x), the probability that the reverse SDE from x at t ends in the ball: (B,) float64, exact.

        x_0 given x_t = x is a mixture too: weights w_i(x, t), means k x + (1 - k alpha) x_i, variance
        h^2 sigma^2 / V. Terms of weight below 1e-18 are left out.
        """
        when = torch.tensor(t, dtype=torch.float64)
        weights = self.weights(x, when)
        alpha, sigma = self.schedule.alpha(when), self.schedule.sigma(when)
        variance = self._variance(alpha, sigma)
        gain, narrow = float(alpha * self.width**2 / variance), float(self.width**2 * sigma**2 / variance)
        flat = x.flatten(1).to(torch.float64)
        rows, images = (weights > 1e-18).nonzero(as_tuple=True)
        offset = (
            gain * flat[rows] + (1 - gain * float(alpha)) * self._flat[images] - centre.flatten().to(flat)
        )
        away = (offset.square().sum(dim=1) / narrow).cpu().numpy()
        inside = stats.ncx2.cdf(radius**2 / narrow, flat.shape[1], away)
        mass = weights[rows, images] * torch.as_tensor(inside).to(flat)
        return flat.new_zeros(len(x)).index_add(0, rows, mass)

    def return_probability(
        self, centre: Tensor, radius: float, t: float, streams: Streams, samples: int = 4096
    ) -> Estimate:
        """P(return | t): the mean of ``hit_probability`` over N(alpha centre, sigma^2 I), by Monte Carlo."""

        def hit(ids: Tensor) -> Tensor:
            x = self._from(centre.to(self.images), t, streams, f"known.return.{t!r}", ids)
            return self.hit_probability(x, t, centre, radius)

        return _mean_over(hit, samples, self.images.device, chunk=256)
