"""The probability-flow ODE by an embedded Runge-Kutta pair, each row with its own step size.

In u = x / alpha and w = -log(sigma / alpha), which rises as the noise falls, the ODE (paper Eq. 5) is du/dw =
D(alpha u, t(w)) - u. One call attempts one step of the pair of orders 5 and 4. A row whose error is above its
tolerance does not move, and tries again with a smaller step. Solvers with one norm over the batch let rows
influence one another (torchdiffeq does); here a row's result depends on the row alone.

Sources: Dormand and Prince 1980 (coefficients); Hairer, Norsett, Wanner 1993, II.4 (step size control).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from latentprint.denoiser import Denoiser, checked
from latentprint.sampler.state import Noise, State, target
from latentprint.schedule import Schedule, expand

_NODES = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_WEIGHTS = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),  # the step itself: order 5
)
_ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)  # order 5 minus 4

_FIRST = 0.1  # first step in w of a row without a past; step size control corrects it within a few steps
_SAFETY, _SHRINK, _GROW = 0.9, 0.2, 5.0
_SMALLEST = 1e-6


@dataclass(frozen=True)
class RungeKutta:
    """Adaptive: a step is accepted if rms(error / (atol sqrt(1 + r^2) + rtol |u|)) <= 1; order 5, no noise.

    The absolute tolerance is in units of the noised image x / sqrt(alpha^2 + sigma^2).
    Memory per row: the slope at x and the size of the next step.

    Raises:
        ValueError: a tolerance is negative or both are 0.
    """

    rtol: float = 1e-3
    atol: float = 1e-3

    name = "runge-kutta"
    evaluations = None
    draws = 0

    def __post_init__(self) -> None:
        if not (self.rtol >= 0 and self.atol >= 0 and self.rtol + self.atol > 0):
            raise ValueError(
                f"tolerances must be at least 0 and one above it, got {self.rtol} and {self.atol}"
            )

    def __call__(self, denoiser: Denoiser, state: State, s: Tensor, noise: Noise, /) -> State:
        s = torch.as_tensor(s, dtype=torch.float64, device="cpu").expand_as(state.t)
        if self.rtol + self.atol < 10 * torch.finfo(state.x.dtype).eps:
            raise ValueError(f"rtol {self.rtol:g}, atol {self.atol:g} are too small for {state.x.dtype}")
        going = (state.t > s).nonzero()[:, 0]
        if len(going) == len(state.t):
            return self._attempt(denoiser, state, s)
        if len(going) == 0:
            target(state, s)
        return state.put(going, self._attempt(denoiser, state.take(going), s[going]))

    def _attempt(self, denoiser: Denoiser, state: State, s: Tensor) -> State:
        sch, t = denoiser.schedule, state.t
        u = state.x / expand(sch.alpha(t), state.x)
        slope, size, cost = self._past(denoiser, state, u)
        w, goal = -sch.ratio(t).log(), -sch.ratio(s).log()
        arrives = size >= goal - w
        h = torch.where(arrives, goal - w, size)
        stage_times = [torch.where(arrives & (c == 1), s, sch.time((-w - c * h).exp())) for c in _NODES]
        u_next, error, slope_next = _dormand_prince(denoiser, u, slope, h, stage_times)
        norm = self._norm(error, u, u_next, sch.ratio(t))
        accept = norm <= 1
        factor = (_SAFETY * norm.clamp(min=1e-10) ** -0.2).clamp(_SHRINK, _GROW)
        # a step shortened to reach s is no evidence against the longer step that was planned
        size = torch.where(accept & arrives, torch.maximum(size, h * factor), h * factor)
        if not bool((size > _SMALLEST).all()):
            raise ValueError(
                f"the step size fell below {_SMALLEST:g}: rtol {self.rtol:g}, atol {self.atol:g} "
                f"are too small for {state.x.dtype}"
            )
        t_next = torch.where(accept, stage_times[-1], t)
        yes = expand(accept.to(torch.float64), u) > 0
        x = torch.where(yes, expand(sch.alpha(t_next), u) * u_next, state.x)
        memory = (torch.where(yes, slope_next, slope), size)
        return State(x, t_next, state.evaluations + cost + len(_NODES), memory)

    def _past(self, denoiser: Denoiser, state: State, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(slope at x, planned step, evaluations spent): rows without a past are evaluated first."""
        if state.memory:
            slope, size = state.memory
        else:
            slope, size = torch.zeros_like(u), torch.zeros_like(state.t)
        fresh = (size == 0).nonzero()[:, 0]
        if len(fresh) == 0:
            return slope, size, torch.zeros_like(state.evaluations)
        rows = fresh.to(u.device)
        first = checked(denoiser, state.x[rows], state.t[fresh]) - u[rows]
        spent = torch.zeros_like(state.evaluations).index_fill(0, fresh, 1)
        return slope.index_copy(0, rows, first), size.index_fill(0, fresh, _FIRST), spent

    def _norm(self, error: Tensor, u: Tensor, u_next: Tensor, ratio: Tensor) -> Tensor:
        """Root mean square of error over tolerance, per row, float64 on the CPU."""
        scale = expand(self.atol * (1 + ratio**2).sqrt(), u) + self.rtol * torch.maximum(
            u.abs(), u_next.abs()
        )
        return (error / scale).flatten(1).square().mean(dim=1).sqrt().to("cpu", torch.float64)

    def config(self) -> dict[str, object]:
        return asdict(self)


def _dormand_prince(
    denoiser: Denoiser, u: Tensor, slope: Tensor, h: Tensor, stage_times: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """(u after h, its estimated error, slope there): six evaluations, the last one the next step's first."""
    sch: Schedule = denoiser.schedule
    size, slopes, at = expand(h, u), [slope], u
    for weights, t in zip(_WEIGHTS, stage_times, strict=True):
        at = torch.addcmul(u, size, _weighted(weights, slopes))
        slopes.append(checked(denoiser, expand(sch.alpha(t), at) * at, t) - at)
    return at, size * _weighted(_ERROR, slopes), slopes[-1]


def _weighted(weights: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    total = weights[0] * slopes[0]
    for weight, slope in zip(weights[1:], slopes[1:], strict=True):
        if weight != 0:
            total = total.add(slope, alpha=weight)
    return total
