"""A discrete schedule of N noise levels as a continuous one that agrees with it at each of its own timesteps.

    x_k = sqrt(abar_k) x_0 + sqrt(1 - abar_k) e,   abar_k = product of (1 - beta_j), j <= k  (Ho et al. 2020)

Timestep k = 0, ..., N - 1 is at t = (k + 1) / N, and t = 0 is the clean image. Under this convention DDPM is
the discretised VP process (Song et al. 2021, appendix B). Between the timesteps

    B(t) = -log abar,   alpha = exp(-B/2),   sigma = sqrt(1 - exp(-B))

with B interpolated by monotone cubics (Fritsch and Carlson 1980, the weights of ``scipy``'s PCHIP) through
B(0) = 0 and B((k + 1) / N) = -log abar_k. B is continuous with its derivative, so f = -B'/2 and g^2 = B', and
the identity g^2 = (sigma^2)' - 2 f sigma^2 holds exactly everywhere. B is interpolated and not the log-SNR
because it is finite and nearly straight at t = 0.

Zero terminal SNR (Lin et al. 2024): then abar_{N-1} = 0, B is infinite and no ratio exists. The prediction of
a model of v or of the image is well defined there, so its last level is kept at sqrt(abar_{N-1}) =
sqrt(abar_{N-2}) / 4, below every other, where x_T is noise to about 1e-5. A model of epsilon says nothing
about the image there (its task is to copy its input), so its schedule begins one timestep lower.

Sources: Ho et al. 2020; Song et al. 2021; Nichol and Dhariwal 2021 (cosine); Rombach et al. 2022 (scaled
linear); Xu et al. 2022, GeoDiff (sigmoid); Lin et al. 2024, "Common diffusion noise schedules and sample
steps are flawed".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from scipy.interpolate import PchipInterpolator  # pyright: ignore[reportMissingTypeStubs]
from torch import Tensor

from latentprint.adapters.fields import number, whole_number
from latentprint.networks import ModelError

MAX_TIMESTEPS = 100_000
_BISECTIONS = 60  # halvings of one interval, down to the rounding of float64
_ROUNDING = 1e-9


@dataclass(frozen=True)
class DiscreteSchedule:
    """The continuous schedule (protocol ``Schedule``) through the N levels of a discrete one; T = 1.

    Attributes:
        alphas_cumprod: abar_0 > abar_1 > ... > abar_{N-1}, in (0, 1).
        top: T, below 1 if a sampler begins below the last timestep.
        prior_std: standard deviation of x_T; 1 unless a scheduler in sigma begins with another value.

    Raises:
        ModelError: fewer than 2 levels, levels that do not fall strictly inside (0, 1), or an impossible T.
    """

    alphas_cumprod: tuple[float, ...]
    top: float = 1.0
    prior_std: float = 1.0

    def __post_init__(self) -> None:
        levels = np.asarray(self.alphas_cumprod, dtype=np.float64)
        if not 2 <= len(levels) <= MAX_TIMESTEPS:
            raise ModelError(f"a schedule needs 2 to {MAX_TIMESTEPS} timesteps, got {len(levels)}")
        if not (np.all(np.diff(levels) < 0) and levels[0] < 1 and levels[-1] > 0):
            raise ModelError("the products of (1 - beta) must fall strictly, from below 1 to above 0")
        if not 1 / len(levels) <= self.top <= 1:
            raise ModelError(f"sampling begins at a timestep of the schedule, got T = {self.top:g}")

    @property
    def timesteps(self) -> int:
        """N."""
        return len(self.alphas_cumprod)

    @property
    def start(self) -> float:
        """T, the last timestep."""
        return self.top

    @property
    def end(self) -> float:
        """1 / N, the first timestep: the smallest noise that the network was trained on."""
        return 1.0 / self.timesteps

    @cached_property
    def _knots(self) -> Tensor:
        """B at t = 0, 1/N, ..., 1."""
        levels = np.log(np.asarray(self.alphas_cumprod, dtype=np.float64))
        return torch.from_numpy(np.concatenate([[0.0], -levels]))

    @cached_property
    def _cubics(self) -> Tensor:
        """(4, N): the coefficients of each interval, highest power first, in N t minus its first knot."""
        pieces = cast(Any, PchipInterpolator)(np.arange(self.timesteps + 1.0), self._knots.numpy())
        return torch.from_numpy(np.ascontiguousarray(pieces.c))

    def _pieces(self, t: Tensor | float) -> tuple[Tensor, tuple[Tensor, ...]]:
        """(position within the interval, the cubic's coefficients) at t."""
        t = torch.as_tensor(t, dtype=torch.float64)
        if not bool(((t >= 0) & (t <= 1)).all()):
            raise ValueError(f"times must lie in [0, 1], got {t.min().item():g} to {t.max().item():g}")
        at = t * self.timesteps
        interval = at.floor().clamp(0, self.timesteps - 1)
        return at - interval, tuple(self._cubics.to(t.device)[:, interval.long()].unbind(0))

    def integral(self, t: Tensor | float) -> Tensor:
        """B(t) = -log abar."""
        at, (a, b, c, d) = self._pieces(t)
        return ((a * at + b) * at + c) * at + d

    def beta(self, t: Tensor | float) -> Tensor:
        """B'(t)."""
        at, (a, b, c, _) = self._pieces(t)
        return (((3 * a * at + 2 * b) * at + c) * self.timesteps).clamp(min=0)

    def log_alpha(self, t: Tensor | float) -> Tensor:
        """-B / 2."""
        return -self.integral(t) / 2

    def alpha(self, t: Tensor | float) -> Tensor:
        """exp(-B / 2)."""
        return self.log_alpha(t).exp()

    def sigma(self, t: Tensor | float) -> Tensor:
        """sqrt(1 - exp(-B))."""
        return (-torch.expm1(-self.integral(t))).sqrt()

    def drift(self, t: Tensor | float) -> Tensor:
        """f = -B' / 2."""
        return -self.beta(t) / 2

    def diffusion2(self, t: Tensor | float) -> Tensor:
        """g^2 = B'."""
        return self.beta(t)

    def ratio(self, t: Tensor | float) -> Tensor:
        """sigma / alpha = sqrt(exp(B) - 1)."""
        return torch.expm1(self.integral(t)).sqrt()

    def time(self, ratio: Tensor | float) -> Tensor:
        """The inverse of ``ratio``: the interval from the table, the position within it by bisection.

        Raises:
            ValueError: no time has this ratio.
        """
        ratio = torch.as_tensor(ratio, dtype=torch.float64)
        high = float(torch.expm1(self._knots[-1]).sqrt())
        if not bool(((ratio >= 0) & (ratio <= high * (1 + _ROUNDING))).all()):
            raise ValueError(f"sigma/alpha must lie in [0, {high:g}], got {ratio.min():g} to {ratio.max():g}")
        wanted = torch.log1p(ratio * ratio)
        knots = self._knots.to(ratio.device)
        interval = (torch.searchsorted(knots, wanted, right=True) - 1).clamp(0, self.timesteps - 1)
        a, b, c, d = self._cubics.to(ratio.device)[:, interval].unbind(0)
        low, up = torch.zeros_like(wanted), torch.ones_like(wanted)
        for _ in range(_BISECTIONS):
            middle = (low + up) / 2
            below = ((a * middle + b) * middle + c) * middle + d < wanted
            low, up = torch.where(below, middle, low), torch.where(below, up, middle)
        return ((interval + up) / self.timesteps).clamp(0, 1)

    def timestep(self, t: Tensor | float) -> Tensor:
        """k = N t - 1, the network's own time; fractions between timesteps, never below 0."""
        return (torch.as_tensor(t, dtype=torch.float64) * self.timesteps - 1).clamp(min=0)

    def time_of(self, timestep: Tensor | Sequence[int] | int) -> Tensor:
        """t = (k + 1) / N, the inverse of ``timestep``, by which a scheduler's own timesteps become a
        grid."""
        return (torch.as_tensor(timestep, dtype=torch.float64) + 1) / self.timesteps

    def config(self) -> dict[str, object]:
        """Plain values from which ``DiscreteSchedule(tuple(config["alphas_cumprod"]))`` restores it."""
        return {"name": "discrete", "alphas_cumprod": list(self.alphas_cumprod)}


def discrete_schedule(alphas_cumprod: Tensor, predicts: str) -> DiscreteSchedule:
    """The schedule of a network that predicts "epsilon", "v" or "sample" on these levels, (N,).

    For a last level of 0 (zero terminal SNR) see the module.

    Raises:
        ModelError: levels that are not finite, or do not fall strictly.
    """
    levels = alphas_cumprod.to(torch.float64).tolist()
    if len(levels) > 2 and levels[-1] == 0:
        levels = levels[:-1] if predicts == "epsilon" else [*levels[:-1], levels[-2] / 256]
    if not all(math.isfinite(level) for level in levels):
        raise ModelError("the products of (1 - beta) must be finite numbers")
    return DiscreteSchedule(tuple(levels))


def alphas_cumprod(config: Mapping[str, object]) -> Tensor:
    """abar_k of a scheduler's configuration, float32 (N,), in the float32 arithmetic of diffusers.

    Keys: ``num_train_timesteps``, ``beta_start``, ``beta_end``, ``beta_schedule`` ("linear", "scaled_linear",
    "squaredcos_cap_v2", "sigmoid"), ``trained_betas`` (replaces these), ``rescale_betas_zero_snr``.

    Raises:
        ModelError: an unknown schedule, or numbers that are not betas in (0, 1).
    """
    betas = _betas(config)
    if not bool(((betas > 0) & (betas < 1)).all()):
        raise ModelError(
            f"betas must lie between 0 and 1, got {float(betas.min()):g} to {float(betas.max()):g}"
        )
    levels = torch.cumprod(1.0 - betas, dim=0)
    if config.get("rescale_betas_zero_snr"):
        levels = _zero_terminal(levels)
    return levels


def _betas(config: Mapping[str, object]) -> Tensor:
    given = config.get("trained_betas")
    if given is not None:
        if not isinstance(given, list) or not 2 <= len(cast(list[object], given)) <= MAX_TIMESTEPS:
            raise ModelError(f"trained_betas must be a list of 2 to {MAX_TIMESTEPS} numbers")
        values = [number(beta, "a beta", 0.0, 1.0) for beta in cast(list[object], given)]
        return torch.tensor(values, dtype=torch.float32)
    n = whole_number(config.get("num_train_timesteps", 1000), "num_train_timesteps", 2, MAX_TIMESTEPS)
    kind = config.get("beta_schedule", "linear")
    first = number(config.get("beta_start", 1e-4), "beta_start", 0.0, 1.0)
    last = number(config.get("beta_end", 0.02), "beta_end", 0.0, 1.0)
    if kind == "linear":
        return torch.linspace(first, last, n, dtype=torch.float32)
    if kind == "scaled_linear":
        return torch.linspace(first**0.5, last**0.5, n, dtype=torch.float32) ** 2
    if kind == "sigmoid":
        return torch.sigmoid(torch.linspace(-6, 6, n, dtype=torch.float32)) * (last - first) + first
    if kind == "squaredcos_cap_v2":
        left = [math.cos((k / n + 0.008) / 1.008 * math.pi / 2) ** 2 for k in range(n + 1)]
        return torch.tensor([min(1 - left[k + 1] / left[k], 0.999) for k in range(n)], dtype=torch.float32)
    raise ModelError(
        "a beta_schedule is one of linear, scaled_linear, squaredcos_cap_v2 and sigmoid, or trained_betas; "
        f"got {str(kind)[:100]!r}"
    )


def _zero_terminal(levels: Tensor) -> Tensor:
    """Lin et al. 2024, algorithm 1: sqrt(abar) shifted and scaled so that the last becomes 0 and the first
    stays."""
    root = levels.sqrt()
    levels = ((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2
    betas = 1.0 - torch.cat([levels[:1], levels[1:] / levels[:-1]])
    return torch.cumprod(1.0 - betas, dim=0)  # via the betas, as diffusers rounds it
