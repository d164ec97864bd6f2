"""Models saved by diffusers: a pipeline's folder, or a U-Net with the configuration of a scheduler.

    model_index.json                     the pipeline's class and parts (optional: the folders suffice)
    unet/config.json, *.safetensors      a UNet2DModel, unconditional or conditional on a class
    scheduler/scheduler_config.json      which noise, and what the network predicts
    vae/ or vqvae/                       an AutoencoderKL or a VQModel, for a latent model (optional)

or, without folders, config.json, *.safetensors and scheduler_config.json side by side. Classes come from
literal tables; nothing is imported by a name that a file gives, and no code of the folder is ever run. The
network is given the timestep k = N t - 1 of ``DiscreteSchedule`` (fractions between timesteps, as diffusers'
Euler scheduler gives).

Sources: diffusers' schedulers (for the meaning of their settings); Karras et al. 2022 for the EDM schedulers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from latentprint.adapters.build import read_network, sides
from latentprint.adapters.discrete import DiscreteSchedule, alphas_cumprod, discrete_schedule
from latentprint.adapters.fields import number, short, whole
from latentprint.adapters.files import files_sha256, inside, read_json, subfolder
from latentprint.adapters.latent import LatentCodec
from latentprint.adapters.opened import Opened
from latentprint.denoiser import (
    Codec,
    Denoiser,
    IdentityCodec,
    NetworkDenoiser,
    denoised_from_epsilon,
    denoised_from_v,
)
from latentprint.networks import ModelError
from latentprint.schedule import EDM

INDEX = "model_index.json"
SCHEDULER = "scheduler_config.json"

_PIPELINES = ("DDPMPipeline", "DDIMPipeline", "PNDMPipeline", "LDMPipeline", "DiffusionPipeline")
_PARTS: dict[str, tuple[str, ...]] = {
    "unet": ("UNet2DModel",),
    "vae": ("AutoencoderKL", "VQModel"),
    "vqvae": ("AutoencoderKL", "VQModel"),
}
_PREDICTIONS: dict[str, Predicts] = {"epsilon": "epsilon", "v_prediction": "v", "sample": "sample"}

Predicts = Literal["epsilon", "v", "sample"]


@dataclass(frozen=True)
class _Scheduler:
    """What a scheduler class means where its configuration is silent, and our sampler nearest to it."""

    step: str
    steps: int
    spacing: str = "uniform"
    clips: bool = False
    betas: tuple[float, float] = (1e-4, 0.02)
    edm: bool = False


_SCHEDULERS: dict[str, _Scheduler] = {
    "DDPMScheduler": _Scheduler("ancestral", 999, clips=True),
    "DDIMScheduler": _Scheduler("ddim", 50, clips=True),
    "DDPMParallelScheduler": _Scheduler("ancestral", 999, clips=True),
    "DDIMParallelScheduler": _Scheduler("ddim", 50, clips=True),
    "SASolverScheduler": _Scheduler("dpm-solver++2m", 50),
    "PNDMScheduler": _Scheduler("dpm-solver++2m", 50),
    "DPMSolverMultistepScheduler": _Scheduler("dpm-solver++2m", 25),
    "DPMSolverSinglestepScheduler": _Scheduler("dpm-solver++2m", 25),
    "DEISMultistepScheduler": _Scheduler("dpm-solver++2m", 25),
    "UniPCMultistepScheduler": _Scheduler("dpm-solver++2m", 25),
    "LMSDiscreteScheduler": _Scheduler("dpm-solver++2m", 50),
    "EulerDiscreteScheduler": _Scheduler("ddim", 50),
    "EulerAncestralDiscreteScheduler": _Scheduler("ancestral", 100),
    "HeunDiscreteScheduler": _Scheduler("heun", 25, betas=(0.00085, 0.012)),
    "KDPM2DiscreteScheduler": _Scheduler("heun", 25, betas=(0.00085, 0.012)),
    "KDPM2AncestralDiscreteScheduler": _Scheduler("ancestral", 100, betas=(0.00085, 0.012)),
    "EDMEulerScheduler": _Scheduler("ddim", 50, "karras", edm=True),
    "EDMDPMSolverMultistepScheduler": _Scheduler("dpm-solver++2m", 25, "karras", edm=True),
}


@dataclass(frozen=True, eq=False)
class DiscreteDenoiser:
    """A network trained on discrete timesteps as a denoiser.

    Attributes:
        network: ``network(x, timestep)`` -> an object with the prediction as ``.sample``; (B, C, H, W) to the
            same, or to twice the channels, of which the second half (a learned variance) is left out.
        schedule: through the timesteps it was trained on.
        predicts: "epsilon", "v" or "sample".
        label: the class asked for, where the network is conditional on one.
        clip: the image is kept in [-clip, clip], as its scheduler does; None leaves it as it is.
        whole_timesteps: whether the network knows whole timesteps only; others are rounded.
    """

    network: nn.Module
    schedule: DiscreteSchedule
    predicts: Predicts
    label: int | None = None
    clip: float | None = None
    whole_timesteps: bool = False

    def __call__(self, x: Tensor, t: Tensor, /) -> Tensor:
        timestep = self.schedule.timestep(t).to(x.device)
        timestep = timestep.round().long() if self.whole_timesteps else timestep.to(x.dtype)
        given: dict[str, Tensor] = {}
        if self.label is not None:
            given["class_labels"] = torch.full((len(x),), self.label, dtype=torch.int64, device=x.device)
        out = cast(Tensor, self.network(x, timestep.expand(len(x)), **given).sample)
        out = out[:, : x.shape[1]].to(x.dtype)
        if self.predicts == "epsilon":
            out = denoised_from_epsilon(self.schedule, x, out, t)
        elif self.predicts == "v":
            out = denoised_from_v(self.schedule, x, out, t)
        return out if self.clip is None else out.clamp(-self.clip, self.clip)


class _Negated(nn.Module):
    """A network whose output enters D with the other sign (v-prediction in the space of Karras et al.)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, time: Tensor, class_labels: Tensor | None = None) -> Tensor:
        return -self.network(x, time, class_labels=class_labels).sample


def open_diffusers(folder: Path, *, label: int | None = None) -> Opened:
    """The model in ``folder``.

    Args:
        label: the class to audit, for a network that is conditional on one.

    Raises:
        ModelError: the folder holds a pickle instead of safetensors, custom code, another kind of model,
            settings that are not understood, or damaged files; or the label is missing, needless or unknown.
    """
    parts = _parts(folder)
    network, config, files = read_network(parts["unet"], ("UNet2DModel",))
    label = require_label(config.get("num_class_embeds"), label)
    scheduler = _scheduler_config(folder, parts["scheduler"])
    if config.get("sample_size") is None:
        raise ModelError("the U-Net's config.json must state its sample_size, the side of what it works on")
    channels, size = int(config["in_channels"]), sides(config["sample_size"])
    denoiser, notes = _denoiser(network, config, scheduler, label)
    shape = image_shape = (channels, *size)
    codec: Codec = IdentityCodec()
    networks = (network,)
    if "vae" in parts:
        autoencoder, vae_config, vae_files = read_network(parts["vae"], _PARTS["vae"])
        codec = LatentCodec.of(autoencoder, vae_config, shape)
        image_shape = codec.image_shape
        files, networks = files + vae_files, (network, autoencoder)
        notes += ("the model works on latents: images are encoded as the mean of the posterior",)
    root = folder.resolve()
    return Opened(
        denoiser=denoiser,
        codec=codec,
        shape=shape,
        image_shape=image_shape,
        sampler_hint=_hint(scheduler, denoiser),
        weights_sha256=files_sha256([file.resolve() for file in files], root),
        kind="diffusers latent" if "vae" in parts else "diffusers",
        notes=notes,
        networks=networks,
    )


def is_diffusers(folder: Path) -> bool:
    """Whether the folder is laid out as one of the module's text."""
    signs = (INDEX, "unet/config.json", SCHEDULER, f"scheduler/{SCHEDULER}")
    return any((folder / name).exists() for name in signs)


def _parts(folder: Path) -> dict[str, Path]:
    """The folders of "unet", "scheduler" and, for a latent model, "vae"."""
    if inside(folder, INDEX).is_file():
        _require_known(read_json(folder / INDEX))
    nested = subfolder(folder, "unet")
    unet = nested if nested.is_dir() else folder
    aside = subfolder(folder, "scheduler")
    found = {"unet": unet, "scheduler": aside if aside.is_dir() else folder}
    vaes = [path for name in ("vae", "vqvae") if (path := subfolder(folder, name)).is_dir()]
    if len(vaes) > 1:
        raise ModelError("a latent model has one autoencoder, but this folder holds both vae/ and vqvae/")
    return found | ({"vae": vaes[0]} if vaes else {})


def _require_known(index: Mapping[str, Any]) -> None:
    """Refuses pipelines and parts that are not in the tables."""
    name = index.get("_class_name")
    if not isinstance(name, str) or name not in _PIPELINES:
        raise ModelError(
            f"a pipeline of class {short(name)} is not understood, and custom pipeline code is never run; "
            "understood are "
            f"{', '.join(_PIPELINES)} with a UNet2DModel; any other model can be audited in Python with "
            "from_function"
        )
    for part, value in index.items():
        if part.startswith("_") or value is None or value == [None, None]:
            continue
        entry = cast(list[object], value) if isinstance(value, list) else []
        if len(entry) != 2:
            raise ModelError(
                f"part {short(part)} of {INDEX} must be a library and a class, got {short(value)}"
            )
        library, kind = entry
        if library != "diffusers":
            raise ModelError(
                f"part {short(part)} comes from {short(library)}: code and networks from outside diffusers "
                "are not run"
            )
        allowed = tuple(_SCHEDULERS) if part == "scheduler" else _PARTS.get(part)
        if allowed is None:
            raise ModelError(f"the pipeline's part {short(part)} is not understood")
        if kind not in allowed:
            raise ModelError(f"part {part!r} is of class {short(kind)}; understood are {', '.join(allowed)}")


def _scheduler_config(folder: Path, scheduler: Path) -> dict[str, Any]:
    file = inside(scheduler, SCHEDULER)
    if not file.is_file():
        raise ModelError(
            f"{str(folder)!r} holds no {SCHEDULER}, without which the noise the model was trained with is "
            "not known"
        )
    config = read_json(file)
    name = config.get("_class_name")
    if not isinstance(name, str) or name not in _SCHEDULERS:
        raise ModelError(
            f"a scheduler of class {short(name)} is not understood; known are {', '.join(_SCHEDULERS)}"
        )
    if config.get("use_flow_sigmas"):
        raise ModelError("a scheduler with use_flow_sigmas is not supported: its noise is not that of Eq. 2")
    first, last = _SCHEDULERS[name].betas
    return {"beta_start": first, "beta_end": last} | config


def require_label(classes: object, label: int | None) -> int | None:
    """The label, where it fits a network of so many classes (None: unconditional).

    Raises:
        ModelError: it is missing, needless or out of range.
    """
    if classes is None:
        if label is not None:
            raise ModelError(f"a label ({label}) was given, but the model is not conditional on a class")
        return None
    count = whole(classes, "num_class_embeds", 1, 10**6)
    if label is None:
        raise ModelError(f"the model is conditional on a class: give a label from 0 to {count - 1} (--label)")
    return whole(label, "the label", 0, count - 1)


def _denoiser(
    network: nn.Module, unet: Mapping[str, Any], scheduler: Mapping[str, Any], label: int | None
) -> tuple[Denoiser, tuple[str, ...]]:
    """The network with its noise, and notes."""
    prediction = scheduler.get("prediction_type", "epsilon")
    if not isinstance(prediction, str) or prediction not in _PREDICTIONS:
        raise ModelError(f"prediction_type must be one of {', '.join(_PREDICTIONS)}, got {short(prediction)}")
    predicts = _PREDICTIONS[prediction]
    channels = (unet["in_channels"], unet["out_channels"])
    learned = scheduler.get("variance_type") in ("learned", "learned_range")
    if channels[1] != channels[0] * (2 if learned else 1):
        raise ModelError(
            f"the U-Net takes {channels[0]} channels and gives {channels[1]}, which is not understood"
        )
    kind = _SCHEDULERS[cast(str, scheduler["_class_name"])]
    if kind.edm or scheduler.get("timestep_type") == "continuous":
        if unet["time_embedding_type"] == "learned" or learned:
            raise ModelError(
                "a network of continuous noise levels needs a positional time embedding, one output"
            )
        return _karras(network, scheduler, kind, predicts, label), ()
    levels = alphas_cumprod(scheduler)
    schedule = discrete_schedule(levels, predicts)
    notes = tuple[str, ...]()
    if schedule.timesteps < len(levels):
        notes += ("sampling starts one timestep below zero SNR, where a model of epsilon says nothing",)
    clip = None
    if scheduler.get("clip_sample", kind.clips):
        clip = number(scheduler.get("clip_sample_range", 1.0), "clip_sample_range", 1e-6, 1e6)
        notes += (f"the denoised image is clipped to [-{clip:g}, {clip:g}], as the model's scheduler does",)
    if scheduler.get("thresholding"):
        notes += ("the scheduler's dynamic thresholding is left out",)
    if learned:
        notes += ("the variance that the network has learned is left out; samplers use the posterior's",)
    rounds = unet["time_embedding_type"] == "learned"
    if rounds:
        most = whole(unet["num_train_timesteps"], "num_train_timesteps", 1, 100_000)
        if most < schedule.timesteps:
            raise ModelError(f"the U-Net knows {most} timesteps, its scheduler has {schedule.timesteps}")
        notes += ("the network knows whole timesteps only; others are rounded",)
    return DiscreteDenoiser(network, schedule, predicts, label, clip, rounds), notes


def _karras(
    network: nn.Module, config: Mapping[str, Any], kind: _Scheduler, predicts: Predicts, label: int | None
) -> NetworkDenoiser:
    """A network preconditioned as Karras et al. 2022; diffusers gives c_out the other sign for v."""
    if predicts == "sample" or (not kind.edm and predicts != "v"):
        raise ModelError(f"prediction {predicts!r} with continuous noise levels is not supported")
    sigmas = (0.002, 80.0)
    if not kind.edm:  # Euler with timestep_type "continuous": the same with sigma_data = 1
        levels = alphas_cumprod({**config, "rescale_betas_zero_snr": False}).double()
        sigmas = tuple(((1 - levels[[0, -1]]) / levels[[0, -1]]).sqrt().tolist())
    given = (config.get("sigma_min"), config.get("sigma_max"))
    low = number(sigmas[0] if given[0] is None else given[0], "sigma_min", 1e-9, 1e6)
    high = number(sigmas[1] if given[1] is None else given[1], "sigma_max", 1e-9, 1e6)
    if not low < high:
        raise ModelError(f"sigma_min must lie below sigma_max, got {low:g} and {high:g}")
    data = number(config.get("sigma_data", 0.5), "sigma_data", 1e-6, 1e6) if kind.edm else 1.0
    signed = _Negated(network) if predicts == "v" else network
    return NetworkDenoiser(signed, EDM(low, high), "edm", data, label)


def _hint(config: Mapping[str, Any], denoiser: Denoiser) -> dict[str, Any]:
    kind = _SCHEDULERS[cast(str, config["_class_name"])]
    # at zero SNR a grid in powers of sigma / alpha would spend most of its steps on pure noise
    asked = bool(config.get("use_karras_sigmas")) and not config.get("rescale_betas_zero_snr")
    karras = asked or not isinstance(denoiser, DiscreteDenoiser)
    steps = kind.steps
    if isinstance(denoiser, DiscreteDenoiser):
        steps = min(steps, denoiser.schedule.timesteps - 1)
    return {"step": kind.step, "steps": steps, "spacing": "karras" if karras else kind.spacing}
