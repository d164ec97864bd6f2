"""Noise schedules: how much of the image and how much noise there is at time t.

    dx = f(t) x dt + g(t) dw        (paper Eq. 2)
    x_t = alpha(t) x_0 + sigma(t) e,    e ~ N(0, I)

with alpha' = f alpha and, for every schedule, the one identity  g^2 = (sigma^2)' - 2 f sigma^2.

    schedule   alpha        sigma                      source
    VP         exp(-B/2)    sqrt(1 - exp(-B))          Song et al. 2021, Eq. 11 and 29
    SubVP      exp(-B/2)    1 - exp(-B)                Song et al. 2021, Eq. 12 and 29 (a deviation)
    VE         1            sigma_min (sigma_max/sigma_min)^t    Song et al. 2021, Eq. 9 and appendix C
    EDM        1            t                          Karras et al. 2022, table 1
    Flow       1 - t        t                          Lipman et al. 2023; Liu et al. 2023 (rectified flow)

where B(t) = beta_min t + (beta_max - beta_min) t^2 / 2 is the integral of beta. Everything is evaluated in
float64 with expm1, log1p and asinh, so that nothing is lost by cancellation near t = 0 or near t = T.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Protocol, cast

import torch
from torch import Tensor

_ROUNDING = 1e-9  # how far rounding may carry the inverse of the ratio beyond the schedule, relative to T


class Schedule(Protocol):
    """What samplers, denoisers and likelihoods need to know about the noise.

    Every method takes times of shape () or (B,) and answers in float64 with the same shape.
    """

    @property
    def start(self) -> float:
        """T, the largest time, where sampling from the prior starts."""
        ...

    @property
    def end(self) -> float:
        """The smallest time of the reverse process; above 0."""
        ...

    @property
    def prior_std(self) -> float:
        """Standard deviation of x_T when sampling starts."""
        ...

    def alpha(self, t: Tensor | float) -> Tensor:
        """How much of the image is left at t."""
        ...

    def log_alpha(self, t: Tensor | float) -> Tensor:
        """The logarithm of alpha."""
        ...

    def sigma(self, t: Tensor | float) -> Tensor:
        """Standard deviation of the noise at t."""
        ...

    def drift(self, t: Tensor | float) -> Tensor:
        """f(t): the drift of the forward process is f(t) x."""
        ...

    def diffusion2(self, t: Tensor | float) -> Tensor:
        """g(t)^2, the square of the diffusion coefficient."""
        ...

    def ratio(self, t: Tensor | float) -> Tensor:
        """sigma / alpha, rising in t."""
        ...

    def time(self, ratio: Tensor | float) -> Tensor:
        """The time at which sigma / alpha has this value: the inverse of ``ratio``."""
        ...

    def config(self) -> dict[str, object]:
        """Plain values from which ``schedule_from`` makes this schedule again."""
        ...


def expand(value: Tensor, x: Tensor) -> Tensor:
    """A number per batch or per row, shaped to multiply x: (B,) -> (B, 1, ..., 1), in x's type.

    Raises:
        ValueError: value has a shape other than () or (len(x),).
    """
    if value.ndim == 0:
        return value.to(device=x.device, dtype=x.dtype)
    if value.shape != x.shape[:1]:
        raise ValueError(
            f"a batch of shape {tuple(x.shape)} needs one time per row, got {tuple(value.shape)}"
        )
    return value.to(device=x.device, dtype=x.dtype).reshape(-1, *(1,) * (x.ndim - 1))


def schedule_from(config: Mapping[str, object]) -> Schedule:
    """The schedule that ``schedule.config()`` described.

    Raises:
        ValueError: unknown name, unknown key, or a value that the schedule refuses.
    """
    kinds: dict[str, type[VP] | type[SubVP] | type[VE] | type[EDM] | type[Flow]]
    kinds = {"vp": VP, "subvp": SubVP, "ve": VE, "edm": EDM, "flow": Flow}
    name = config.get("name")
    if name not in kinds:
        raise ValueError(f"a schedule is named one of {', '.join(kinds)}; got {name!r}")
    kind = kinds[cast(str, name)]
    known = {f.name for f in fields(kind)}
    unknown = sorted(set(config) - known - {"name"})
    if unknown:
        raise ValueError(f"schedule {name!r} knows {', '.join(sorted(known))}; got {', '.join(unknown)}")
    values = {key: float(cast(float, value)) for key, value in config.items() if key != "name"}
    return kind(**values)


def _inside(t: Tensor | float, start: float) -> Tensor:
    """t in float64; times outside [0, T] are refused (NaN included)."""
    t = torch.as_tensor(t, dtype=torch.float64)
    if not bool(((t >= 0) & (t <= start)).all()):
        raise ValueError(f"times must lie in [0, {start:g}], got {t.min().item():g} to {t.max().item():g}")
    return t


def _ratio_inside(ratio: Tensor | float, low: float, high: float) -> Tensor:
    """A ratio in float64, refused if no time has it; values just outside by rounding are moved to the
    border."""
    ratio = torch.as_tensor(ratio, dtype=torch.float64)
    slack = 1 + _ROUNDING
    if not bool(((ratio >= low / slack) & (ratio <= high * slack)).all()):
        raise ValueError(
            f"sigma/alpha must lie in [{low:g}, {high:g}], got {ratio.min():g} to {ratio.max():g}"
        )
    return ratio.clamp(low, high)


def _check_positive(owner: object, **values: float) -> None:
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{type(owner).__name__} needs a positive {name}, got {value}")


@dataclass(frozen=True)
class _Linear:
    """What VP and SubVP have in common: beta rises linearly, alpha = exp(-B/2), T = 1."""

    beta_min: float = 0.1
    beta_max: float = 20.0
    end: float = 1e-3

    def __post_init__(self) -> None:
        _check_positive(self, beta_min=self.beta_min, beta_max=self.beta_max, end=self.end)
        if self.beta_max < self.beta_min or self.end >= self.start:
            raise ValueError(
                f"{type(self).__name__} needs beta_min <= beta_max and end < {self.start:g}, got beta_min "
                f"{self.beta_min}, beta_max {self.beta_max}, end {self.end}"
            )

    @property
    def start(self) -> float:
        return 1.0

    @property
    def prior_std(self) -> float:
        return 1.0

    def beta(self, t: Tensor | float) -> Tensor:
        """The rate beta(t) = beta_min + (beta_max - beta_min) t."""
        return self.beta_min + (self.beta_max - self.beta_min) * _inside(t, self.start)

    def integral(self, t: Tensor | float) -> Tensor:
        """B(t), the integral of beta from 0 to t."""
        t = _inside(t, self.start)
        return t * (self.beta_min + (self.beta_max - self.beta_min) / 2 * t)

    def time_of_integral(self, integral: Tensor) -> Tensor:
        """The inverse of B; this form of the quadratic's root does not cancel near 0."""
        slope = self.beta_max - self.beta_min
        t = 2 * integral / (self.beta_min + (self.beta_min**2 + 2 * slope * integral).sqrt())
        return t.clamp(max=self.start)

    def log_alpha(self, t: Tensor | float) -> Tensor:
        return -self.integral(t) / 2

    def alpha(self, t: Tensor | float) -> Tensor:
        return self.log_alpha(t).exp()

    def drift(self, t: Tensor | float) -> Tensor:
        return -self.beta(t) / 2


@dataclass(frozen=True)
class VP(_Linear):
    """Variance preserving: alpha^2 + sigma^2 = 1 (Song et al. 2021, Eq. 11)."""

    def sigma(self, t: Tensor | float) -> Tensor:
        return (-torch.expm1(-self.integral(t))).sqrt()

    def diffusion2(self, t: Tensor | float) -> Tensor:
        return self.beta(t)

    def ratio(self, t: Tensor | float) -> Tensor:
        return torch.expm1(self.integral(t)).sqrt()

    def time(self, ratio: Tensor | float) -> Tensor:
        ratio = _ratio_inside(ratio, 0.0, self.ratio(self.start).item())
        return self.time_of_integral(torch.log1p(ratio * ratio))

    def config(self) -> dict[str, object]:
        return {"name": "vp", **asdict(self)}


@dataclass(frozen=True)
class SubVP(_Linear):
    """Sub-variance preserving, the paper's: sigma = 1 - exp(-B) (Song et al. 2021, Eq. 12 and 29).

    sigma / alpha = exp(B/2) - exp(-B/2) = 2 sinh(B/2), hence B = 2 asinh(ratio / 2).
    """

    def sigma(self, t: Tensor | float) -> Tensor:
        return -torch.expm1(-self.integral(t))

    def diffusion2(self, t: Tensor | float) -> Tensor:
        return -self.beta(t) * torch.expm1(-2 * self.integral(t))

    def ratio(self, t: Tensor | float) -> Tensor:
        return 2 * torch.sinh(self.integral(t) / 2)

    def time(self, ratio: Tensor | float) -> Tensor:
        ratio = _ratio_inside(ratio, 0.0, self.ratio(self.start).item())
        return self.time_of_integral(2 * torch.asinh(ratio / 2))

    def config(self) -> dict[str, object]:
        return {"name": "subvp", **asdict(self)}


class _Exploding(ABC):
    """What VE and EDM have in common: the image is never shrunk, so alpha = 1 and f = 0."""

    @property
    @abstractmethod
    def start(self) -> float: ...

    def log_alpha(self, t: Tensor | float) -> Tensor:
        return torch.zeros_like(_inside(t, self.start))

    def alpha(self, t: Tensor | float) -> Tensor:
        return torch.ones_like(_inside(t, self.start))

    def drift(self, t: Tensor | float) -> Tensor:
        return torch.zeros_like(_inside(t, self.start))


@dataclass(frozen=True)
class VE(_Exploding):
    """Variance exploding, geometric in t, T = 1 (Song et al. 2021, Eq. 9, appendix C).

    sigma(0) = sigma_min, not 0: the smallest noise of this schedule is not the clean image.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    end: float = 1e-5

    def __post_init__(self) -> None:
        _check_positive(self, sigma_min=self.sigma_min, sigma_max=self.sigma_max, end=self.end)
        if self.sigma_max <= self.sigma_min or self.end >= self.start:
            raise ValueError(
                f"VE needs sigma_min < sigma_max and end < 1, got sigma_min {self.sigma_min}, "
                f"sigma_max {self.sigma_max}, end {self.end}"
            )

    @property
    def start(self) -> float:
        return 1.0

    @property
    def prior_std(self) -> float:
        return self.sigma_max

    @property
    def _rate(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def sigma(self, t: Tensor | float) -> Tensor:
        return self.sigma_min * (self._rate * _inside(t, self.start)).exp()

    def ratio(self, t: Tensor | float) -> Tensor:
        return self.sigma(t)

    def diffusion2(self, t: Tensor | float) -> Tensor:
        return 2 * self._rate * self.sigma(t) ** 2

    def time(self, ratio: Tensor | float) -> Tensor:
        ratio = _ratio_inside(ratio, self.sigma_min, self.sigma_max)
        return ((ratio / self.sigma_min).log() / self._rate).clamp(0, self.start)

    def config(self) -> dict[str, object]:
        return {"name": "ve", **asdict(self)}


@dataclass(frozen=True)
class EDM(_Exploding):
    """Time is the noise: sigma = t, T = sigma_max (Karras et al. 2022, table 1, column EDM)."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        _check_positive(self, sigma_min=self.sigma_min, sigma_max=self.sigma_max)
        if self.sigma_max <= self.sigma_min:
            raise ValueError(
                f"EDM needs sigma_min < sigma_max, got sigma_min {self.sigma_min}, sigma_max {self.sigma_max}"
            )

    @property
    def start(self) -> float:
        return self.sigma_max

    @property
    def end(self) -> float:
        return self.sigma_min

    @property
    def prior_std(self) -> float:
        return self.sigma_max

    def sigma(self, t: Tensor | float) -> Tensor:
        return _inside(t, self.start).clone()

    def ratio(self, t: Tensor | float) -> Tensor:
        return self.sigma(t)

    def diffusion2(self, t: Tensor | float) -> Tensor:
        return 2 * _inside(t, self.start)

    def time(self, ratio: Tensor | float) -> Tensor:
        return _ratio_inside(ratio, 0.0, self.sigma_max)

    def config(self) -> dict[str, object]:
        return {"name": "edm", **asdict(self)}


@dataclass(frozen=True)
class Flow:
    """The straight path of flow matching, x_t = (1 - t) x_0 + t e, whose velocity is v = e - x_0.

    Its sigma / alpha is t / (1 - t), so x / alpha follows EDM's process, and all our steps work on it. At t =
    1 nothing of the image is left, and the ratio does not exist. ``start`` is therefore below 1, unless a
    sampler that needs no ratio (DDIM, which is Euler's step along v) is to start at 1, as its pipeline does.

    Source: Lipman et al. 2023, Eq. 20-23 with sigma_min = 0 and time reversed; Liu, Gong, Liu 2023, Eq. 1.
    """

    start: float = 0.999
    end: float = 1e-3

    def __post_init__(self) -> None:
        _check_positive(self, start=self.start, end=self.end)
        if not self.end < self.start <= 1:
            raise ValueError(f"Flow needs 0 < end < start <= 1, got end {self.end}, start {self.start}")

    @property
    def prior_std(self) -> float:
        return 1.0

    def alpha(self, t: Tensor | float) -> Tensor:
        return 1 - _inside(t, 1.0)

    def log_alpha(self, t: Tensor | float) -> Tensor:
        return torch.log1p(-_inside(t, 1.0))

    def sigma(self, t: Tensor | float) -> Tensor:
        return _inside(t, 1.0).clone()

    def drift(self, t: Tensor | float) -> Tensor:
        return -1 / self.alpha(t)

    def diffusion2(self, t: Tensor | float) -> Tensor:
        return 2 * self.ratio(t)

    def ratio(self, t: Tensor | float) -> Tensor:
        t = _inside(t, 1.0)
        return t / (1 - t)

    def time(self, ratio: Tensor | float) -> Tensor:
        ratio = torch.as_tensor(ratio, dtype=torch.float64)
        if not bool((ratio >= 0).all()):
            raise ValueError(f"sigma/alpha must be 0 or more, got {ratio.min():g}")
        return ratio / (1 + ratio)

    def config(self) -> dict[str, object]:
        return {"name": "flow", **asdict(self)}
