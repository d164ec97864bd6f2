"""Guides: what replaces the denoiser in the mean of a step, to bring a path to x_p.

The law of a reverse process that ends at x_p is the noising of x_p, whatever the model. Replacing D by x_p is
therefore exact for an exact denoiser. A network is not exact: where its error pulls elsewhere, the two laws
part. The second guide therefore keeps D, and adds only what conditioning adds to the ideal denoiser of the
known images (Doob's h-transform, h_t(x) = w_p(x, t), the probability that x came from x_p's kernel):

    toward        k x + (1 - k alpha) x_p                        k = alpha s^2 / V,  V = alpha^2 s^2 + sigma^2
    conditioned   D + (sigma^2 / V) (x_p - sum_i w_i(x, t) x_i)

with kernels of width s on the images (``known.Mixture``). Far above the noise level where the path settles on
x_p both guides pull alike; below it the second leaves the path to the network.

Sources: J. Doob 1957 (h-transform); B. Anderson 1982 (reverse process).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor


class Guide(Protocol):
    """(x (n, *shape), D(x, t), alpha, sigma) -> what replaces D, like x; without a network evaluation."""

    @property
    def name(self) -> str: ...

    def __call__(self, x: Tensor, denoised: Tensor, alpha: float, sigma: float, /) -> Tensor: ...


@dataclass(frozen=True)
class Toward:
    """x_p with a kernel of standard deviation ``width`` around it; 0 is x_p itself."""

    target: Tensor
    width: float = 0.0

    @property
    def name(self) -> str:
        return f"toward {self.width:.3g}"

    def __call__(self, x: Tensor, denoised: Tensor, alpha: float, sigma: float, /) -> Tensor:
        k = alpha * self.width**2 / ((alpha * self.width) ** 2 + sigma**2)
        return k * x + (1 - k * alpha) * self.target


@dataclass(frozen=True, eq=False)
class Conditioned:
    """The network's own D, plus the pull of x coming from x_p and no other of ``images``, (N, *shape).

    ``width`` is that of the kernels, ``index`` the place of x_p among the images.
    """

    images: Tensor
    index: int
    width: float = 0.0

    @property
    def name(self) -> str:
        return f"conditioned {self.width:.3g}"

    @cached_property
    def _flat(self) -> Tensor:
        return self.images.flatten(1)

    @cached_property
    def _half_squares(self) -> Tensor:
        return self._flat.double().square().sum(1).to(self._flat) / 2

    def __call__(self, x: Tensor, denoised: Tensor, alpha: float, sigma: float, /) -> Tensor:
        variance = (alpha * self.width) ** 2 + sigma**2
        near = (alpha * (x.flatten(1) @ self._flat.T) - alpha**2 * self._half_squares) / variance
        mean = torch.softmax(near, 1) @ self._flat
        pull = (self._flat[self.index] - mean).reshape(x.shape)
        return denoised + sigma**2 / variance * pull


@dataclass(frozen=True)
class Near:
    """D, or the point nearest to it in the ball of ``radius`` (Euclidean) around x_p."""

    target: Tensor
    radius: float

    @property
    def name(self) -> str:
        return f"near {self.radius:.3g}"

    def __call__(self, x: Tensor, denoised: Tensor, alpha: float, sigma: float, /) -> Tensor:
        away = self.target - denoised
        far = away.flatten(1).norm(dim=1).clamp(min=self.radius)
        return denoised + away * (1 - self.radius / far).reshape(-1, *(1,) * (x.ndim - 1))
