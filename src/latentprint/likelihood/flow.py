"""The probability-flow ODE together with the density along it.

    dx/dt = f x - g^2/2 score                            (paper Eq. 5)
    d log p_t(x_t) / dt = - div (f x - g^2/2 score)      along a solution (Song et al. 2021, appendix D.2)

With the denoiser D for the score, r = sigma / alpha, lambda = log r, n = sqrt(1 + r^2), y = x / (alpha n) and
d numbers in an image, both equations become

    dy/dlambda = (y / n - D) / n,      d log p(y) / dlambda = alpha tr(dD/dx) - d / n^2

for every schedule, and log p_t(x) = log p(y) - d log(alpha n). There is no division by sigma, y keeps unit
scale from image to noise, and equal steps in lambda suit all noise levels. lambda is finite if sigma is above
0, so the smallest time is ``schedule.end``.

Each row of a batch is integrated with its own steps, so its density does not depend on batch-mates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latentprint.denoiser import Denoiser
from latentprint.likelihood.divergence import Divergence, Trace
from latentprint.schedule import Schedule, expand
from latentprint.streams import Ids

# Dormand and Prince 1980, "A family of embedded Runge-Kutta formulae", RK5(4)7M, in Butcher's notation;
# _ERROR is b minus the b of the embedded method.
_C = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_LAST = (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84)
_A = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    _LAST,
)
_B = (*_LAST, 0.0)
_ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


@dataclass(frozen=True)
class FlowState:
    """The state of trajectories of the probability-flow ODE.

    Attributes:
        x: (B, ...).
        t: (B,) float64, one time per row.
        log_density_change: (B,) float64, log p_t(x) - log p_first(x_first), in nats.
        standard_error: (B,) float64, of the change, from the probes of `Hutchinson`; 0 for `Exact`.
        evaluations: (B,) int64, passes through the network so far, forward and backward.
    """

    x: Tensor
    t: Tensor
    log_density_change: Tensor
    standard_error: Tensor
    evaluations: Tensor


def integrate(
    denoiser: Denoiser,
    x: Tensor,
    t: Tensor | float,
    to: Tensor | float,
    divergence: Divergence,
    *,
    tolerance: float = 1e-5,
    ids: Ids | None = None,
    most_steps: int = 10_000,
) -> FlowState:
    """Integrate the probability-flow ODE and the log density from t to another time, upwards or downwards.

    The steps are Dormand and Prince's, chosen separately for each row.

    Args:
        denoiser: E[x_0 | x_t], differentiable in x.
        x: (B, ...) at time t.
        t: the time of x, one or (B,).
        to: the other time, one or (B,), on either side of t.
        divergence: `Exact` or `Hutchinson`.
        tolerance: the error allowed to a step, for y relative to 1 + abs(y) (root mean square over an image)
            and for the log density in nats per dimension. float32 reaches about 1e-6.
        ids: (B,), the names of the rows, for the probes of `Hutchinson`.
        most_steps: most steps of one row, rejected ones included, before it gives up.

    Raises:
        ValueError: a time outside the schedule; an x, a denoiser or a divergence that does not fit (see
            `Trace` and `latentprint.denoiser.checked`); a tolerance that is not positive; a row that needs
            more than ``most_steps``.
    """
    if not 0 < tolerance < 1:
        raise ValueError(f"a tolerance must lie between 0 and 1, got {tolerance}")
    problem = Problem(denoiser, divergence, x, ids)
    first, last = (
        torch.as_tensor(time, dtype=torch.float64, device=x.device).expand(len(x)) for time in (t, to)
    )
    start, stop = problem.log_ratio(first), problem.log_ratio(last)
    y, total = problem.to_y(x, start), problem.no_change()
    spent = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    lam, step = start.clone(), (stop - start) / 32
    rows = (lam != stop).nonzero()[:, 0]
    # The slope at each row's present state, if known: a step's last stage is the first of the next.
    kept: list[Slope] = []
    tries = 0
    while len(rows):
        if (tries := tries + 1) > most_steps:
            raise ValueError(
                f"{len(rows)} of {len(x)} rows did not arrive in {most_steps} steps; tolerance {tolerance:g}"
            )
        left = stop[rows] - lam[rows]
        finishes = step[rows].abs() >= left.abs() * (1 - 1e-12)
        h = torch.where(finishes, left, step[rows])
        stages = problem.stages(rows, y[rows], lam[rows], h, kept)
        spent[rows] += (len(_B) - len(kept)) * problem.trace.evaluations
        y_new, total_new = _add(y[rows], total[rows], h, _B, stages)
        error = _error(y[rows], y_new, h, stages, problem.dims) / tolerance
        good = error <= 1
        # 0.9 for safety, and between a fifth and five times the last step (Hairer et al. 1993, II.4).
        step[rows] = h * (0.9 * error.clamp(min=1e-10) ** -0.2).clamp(0.2, 5.0)
        taken = rows[good]
        y[taken], total[taken] = y_new[good], total_new[good]
        lam[taken] = torch.where(finishes, stop[rows], lam[rows] + h)[good]
        goes_on = lam[rows] != stop[rows]
        rows, kept = rows[goes_on], [_choose(good, stages[-1], stages[0], goes_on)]
    return problem.state(y, total, start, stop, last, spent)


Slope = tuple[Tensor, Tensor]  # (dy/dlambda, d log p/dlambda by probe) of some rows


class Problem:
    """The ODE in (y, lambda) for one batch, as at the top of the module."""

    def __init__(self, denoiser: Denoiser, divergence: Divergence, x: Tensor, ids: Ids | None) -> None:
        if x.ndim < 2 or not x.is_floating_point():
            raise ValueError(f"x must be floats of shape (B, ...), got {x.dtype} of shape {tuple(x.shape)}")
        if not bool(x.isfinite().all()):
            raise ValueError("x must be finite, and it holds NaN or infinity")
        self.schedule: Schedule = denoiser.schedule
        self.trace = Trace(denoiser, divergence, x, ids)
        self.dims = self.trace.dims
        self._zero = torch.zeros(len(x), self.trace.forms, dtype=torch.float64, device=x.device)

    def log_ratio(self, t: Tensor) -> Tensor:
        """lambda; refuses times outside [end, start]."""
        low, high = self.schedule.end, self.schedule.start
        if not bool(((t >= low * (1 - 1e-12)) & (t <= high)).all()):
            raise ValueError(
                f"times must lie in [{low:g}, {high:g}], got {t.min().item():g} to {t.max().item():g}"
            )
        return self.schedule.ratio(t).log()

    def log_scale(self, lam: Tensor) -> Tensor:
        """log(alpha n), where x = alpha n y."""
        ratio = lam.exp()
        return self.schedule.log_alpha(self.schedule.time(ratio)) + 0.5 * torch.log1p(ratio * ratio)

    def to_y(self, x: Tensor, lam: Tensor) -> Tensor:
        """y, the image at unit scale."""
        return x.detach() * expand((-self.log_scale(lam)).exp(), x)

    def no_change(self) -> Tensor:
        """The integrals of the divergence at the start: (B, forms) zeros."""
        return self._zero.clone()

    def slope(self, rows: Tensor, y: Tensor, lam: Tensor) -> Slope:
        """(dy/dlambda, d log p/dlambda by probe) of the images numbered ``rows``."""
        ratio = lam.exp()
        t, n2 = self.schedule.time(ratio), 1 + ratio * ratio
        alpha, root = self.schedule.alpha(t), n2.sqrt()
        denoised, traces = self.trace(y * expand(alpha * root, y), t, rows)
        dy = y / expand(n2, y) - denoised / expand(root, y)
        return dy, alpha[:, None] * traces - (self.dims / n2)[:, None]

    def stages(self, rows: Tensor, y: Tensor, lam: Tensor, h: Tensor, known: Sequence[Slope]) -> list[Slope]:
        """The slopes at the stages of Dormand and Prince; ``known`` holds the first stage of rows where it is
        known."""
        slopes = list(known)
        for c, a in list(zip(_C, _A, strict=True))[len(known) :]:
            at = y
            for weight, (dy, _) in zip(a, slopes, strict=True):
                if weight:
                    at = at + expand(weight * h, y) * dy
            slopes.append(self.slope(rows, at, lam + c * h))
        return slopes

    def state(
        self, y: Tensor, total: Tensor, lam0: Tensor, lam: Tensor, t: Tensor, spent: Tensor
    ) -> FlowState:
        """What is told of the images at lambda, having begun at lambda0."""
        x = y * expand(self.log_scale(lam).exp(), y)
        change = total.mean(1) - self.dims * (self.log_scale(lam) - self.log_scale(lam0))
        return FlowState(x, t, change, self.trace.standard_error(total), spent)


def _add(
    y: Tensor, total: Tensor, h: Tensor, weights: tuple[float, ...], slopes: list[Slope]
) -> tuple[Tensor, Tensor]:
    for weight, (dy, dlog) in zip(weights, slopes, strict=True):
        if weight:
            y = y + expand(weight * h, y) * dy
            total = total + (weight * h)[:, None] * dlog
    return y, total


def _error(y: Tensor, y_new: Tensor, h: Tensor, slopes: list[Slope], dims: int) -> Tensor:
    """The larger of two errors per row: of y relative to 1 + abs(y), and of the log density per dimension."""
    zero = torch.zeros_like(y), torch.zeros_like(slopes[0][1])
    in_y, in_log = _add(*zero, h, _ERROR, slopes)
    relative = in_y / (1 + torch.maximum(y.abs(), y_new.abs()))
    of_y = relative.flatten(1).pow(2).mean(1, dtype=torch.float64).sqrt()
    return torch.maximum(of_y, in_log.abs().amax(1) / dims)


def _choose(good: Tensor, after: Slope, before: Slope, rows: Tensor) -> Slope:
    """The slope at the present state of the rows that continue; ``after`` if the step was accepted."""
    dy = torch.where(expand(good, after[0]).bool(), after[0], before[0])
    return dy[rows], torch.where(good[:, None], after[1], before[1])[rows]
