"""What is at a path and, if it is not a model that can be opened, what it looks like and what would help.

Only names and configurations are read, never a pickle. A folder of weights is never taken for a folder of
images, because pictures that a training left beside a model say nothing about that model.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from latentprint.adapters.bundle import is_monai
from latentprint.adapters.diffusers import is_diffusers
from latentprint.adapters.edm import CONFIG as EDM_CONFIG
from latentprint.adapters.edm import OWN
from latentprint.adapters.files import PICKLES, refuse_pickle
from latentprint.adapters.lucidrains import CONFIG as LUCIDRAINS
from latentprint.networks import ModelError

Kind = Literal["latentprint", "diffusers", "edm", "monai", "lucidrains", "samples"]

_PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".npz", ".npy")
_WEIGHTS = (*PICKLES, ".safetensors", ".h5", ".onnx", ".msgpack")
_MOST_LISTED = 20_000


def recognise(path: str | os.PathLike[str]) -> Kind:
    """The kind of ``path``: "samples" is a folder, .npz or .npy of generated images; the others are models.

    Raises:
        ModelError: there is nothing, a pickle, a file of another kind, or unsupported weights. The sentence
            says what it looks like, what is missing, and which command helps.
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
            "folder, an .npz or an .npy file"
        )
    kind = _kind(place)
    if kind is not None:
        return kind
    names = _listed(place)
    if any(name.lower().endswith(_WEIGHTS) for name in names) or _network_config(place, names):
        raise ModelError(f"{os.fspath(path)!r} {_looks_like(place, names)}")
    return "samples"


def no_model(path: str | os.PathLike[str]) -> str:
    """Why a path without a model cannot be audited as one, in a sentence."""
    names = [Path(path).name] if Path(path).is_file() else _listed(Path(path))
    pictures = sum(name.lower().endswith(_PICTURES) for name in names)
    inner = sorted(
        {name.split("/")[0] for name in names if "/" in name and _kind(Path(path) / name.split("/")[0])}
    )
    if inner:
        one = Path(path) / inner[-1]
        return f"{os.fspath(path)!r} holds models in its folders: name one, e.g. --model {one}"
    if pictures:
        return (
            f"{os.fspath(path)!r} holds {pictures} files of images and no model; if a model generated "
            "them, audit "
            f"them as samples: --samples {os.fspath(path)}"
        )
    return (
        f"{os.fspath(path)!r} holds no model: neither a configuration nor weights. A model is the folder "
        "that "
        "save_pretrained of a pipeline, or a bundle of MONAI, leaves"
    )


def _kind(place: Path) -> Kind | None:
    if (place / OWN).exists():
        return "latentprint"
    if (place / EDM_CONFIG).exists():
        return "edm"
    if (place / LUCIDRAINS).exists():
        return "lucidrains"
    if is_diffusers(place):
        return "diffusers"
    return "monai" if is_monai(place) else None


def _listed(folder: Path) -> list[str]:
    """The names of a folder's files, and those one level below as ``folder/name``."""
    names = list[str]()
    for one in sorted(folder.iterdir()):
        inside = sorted(one.iterdir()) if one.is_dir() and not one.is_symlink() else []
        names += [f"{one.name}/{inner.name}" for inner in inside] if inside else [one.name]
        if len(names) > _MOST_LISTED:
            break
    return names


def _network_config(place: Path, names: Sequence[str]) -> bool:
    return "config.json" in names and (place / "config.json").is_file()


def _looks_like(folder: Path, names: Sequence[str]) -> str:
    """Library, file, what is missing and the command that helps, as the end of a sentence."""
    pickles = [name for name in names if name.lower().endswith(PICKLES)]
    first = pickles[0] if pickles else ""
    convert = f"latentprint convert {folder / first} OUT --i-trust-this-file"
    if "config.json" in names and not pickles:
        return (
            "holds a network (config.json) but no scheduler_config.json, without which the noise it was "
            "trained "
            "with is not known: save the whole pipeline, or put its scheduler_config.json there"
        )
    if any(name.startswith("model-") and name.endswith(".pt") for name in pickles):
        return (
            f"looks like the results of denoising-diffusion-pytorch (lucidrains): {first!r} is a pickle, "
            f"which can run any code while it is read; `{convert}` makes a folder of its EMA weights that "
            "--model takes"
        )
    if any(name.startswith("network-snapshot") for name in names) or "training_options.json" in names:
        return (
            f"looks like a training of EDM (Karras et al.): its snapshots ({first!r}) are pickles that carry "
            "code, and nothing can read them without running it; load it where it was trained and audit "
            "it by a "
            "function of yours: --model package.module:factory --i-trust-this-code"
        )
    if "hparams.yaml" in names or any("lightning" in name or name.endswith(".ckpt") for name in names):
        return (
            f"looks like a log folder of Lightning: {first or 'its checkpoint'!r} holds weights whose "
            "network "
            f"is code of yours; `{convert.replace(' OUT ', ' OUT.safetensors ')}` takes the weights out, "
            "and --model package.module:factory "
            "--i-trust-this-code audits your network with them"
        )
    if any(name.endswith(("metadata.json", "model.pt")) for name in names) or "configs" in {
        name.split("/")[0] for name in names
    }:
        return (
            f"looks like a bundle of MONAI, but no configuration names a network of it, and "
            f"{first or 'its weights'!r} alone does not say what it is: add the bundle's "
            "configs/inference.json"
        )
    if pickles:
        refuse_pickle(first)
    kept = next(name for name in names if name.lower().endswith(_WEIGHTS))
    return (
        f"holds weights ({kept!r}) and no configuration that says of which network: add the config.json and "
        "scheduler_config.json of its library, or audit the network by a function of yours: --model "
        "package.module:factory --i-trust-this-code"
    )
