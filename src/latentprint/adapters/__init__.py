"""Models and samples that somebody else made, opened without running their code or trusting their files."""

from __future__ import annotations

import os
from pathlib import Path

from latentprint.adapters.diffusers import open_diffusers
from latentprint.adapters.discrete import DiscreteSchedule, alphas_cumprod, discrete_schedule
from latentprint.adapters.edm import open_edm, open_own
from latentprint.adapters.factory import arguments_of, from_factory, is_factory
from latentprint.adapters.function import (
    FunctionDenoiser,
    as_opened,
    ddpm_schedule,
    from_function,
    from_module,
)
from latentprint.adapters.latent import LatentCodec
from latentprint.adapters.lucidrains import open_lucidrains
from latentprint.adapters.medfusion import open_medfusion
from latentprint.adapters.monai import open_monai
from latentprint.adapters.opened import Asked, Opened, require_sound
from latentprint.adapters.own import on_times
from latentprint.adapters.recognise import Kind, no_model, recognise
from latentprint.adapters.text.opening import with_prompt
from latentprint.adapters.timesteps import ConsistencyDenoiser, DiscreteDenoiser
from latentprint.networks import ModelError

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
    "with_prompt",
]


def open_model(
    path: str | os.PathLike[str],
    *,
    label: int | None = None,
    asked: Asked | None = None,
) -> Opened:
    """A model from outside, ready to be audited.

    Args:
        path: a folder that diffusers, MONAI, ``convert``, ``save_model`` or ``latentprint.adapters.edm``
            describe.
        label: the class to audit, for a class-conditional model.
        asked: the label and everything else that can be asked of a model; it replaces ``label``.

    Raises:
        ModelError: it is not such a folder, is refused for safety, or cannot be read; the sentence says what
            to do.
    """
    kind, folder = recognise(path), Path(path)
    if kind == "samples":
        raise ModelError(no_model(path))
    openers = {
        "latentprint": open_own,
        "edm": open_edm,
        "diffusers": open_diffusers,
        "monai": open_monai,
        "lucidrains": open_lucidrains,
        "medfusion": open_medfusion,
    }
    opened = openers[kind](folder, asked or Asked(label))
    if opened.text is None and asked is not None and asked.lora is not None:
        raise ModelError("a LoRA (--lora) needs a text-to-image model of diffusers, and this is another kind")
    return opened
