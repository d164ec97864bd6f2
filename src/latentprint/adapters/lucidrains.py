"""Models of denoising-diffusion-pytorch (lucidrains), as written by ``latentprint convert model-N.pt
FOLDER``.

    lucidrains.json     {"format": "latentprint-lucidrains/1", "network": {...}, "predicts": "v", "betas": []}
    *.safetensors       the EMA weights of its Unet, by its own names

A checkpoint states no settings, but they follow from the tensors: widths from their shapes, heads from
``mem_kv``, the noise from the buffer ``betas``, and the prediction from ``loss_weight``, which is

    pred_noise 1,   pred_x0 snr,   pred_v snr / (snr + 1)       (min_snr_loss_weight: snr capped at 5)

Its own sampler is DDPM's posterior at every timestep, the image clipped to [-1, 1]. Where fewer steps are
asked for, the posterior between as many timesteps is the nearest to it.

Sources: denoising-diffusion-pytorch 2.x (MIT), GaussianDiffusion and Unet; Hang et al. 2023 (min-SNR).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from latentprint.adapters.discrete import discrete_schedule
from latentprint.adapters.fields import (
    Field,
    a_flag,
    a_whole,
    number,
    one_of,
    read_fields,
    several,
    short,
)
from latentprint.adapters.files import files_sha256, inside, load_into, read_json, read_tensors, weight_files
from latentprint.adapters.opened import Asked, Opened, written_down
from latentprint.adapters.own import Own
from latentprint.adapters.statedict import Groups, Parts, Tensors, Told, require_steps, shapes_of, without
from latentprint.adapters.timesteps import DiscreteDenoiser, Predicts
from latentprint.denoiser import IdentityCodec
from latentprint.files import Raw
from latentprint.networks import ModelError
from latentprint.sampler import Ancestral, Sampler

CONFIG = "lucidrains.json"
FORMAT = "latentprint-lucidrains/1"

_UNET: dict[str, Field] = {
    "dim": a_whole(1, 8192),
    "init_dim": a_whole(1, 8192),
    "dim_mults": several(a_whole(1, 256), 1, 8),
    "channels": a_whole(1, 64),
    "attn_dim_head": a_whole(1, 1024),
    "attn_heads": a_whole(1, 256),
    "full_attn": several(a_flag, 1, 8),
}
_MIN_SNR = 5.0
_CLOSE = 1e-3


def converted(groups: Groups, told: Told) -> Parts | None:
    """The folder that a checkpoint becomes; None if it is not one of this trainer."""
    averaged, plain = without("ema_model.", groups.get("ema", {})), groups.get("model", {})
    whose = told.take or "ema / ema_model.model"
    if told.how is not None:
        chosen, how, whose = groups[""], told.how, "model"
        if not _is_checkpoint(chosen):
            return None
    elif told.take is not None:
        chosen, how = groups.get("" if told.take == "top" else told.take, {}), "not averaged, as you asked"
        if not _is_checkpoint(chosen):
            return None
    elif _is_checkpoint(averaged):
        steps = groups["ema"].get("step")
        require_steps(steps)
        chosen = averaged
        how = "averaged (EMA)" + ("" if steps is None else f", after {int(steps):,} steps")
    elif found := [name for name, one in groups.items() if _is_checkpoint(one)]:
        raise ModelError(
            "it looks like a checkpoint of denoising-diffusion-pytorch without its EMA (no 'ema'), from "
            "which its trainer samples; if these are the weights you mean to publish, name them: --take "
            f"{found[0] or 'top'}"
        )
    else:
        return None
    settings, weights = settings_of(chosen), without("model.", chosen)
    network = cast(Raw, settings["network"])
    said = (
        f"denoising-diffusion-pytorch (lucidrains): taken are {len(weights)} tensors of {whose}, {how}",
        f"dim {network['dim']}, dim_mults {tuple(network['dim_mults'])}, {network['channels']} channels; "
        f"it predicts {settings['predicts']} over {len(settings['betas'])} timesteps (from its buffers)",
        f"left: {f'{len(plain)} tensors that are not averaged and ' * (not told.take)}all else",
    )
    return Parts({CONFIG: settings}, {"": weights}, said)


def _is_checkpoint(names: Tensors) -> bool:
    """Whether these are the tensors of its GaussianDiffusion."""
    return "betas" in names and "model.init_conv.weight" in names


def settings_of(tensors: Tensors) -> Raw:
    """The content of ``lucidrains.json``, from the tensors of a GaussianDiffusion (without a prefix)."""
    unet = without("model.", tensors)
    dim = int(unet["time_mlp.1.weight"].shape[1])
    if "time_mlp.0.weights" in unet:
        raise ModelError("its network has learned or random Fourier times, which are not supported here")
    mults, full = list[int](), list[bool]()
    heads, width = 4, 32
    while (level := len(mults)) < 16 and any(name.startswith(f"downs.{level}.") for name in unet):
        last = next(unet[n] for n in (f"downs.{level}.3.1.weight", f"downs.{level}.3.weight") if n in unet)
        if int(last.shape[0]) % dim:
            raise ModelError(
                f"its widths are not multiples of {dim}, so they are not those of a Unet of its kind"
            )
        mults.append(int(last.shape[0]) // dim)
        full.append(f"downs.{level}.2.to_out.0.weight" not in unet)
        memory = unet.get(f"downs.{level}.2.mem_kv")
        if memory is None:
            raise ModelError(
                "it was trained by version 1.8 or older of the library, which had another network"
            )
        heads, width = int(memory.shape[1]), int(memory.shape[3 if full[-1] else 2])
    channels = int(unet["init_conv.weight"].shape[1])
    out = int(unet["final_conv.weight"].shape[0])
    if channels != out:
        raise ModelError(
            f"its network takes {channels} channels and gives {out}: self-conditioning and learned variances "
            "keep state or predict more than an image, and are not audited"
        )
    return {
        "format": FORMAT,
        "network": {
            "dim": dim,
            "init_dim": int(unet["init_conv.weight"].shape[0]),
            "dim_mults": mults,
            "channels": channels,
            "attn_dim_head": width,
            "attn_heads": heads,
            "full_attn": full,
        },
        "predicts": _objective(tensors),
        "betas": tensors["betas"].double().tolist(),
    }


def _objective(tensors: Tensors) -> Predicts:
    abar = tensors["alphas_cumprod"].double()
    snr, weight = abar / (1 - abar), tensors.get("loss_weight")
    if weight is None:
        raise ModelError(
            "it was trained by an older version of the library, whose file does not say what the network "
            "predicts (no loss_weight); save it again with version 1 or newer"
        )
    found = set[Predicts]()
    for cut in (snr, snr.clamp(max=_MIN_SNR)):
        objectives: dict[Predicts, Tensor] = {"epsilon": cut / snr, "sample": cut, "v": cut / (snr + 1)}
        found |= {
            name
            for name, one in objectives.items()
            if torch.allclose(weight.double(), one, rtol=_CLOSE, atol=1e-12)
        }
    if len(found) != 1:
        raise ModelError(
            "its loss_weight is not one that latentprint knows, so what the network predicts is not known"
        )
    return found.pop()


def open_lucidrains(folder: Path, asked: Asked) -> Opened:
    """The model of a folder with a ``lucidrains.json``."""
    config = read_json(inside(folder, CONFIG))
    if config.get("format") != FORMAT:
        raise ModelError(f"{CONFIG} must be of format {FORMAT!r}, got {short(config.get('format'))}")
    if asked.label is not None or asked.guidance is not None:
        raise ModelError("a label or guidance was given, but the model is not conditional on a class")
    if asked.images is None:
        raise ModelError("this network does not state the size of its images: open it with some of them")
    inner = config.get("network")
    settings = read_fields(
        cast(dict[str, object], inner) if isinstance(inner, dict) else {}, _UNET, "network"
    )
    predicts = cast(Predicts, one_of("epsilon", "v", "sample")(config.get("predicts"), "predicts"))
    stated = config.get("betas")
    betas = cast(list[object], stated) if isinstance(stated, list) else []
    levels = torch.cumprod(1 - torch.tensor([number(one, "a beta", 0.0, 1.0) for one in betas]), dim=0)
    network, files = _network(folder, settings)
    schedule = discrete_schedule(levels, predicts)
    denoiser = DiscreteDenoiser(network, schedule, predicts, clip=1.0, whole_timesteps=True)
    shape = tuple(asked.images().shape[1:])
    if shape[0] != settings["channels"]:
        raise ModelError(
            f"the network takes {settings['channels']} channels, the training images have {shape[0]}"
        )
    return Opened(
        denoiser=denoiser,
        codec=IdentityCodec(),
        shape=shape,
        image_shape=shape,
        sampler_hint={"step": "ancestral", "steps": schedule.timesteps - 1, "spacing": "uniform"},
        weights_sha256=files_sha256([file.resolve() for file in files], folder.resolve()),
        kind="denoising-diffusion-pytorch",
        notes=(
            "the denoised image is clipped to [-1, 1], as GaussianDiffusion does",
            "images were taken to be in [0, 1] before its auto_normalize, and times to have theta = 10,000,"
            " the library's defaults, which its checkpoints do not state",
        ),
        networks=(network,),
        identity={"schedule": written_down(schedule), "predicts": predicts},
        own=_own(denoiser, schedule.timesteps, asked),
    )


def _own(denoiser: DiscreteDenoiser, n: int, asked: Asked) -> Own:
    """The posterior at each of the n timesteps, or at fewer, which the library does not do by it."""
    count = asked.steps or min(n, asked.most or n)
    if count > n:
        raise ModelError(f"the model has {n} timesteps, and {count} steps were asked for")
    kept = torch.linspace(n - 1, 0, count, dtype=torch.float64).round()
    at, every = tuple(((kept + 1) / n).tolist()), count == n
    of = "GaussianDiffusion" if every else "nearest to GaussianDiffusion"
    return Own(Sampler(Ancestral(), count - 1, at=at, of=of), denoiser, every, n)


def _network(folder: Path, settings: Mapping[str, object]) -> tuple[nn.Module, list[Path]]:
    try:
        from denoising_diffusion_pytorch import Unet  # pyright: ignore[reportMissingTypeStubs]
    except ImportError as error:
        raise ModelError(
            "the folder holds a Unet of denoising-diffusion-pytorch: pip install "
            "'latentprint[lucidrains]' lets "
            "it be audited"
        ) from error
    kind, files = cast(Any, Unet), weight_files(folder)
    try:
        with torch.device("meta"):
            blank = cast(nn.Module, kind(**settings))
        expected = shapes_of(blank.state_dict())
    except Exception as error:  # the library's constructors raise errors of any type
        raise ModelError(f"the settings of the network do not fit together: {short(error)}") from error
    tensors = read_tensors(files, expected)
    with torch.random.fork_rng(devices=[]):  # it draws weights, which are replaced at once
        network = cast(nn.Module, kind(**settings))
    return load_into(network, tensors), files
