"""The sampler that a model came with: its scheduler's own timesteps, with our steps from the same formulas.

diffusers' own class gives the scheduler's times (its configuration was checked before). Between them one of
our steps is used. If none is equal to the scheduler's, the nearest is used, and ``exact`` is False.

    DDPM               posterior, variance fixed_small or fixed_large           Ancestral
    DDPM               variance learned_range                                   LearnedAncestral
    DDIM               eta = 0, epsilon of the image before clipping            DDIM(clip)
    Euler, FlowMatch   a straight step                                          DDIM
    Euler ancestral    the posterior in sigma / alpha                           Ancestral
    Heun               the trapezoidal step                                     Heun
    DPM-Solver++ 2M    midpoint, order 2 (order 1: DDIM)                        DPMSolverPP2M
    its SDE            midpoint, order 2 (order 1: Ancestral)                   SDEDPMSolverPP2M
    LCM, CM            the image, then fresh noise                              Consistency
    TCD                DDIM below the next time, then noise back up to it       TrajectoryConsistency
    IPNDM              epsilon of four evaluations, the first of them x_T       PLMS

Equality with diffusers on the same noise is tested for each (tests/test_own_sampler.py).
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, cast

import diffusers
import torch
from torch import Tensor, nn

from latentprint.adapters.cosine import Cosine
from latentprint.adapters.discrete import DiscreteSchedule
from latentprint.adapters.fields import short, whole_number
from latentprint.adapters.text.families import FAMILIES
from latentprint.denoiser import Denoiser
from latentprint.networks import ModelError
from latentprint.sampler import (
    DDIM,
    PLMS,
    Ancestral,
    Consistency,
    DPMSolverPP2M,
    Heun,
    LearnedAncestral,
    Sampler,
    SDEDPMSolverPP2M,
    Step,
    TrajectoryConsistency,
)
from latentprint.schedule import EDM, Flow

FLOW_TOP = 1 - 1e-7
"""The start of a flow's own sampler: 1 minus what float32 hardly resolves, since at 1 no ratio exists."""

CLEAN = 1e-9
"""Where a sampler ends that walks to t = 0 by its step: 0 but for what float32 does not see."""

PIPELINE_STEPS = {
    "DDPMPipeline": 1000,
    "DDIMPipeline": 50,
    "PNDMPipeline": 50,
    "LDMPipeline": 50,
    "DiTPipeline": 50,
    "ConsistencyModelPipeline": 1,
    **{name: family.steps for name, family in FAMILIES.items()},
}
"""Steps that a pipeline takes by default."""

_STEPS = {
    "DDPMScheduler": 1000,
    "DDPMParallelScheduler": 1000,
    "LCMScheduler": 4,
    "TCDScheduler": 4,
    "CMStochasticIterativeScheduler": 1,
}


_RESPACED = ("karras_sigmas", "lu_lambdas", "exponential_sigmas", "beta_sigmas")
"""Settings of DPM-Solver++ under which it steps in other sigmas than those of the timesteps it names."""


@dataclass(frozen=True)
class Own:
    """The sampler of a model's own scheduler, and the model as that sampler sees it.

    Attributes:
        denoiser: with a schedule that begins where the scheduler does.
        exact: whether it is the scheduler's step; otherwise it is our nearest one.
        pipeline_steps: how many steps the model's pipeline would take.
    """

    sampler: Sampler
    denoiser: Denoiser
    exact: bool
    pipeline_steps: int | None = None


def own_sampler(
    config: Mapping[str, object],
    denoiser: Denoiser,
    nearest: Sampler,
    steps: int | None,
    pipeline: str | None,
    mu: float | None = None,
    most: int | None = None,
) -> Own:
    """The sampler of a diffusers pipeline.

    Args:
        config: the scheduler's configuration, checked.
        denoiser: the model, on a ``DiscreteSchedule``, a ``Flow`` or an ``EDM`` one.
        nearest: replaces a scheduler whose steps are not among ours.
        steps: how many steps; None: as many as the pipeline takes.
        pipeline: its class, if the folder names one.
        mu: the time shift for a resolution (flow matching with dynamic shifting).
        most: no more steps than this, if ``steps`` does not say how many.

    Raises:
        ModelError: the scheduler has no such steps.
    """
    name = cast(str, config["_class_name"])
    other = Own(replace(nearest, of=f"nearest to {name}"), denoiser, False)
    if steps is not None:
        other = replace(other, sampler=replace(other.sampler, steps=steps))
    known = PIPELINE_STEPS.get(pipeline or "", _STEPS.get(name, 50))
    if "num_inference_steps" in config:  # stated by a converter, from the training code
        known = whole_number(config["num_inference_steps"], "num_inference_steps", 1, 100_000)
    schedule = denoiser.schedule
    if isinstance(schedule, DiscreteSchedule):
        known = min(known, len(schedule.alphas_cumprod))
    step, exact = _step(name, config, denoiser)
    if step is None:
        return other
    count = steps or (known if most is None else min(known, most))
    family = FAMILIES.get(pipeline or "")
    scheduler = _scheduler(name, config, count, mu, family is not None and family.even)
    times, last = _times(name, scheduler, schedule), None
    if times is None:
        return other
    asked = [float(k) for k in scheduler.timesteps]
    if isinstance(schedule, DiscreteSchedule):
        schedule, same = _topped(schedule, config, scheduler, asked[0])
        exact = exact and same and all(k == round(k) for k in asked)
        last = _end(name, config, asked)
        exact = exact and not _ends_otherwise(name, config, asked)
        if name in ("DDIMScheduler", "DDPMParallelScheduler", "DDIMParallelScheduler"):
            stride = len(schedule.alphas_cumprod) // count
            exact = exact and all(a - b == stride for a, b in pairwise(asked))
        times = [*times, *([] if last is None else [last / schedule.timesteps])]
    elif isinstance(schedule, Cosine):  # its first step keeps x_T alone, and its last one ends at t = 0
        times, last = [*times[1:], CLEAN], 0.0
    if (len(times) == 1 and last is not None) or any(a <= b for a, b in pairwise(times)):
        return other
    clip = getattr(denoiser, "clip", None)
    seen = cast(Any, denoiser)
    if isinstance(schedule, Flow) and not scheduler.timesteps.is_floating_point():
        seen = replace(seen, network=Whole(seen.network))
    before = not config.get("use_clipped_model_output")  # of its own clipping, the epsilon that it keeps
    if isinstance(step, DDIM | Ancestral) and clip is not None and name.startswith("DDIM") and before:
        step, seen = replace(step, clip=clip), replace(seen, clip=None)
    sampler = Sampler(
        step,
        len(times) - 1,
        denoise=last is None,
        at=tuple(times),
        of=name if exact else f"nearest to {name}",
    )
    return Own(sampler, replace(seen, schedule=_from(schedule, times[0], scheduler)), exact, known)


def _step(name: str, config: Mapping[str, object], denoiser: Denoiser) -> tuple[Step | None, bool]:
    """(our step, whether it is the scheduler's own)."""
    plain = not config.get("thresholding")
    if name in ("DDPMScheduler", "DDPMParallelScheduler"):
        variance = config.get("variance_type", "fixed_small")
        if variance == "learned_range":
            return LearnedAncestral(), plain
        return Ancestral(large=variance == "fixed_large"), plain and variance != "learned"
    if name in ("DDIMScheduler", "DDIMParallelScheduler"):
        eta = config.get("eta", 0.0)  # 1: the posterior's noise, stated by a converter
        return (Ancestral() if eta == 1.0 else DDIM()), plain and eta in (0.0, 1.0)
    if name in ("EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler", "EDMEulerScheduler"):
        noisy = bool(config.get("stochastic_sampling"))
        return (Consistency() if noisy else DDIM()), not _to_sigma_min(config)
    if name == "EulerAncestralDiscreteScheduler":
        return Ancestral(), True
    if name == "HeunDiscreteScheduler":
        return Heun(), not config.get("clip_sample")
    if name == "DPMSolverMultistepScheduler":
        order = config.get("solver_order", 2)
        usual = config.get("algorithm_type", "dpmsolver++") in ("dpmsolver++", "sde-dpmsolver++")
        orders = (Ancestral(), SDEDPMSolverPP2M()) if draws_noise(config) else (DDIM(), DPMSolverPP2M())
        midpoint = config.get("solver_type", "midpoint") == "midpoint" and not config.get("euler_at_final")
        usual = usual and midpoint and not (config.get("use_flow_sigmas") and _to_sigma_min(config))
        usual = usual and not any(config.get(f"use_{one}") for one in _RESPACED)
        return orders[order != 1], plain and usual and order in (1, 2)
    if name == "LCMScheduler":
        return Consistency(), plain
    if name == "TCDScheduler":
        return TrajectoryConsistency(0.3), plain and not config.get("clip_sample")
    if name == "IPNDMScheduler":
        return PLMS(noise_first=True), True
    if name == "CMStochasticIterativeScheduler" and isinstance(denoiser.schedule, EDM):
        return Consistency(least=denoiser.schedule.sigma_min), True
    return None, False


def draws_noise(config: Mapping[str, object]) -> bool:
    """Whether a DPM-Solver walks the reverse SDE and not the probability flow."""
    return str(config.get("algorithm_type")).startswith("sde-")


def _to_sigma_min(config: Mapping[str, object]) -> bool:
    return config.get("final_sigmas_type") == "sigma_min"


class Whole(nn.Module):
    """A network of a flow whose scheduler cuts the fractions off its times."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, time: Tensor, **given: Any) -> Any:
        """The network's answer for x at the whole number below ``time``, within what float32 resolves."""
        return self.network(x, (time + 1e-3).floor(), **given)


def _scheduler(name: str, config: Mapping[str, object], steps: int, mu: float | None, even: bool) -> Any:
    """diffusers' own scheduler, set to so many steps; ``even``: at sigmas from 1 to 1 / steps."""
    kind = getattr(diffusers, name)
    known = inspect.signature(kind).parameters  # it ignores others, as its from_config does
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # their warnings, about how they call NumPy
            scheduler = kind(**{key: value for key, value in config.items() if key in known})
            takes = inspect.signature(scheduler.set_timesteps).parameters
            given = {"mu": mu, "sigmas": torch.linspace(1, 1 / steps, steps, dtype=torch.float64).tolist()}
            asked = {"mu": mu is not None, "sigmas": even and not config.get("use_flow_sigmas")}
            scheduler.set_timesteps(
                steps, **{key: value for key, value in given.items() if asked[key] and key in takes}
            )
    except Exception as error:  # diffusers' constructors raise errors of any type
        raise ModelError(f"{name} cannot be set to {steps} steps: {short(error)}") from error
    return scheduler


def _times(name: str, scheduler: Any, schedule: object) -> list[float] | None:
    """The times, on our schedule, at which the scheduler calls the network."""
    if isinstance(schedule, DiscreteSchedule):
        timesteps = cast(Tensor, scheduler.timesteps).double()
        if name == "HeunDiscreteScheduler":  # it lists each time twice: for a step and for its correction
            timesteps = timesteps.unique().flip(0)
        found = schedule.time_of(timesteps).tolist()
        return [min(one, schedule.start) for one in found]
    if isinstance(schedule, Cosine):
        return cast(Tensor, scheduler.timesteps).double().tolist()
    sigmas = cast(Tensor, scheduler.sigmas).double()[:-1].tolist()
    if isinstance(schedule, Flow):
        return [min(one, FLOW_TOP) for one in sigmas]
    if isinstance(schedule, EDM):
        return [min(max(one, schedule.sigma_min), schedule.sigma_max) for one in sigmas]
    return None


def _to_first(name: str, config: Mapping[str, object]) -> bool:
    """Whether the last step goes to timestep 0 and not to the image itself."""
    if name.startswith("DDIM"):
        return config.get("set_alpha_to_one") is False
    return name == "TCDScheduler" or (name == "DPMSolverMultistepScheduler" and _to_sigma_min(config))


def _end(name: str, config: Mapping[str, object], timesteps: list[float]) -> float | None:
    """The last timestep reached, plus one; None if the last step gives the image itself."""
    return 1.0 if _to_first(name, config) and timesteps[-1] > 0 else None


def _ends_otherwise(name: str, config: Mapping[str, object], timesteps: list[float]) -> bool:
    """Whether the scheduler's last step is not ours.

    From timestep 0 to timestep 0 it leaves x as it is, where we give the image. From above 0 to the image
    DDPM adds noise of the upper variance. DPM-Solver++ takes a last step of order 1 if there are few.
    """
    above = timesteps[-1] > 0
    if _to_first(name, config) and not above:
        return True
    if name in ("DDPMScheduler", "DDPMParallelScheduler"):
        return above and config.get("variance_type") in ("fixed_large", "learned_range")
    if name == "DPMSolverMultistepScheduler":
        first = config.get("solver_order", 2) == 1 or not config.get("lower_order_final", True)
        return _to_sigma_min(config) and len(timesteps) < 15 and not first
    return False


def _topped(
    schedule: DiscreteSchedule, config: Mapping[str, object], scheduler: Any, first: float
) -> tuple[DiscreteSchedule, bool]:
    """(the schedule with the scheduler's own last level, whether sampling begins at that).

    At zero SNR a scheduler in sigma puts a level above 0, which need not fall below the one before it.
    """
    if first >= schedule.timesteps:  # a model of epsilon, whose schedule begins below zero SNR
        return schedule, False
    *levels, _ = schedule.alphas_cumprod
    zero = config.get("rescale_betas_zero_snr") and first == schedule.timesteps - 1
    if not zero or not hasattr(scheduler, "sigmas"):
        return schedule, True
    last = 1 / (float(scheduler.sigmas[0]) ** 2 + 1)
    if last >= levels[-1]:
        return schedule, False
    return replace(schedule, alphas_cumprod=(*levels, last)), True


def _from(schedule: Any, top: float, scheduler: Any) -> Any:
    """The schedule that begins at ``top``, with x_T as the scheduler draws it.

    A scheduler in sigma works on x / alpha. Its alpha is 1 / sqrt(sigma^2 + 1) of its own first sigma: at
    zero SNR it keeps another last level than we do, so ours must not be mixed with its x_T.
    """
    if isinstance(schedule, DiscreteSchedule):
        scale = float(scheduler.init_noise_sigma)
        prior = 1.0 if scale == 1.0 else scale / math.hypot(float(scheduler.sigmas[0]), 1.0)
        return replace(schedule, top=top, prior_std=prior)
    if isinstance(schedule, Cosine):
        return replace(schedule, start=top, prior_std=float(schedule.sigma(top)))
    return replace(schedule, start=top) if isinstance(schedule, Flow) else schedule


def on_times(own: Own, denoiser: Denoiser, rename: Any) -> Own:
    """The same sampler on renamed times: ``rename`` maps old times to new ones, float64.

    A last time that becomes 0 is kept just above it: at 0 the last denoising would be left out.
    """
    at = own.sampler.at
    if at is None:  # a grid by the ratio, which is the same for both
        return replace(own, denoiser=denoiser)
    *renamed, last = rename(torch.tensor(at, dtype=torch.float64)).tolist()
    least = min([denoiser.schedule.end, *(one / 2 for one in renamed[-1:])])
    renamed = (*renamed, max(last, least))
    return replace(own, sampler=replace(own.sampler, at=renamed), denoiser=denoiser)
