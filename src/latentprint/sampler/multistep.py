"""Steps that remember what the denoiser answered before; notation as in ``steps``."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from latentprint.denoiser import Denoiser, checked
from latentprint.sampler.moves import straight, weighted
from latentprint.sampler.state import Noise, State, target
from latentprint.schedule import expand


def _middle(denoised: Tensor, h: Tensor, memory: tuple[Tensor, ...]) -> Tensor:
    """D + h / (2 h') (D - D'), D on its way through the middle of the step; h, (B,), is log(r_t / r_s)."""
    if not memory:
        return denoised
    before, inverse = memory
    return torch.addcmul(denoised, expand(h * inverse / 2, before), denoised - before)


@dataclass(frozen=True)
class DPMSolverPP2M:
    """DDIM with D extrapolated to the middle of the step from this and the last evaluation; order 2.

    With h = log(r_t / r_s) and h' that of the step before, D + h / (2 h') (D - D') replaces D. Memory per
    row: (D', 1/h'), so that a row without a past takes DDIM's step.

    Source: Lu et al. 2022, "DPM-Solver++", algorithm 2.
    """

    name = "dpm-solver++2m"
    evaluations = 1
    draws = 0

    def __call__(self, denoiser: Denoiser, state: State, s: Tensor, noise: Noise, /) -> State:
        s, t, sch = target(state, s), state.t, denoiser.schedule
        h = (sch.ratio(t) / sch.ratio(s)).log()
        denoised = checked(denoiser, state.x, t)
        x = straight(sch, state.x, _middle(denoised, h, state.memory), t, s)
        return State(x, s, state.evaluations + 1, (denoised, 1 / h))

    def config(self) -> dict[str, object]:
        return {}


@dataclass(frozen=True)
class SDEDPMSolverPP2M:
    """``Ancestral`` with D extrapolated to the middle of the step, as in ``DPMSolverPP2M``; weak order 2.

    x_s = (sigma_s / sigma_t) e^-h x + alpha_s (1 - e^-2h) D~ + sigma_s sqrt(1 - e^-2h) z

    This is the reverse SDE (paper Eq. 3), solved exactly for a D that does not change within the step. In
    the half step that D~ is ahead of D, a change of x by the last step's noise is followed, too.

    Source: Lu et al. 2022, "DPM-Solver++", SDE-DPM-Solver++(2M).
    """

    name = "sde-dpm-solver++2m"
    evaluations = 1
    draws = 1

    def __call__(self, denoiser: Denoiser, state: State, s: Tensor, noise: Noise, /) -> State:
        s, t, x, sch = target(state, s), state.t, state.x, denoiser.schedule
        h = (sch.ratio(t) / sch.ratio(s)).log()
        gain, shrink = -torch.expm1(-2 * h), sch.sigma(s) / sch.sigma(t) * (-h).exp()
        denoised = checked(denoiser, x, t)
        middle = _middle(denoised, h, state.memory)
        x = weighted((shrink, x), (sch.alpha(s) * gain, middle), (gain.sqrt() * sch.sigma(s), noise(0)))
        return State(x, s, state.evaluations + 1, (denoised, 1 / h))

    def config(self) -> dict[str, object]:
        return {}


_ADAMS_BASHFORTH = ((24, 0, 0, 0), (36, -12, 0, 0), (46, -32, 10, 0), (55, -59, 37, -9))
"""24 times the weights of this epsilon and those before, by how many there are before."""


@dataclass(frozen=True)
class PLMS:
    """DDIM with epsilon from this and up to three evaluations before, by Adams and Bashforth; no noise.

    Steps are taken as equal. With ``noise_first`` a row at the schedule's start has one evaluation behind it,
    whose epsilon was x_T / sigma: what any network must say of nothing but noise.
    Memory per row: the epsilons before, latest first, and their number.

    Source: Liu et al. 2022, "Pseudo numerical methods" (PNDM), Eq. 12 and 13; with ``noise_first`` as
    diffusers' IPNDMScheduler begins.
    """

    noise_first: bool = False

    name = "plms"
    evaluations = 1
    draws = 0

    def __call__(self, denoiser: Denoiser, state: State, s: Tensor, noise: Noise, /) -> State:
        s, t, x, sch = target(state, s), state.t, state.x, denoiser.schedule
        alpha, sigma = sch.alpha(t), sch.sigma(t)
        epsilon = weighted((1 / sigma, x), (-alpha / sigma, checked(denoiser, x, t)))
        *past, count = state.memory or (*(torch.zeros_like(x) for _ in range(3)), torch.zeros_like(t))
        if self.noise_first:
            begins = (count == 0) & (t >= sch.start)
            past[0] = past[0] + expand(begins / sigma, x) * x
            count = count + begins
        weights = torch.tensor(_ADAMS_BASHFORTH, dtype=torch.float64)[count.long().clamp(max=3)] / 24
        mixed = weighted(*zip(weights.unbind(1), (epsilon, *past), strict=True))
        keep = sch.alpha(s) / alpha
        x = weighted((keep, x), (sch.sigma(s) - keep * sigma, mixed))
        return State(x, s, state.evaluations + 1, (epsilon, past[0], past[1], count + 1))

    def config(self) -> dict[str, object]:
        return {"noise_first": True} if self.noise_first else {}
