"""A network of Karras et al. (2022) as safetensors with a configuration of ours, and a model trained by
latentprint.

An EDM-style folder:

    edm.json            {"format": "latentprint-edm/1",
                         "network": {...},          the settings of a diffusers UNet2DModel
                         "sigma_data": 0.5, "sigma_min": 0.002, "sigma_max": 80.0}
    *.safetensors       the network's weights, by the names of UNet2DModel

    D(x, sigma) = c_skip x + c_out F(c_in x, log(sigma) / 4)

    c_skip = d^2 / (sigma^2 + d^2),  c_out = sigma d / sqrt(sigma^2 + d^2),  c_in = 1 / sqrt(sigma^2 + d^2)

with d = sigma_data. Checkpoints of the authors' own repository are pickles with code. They are refused, and
no converter can make them safe, because reading them runs the code. Export their tensors where they were
made.

A latentprint folder is what ``save_model`` writes: config.json, weights and latentprint.json.

Source: Karras et al. 2022, table 1, column EDM.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from torch import nn

from latentprint.adapters.build import build, read_network, sides
from latentprint.adapters.fields import number, short
from latentprint.adapters.files import files_sha256, inside, read_json
from latentprint.adapters.monai import images_of
from latentprint.adapters.opened import Asked, Opened, written_down
from latentprint.adapters.own import Own
from latentprint.adapters.timesteps import require_label
from latentprint.denoiser import Denoiser, IdentityCodec, NetworkDenoiser, Parametrisation
from latentprint.networks import ModelError, load_model
from latentprint.networks.saved import WEIGHTS
from latentprint.networks.unet import VolumeUNet
from latentprint.sampler import sampler_from
from latentprint.schedule import EDM, schedule_from

CONFIG = "edm.json"
FORMAT = "latentprint-edm/1"
OWN = "latentprint.json"
OWN_SCHEMA = "latentprint-model/1"

_KEYS = {"format", "network", "sigma_data", "sigma_min", "sigma_max"}


def open_edm(folder: Path, asked: Asked) -> Opened:
    """The model of a folder with an ``edm.json``."""
    config = read_json(inside(folder, CONFIG))
    if config.get("format") != FORMAT:
        raise ModelError(f"{CONFIG} must be of format {FORMAT!r}, got {short(config.get('format'))}")
    if unknown := sorted(set(config) - _KEYS):
        raise ModelError(
            f"{CONFIG} has the setting {short(unknown[0])}; known are {', '.join(sorted(_KEYS))}"
        )
    inner = config.get("network")
    if not isinstance(inner, dict):
        raise ModelError(f"{CONFIG} must hold the network's settings under 'network'")
    settings = {"_class_name": "UNet2DModel"} | cast(dict[str, object], inner)
    network, files = build(settings, folder, ("UNet2DModel",))
    complete = {**dict(cast(Any, network).config), **settings}
    low, high = (
        number(config.get(k, d), k, 1e-9, 1e6) for k, d in (("sigma_min", 0.002), ("sigma_max", 80.0))
    )
    if not low < high:
        raise ModelError(f"sigma_min must lie below sigma_max, got {low:g} and {high:g}")
    data = number(config.get("sigma_data", 0.5), "sigma_data", 1e-6, 1e6)
    if complete["time_embedding_type"] != "positional":
        raise ModelError("a network of continuous noise levels needs a positional time embedding")
    chosen = require_label(complete.get("num_class_embeds"), asked.label)
    denoiser = NetworkDenoiser(network, EDM(low, high), "edm", data, chosen)
    return _opened(folder, network, complete, denoiser, files, "edm", asked)


def open_own(folder: Path, asked: Asked) -> Opened:
    """The model of a folder that ``save_model`` wrote; its files are trusted no more than others'."""
    about = read_json(inside(folder, OWN))
    if about.get("schema") != OWN_SCHEMA:
        raise ModelError(f"{OWN} must be of schema {OWN_SCHEMA!r}, got {short(about.get('schema'))}")
    if "_target_" in read_json(inside(folder, "config.json")):
        return _of_volumes(folder, asked)
    network, config, files = read_network(folder, ("UNet2DModel",))
    own = about.get("label")
    chosen = require_label(config.get("num_class_embeds"), own if asked.label is None else asked.label)
    data = number(about.get("sigma_data", 0.5), "sigma_data", 1e-6, 1e6)
    schedule = about.get("schedule")
    if not isinstance(schedule, dict):
        raise ModelError(f"{OWN} must hold a schedule")
    try:
        found = schedule_from(cast(dict[str, object], schedule))
        predicts = cast(Parametrisation, about.get("parametrisation"))
        denoiser = NetworkDenoiser(network, found, predicts, data, chosen)
    except (TypeError, ValueError, OverflowError, ArithmeticError) as error:
        raise ModelError(f"{OWN} does not describe a model: {short(error)}") from error
    return _opened(folder, network, config, denoiser, files, "latentprint", asked)


def _of_volumes(folder: Path, asked: Asked) -> Opened:
    denoiser = load_model(folder)
    config = cast(VolumeUNet, denoiser.network).config
    require_label(None, asked.label)
    size = images_of(asked, 3).shape[2:]
    files = [inside(folder, WEIGHTS)]
    return _opened(
        folder, denoiser.network, config | {"sample_size": size}, denoiser, files, "latentprint", asked
    )


def _opened(
    folder: Path,
    network: nn.Module,
    config: Mapping[str, Any],
    denoiser: Denoiser,
    files: list[Path],
    kind: str,
    asked: Asked,
) -> Opened:
    if asked.guidance is not None:
        raise ModelError("guidance needs a class that stands for none, and this network knows none")
    if config.get("sample_size") is None:
        raise ModelError("the network's settings must state its sample_size, the side of what it works on")
    if config["in_channels"] != config["out_channels"]:
        raise ModelError(
            f"the network takes {config['in_channels']} channels and gives {config['out_channels']}"
        )
    size: Any = config["sample_size"]
    axes = cast(tuple[int, ...], size) if config.get("spatial_dims") == 3 else sides(size)
    shape = (int(config["in_channels"]), *axes)
    nearest: dict[str, object] = {"step": "heun", "steps": asked.steps or 32, "spacing": "karras"}
    return Opened(
        denoiser=denoiser,
        codec=IdentityCodec(),
        shape=shape,
        image_shape=shape,
        sampler_hint=nearest,
        weights_sha256=files_sha256([file.resolve() for file in files], folder.resolve()),
        kind=kind,
        notes=(),
        networks=(network,),
        identity={"schedule": written_down(denoiser.schedule)},
        own=Own(sampler_from(nearest), denoiser, False),
    )
