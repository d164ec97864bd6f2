"""A sampler of one's own: DPM-Solver++(2S), one step through the middle."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from latentprint.denoiser import Denoiser, checked
from latentprint.sampler import Noise, State
from latentprint.sampler.state import target
from latentprint.schedule import Schedule, expand


def _held(schedule: Schedule, x: Tensor, denoised: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """The flow from t to s if D stayed the same: sigma_s / sigma_t (x - alpha_t D) + alpha_s D."""
    shrink = expand(schedule.sigma(s) / schedule.sigma(t), x)
    return shrink * (x - expand(schedule.alpha(t), x) * denoised) + expand(schedule.alpha(s), x) * denoised


# --8<-- [start:step]
@dataclass(frozen=True)
class Midpoint:
    """D at the middle of the step, in log(sigma / alpha), taken for the whole step; order 2.

    Source: Lu et al. 2022, "DPM-Solver++", algorithm 1 with r_1 = 1/2.
    """

    name = "dpm-solver++2s"
    evaluations = 2
    draws = 0

    def __call__(self, denoiser: Denoiser, state: State, s: Tensor, noise: Noise, /) -> State:
        s, t, schedule = target(state, s), state.t, denoiser.schedule
        middle = schedule.time((schedule.ratio(t) * schedule.ratio(s)).sqrt())
        halfway = _held(schedule, state.x, checked(denoiser, state.x, t), t, middle)
        x = _held(schedule, state.x, checked(denoiser, halfway, middle), t, s)
        return State(x, s, state.evaluations + 2)

    def config(self) -> dict[str, Any]:
        """Its own settings: none."""
        return {}


# --8<-- [end:step]
