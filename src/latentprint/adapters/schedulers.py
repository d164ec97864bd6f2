"""The meaning of a diffusers scheduler's configuration: the noise, what the network predicts, and how it
samples.

Sources: diffusers' schedulers (for the meaning of their settings); Karras et al. 2022 for the EDM schedulers;
Song et al. 2021 for ScoreSdeVe (the network receives sigma and returns the score).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
from torch import Tensor, nn

from latentprint.adapters.cosine import Cosine
from latentprint.adapters.discrete import DiscreteSchedule, alphas_cumprod, discrete_schedule
from latentprint.adapters.fields import number, short, some, whole_number
from latentprint.adapters.function import FunctionDenoiser
from latentprint.adapters.own import draws_noise
from latentprint.adapters.timesteps import ConsistencyDenoiser, DiscreteDenoiser, Predicts
from latentprint.denoiser import Denoiser, NetworkDenoiser
from latentprint.networks import ModelError
from latentprint.schedule import EDM, VE, Flow

PREDICTIONS: dict[str, Predicts] = {"epsilon": "epsilon", "v_prediction": "v", "sample": "sample"}


@dataclass(frozen=True)
class Scheduler:
    """The defaults of a scheduler class, and our nearest sampler."""

    step: str
    steps: int
    spacing: str = "uniform"
    clips: bool = False
    betas: tuple[float, float] = (1e-4, 0.02)
    edm: bool = False


_LATENT = (0.00085, 0.012)

SCHEDULERS: dict[str, Scheduler] = {
    "DDPMScheduler": Scheduler("ancestral", 999, clips=True),
    "DDIMScheduler": Scheduler("ddim", 50, clips=True),
    "DDPMParallelScheduler": Scheduler("ancestral", 999, clips=True),
    "DDIMParallelScheduler": Scheduler("ddim", 50, clips=True),
    "SASolverScheduler": Scheduler("sde-dpm-solver++2m", 50),
    "PNDMScheduler": Scheduler("dpm-solver++2m", 50),
    "DPMSolverMultistepScheduler": Scheduler("dpm-solver++2m", 25),
    "DPMSolverSinglestepScheduler": Scheduler("dpm-solver++2m", 25),
    "DEISMultistepScheduler": Scheduler("dpm-solver++2m", 25),
    "UniPCMultistepScheduler": Scheduler("dpm-solver++2m", 25),
    "LMSDiscreteScheduler": Scheduler("dpm-solver++2m", 50),
    "EulerDiscreteScheduler": Scheduler("ddim", 50),
    "EulerAncestralDiscreteScheduler": Scheduler("ancestral", 100),
    "HeunDiscreteScheduler": Scheduler("heun", 25, betas=_LATENT),
    "KDPM2DiscreteScheduler": Scheduler("heun", 25, betas=_LATENT),
    "KDPM2AncestralDiscreteScheduler": Scheduler("ancestral", 100, betas=_LATENT),
    "EDMEulerScheduler": Scheduler("ddim", 50, "karras", edm=True),
    "EDMDPMSolverMultistepScheduler": Scheduler("dpm-solver++2m", 25, "karras", edm=True),
    "LCMScheduler": Scheduler("consistency", 4, betas=_LATENT),
    "TCDScheduler": Scheduler("tcd", 4, betas=_LATENT),
    "CMStochasticIterativeScheduler": Scheduler("consistency", 1, "karras"),
    "FlowMatchEulerDiscreteScheduler": Scheduler("ddim", 50),
    "IPNDMScheduler": Scheduler("dpm-solver++2m", 50),
    "ScoreSdeVeScheduler": Scheduler("predictor-corrector", 1000),
}


@dataclass(frozen=True)
class Network:
    """What must be known of a network to use it.

    Attributes:
        channels: of its input and output.
        time: "positional", "learned" or "fourier".
        timesteps: how many it knows, if it has learnt an embedding of each.
        label: the class asked for; ``null`` is the class that means none; ``guidance`` the scale.
        variance: whether it also predicts a variance, whatever the scheduler says.
    """

    module: nn.Module
    channels: tuple[int, int]
    time: str = "positional"
    timesteps: int | None = None
    label: int | None = None
    null: int | None = None
    guidance: float = 1.0
    variance: bool = False


def complete(config: Mapping[str, object]) -> dict[str, object]:
    """The configuration, completed with the defaults of its class.

    Raises:
        ModelError: the class is not known.
    """
    name = config.get("_class_name")
    if not isinstance(name, str) or name not in SCHEDULERS:
        raise ModelError(
            f"the scheduler is of class {short(name)}, whose noise is not known here; if you know it, audit "
            "the network in Python (latentprint.adapters.from_module), or save it with a scheduler of the "
            f"same noise that is known: {some(SCHEDULERS, name)}"
        )
    if config.get("use_flow_sigmas") and config.get("prediction_type") != "flow_prediction":
        raise ModelError(
            f"{name} walks the path of flow matching (use_flow_sigmas), but its prediction_type is "
            f"{short(config.get('prediction_type'))} and not flow_prediction"
        )
    first, last = SCHEDULERS[name].betas
    return {"beta_start": first, "beta_end": last} | dict(config)


def denoiser_of(network: Network, scheduler: Mapping[str, object]) -> tuple[Denoiser, tuple[str, ...]]:
    """The network with its noise, and notes.

    Raises:
        ModelError: contradictory or unsupported settings.
    """
    name = cast(str, scheduler["_class_name"])
    given, gives = network.channels
    learned = network.variance or scheduler.get("variance_type") in ("learned", "learned_range")
    if gives != given * (2 if learned else 1):
        cause = (
            "it is conditioned on an image (a mask, a lower resolution) that comes with its input, and "
            "what it "
            "is conditioned on is not part of its files; generate images as you would publish them and audit "
            "these: --samples FOLDER"
            if given > gives
            else "which is neither a prediction nor one with a variance"
        )
        raise ModelError(f"the network takes {given} channels and gives {gives}: {cause}")
    if name == "FlowMatchEulerDiscreteScheduler" or scheduler.get("use_flow_sigmas"):
        scale = float(
            whole_number(scheduler.get("num_train_timesteps", 1000), "num_train_timesteps", 1, 100_000)
        )
        flow = DiscreteDenoiser(network.module, Flow(), "flow", network.label, scale=scale)
        return _guided(flow, network), ()
    if name == "IPNDMScheduler":
        if scheduler.get("trained_betas") is not None:
            raise ModelError("an IPNDMScheduler with trained_betas is not understood; only its own noise is")
        turning = DiscreteDenoiser(network.module, Cosine(), "v", network.label, scale=1.0)
        return _guided(turning, network), ()
    if name == "CMStochasticIterativeScheduler":
        return _consistency(network, scheduler)
    if name == "ScoreSdeVeScheduler":
        return _score(network, scheduler)
    predicts = _prediction(scheduler)
    kind = SCHEDULERS[name]
    if kind.edm or scheduler.get("timestep_type") == "continuous":
        if network.time == "learned" or learned:
            raise ModelError(
                "a network of continuous noise levels needs a positional time embedding, one output"
            )
        return _karras(network.module, scheduler, kind, predicts, network.label), ()
    return _discrete(network, scheduler, predicts, learned)


def _prediction(scheduler: Mapping[str, object]) -> Predicts:
    prediction = scheduler.get("prediction_type", "epsilon")
    if not isinstance(prediction, str) or prediction not in PREDICTIONS:
        raise ModelError(f"prediction_type must be one of {', '.join(PREDICTIONS)}, got {short(prediction)}")
    return PREDICTIONS[prediction]


def _discrete(
    network: Network, scheduler: Mapping[str, object], predicts: Predicts, learned: bool
) -> tuple[Denoiser, tuple[str, ...]]:
    name = cast(str, scheduler["_class_name"])
    levels = alphas_cumprod(scheduler)
    schedule = discrete_schedule(levels, predicts)
    notes = tuple[str, ...]()
    if schedule.timesteps < len(levels):
        notes += ("sampling starts one timestep below zero SNR, where a model of epsilon says nothing",)
    clip = None
    if scheduler.get("clip_sample", SCHEDULERS[name].clips):
        clip = number(scheduler.get("clip_sample_range", 1.0), "clip_sample_range", 1e-6, 1e6)
        notes += (f"the denoised image is clipped to [-{clip:g}, {clip:g}], as the model's scheduler does",)
    if scheduler.get("thresholding"):
        notes += ("the scheduler's dynamic thresholding is left out",)
    if learned:
        notes += ("the variance that the network has learned is used by its own sampler only",)
    rounds = network.time == "learned"
    if rounds:
        most = whole_number(network.timesteps, "num_train_timesteps", 1, 100_000)
        if most < schedule.timesteps:
            raise ModelError(f"the U-Net knows {most} timesteps, its scheduler has {schedule.timesteps}")
        notes += ("the network knows whole timesteps only; others are rounded",)
    scaling = None
    if name == "LCMScheduler":
        scaling = number(scheduler.get("timestep_scaling", 10.0), "timestep_scaling", 1e-6, 1e6)
    made = DiscreteDenoiser(network.module, schedule, predicts, network.label, clip, rounds, boundary=scaling)
    return _guided(made, network), notes


def _guided(denoiser: DiscreteDenoiser, network: Network) -> DiscreteDenoiser:
    if network.guidance == 1.0:
        return denoiser
    if network.null is None:
        raise ModelError(
            "guidance needs a class that means “no class”, and this network has none; leave --guidance out"
        )
    return replace(denoiser, guidance=network.guidance, null=network.null)


def _consistency(network: Network, config: Mapping[str, object]) -> tuple[Denoiser, tuple[str, ...]]:
    low, high = _range(config, (0.002, 80.0))
    data = number(config.get("sigma_data", 0.5), "sigma_data", 1e-6, 1e6)
    clip = 1.0 if config.get("clip_denoised", True) else None
    notes = ("a consistency model: what it denoises to at once is the image itself",)
    return ConsistencyDenoiser(network.module, EDM(low, high), data, low, network.label, clip), notes


def _score(network: Network, config: Mapping[str, object]) -> tuple[Denoiser, tuple[str, ...]]:
    low, high = _range(config, (0.01, 1348.0))
    if network.time != "fourier" or network.label is not None:
        raise ModelError("a score model of ScoreSdeVe has a Fourier embedding of sigma and no class")
    schedule = VE(low, high)
    return FunctionDenoiser(network.module, schedule, "score", schedule.sigma), ()


def _range(config: Mapping[str, object], usual: tuple[float, float]) -> tuple[float, float]:
    given = config.get("sigma_min"), config.get("sigma_max")
    low = number(usual[0] if given[0] is None else given[0], "sigma_min", 1e-9, 1e6)
    high = number(usual[1] if given[1] is None else given[1], "sigma_max", 1e-9, 1e6)
    if not low < high:
        raise ModelError(f"sigma_min must lie below sigma_max, got {low:g} and {high:g}")
    return low, high


class _Negated(nn.Module):
    """A network whose output enters D with the opposite sign (v-prediction in the space of Karras et al.)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, time: Tensor, class_labels: Tensor | None = None) -> Tensor:
        return -self.network(x, time, class_labels=class_labels).sample


def _karras(
    network: nn.Module, config: Mapping[str, object], kind: Scheduler, predicts: Predicts, label: int | None
) -> NetworkDenoiser:
    """A network preconditioned as in Karras et al. 2022; diffusers uses the opposite sign of c_out for v."""
    if predicts == "sample" or (not kind.edm and predicts != "v"):
        raise ModelError(f"prediction {predicts!r} with continuous noise levels is not supported")
    sigmas = (0.002, 80.0)
    if not kind.edm:  # Euler with timestep_type "continuous": the same with sigma_data = 1
        levels = alphas_cumprod({**config, "rescale_betas_zero_snr": False}).double()
        both = np.sqrt((1 - levels[[0, -1]]) / levels[[0, -1]])
        sigmas = (float(both[0]), float(both[1]))
    low, high = _range(config, sigmas)
    data = number(config.get("sigma_data", 0.5), "sigma_data", 1e-6, 1e6) if kind.edm else 1.0
    signed = _Negated(network) if predicts == "v" else network
    return NetworkDenoiser(signed, EDM(low, high), "edm", data, label)


def mu_of(config: Mapping[str, object], shape: tuple[int, ...], patch: int) -> float | None:
    """The time shift of a flow that depends on resolution: a straight line in the number of patches."""
    if not config.get("use_dynamic_shifting"):
        return None
    patches = (shape[1] // patch) * (shape[2] // patch)
    few, many = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    low, high = (
        number(config.get(key, usual), key, -100.0, 100.0)
        for key, usual in (("base_shift", 0.5), ("max_shift", 1.15))
    )
    first, last = (number(one, "an image_seq_len", 1, 1e9) for one in (few, many))
    return low + (high - low) * (patches - first) / max(1.0, last - first)


def hint(config: Mapping[str, object], denoiser: Denoiser) -> dict[str, object]:
    """Our sampler nearest to the scheduler."""
    kind = SCHEDULERS[cast(str, config["_class_name"])]
    discrete = isinstance(denoiser, DiscreteDenoiser)
    # at zero SNR a grid in powers of sigma / alpha would spend most of its steps on pure noise
    asked = bool(config.get("use_karras_sigmas")) and not config.get("rescale_betas_zero_snr")
    step, steps = kind.step, kind.steps
    if step == "dpm-solver++2m" and draws_noise(config):
        step = "sde-dpm-solver++2m"
    if isinstance(denoiser, DiscreteDenoiser) and isinstance(denoiser.schedule, DiscreteSchedule):
        steps = min(steps, denoiser.schedule.timesteps - 1)
    return {"step": step, "steps": steps, "spacing": "karras" if asked or not discrete else kind.spacing}
