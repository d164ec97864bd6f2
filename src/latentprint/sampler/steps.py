"""The steps from t to s < t, each from its formula, for every schedule.

Notation: x_t = alpha x_0 + sigma e, D = E[x_0 | x_t], r = sigma / alpha, and between two times the forward
process is x_t = a x_s + sqrt(v) e with a = alpha_t / alpha_s, v = sigma_t^2 - a^2 sigma_s^2 (for VP, a^2 is
the 1 - beta of DDPM). In u = x / alpha the probability-flow ODE (paper Eq. 5) is du/dr = (u - D) / r for all.

All coefficients are computed in float64, one per row, and rounded to the type of x once.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from latentprint.denoiser import Denoiser, checked, score
from latentprint.sampler.moves import straight, transition, weighted
from latentprint.sampler.multistep import PLMS, DPMSolverPP2M, SDEDPMSolverPP2M
from latentprint.sampler.state import Noise, State, target
from latentprint.schedule import expand


@dataclass(frozen=True)
class EulerMaruyama:
    """x_s = x - (f x - g^2 score) dt + g sqrt(dt) z: the reverse SDE, paper Eq. 3; the paper's sampler.

    Source: Song et al. 2021, Eq. 6. Weak order 1 (strong order 1 too: the noise is additive).
    """

    name = "euler-maruyama"
    evaluations = 1
    draws = 1

    def __call__(self, denoiser: Denoiser, state: State, s: Tensor, noise: Noise, /) -> State:
        s, t, x, sch = target(state, s), state.t, state.x, denoiser.schedule
        f, g2, dt = sch.drift(t), sch.diffusion2(t), t - s
        # with score = (alpha D - x) / sigma^2 inserted, so that x and D each get one coefficient
        pull = g2 * dt / sch.sigma(t) ** 2
        denoised = checked(denoiser, x, t)
        x = weighted((1 - f * dt - pull, x), (pull * sch.alpha(t), denoised), ((g2 * dt).sqrt(), noise(0)))
        return State(x, s, state.evaluations + 1)

    def config(self) -> dict[str, object]:
        return {}


@dataclass(frozen=True)
class ReverseDiffusion:
    """x_s = (2 - a) x + v score + sqrt(v) z: the forward step, reversed in its own discretisation.

    Source: Song et al. 2021, Eq. 46 and the predictors of algorithms 2 (VE, a = 1) and 3 (VP, a = sqrt(1 -
    beta)). For sub-VP the same a and v are those of its exact forward kernel.
    """

    name = "reverse-diffusion"
    evaluations = 1
    draws = 1

    def __call__(self, denoiser: Denoiser, state: State, s: Tensor, noise: Noise, /) -> State:
        s, t, x, sch = target(state, s), state.t, state.x, denoiser.schedule
        a, v = transition(sch, t, s)
        pull = v / sch.sigma(t) ** 2
        denoised = checked(denoiser, x, t)
        x = weighted((2 - a - pull, x), (pull * sch.alpha(t), denoised), (v.sqrt(), noise(0)))
        return State(x, s, state.evaluations + 1)

    def config(self) -> dict[str, object]:
        return {}


@dataclass(frozen=True)
class PredictorCorrector:
    """The reverse-diffusion predictor to s, then Langevin corrections at s.

    correction:  e = 2 a_s (snr |z| / |score|)^2,    x = x + e score(x, s) + sqrt(2 e) z

    Source: Song et al. 2021, algorithms 2 and 4 (VE, a_s = 1), 3 and 5 (VP, a_s = 1 - beta); the score of a
    correction is taken at s, the time that x has reached. a_s = exp(2 f(s) (t - s)) is 1 - beta to first
    order, also for sub-VP. Norms are per row: the batch means of the authors' code would let rows influence
    one another.

    Raises:
        ValueError: snr is not positive, or corrections < 1.
    """

    snr: float = 0.16
    corrections: int = 1

    name = "predictor-corrector"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.snr) and self.snr > 0) or self.corrections < 1:
            raise ValueError(
                f"a corrector needs snr > 0 and at least 1 correction, got {self.snr} and {self.corrections}"
            )

    @property
    def evaluations(self) -> int:
        return 1 + self.corrections

    @property
    def draws(self) -> int:
        return 1 + self.corrections

    def __call__(self, denoiser: Denoiser, state: State, s: Tensor, noise: Noise, /) -> State:
        s = target(state, s)
        x = ReverseDiffusion()(denoiser, state, s, noise).x
        shrink = (2 * denoiser.schedule.drift(s) * (state.t - s)).exp()
        for draw in range(1, 1 + self.corrections):
            x = self.correct(denoiser, x, s, shrink, noise(draw))
        return State(x, s, state.evaluations + self.evaluations)

    def correct(self, denoiser: Denoiser, x: Tensor, s: Tensor, shrink: Tensor, z: Tensor) -> Tensor:
        """One Langevin correction at s, (B,), with a_s = shrink, (B,)."""
        gradient = score(denoiser, x, s)
        ratio = (z.flatten(1).norm(dim=1) / gradient.flatten(1).norm(dim=1)).to("cpu", torch.float64)
        size = 2 * shrink * (self.snr * ratio) ** 2
        return weighted((torch.ones_like(size), x), (size, gradient), ((2 * size).sqrt(), z))

    def config(self) -> dict[str, object]:
        return asdict(self)


@dataclass(frozen=True)
class Ancestral:
    """x_s ~ N((a sigma_s^2 x + alpha_s v D) / sigma_t^2, v sigma_s^2 / sigma_t^2), posterior for x_0 = D.

    With ``large`` the variance is v itself, the upper bound of Ho et al. ("fixed_large" of diffusers). With
    ``clip`` D is kept in [-clip, clip] but epsilon is that of D before, as in ``DDIM`` (of eta = 1).

    Source: Ho et al. 2020, Eq. 6 and 7, with the lower variance beta-tilde.
    """

    large: bool = False
    clip: float | None = None

    name = "ancestral"
    evaluations = 1
    draws = 1

    def __call__(self, denoiser: Denoiser, state: State, s: Tensor, noise: Noise, /) -> State:
        s, t, x, sch = target(state, s), state.t, state.x, denoiser.schedule
        a, v = transition(sch, t, s)
        shrink = (sch.sigma(s) / sch.sigma(t)) ** 2
        gain = v / sch.sigma(t) ** 2
        denoised = checked(denoiser, x, t)
        spread = (v.sqrt() if self.large else gain.sqrt() * sch.sigma(s), noise(0))
        x = weighted((a * shrink, x), (sch.alpha(s) * gain, denoised), spread)
        if self.clip is not None:
            x = x + expand(sch.alpha(s), x) * (denoised.clamp(-self.clip, self.clip) - denoised)
        return State(x, s, state.evaluations + 1)

    def config(self) -> dict[str, object]:
        return {name: value for name, value in asdict(self).items() if value}


@dataclass(frozen=True)
class LearnedAncestral:
    """``Ancestral`` with the variance that the network predicts for each pixel.

    log variance = w log v + (1 - w) log(v sigma_s^2 / sigma_t^2), w in [0, 1] from the denoiser's ``ranged``.

    Source: Nichol and Dhariwal 2021, Eq. 15 ("learned_range").
    """

    name = "ancestral-learned"
    evaluations = 1
    draws = 1

    def __call__(self, denoiser: Denoiser, state: State, s: Tensor, noise: Noise, /) -> State:
        s, t, x, sch = target(state, s), state.t, state.x, denoiser.schedule
        ranged = getattr(denoiser, "ranged", None)
        if ranged is None:
            raise ValueError(f"step {self.name!r} needs a network that gives a variance; this one gives none")
        denoised, between = ranged(x, t)
        a, v = transition(sch, t, s)
        shrink = (sch.sigma(s) / sch.sigma(t)) ** 2
        log_std = (expand(v.log(), x) * between + expand((v * shrink).log(), x) * (1 - between)) / 2
        x = weighted((a * shrink, x), (sch.alpha(s) * v / sch.sigma(t) ** 2, denoised))
        return State(torch.addcmul(x, log_std.exp(), noise(0)), s, state.evaluations + 1)

    def config(self) -> dict[str, object]:
        return {}


@dataclass(frozen=True)
class DDIM:
    """x_s = alpha_s D + sigma_s epsilon: Euler's step of the probability-flow ODE in r. Order 1, no noise.

    With ``clip`` D is clipped to [-clip, clip], but epsilon is computed before clipping, as in DDIM's
    pipeline.

    Source: Song, Meng, Ermon 2021, Eq. 12 with eta = 0; Karras et al. 2022, Eq. 4.
    """

    clip: float | None = None

    name = "ddim"
    evaluations = 1
    draws = 0

    def __call__(self, denoiser: Denoiser, state: State, s: Tensor, noise: Noise, /) -> State:
        s = target(state, s)
        denoised, schedule = checked(denoiser, state.x, state.t), denoiser.schedule
        x = straight(schedule, state.x, denoised, state.t, s)
        if self.clip is not None:
            x = x + expand(schedule.alpha(s), x) * (denoised.clamp(-self.clip, self.clip) - denoised)
        return State(x, s, state.evaluations + 1)

    def config(self) -> dict[str, object]:
        return {} if self.clip is None else {"clip": self.clip}


@dataclass(frozen=True)
class Heun:
    """The trapezoidal step of du/dr = (u - D) / r, order 2, no noise.

    Euler gives u' = D + q (u - D) with q = r_s / r_t; with D' the denoiser at (u', s) the mean of both slopes
    gives u_s = u' + (1/q - 1) / 2 (D' - D).

    Source: Karras et al. 2022, algorithm 1. The last step of the grid, which ends above r = 0, is corrected
    too; their uncorrected step to 0 is the sampler's last denoising.
    """

    name = "heun"
    evaluations = 2
    draws = 0

    def __call__(self, denoiser: Denoiser, state: State, s: Tensor, noise: Noise, /) -> State:
        s, t, sch = target(state, s), state.t, denoiser.schedule
        denoised = checked(denoiser, state.x, t)
        trial = straight(sch, state.x, denoised, t, s)
        second = checked(denoiser, trial, s)
        half = sch.alpha(s) * (sch.ratio(t) / sch.ratio(s) - 1) / 2
        x = torch.addcmul(trial, expand(half, trial), second - denoised)
        return State(x, s, state.evaluations + 2)

    def config(self) -> dict[str, object]:
        return {}


@dataclass(frozen=True)
class Consistency:
    """x_s = alpha_s D + sqrt(sigma_s^2 - least^2) z: the image, then fresh noise. Few steps, often one.

    D is the consistency function of a distilled model; ``least`` is the smallest noise it was trained with.

    Source: Song et al. 2023, "Consistency models", algorithm 1; Luo et al. 2023 (LCM), with least = 0.
    """

    least: float = 0.0

    name = "consistency"
    evaluations = 1
    draws = 1

    def __call__(self, denoiser: Denoiser, state: State, s: Tensor, noise: Noise, /) -> State:
        s, schedule = target(state, s), denoiser.schedule
        denoised = checked(denoiser, state.x, state.t)
        left = (schedule.sigma(s) ** 2 - self.least**2).clamp(min=0).sqrt()
        return State(weighted((schedule.alpha(s), denoised), (left, noise(0))), s, state.evaluations + 1)

    def config(self) -> dict[str, object]:
        return {"least": self.least} if self.least else {}


@dataclass(frozen=True)
class TrajectoryConsistency:
    """DDIM's step to u below s, then noise back up to s: x_s = a x_u + sqrt(v) z, u at (1 - gamma) k_s.

    gamma = 0 is deterministic, 1 is ``Consistency``. u is a whole timestep of a discrete schedule.

    Source: Zheng et al. 2024, "Trajectory consistency distillation", algorithm 3.

    Raises:
        ValueError: gamma outside [0, 1].
    """

    gamma: float = 0.3

    name = "tcd"
    evaluations = 1
    draws = 1

    def __post_init__(self) -> None:
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"gamma is a share from 0 to 1, got {self.gamma}")

    def __call__(self, denoiser: Denoiser, state: State, s: Tensor, noise: Noise, /) -> State:
        s, schedule = target(state, s), denoiser.schedule
        steps = 1 / schedule.end  # N, the number of timesteps of a discrete schedule
        u = (((1 - self.gamma) * (s * steps - 1) + 1e-9).floor() + 1) / steps
        denoised = checked(denoiser, state.x, state.t)
        below = straight(schedule, state.x, denoised, state.t, u)
        a, v = transition(schedule, s, u)
        return State(weighted((a, below), (v.clamp(min=0).sqrt(), noise(0))), s, state.evaluations + 1)

    def config(self) -> dict[str, object]:
        return {"gamma": self.gamma}


STEPS = (
    EulerMaruyama,
    ReverseDiffusion,
    PredictorCorrector,
    Ancestral,
    LearnedAncestral,
    DDIM,
    Heun,
    DPMSolverPP2M,
    SDEDPMSolverPP2M,
    PLMS,
    Consistency,
    TrajectoryConsistency,
)
"""The fixed steps; settings and results refer to them by ``name``. A new one is a class above and a row
here."""
