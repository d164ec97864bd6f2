"""Models and samples that somebody else made: opened without their code, and without trust in their files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from latentprint.adapters.bundle import is_monai
from latentprint.adapters.diffusers import is_diffusers, open_diffusers
from latentprint.adapters.discrete import DiscreteSchedule, alphas_cumprod, discrete_schedule
from latentprint.adapters.edm import CONFIG as EDM_CONFIG
from latentprint.adapters.edm import OWN, open_edm, open_own
from latentprint.adapters.factory import arguments_of, from_factory, is_factory
from latentprint.adapters.files import refuse_pickle
from latentprint.adapters.function import (
    FunctionDenoiser,
    as_opened,
    ddpm_schedule,
    from_function,
    from_module,
)
from latentprint.adapters.latent import LatentCodec
from latentprint.adapters.monai import open_monai
from latentprint.adapters.opened import Asked, Opened, require_sound
from latentprint.adapters.own import on_times
from latentprint.adapters.timesteps import ConsistencyDenoiser, DiscreteDenoiser
from latentprint.networks import ModelError

Kind = Literal["latentprint", "diffusers", "edm", "monai", "samples"]

__all__ = [
    "Asked",
    "ConsistencyDenoiser",
    "DiscreteDenoiser",
    "DiscreteSchedule",
    "FunctionDenoiser",
    "Kind",
    "LatentCodec",
    "ModelError",
    "Opened",
    "alphas_cumprod",
    "arguments_of",
    "as_opened",
    "ddpm_schedule",
    "discrete_schedule",
    "from_factory",
    "from_function",
    "from_module",
    "is_factory",
    "on_times",
    "open_model",
    "recognise",
    "require_sound",
]


def recognise(path: str | os.PathLike[str]) -> Kind:
    """What lies at ``path``: "samples" is a folder, .npz or .npy of generated images, the others are models.

    Nothing but names is looked at.

    Raises:
        ModelError: there is nothing, a pickle, or a file of another kind.
    """
    place = Path(path)
    if not place.exists():
        raise ModelError(f"there is no model or folder {os.fspath(path)!r}")
    if place.is_file():
        refuse_pickle(place.name)
        if place.suffix.lower() in (".npz", ".npy"):
            return "samples"
        raise ModelError(
            f"{place.name!r} is a single file; a model is a folder with its configuration, samples are a "
            "folder, an "
            ".npz or an .npy file"
        )
    if (place / OWN).exists():
        return "latentprint"
    if (place / EDM_CONFIG).exists():
        return "edm"
    if is_diffusers(place):
        return "diffusers"
    if is_monai(place):
        return "monai"
    for name in sorted(os.listdir(place)):
        refuse_pickle(name)
    if (place / "config.json").exists():
        raise ModelError(
            f"{os.fspath(path)!r} holds a network but no scheduler_config.json, without which the noise it "
            "was trained "
            "with is not known"
        )
    return "samples"


def open_model(
    path: str | os.PathLike[str],
    *,
    label: int | None = None,
    asked: Asked | None = None,
) -> Opened:
    """A model from outside, ready to be audited.

    Args:
        path: a folder that diffusers, MONAI, ``save_model`` or ``latentprint.adapters.edm`` describe.
        label: the class to audit, for a model that is conditional on one.
        asked: this and what else can be asked of a model, in its place.

    Raises:
        ModelError: it is no such folder, is refused for safety, or cannot be read; the sentence says what to
            do.
    """
    kind, folder = recognise(path), Path(path)
    if kind == "samples":
        raise ModelError(
            f"{os.fspath(path)!r} holds no model; generated images are audited as samples "
            "(latentprint.adapters.samples)"
        )
    openers = {
        "latentprint": open_own,
        "edm": open_edm,
        "diffusers": open_diffusers,
        "monai": open_monai,
    }
    opener = openers[kind]
    return opener(folder, asked or Asked(label))
