"""The Gaussian: p_0 = N(m, C), p_t = N(alpha m, alpha^2 C + sigma^2 I), all of it in closed form.

    D(x, t) = m + alpha C (alpha^2 C + sigma^2 I)^-1 (x - alpha m)
    flow from t to s: x - alpha m is stretched along each eigenvector of C by the ratio of deviations

Source: the conditional mean of a joint Gaussian; the flow solves the ODE of paper Eq. 5 for this score.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from latentprint.schedule import Schedule


@dataclass(frozen=True, eq=False)
class Gaussian:
    """p_0 = N(mean, Q diag(std^2) Q'): mean (*shape), std () or (d,), Q = ``basis`` (d, d) or I.

    Raises:
        ValueError: std is not positive, or std or basis does not fit the d values of mean.
    """

    mean: Tensor
    std: Tensor
    schedule: Schedule
    basis: Tensor | None = None

    def __post_init__(self) -> None:
        d = self.mean.numel()
        if self.std.shape not in ((), (d,)) or not bool((self.std > 0).all()):
            raise ValueError(
                f"std must be positive, of shape () or ({d},), got shape {tuple(self.std.shape)}"
            )
        if self.basis is not None and self.basis.shape != (d, d):
            raise ValueError(f"basis must have shape ({d}, {d}), got {tuple(self.basis.shape)}")

    def __call__(self, x: Tensor, t: Tensor, /) -> Tensor:
        alpha, variance = self._moments(x, t)
        gain = alpha * self._std(x) ** 2 / variance
        return self._image(self._mean(x) + gain * (self._own(x) - alpha * self._mean(x)), x)

    def log_density(self, x: Tensor, t: Tensor) -> Tensor:
        """log p_t(x) in nats, (B,) float64; t = 0 is allowed."""
        alpha, variance = self._moments(x, t)
        square = (self._own(x) - alpha * self._mean(x)) ** 2 / variance
        return -0.5 * (square + (2 * math.pi * variance).log()).sum(dim=1)

    def flow(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """The point to which the probability-flow ODE carries x from t to s, in either direction: shape of
        x."""
        alpha_t, variance_t = self._moments(x, t)
        alpha_s, variance_s = self._moments(x, s)
        centred = self._own(x) - alpha_t * self._mean(x)
        return self._image(alpha_s * self._mean(x) + (variance_s / variance_t).sqrt() * centred, x)

    def _own(self, x: Tensor) -> Tensor:
        flat = x.flatten(1).to(torch.float64)
        return flat if self.basis is None else flat @ self.basis.to(flat)

    def _image(self, own: Tensor, x: Tensor) -> Tensor:
        flat = own if self.basis is None else own @ self.basis.to(own).T
        return flat.reshape(x.shape).to(x.dtype)

    def _mean(self, x: Tensor) -> Tensor:
        return self._own(self.mean[None].to(x.device))

    def _std(self, x: Tensor) -> Tensor:
        return self.std.to(x.device, torch.float64).expand(self.mean.numel())

    def _moments(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha (B or 1, 1) and the variances of x_t along the basis, (B or 1, d)."""
        alpha, sigma = _column(self.schedule.alpha(t), x), _column(self.schedule.sigma(t), x)
        return alpha, alpha**2 * self._std(x) ** 2 + sigma**2


def _column(value: Tensor, x: Tensor) -> Tensor:
    return value.to(x.device).reshape(-1, 1)
