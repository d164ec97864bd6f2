"""Models saved by diffusers: a pipeline's folder, or a network with the configuration of a scheduler.

    model_index.json                     the pipeline's class and parts (optional: the folders suffice)
    unet/config.json, *.safetensors      a UNet2DModel, unconditional or conditional on a class; an OpenAIUNet
    transformer/...                      or a DiTTransformer2DModel, conditional on a class
    scheduler/scheduler_config.json      the noise, and what the network predicts
    vae/ or vqvae/                       an AutoencoderKL or a VQModel, for a latent model (optional)

or, without folders, config.json, *.safetensors and scheduler_config.json side by side. Classes come from
literal tables; nothing is imported by a name in a file, and no code of the folder is ever run. The network
receives the timestep k = N t - 1 of ``DiscreteSchedule`` (fractions between timesteps, as with diffusers'
Euler scheduler).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from torch import nn

from latentprint.adapters.build import read_network, sides
from latentprint.adapters.fields import number, short, some
from latentprint.adapters.files import files_sha256, inside, read_json, subfolder
from latentprint.adapters.latent import AUTOENCODERS, LatentCodec
from latentprint.adapters.opened import Asked, Opened, written_down
from latentprint.adapters.own import own_sampler
from latentprint.adapters.schedulers import SCHEDULERS, Network, complete, denoiser_of, hint, mu_of
from latentprint.adapters.text.opening import open_text, whole_of
from latentprint.adapters.timesteps import require_label
from latentprint.denoiser import Codec, IdentityCodec
from latentprint.networks import ModelError
from latentprint.sampler import sampler_from

INDEX = "model_index.json"
SCHEDULER = "scheduler_config.json"

NETWORKS = ("UNet2DModel", "DiTTransformer2DModel", "OpenAIUNet")
_PIPELINES = (
    "DDPMPipeline",
    "DDIMPipeline",
    "PNDMPipeline",
    "LDMPipeline",
    "DiTPipeline",
    "ConsistencyModelPipeline",
    "ScoreSdeVePipeline",
    "DiffusionPipeline",
)
_PARTS: dict[str, tuple[str, ...]] = {
    "unet": ("UNet2DModel",),
    "transformer": ("DiTTransformer2DModel",),
    "vae": tuple(AUTOENCODERS),
    "vqvae": tuple(AUTOENCODERS),
}
_NOTES = ("id2label", "requires_safety_checker", "force_zeros_for_empty_prompt")
"""Entries of a pipeline's index that are not parts and change nothing here."""


def open_diffusers(folder: Path, asked: Asked) -> Opened:
    """The model in ``folder``.

    Raises:
        ModelError: the folder holds a pickle instead of safetensors, custom code, another kind of model,
            unsupported settings, or damaged files; or the label is missing, not needed or unknown.
    """
    whole = whole_of(folder, asked.beside)
    if whole is not None:
        return open_text(folder, whole, asked)
    pipeline, parts = _pipeline(folder), _parts(folder)
    _require_named(folder, parts)
    module, config, files = read_network(parts["network"], NETWORKS)
    network = _network(module, config, asked)
    scheduler = _scheduler_config(folder, parts["scheduler"], asked.beside)
    if config.get("sample_size") is None:
        raise ModelError(
            "the network's config.json must state sample_size, the side of its images or latents"
        )
    denoiser, notes = denoiser_of(network, scheduler)
    shape = image_shape = (int(config["in_channels"]), *sides(config["sample_size"]))
    codec: Codec = IdentityCodec()
    networks = (module,)
    if "vae" in parts:
        autoencoder, vae_config, vae_files = read_network(parts["vae"], _PARTS["vae"])
        codec = LatentCodec.of(autoencoder, vae_config, shape)
        image_shape = codec.image_shape
        files, networks = files + vae_files, (module, autoencoder)
        notes += ("the model works on latents: images are encoded as the mean of the posterior",)
    if parts["network"].name == "unet_ema":
        notes += ("the averaged weights (unet_ema) were taken",)
    nearest = hint(scheduler, denoiser)
    mu = mu_of(scheduler, shape, int(config.get("patch_size", 1)))
    own = own_sampler(scheduler, denoiser, sampler_from(nearest), asked.steps, pipeline, mu, asked.most)
    if network.guidance != 1.0:
        notes += (f"guidance {network.guidance:g}: each evaluation is two passes through the network",)
    return Opened(
        denoiser=denoiser,
        codec=codec,
        shape=shape,
        image_shape=image_shape,
        sampler_hint=nearest,
        weights_sha256=files_sha256([file.resolve() for file in files], folder.resolve()),
        kind="diffusers latent" if "vae" in parts else "diffusers",
        notes=notes,
        networks=networks,
        identity={"schedule": written_down(denoiser.schedule), "guidance": asked.guidance},
        own=own,
    )


def _network(module: nn.Module, config: Mapping[str, Any], asked: Asked) -> Network:
    transformer = config["_class_name"] == "DiTTransformer2DModel"
    classes = config.get("num_embeds_ada_norm" if transformer else "num_class_embeds")
    channels = int(config["in_channels"]), int(config.get("out_channels") or config["in_channels"])
    guidance = 1.0 if asked.guidance is None else number(asked.guidance, "guidance", 0.0, 1000.0)
    return Network(
        module,
        channels,
        config.get("time_embedding_type", "positional"),
        config.get("num_train_timesteps"),
        require_label(classes, asked.label),
        int(cast(int, classes)) if transformer and classes is not None else config.get("null_class"),
        guidance,
        variance=transformer and channels[1] == 2 * channels[0],
    )


def is_diffusers(folder: Path) -> bool:
    """Whether the folder has one of the module's layouts."""
    signs = (
        INDEX,
        "unet/config.json",
        "unet_ema/config.json",
        "transformer/config.json",
        SCHEDULER,
        f"scheduler/{SCHEDULER}",
    )
    return any((folder / name).exists() for name in signs)


def _pipeline(folder: Path) -> str | None:
    """The class of the pipeline, if the folder names a known one."""
    if not inside(folder, INDEX).is_file():
        return None
    index = read_json(folder / INDEX)
    _require_known(index)
    return cast(str, index["_class_name"])


def _parts(folder: Path) -> dict[str, Path]:
    """The folders of "network", "scheduler" and, for a latent model, "vae"."""
    # diffusers' training scripts keep both; their pipelines use the averaged weights
    names = ("unet_ema",) if subfolder(folder, "unet_ema").is_dir() else ("unet", "transformer")
    nested = [path for name in names if (path := subfolder(folder, name)).is_dir()]
    if len(nested) > 1:
        raise ModelError("this folder holds both unet/ and transformer/; a model has one of them")
    aside = subfolder(folder, "scheduler")
    found = {"network": nested[0] if nested else folder, "scheduler": aside if aside.is_dir() else folder}
    vaes = [path for name in ("vae", "vqvae") if (path := subfolder(folder, name)).is_dir()]
    if len(vaes) > 1:
        raise ModelError("a latent model has one autoencoder, but this folder holds both vae/ and vqvae/")
    return found | ({"vae": vaes[0]} if vaes else {})


def _require_named(folder: Path, parts: Mapping[str, Path]) -> None:
    """Refuse a pipeline whose autoencoder is named but missing: its latents would be taken for images."""
    index = read_json(folder / INDEX) if inside(folder, INDEX).is_file() else {}
    lost = [name for name in ("vae", "vqvae") if index.get(name) not in (None, [None, None])]
    if lost and "vae" not in parts:
        raise ModelError(
            f"{INDEX} names an autoencoder ({lost[0]}), and the folder {lost[0]}/ is not there; the network "
            "works on its latents, so copy that folder too"
        )


def _require_known(index: Mapping[str, object]) -> None:
    """Refuse pipelines and parts that are not in the tables."""
    name, version = index.get("_class_name"), index.get("_diffusers_version")
    of = f"a {short(name)} of diffusers" + (f" {version}" if isinstance(version, str) else "")
    if not isinstance(name, str) or name not in _PIPELINES:
        raise ModelError(
            f"{of} is not supported, and the code of a pipeline is never run; known are "
            f"{some(_PIPELINES, name)}; any other network is audited by from_module in Python, or by "
            "--model package.module:factory --i-trust-this-code"
        )
    for part, value in index.items():
        if part.startswith("_") or part in _NOTES or value is None or value == [None, None]:
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
        allowed = tuple(SCHEDULERS) if part == "scheduler" else _PARTS.get(part)
        if allowed is None:
            raise ModelError(f"the pipeline's part {short(part)} is not supported")
        if kind not in allowed:
            raise ModelError(f"part {part!r} is of class {short(kind)}; supported are {some(allowed, kind)}")


def _scheduler_config(folder: Path, scheduler: Path, beside: Path | None) -> dict[str, Any]:
    """The scheduler's configuration; a checkpoint without one was trained with that of its model."""
    file = inside(scheduler, SCHEDULER)
    if not file.is_file() and beside is not None:
        file = inside(_parts(beside)["scheduler"], SCHEDULER)
    if not file.is_file():
        above = folder.resolve().parent
        whole = os.path.relpath(above) if (above / "scheduler" / SCHEDULER).is_file() else None
        help_ = (
            "put that of its training there"
            if whole is None
            else f"as a checkpoint of {whole!r}, which has one, it is audited by --model {whole} "
            f"--checkpoints OUT (all of them), or by itself after cp -r {whole}/scheduler {folder}/"
        )
        raise ModelError(
            f"{str(folder)!r} holds no {SCHEDULER}, without which the noise the model was trained with is "
            f"not known: {help_}"
        )
    return complete(read_json(file))
