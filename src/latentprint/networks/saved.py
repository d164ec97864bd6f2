"""A trained model as files: those that diffusers or MONAI read, and one with what they do not know.

    config.json                           the network's shape   } diffusers' own format: the folder loads with
    diffusion_pytorch_model.safetensors   its weights           } UNet2DModel.from_pretrained
    latentprint.json                      schedule, parametrisation, sigma_data, mean_data; written last

For a network for volumes, the configuration and the names of the weights are MONAI's. latentprint.json holds
its patch size, if that is not 1.

Weights are only read from safetensors. A pickle can run any code while it is read, so pickles never are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from torch import nn

from latentprint.contracts import InputError, quoted
from latentprint.denoiser import NetworkDenoiser
from latentprint.files import FileError, read_json, write
from latentprint.networks.files import pack, unpack
from latentprint.networks.unet import UNetConfig, VolumeUNet, label_of, multiple_of, volume_settings
from latentprint.schedule import schedule_from
from latentprint.settings import SettingsError, read

CONFIG, WEIGHTS, ABOUT = "config.json", "diffusion_pytorch_model.safetensors", "latentprint.json"
SCHEMA = "latentprint-model/1"
_MONAI = "monai.networks.nets.DiffusionModelUNet"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


class ModelError(InputError):
    """A folder without a usable model, with the reason in one sentence."""


def save_model(folder: Path, denoiser: NetworkDenoiser) -> None:
    """Write a model whose network was made by ``build_unet``.

    Raises:
        ModelError: the network has another class.
        FileError: the disk is full or the folder cannot be written.
    """
    from diffusers.models.unets.unet_2d import UNet2DModel

    network = denoiser.network
    if isinstance(network, VolumeUNet):
        config, weights = json.dumps({"_target_": _MONAI} | network.config), network.inner.state_dict()
    elif isinstance(network, UNet2DModel):
        config, weights = network.to_json_string(), network.state_dict()
    else:
        raise ModelError(f"only networks of build_unet can be saved, got {type(network).__name__}")
    write(folder / CONFIG, config.encode())
    write(folder / WEIGHTS, pack(weights))
    about: dict[str, object] = {"schema": SCHEMA, **denoiser.config()}
    if isinstance(network, VolumeUNet) and network.patch_size != 1:
        about["patch_size"] = network.patch_size
    write(folder / ABOUT, (json.dumps(about, indent=2) + "\n").encode())


def load_model(folder: Path, device: torch.device | str = "cpu") -> NetworkDenoiser:
    """Read what ``save_model`` wrote; the network is in evaluation mode, without gradients.

    Raises:
        ModelError: a file is missing, damaged or a pickle, or weights and configuration do not fit together.
    """
    refuse_pickles(folder)
    try:
        about, config = read_json(folder / ABOUT), read_json(folder / CONFIG)
        tensors = unpack(folder / WEIGHTS)
    except FileError as error:
        raise ModelError(f"there is no whole model in {folder}: {error}") from error
    if about.get("schema") != SCHEMA:
        raise ModelError(f"{folder / ABOUT} must be of schema {SCHEMA!r}, got {quoted(about.get('schema'))}")
    if not isinstance(about.get("schedule"), dict):
        raise ModelError(f"{folder / ABOUT} does not describe a model: its schedule is not a table")
    network = _network(folder, config, tensors, about.get("patch_size", 1)).to(device).eval()
    network.requires_grad_(False)
    label = about.get("label", "missing")
    if label != label_of(network) or isinstance(label, bool):
        wanted = json.dumps(label_of(network))
        raise ModelError(f"{folder / ABOUT} gives the label {quoted(label)}; its network takes {wanted}")
    try:
        return NetworkDenoiser(
            network,
            schedule_from(about["schedule"]),
            about["parametrisation"],
            float(about["sigma_data"]),
            label_of(network),
            multiple_of(network),
            float(about.get("mean_data", 0.0)),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{folder / ABOUT} does not describe a model: {error}") from error


def refuse_pickles(folder: Path) -> None:
    """Refuse a ``folder`` whose weights are a pickle and not safetensors."""
    if not folder.is_dir():
        raise ModelError(f"there is no folder {folder}")
    pickles = sorted(f.name for f in folder.iterdir() if f.suffix.lower() in PICKLES)
    if pickles and not (folder / WEIGHTS).exists():
        raise ModelError(
            f"{folder / pickles[0]} is a pickle, which can run any code while it is read, so it is refused: "
            f"save the model as safetensors"
        )


def _network(
    folder: Path, config: Mapping[str, object], tensors: dict[str, torch.Tensor], patch_size: object
) -> nn.Module:
    from diffusers.models.unets.unet_2d import UNet2DModel

    if config.get("_target_") == _MONAI:
        return _of_volumes(folder, config, tensors, patch_size)
    if config.get("_class_name") != "UNet2DModel":
        got = quoted(config.get("_class_name"))
        raise ModelError(f"{folder / CONFIG} must be of a UNet2DModel, got {got}")
    try:
        _require_bounded(config)
        with torch.device("meta"):  # neither memory nor random weights until they are known to fit
            network = cast(UNet2DModel, UNet2DModel.from_config(dict(config)))
        if odd := [name for name, one in tensors.items() if not one.is_floating_point()]:
            raise ValueError(f"{odd[0]!r} is of type {tensors[odd[0]].dtype}, and fractions are needed")
        network.load_state_dict({name: one.float() for name, one in tensors.items()}, assign=True)
    except Exception as error:  # diffusers' constructor raises errors of any type
        first = str(error).strip().splitlines()
        detail = first[min(1, len(first) - 1)].strip() if first else type(error).__name__
        raise ModelError(f"the weights in {folder} do not fit its {CONFIG}: {detail[:150]}") from error
    return network


def _of_volumes(
    folder: Path, config: Mapping[str, object], tensors: dict[str, torch.Tensor], patch_size: object
) -> VolumeUNet:
    names = {
        "channels": "channels",
        "layers_per_block": "num_res_blocks",
        "attention": "attention_levels",
        "norm_groups": "norm_num_groups",
        "head_channels": "num_head_channels",
    }
    try:
        inside = config.get("in_channels")
        values: dict[str, object] = {ours: config.get(theirs) for ours, theirs in names.items()}
        shape = read(
            UNetConfig,
            values | {"patch_size": patch_size, "augment_labels": "num_class_embeds" in config},
        )
        settings = volume_settings(shape, inside // shape.patch_size**3 if isinstance(inside, int) else 0)
        if {"_target_": _MONAI} | settings != dict(config):
            raise ValueError("it has settings that this library does not write")
        with torch.device("meta"):
            network = VolumeUNet(shape.patch_size, **settings)
        network.inner.load_state_dict({name: one.float() for name, one in tensors.items()}, assign=True)
    except (SettingsError, ValueError, RuntimeError) as error:
        if isinstance(error, InputError) and not isinstance(error, SettingsError):
            raise
        raise ModelError(
            f"the weights in {folder} do not fit its {CONFIG}: {' '.join(str(error).split())[:150]}"
        ) from error
    return network


def _require_bounded(config: Mapping[str, object]) -> None:
    """Refuse a network that would take minutes to build: millions of layers or channels."""
    layers, channels = config.get("layers_per_block"), config.get("block_out_channels")
    if not all(
        isinstance(one, int) and one >= 1 for one in (config.get("in_channels"), config.get("out_channels"))
    ):
        raise ValueError("it needs in_channels and out_channels of 1 or more")
    if not isinstance(layers, int) or not isinstance(channels, list) or not 1 <= layers <= 64:
        raise ValueError("it needs 1 to 64 layers_per_block and a list of block_out_channels")
    widths = cast(list[object], channels)
    if not 1 <= len(widths) <= 12 or any(not isinstance(one, int) or not 1 <= one <= 8192 for one in widths):
        raise ValueError("it needs 1 to 12 block_out_channels of 1 to 8,192 each")
