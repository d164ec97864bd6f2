"""What steps are made of: weighted sums of arrays, the forward process between two times, a straight move.

Coefficients are float64, one per row, and rounded to the type of x once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from latentprint.schedule import Schedule, expand


def weighted(*terms: tuple[Tensor, Tensor]) -> Tensor:
    """Sum of a coefficient (B,) times an array (B, ...)."""
    (coefficient, array), *rest = terms
    total = expand(coefficient, array) * array
    for coefficient, array in rest:
        total = torch.addcmul(total, expand(coefficient, array), array)
    return total


def transition(schedule: Schedule, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """(a, v) of the forward process from s to t; v = alpha_t^2 (r_t^2 - r_s^2), here as a product."""
    r_t, r_s = schedule.ratio(t), schedule.ratio(s)
    a = (schedule.log_alpha(t) - schedule.log_alpha(s)).exp()
    return a, schedule.alpha(t) ** 2 * (r_t - r_s) * (r_t + r_s)


def straight(schedule: Schedule, x: Tensor, denoised: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """alpha_s D + sigma_s epsilon, i.e. u_s = D + (r_s / r_t) (u_t - D): exact if D does not change."""
    keep = schedule.sigma(s) / schedule.sigma(t)
    return weighted((keep, x), (schedule.alpha(s) - keep * schedule.alpha(t), denoised))
