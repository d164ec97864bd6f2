"""Models of medfusion, as written by ``latentprint convert last.ckpt FOLDER``.

    medfusion.json      {"format": "latentprint-medfusion/1", "network": {...}, "autoencoder": {...} or null,
                         "predicts": "epsilon" or "sample", "clip": 1.0 or null, "betas": []}
    *.safetensors       the weights of its U-Net, averaged ones where it has them;  vae/*.safetensors  of its
                        VAE, VQVAE, or those within a VAEGAN

Shapes follow from the tensors. The prediction, clipping and strides follow from the settings that Lightning
stored with them (or --flags). Its own sampler is that of its DiffusionPipeline: DDIM with eta = 1 at all of
its timesteps, the noise of the image before clipping. Latents are the mean, not scaled.

Source: medfusion (MIT), DiffusionPipeline, GaussianNoiseScheduler, UNet, VAE; Mueller-Franzes et al. 2023.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from latentprint.adapters.discrete import discrete_schedule
from latentprint.adapters.fields import (
    Field,
    a_flag,
    a_whole,
    maybe,
    number,
    one_of,
    read_fields,
    several,
    short,
)
from latentprint.adapters.files import files_sha256, inside, load_into, read_json, read_tensors, weight_files
from latentprint.adapters.opened import Asked, Opened, written_down
from latentprint.adapters.own import Own
from latentprint.adapters.statedict import (
    Groups,
    Parts,
    Tensors,
    Told,
    plain_below,
    require_shapes,
    shapes_of,
    without,
)
from latentprint.adapters.timesteps import DiscreteDenoiser, Predicts, require_label
from latentprint.denoiser import Codec, IdentityCodec
from latentprint.files import Raw
from latentprint.networks import ModelError
from latentprint.networks.medfusion import MedfusionAutoencoder, MedfusionUNet
from latentprint.sampler import Ancestral, Sampler

CONFIG = "medfusion.json"
FORMAT = "latentprint-medfusion/1"

_LEVELS: dict[str, Field] = {
    "dims": a_whole(2, 3),
    "widths": several(a_whole(1, 8192), 1, 8),
    "kernels": several(a_whole(1, 7), 1, 8),
    "strides": several(a_whole(1, 4), 1, 8),
    "groups": a_whole(1, 1024),
    "residual": a_flag,
}
_UNET: dict[str, Field] = _LEVELS | {
    "in_channels": a_whole(1, 64),
    "out_channels": a_whole(1, 128),
    "blocks": a_whole(1, 16),
    "waves": a_whole(4, 8192),
    "told": a_whole(1, 8192),
    "classes": maybe(a_whole(1, 10**6)),
}
_AUTOENCODER: dict[str, Field] = _LEVELS | {
    "channels": a_whole(1, 64),
    "latents": a_whole(1, 64),
    "codes": maybe(a_whole(1, 10**6)),
}
_OBJECTIVES: dict[str, Predicts] = {"x_T": "epsilon", "x_0": "sample"}
_GROUPS = {"unet": 32, "vae": 8, "vqvae": 32}
_INNER = ("noise_estimator_kwargs", "noise_scheduler_kwargs")
_ASKED = ("estimator_objective", "clip_x0", "do_input_centering")


def converted(groups: Groups, told: Told) -> Parts | None:
    """The folder that a checkpoint becomes; None if it is not one of medfusion."""
    found = [name for name, one in groups.items() if "noise_estimator.in_conv.conv.weight" in one]
    if len(found) != 1:
        return None
    every = groups[found[0]]
    mean = without("ema_model.averaged_model.", every)
    weights = mean or without("noise_estimator.", every)
    settings = _settings(told)
    lacking = [name for name in _ASKED if name not in settings]
    if lacking:
        raise ModelError(
            f"{told.name!r} looks like a model of medfusion without the settings that Lightning keeps beside "
            f'it: say them with --flags "{" ".join(f"--{name} ..." for name in lacking)}" (x_T or x_0; True '
            "or False)"
        )
    predicts = _OBJECTIVES[one_of(*_OBJECTIVES)(settings["estimator_objective"], "estimator_objective")]
    clips = a_flag(settings["clip_x0"], "clip_x0")
    betas = every.get("noise_scheduler.betas")
    if betas is None:
        raise ModelError("it holds no noise_scheduler.betas, without which its noise is not known")
    if settings.get("T", len(betas)) != len(betas):
        raise ModelError(f"its noise stops at T = {short(settings['T'])} of {len(betas)} timesteps: not read")
    network, weights = _unet(weights, settings)
    config: Raw = {
        "format": FORMAT,
        "network": network,
        "autoencoder": None,
        "predicts": predicts,
        "clip": 1.0 if clips else None,
        "betas": betas.double().tolist(),
    }
    parts: dict[str, Tensors] = {"": weights}
    what = "a model of pixels"
    inner = without("latent_embedder.", every)
    inner = without("vqvae.", inner) or inner
    if inner:
        if a_flag(settings["do_input_centering"], "do_input_centering"):
            raise ModelError(
                "its latents were centred for training (do_input_centering), which its own sampling does not "
                "undo; audit what it generates: --samples FOLDER"
            )
        config["autoencoder"], parts["vae"] = _autoencoder(inner, settings)
        codes = config["autoencoder"]["codes"]
        what = "with its " + ("VAE" if codes is None else f"VQVAE of {codes} codes")
        what += f", whose {config['autoencoder']['groups']} groups are its code's default"
    said = (
        f"medfusion: taken are {len(weights)} tensors of its U-Net, "
        f"{'averaged (EMA)' if mean else 'not averaged: it has no EMA'}; {what}",
        f"widths {tuple(network['widths'])}, {network['classes'] or 'no'} classes, {len(betas)} timesteps "
        f"(from its tensors); it predicts {settings['estimator_objective']}, images are "
        f"{'' if clips else 'not '}clipped (from its settings)",
        f"left: {'the weights that are not averaged, ' if mean else ''}its losses and what else it holds",
    )
    return Parts({CONFIG: config}, parts, said)


def _settings(told: Told) -> Raw:
    """Plain settings of its DiffusionPipeline, of its network and noise, by name; --flags override them."""
    inner = [plain_below(told.plain, "hyper_parameters", one) for one in _INNER]
    return {**inner[0], **inner[1], **plain_below(told.plain, "hyper_parameters"), **(told.flags or {})}


def _require_no_attention(shape: Mapping[str, tuple[int, ...]]) -> None:
    if any(".to_q." in name for name in shape):
        raise ModelError(
            "its networks attend (use_attention), which this converter does not read: make the network by "
            "medfusion's code in a function of yours: --model package.module:factory --i-trust-this-code"
        )


def _unit(residual: bool) -> str:
    """The place of a block's first convolution."""
    return f"block_seq.0.{'basic_block.' * residual}conv.weight"


def _unet(weights: Tensors, settings: Mapping[str, Any]) -> tuple[Raw, Tensors]:
    """(the settings of its U-Net, its tensors without those that only its training uses)."""
    shape = shapes_of(weights)
    _require_no_attention(shape)
    residual = any(".basic_block." in name for name in shape)
    widths, kernels, blocks, run = list[int](), list[int](), 0, 0
    try:
        first = shape["in_conv.conv.weight"]
        for place in range(1 + max(int(n.split(".")[1]) for n in shape if n.startswith("in_blocks."))):
            one = shape.get(f"in_blocks.{place}.0.{_unit(residual)}")
            run = 0 if one is None else run + 1
            blocks = max(blocks, run)
            if one is not None and run == 1:
                widths, kernels = [*widths, one[0]], [*kernels, one[2]]
        stated = settings.get("strides")
        fits = isinstance(stated, list) and len(cast(list[int], stated)) == len(widths) + 1
        network: Raw = {
            "dims": len(first) - 2,
            "widths": [first[0], *widths],
            "kernels": [first[2], *kernels],
            "strides": stated if fits else [1, *(2 for _ in widths)],
            "groups": settings.get("num_groups", _GROUPS["unet"]),
            "residual": residual,
            "blocks": blocks,
            "in_channels": first[1],
            "out_channels": shape["outc.conv.conv.weight"][0],
            "waves": shape["time_embedder.time_emb.1.weight"][1],
            "told": shape["time_embedder.time_emb.3.weight"][0],
            "classes": shape.get("cond_embedder.embedding.weight", (None,))[0],
        }
    except (KeyError, IndexError, ValueError) as error:
        raise ModelError(
            f"these are not the tensors of medfusion's U-Net: {short(error)} is lacking"
        ) from error
    if "time_embedder.time_emb.0.weights" in shape:
        raise ModelError("its network learned the rates of its time (LearnedSinusoidalPosEmb): not read")
    if cast(int, network["out_channels"]) not in (given := cast(int, network["in_channels"]), 2 * given):
        raise ModelError(
            f"its network takes {network['in_channels']} channels and gives {network['out_channels']}: "
            "self-conditioning keeps state between steps, and is not audited"
        )
    kept = {name: one for name, one in weights.items() if not name.startswith("outc_ver.")}
    _require_same(MedfusionUNet, read_fields(network, _UNET, "its U-Net"), kept)
    return network, kept


def _autoencoder(weights: Tensors, settings: Mapping[str, Any]) -> tuple[Raw, Tensors]:
    """The same of its autoencoder."""
    kept = {n: v for n, v in weights.items() if not n.startswith(("perceiver.", "loss_fct.", "outc_ver."))}
    kept = {n: v for n, v in kept.items() if not n.startswith("discriminator")}
    shape = shapes_of(kept)
    _require_no_attention(shape)
    codes = shape.get("quantizer.embedder.weight", (None,))[0]
    groups = settings.get("vae_num_groups", _GROUPS["vae" if codes is None else "vqvae"])
    try:
        residual = any(".basic_block." in name for name in shape)
        count = len({name.split(".")[1] for name in shape if name.startswith("encoders.")})
        inner = [f"encoders.{k}." for k in range(count)]
        convs = [shape[f"{name}{_unit(residual)}"] for name in ("inc.", *(f"{n}conv_block." for n in inner))]
        config = {
            "dims": len(convs[0]) - 2,
            "widths": [one[0] for one in convs],
            "kernels": [one[2] for one in convs],
            "strides": [1, *(1 + (f"{name}down_op.down_op.weight" in shape) for name in inner)],
            "groups": groups,
            "residual": residual,
            "channels": convs[0][1],
            "latents": shape[f"inc_dec.{_unit(residual)}"][1],
            "codes": codes,
        }
    except (KeyError, IndexError) as error:
        raise ModelError(f"its autoencoder is not one that is known: {short(error)} is lacking") from error
    _require_same(MedfusionAutoencoder, read_fields(config, _AUTOENCODER, "its autoencoder"), kept)
    return config, kept


def _require_same(kind: type[nn.Module], values: Mapping[str, Any], weights: Tensors) -> None:
    expected = shapes_of(_blank(kind, values).state_dict())
    require_shapes(shapes_of(weights), expected, "these are not the tensors of medfusion's network")


def _blank(kind: type[nn.Module], values: Mapping[str, Any]) -> nn.Module:
    """The network without weights, and without memory for them."""
    try:
        with torch.device("meta"):
            return kind(**values)
    except (ValueError, IndexError) as error:
        raise ModelError(f"the settings of the network do not fit together: {short(error)}") from error


@dataclass(frozen=True, eq=False)
class MedfusionCodec:
    """An autoencoder of medfusion as a ``Codec``: latents are the mean, as they are."""

    autoencoder: MedfusionAutoencoder

    def encode(self, images: Tensor, /) -> Tensor:
        """Images (n, C, ...) in [-1, 1] -> latents (n, c, ...)."""
        return self.autoencoder.encode(images)

    def decode(self, latents: Tensor, /) -> Tensor:
        """Latents -> images, not clipped."""
        return self.autoencoder.decode(latents)


def open_medfusion(folder: Path, asked: Asked) -> Opened:
    """The model of a folder with a ``medfusion.json``."""
    config = read_json(inside(folder, CONFIG))
    if config.get("format") != FORMAT:
        raise ModelError(f"{CONFIG} must be of format {FORMAT!r}, got {short(config.get('format'))}")
    if asked.images is None:
        raise ModelError("this network does not state the size of its images: open it with some of them")
    settings = read_fields(_section(config, "network"), _UNET, "network")
    predicts = cast(Predicts, one_of("epsilon", "sample")(config.get("predicts"), "predicts"))
    stated, clip = config.get("betas"), config.get("clip")
    clip = None if clip is None else number(clip, "clip", 1e-6, 1e6)
    betas = cast(list[object], stated) if isinstance(stated, list) else []
    levels = torch.cumprod(1 - torch.tensor([number(one, "a beta", 0.0, 1.0) for one in betas]), dim=0)
    network, files = _network(MedfusionUNet, settings, folder)
    codec, shape, more = _space(folder, config, asked.images())
    if shape[0] != settings["in_channels"]:
        what = "the training images have" if more is None else "the autoencoder's latents have"
        raise ModelError(f"the network takes {settings['in_channels']} channels, {what} {shape[0]}")
    classes = cast(int | None, settings.get("classes"))
    label = require_label(None if classes is None else classes + 1, asked.label)  # the last: none
    guidance = 1.0 if asked.guidance is None else number(asked.guidance, "guidance", 0.0, 1000.0)
    if guidance != 1.0 and classes is None:
        raise ModelError("guidance needs a class that stands for none, and this network knows no classes")
    schedule = discrete_schedule(levels, predicts)
    denoiser = DiscreteDenoiser(network, schedule, predicts, label, clip, guidance=guidance, null=classes)
    modules, every = (
        (network, *(() if more is None else (more[0],))),
        [*files, *([] if more is None else more[1])],
    )
    notes = () if more is None else ("the model works on latents: images are encoded as their mean",)
    if clip is not None:
        notes += (f"the denoised image is clipped to [-{clip:g}, {clip:g}], as its pipeline does",)
    if classes is not None:
        notes += (f"label {classes} stands for no class",)
    own = _own(denoiser, asked.steps, asked.most)
    return Opened(
        denoiser=denoiser,
        codec=codec,
        shape=shape,
        image_shape=tuple(asked.images().shape[1:]),
        sampler_hint={"step": "ancestral", "steps": schedule.timesteps - 1, "spacing": "uniform"},
        weights_sha256=files_sha256([file.resolve() for file in every], folder.resolve()),
        kind="medfusion" if more is None else "medfusion latent",
        notes=notes,
        networks=modules,
        identity={"schedule": written_down(schedule), "predicts": predicts, "guidance": asked.guidance},
        own=own,
    )


def _section(config: Mapping[str, Any], name: str) -> dict[str, object]:
    inner = config.get(name)
    return cast(dict[str, object], inner) if isinstance(inner, dict) else {}


def _network(
    kind: type[nn.Module], settings: Mapping[str, Any], folder: Path
) -> tuple[nn.Module, list[Path]]:
    files, network = weight_files(folder), _blank(kind, settings)
    return load_into(network, read_tensors(files, shapes_of(network.state_dict()))), files


def _space(
    folder: Path, config: Mapping[str, Any], images: np.ndarray[Any, Any]
) -> tuple[Codec, tuple[int, ...], tuple[nn.Module, list[Path]] | None]:
    """(codec, shape of the network's input, the autoencoder with its files)."""
    if config.get("autoencoder") is None:
        return IdentityCodec(), tuple(images.shape[1:]), None
    settings = read_fields(_section(config, "autoencoder"), _AUTOENCODER, "autoencoder")
    if settings.get("channels") != images.shape[1]:
        raise ModelError(
            f"the autoencoder takes images of {settings.get('channels')} channels, the training images have "
            f"{images.shape[1]}"
        )
    found = _network(MedfusionAutoencoder, settings, folder / "vae")
    codec = MedfusionCodec(cast(MedfusionAutoencoder, found[0]))
    with torch.no_grad():
        latents = codec.encode(torch.from_numpy(np.ascontiguousarray(images[:1])))
    return codec, tuple(latents.shape[1:]), found


def _own(denoiser: DiscreteDenoiser, steps: int | None, most: int | None) -> Own:
    """DDIM with eta = 1: the posterior, from timestep to timestep in the order of its pipeline."""
    n = cast(Any, denoiser.schedule).timesteps
    count = max(2, steps or min(n, most or n))
    if count > n:
        raise ModelError(f"the model has {n} timesteps, and {count} steps were asked for")
    kept = torch.linspace(0, n - 1, count, dtype=torch.float64).long().flip(0)
    at = tuple(((kept.double() + 1) / n).tolist())
    clip = denoiser.clip if denoiser.predicts == "epsilon" else None
    seen = replace(denoiser, clip=None) if clip is not None else denoiser
    sampler = Sampler(Ancestral(clip=clip), count - 1, at=at, of="DiffusionPipeline")
    return Own(sampler, seen, True, n)
