"""A network of Karras et al. (2022) as safetensors with a configuration of ours, and a model trained by
latentprint.

An EDM-style folder:

    edm.json            {"format": "latentprint-edm/1",
                         "network": {...},          the settings of a diffusers UNet2DModel, or with
                                                    "_class_name": "EDMUNet" of one of the authors' networks
                         "sigma_data": 0.5, "sigma_min": 0.002, "sigma_max": 80.0}
    *.safetensors       the network's weights, by the names of that class

    D(x, sigma) = c_skip x + c_out F(c_in x, log(sigma) / 4)

    c_skip = d^2 / (sigma^2 + d^2),  c_out = sigma d / sqrt(sigma^2 + d^2),  c_in = 1 / sqrt(sigma^2 + d^2)

with d = sigma_data. Checkpoints of the authors' own repository are pickles with code: reading them runs it.
Where they were made, a command of docs/models.md writes the tensors and plain settings of one, which
``converted`` reads. Its own sampler is algorithm 1 in 18 steps, without churn.

A latentprint folder is what ``save_model`` writes: config.json, weights and latentprint.json.

Source: Karras et al. 2022, table 1, column EDM, and algorithm 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from torch import nn

from latentprint.adapters.build import build, read_network, sides
from latentprint.adapters.fields import a_whole, number, one_of, short
from latentprint.adapters.files import files_sha256, inside, read_json
from latentprint.adapters.monai import images_of
from latentprint.adapters.opened import Asked, Opened, written_down
from latentprint.adapters.own import Own
from latentprint.adapters.statedict import Groups, Parts, Told, plain_below, without
from latentprint.adapters.timesteps import require_label
from latentprint.denoiser import Denoiser, IdentityCodec, NetworkDenoiser, Parametrisation
from latentprint.files import Raw
from latentprint.networks import ModelError, load_model
from latentprint.networks.saved import WEIGHTS
from latentprint.networks.unet import VolumeUNet
from latentprint.sampler import sampler_from
from latentprint.schedule import EDM, schedule_from

CONFIG = "edm.json"
FORMAT = "latentprint-edm/1"
OWN = "latentprint.json"
OWN_SCHEMA = "latentprint-model/1"

STEPS = 18
"""Times of the authors' sampler, where nobody says how many: the default of their generate.py."""

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
    network, files = build(settings, folder, ("UNet2DModel", "EDMUNet"))
    complete = {**dict(cast(Any, network).config), **settings}
    low, high = (
        number(config.get(k, d), k, 1e-9, 1e6) for k, d in (("sigma_min", 0.002), ("sigma_max", 80.0))
    )
    if not low < high:
        raise ModelError(f"sigma_min must lie below sigma_max, got {low:g} and {high:g}")
    data = number(config.get("sigma_data", 0.5), "sigma_data", 1e-6, 1e6)
    if complete.get("time_embedding_type", "positional") != "positional":
        raise ModelError("a network of continuous noise levels needs a positional time embedding")
    classes: object = complete.get("num_class_embeds")
    if complete.get("classes") is not None:
        classes = int(cast(int, complete["classes"])) + 1  # the last label: none
    chosen = require_label(classes, asked.label)
    denoiser = NetworkDenoiser(network, EDM(low, high), "edm", data, chosen)
    return _opened(folder, network, complete, denoiser, files, "edm", asked)


_SILENT: dict[str, Raw] = {
    "SongUNet": {
        "model_channels": 128,
        "channel_mult": [1, 2, 2, 2],
        "num_blocks": 4,
        "attn_resolutions": [16],
    },
    "DhariwalUNet": {
        "model_channels": 192,
        "channel_mult": [1, 2, 3, 4],
        "num_blocks": 3,
        "attn_resolutions": [32, 16, 8],
    },
}
_SILENT_TOO: Raw = {
    "model_type": "SongUNet",
    "label_dim": 0,
    "augment_dim": 0,
    "channel_mult_emb": 4,
    "channel_mult_noise": 1,
    "embedding_type": "positional",
    "encoder_type": "standard",
    "decoder_type": "standard",
    "resample_filter": [1, 1],
    "sigma_data": 0.5,
    "class": "EDMPrecond",
}
"""Settings that the constructors of the authors' classes have where nothing else is said."""


def converted(groups: Groups, told: Told) -> Parts | None:
    """The folder that an exported snapshot becomes; None if it is not a snapshot."""
    found = [name for name, one in groups.items() if "model.map_layer0.weight" in one]
    if len(found) != 1:
        return None
    stated = plain_below(told.plain, "edm") | dict(told.flags or {})
    if "img_resolution" not in stated:
        raise ModelError(
            f"{told.name!r} looks like a network of EDM without its settings: write it where it was trained "
            "by the command of docs/models.md, under 'An EDM snapshot', which keeps them beside its tensors"
        )
    kind = one_of(*_SILENT)(stated.get("model_type", "SongUNet"), "model_type")
    values: Raw = _SILENT_TOO | _SILENT[kind] | stated
    one_of("EDMPrecond")(values["class"], "the class of the network")
    one_of("standard", "residual")(values["encoder_type"], "encoder_type")
    one_of("standard")(values["decoder_type"], "decoder_type")
    channels = a_whole(1, 64)(values.get("img_channels", 3), "img_channels")
    network: Raw = {
        "kind": kind,
        "sample_size": values["img_resolution"],
        "in_channels": channels,
        "out_channels": channels,
        "model_channels": values["model_channels"],
        "mults": values["channel_mult"],
        "mult_noise": values["channel_mult_noise"],
        "mult_emb": values["channel_mult_emb"],
        "blocks": values["num_blocks"],
        "attention": values["attn_resolutions"],
        "fourier": values["embedding_type"] == "fourier",
        "residual": values["encoder_type"] == "residual",
        "filter": values["resample_filter"],
        "classes": values["label_dim"] or None,
        "augmented": values["augment_dim"] or None,
    }
    weights = without("model.", groups[found[0]])
    config = {
        "format": FORMAT,
        "network": {"_class_name": "EDMUNet", **network},
        "sigma_data": values["sigma_data"],
        "sigma_min": max(0.002, float(values.get("sigma_min") or 0.0)),
        "sigma_max": min(80.0, float(values.get("sigma_max") or 80.0)),
    }
    average = "averaged (EMA)" if stated.get("average") else "whether they are averaged it does not say"
    said = (
        f"EDM: taken are all {len(weights)} tensors of its {kind}, {average}",
        f"{network['sample_size']} pixels a side, {network['classes'] or 'no'} classes, sigma from "
        f"{config['sigma_min']:g} to {config['sigma_max']:g} (from its settings)",
    )
    return Parts({CONFIG: config}, {"": weights}, said)


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
    mean = number(about.get("mean_data", 0.0), "mean_data", -1e6, 1e6)
    schedule = about.get("schedule")
    if not isinstance(schedule, dict):
        raise ModelError(f"{OWN} must hold a schedule")
    try:
        found = schedule_from(cast(dict[str, object], schedule))
        predicts = cast(Parametrisation, about.get("parametrisation"))
        denoiser = NetworkDenoiser(network, found, predicts, data, chosen, mean_data=mean)
    except (TypeError, ValueError, OverflowError, ArithmeticError) as error:
        raise ModelError(f"{OWN} does not describe a model: {short(error)}") from error
    return _opened(folder, network, config, denoiser, files, "latentprint", asked)


def _of_volumes(folder: Path, asked: Asked) -> Opened:
    denoiser = load_model(folder)
    network = cast(VolumeUNet, denoiser.network)
    require_label(None, asked.label)
    own = {"in_channels": network.channels, "out_channels": network.channels}
    config = network.config | own | {"sample_size": images_of(asked, 3).shape[2:]}
    return _opened(folder, network, config, denoiser, [inside(folder, WEIGHTS)], "latentprint", asked)


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
        raise ModelError("guidance needs a class that means “no class”, and this network has none")
    if config.get("sample_size") is None:
        raise ModelError("the network's settings must state sample_size, the side of its images or latents")
    if config["in_channels"] != config["out_channels"]:
        raise ModelError(
            f"the network takes {config['in_channels']} channels and gives {config['out_channels']}"
        )
    size: Any = config["sample_size"]
    axes: tuple[int, ...] = sides(size) if isinstance(size, int) else tuple(size)
    shape = (int(config["in_channels"]), *axes)
    edm = kind == "edm"
    usual = STEPS if edm else 32
    count = (asked.steps or min(usual, asked.most or usual)) - int(edm)
    nearest: dict[str, object] = {"step": "heun", "steps": max(1, count), "spacing": "karras"}
    own = replace(sampler_from(nearest), of="edm_sampler" if edm else None)
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
        own=Own(own, denoiser, edm and count > 0),
    )
