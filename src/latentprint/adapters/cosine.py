"""The noise of diffusers' IPNDMScheduler: time is the angle between image and noise.

    alpha = cos(pi t / 2),   sigma = sin(pi t / 2),   sigma / alpha = tan(pi t / 2)

so v turns at a constant rate. The network receives t itself.

Source: Salimans and Ho 2022, "Progressive distillation", section 4 and appendix D.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Cosine:
    """This noise as a ``Schedule``; at t = 1 nothing of the image is left and no ratio exists.

    Attributes:
        start: T, below 1.
        end: the smallest time.
        prior_std: standard deviation of x_T, if a scheduler begins with another value than 1.
    """

    start: float = 0.999
    end: float = 1e-3
    prior_std: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.end < self.start < 1:
            raise ValueError(f"Cosine needs 0 < end < start < 1, got end {self.end}, start {self.start}")

    def _angle(self, t: Tensor | float) -> Tensor:
        t = torch.as_tensor(t, dtype=torch.float64)
        if not bool(((t >= 0) & (t <= 1)).all()):
            raise ValueError(f"times must lie in [0, 1], got {t.min().item():g} to {t.max().item():g}")
        return t * (math.pi / 2)

    def alpha(self, t: Tensor | float) -> Tensor:
        return self._angle(t).cos()

    def log_alpha(self, t: Tensor | float) -> Tensor:
        return self.alpha(t).log()

    def sigma(self, t: Tensor | float) -> Tensor:
        return self._angle(t).sin()

    def drift(self, t: Tensor | float) -> Tensor:
        return -(math.pi / 2) * self._angle(t).tan()

    def diffusion2(self, t: Tensor | float) -> Tensor:
        return math.pi * self._angle(t).tan()

    def ratio(self, t: Tensor | float) -> Tensor:
        return self._angle(t).tan()

    def time(self, ratio: Tensor | float) -> Tensor:
        ratio = torch.as_tensor(ratio, dtype=torch.float64)
        if not bool((ratio >= 0).all()):
            raise ValueError(f"sigma/alpha must be 0 or more, got {ratio.min():g}")
        return ratio.atan() * (2 / math.pi)

    def config(self) -> dict[str, object]:
        return {"name": "cosine", **asdict(self)}
