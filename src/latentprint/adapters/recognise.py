"""What is at a path and, if it is not a model that can be opened, what it looks like and what would help.

Only names and configurations are read, and of a pickle the names that stand in it (``peek``). A folder of
weights is never taken for a folder of images, because pictures that a training left beside a model say
nothing about that model.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from latentprint.adapters.bundle import is_monai
from latentprint.adapters.diffusers import is_diffusers
from latentprint.adapters.edm import CONFIG as EDM_CONFIG
from latentprint.adapters.edm import OWN
from latentprint.adapters.files import FLAG, PICKLES, read_header
from latentprint.adapters.lucidrains import CONFIG as LUCIDRAINS
from latentprint.adapters.medfusion import CONFIG as MEDFUSION
from latentprint.adapters.peek import form_of, is_average, names_in, prefixes
from latentprint.adapters.text.lora import NAMES as LORAS
from latentprint.networks import ModelError

Kind = Literal["latentprint", "diffusers", "edm", "monai", "lucidrains", "medfusion", "samples"]

_PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".npz", ".npy")
_WEIGHTS = (*PICKLES, ".safetensors", ".h5", ".onnx", ".msgpack")
_MOST_LISTED = 20_000
_LORAS = tuple(Path(name).stem for name in LORAS)


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
        if place.suffix.lower() in PICKLES:
            raise ModelError(f"{place.name!r} {_pickled(place)}")
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
    if (place / MEDFUSION).exists():
        return "medfusion"
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
    if lora := next((name for name in names if name.rpartition(".")[0] in _LORAS), None):
        if not lora.endswith(".safetensors"):
            return (
                f"holds a LoRA as a pickle: `latentprint convert {shlex.quote(str(folder / lora))} "
                f"lora.safetensors {FLAG}` writes its tensors, and --model BASE --lora lora.safetensors adds "
                "them"
            )
        return (
            f"holds a LoRA ({lora}), which only changes a model: name the model that it was trained "
            f"on, and the LoRA: --model BASE --lora {shlex.quote(str(folder))}"
        )
    pickles = [name for name in names if name.lower().endswith(PICKLES) and not _aside(name)]
    tensors = [name for name in names if name.lower().endswith(".safetensors")]
    if pickles and not tensors:
        first = max(pickles, key=_rank)
        inner = {name.split("/")[0] for name in names}
        if form_of(names_in(folder / first).words) is None and inner & {"metadata.json", "configs"}:
            return (
                f"looks like a bundle of MONAI, but no configuration names a network of it, and {first!r} "
                "alone does not say what it is: add the bundle's configs/inference.json"
            )
        shown = f"holds {len(pickles)} files of weights and no configuration" if len(pickles) > 1 else "holds"
        told = f"{shown}: {first!r}" if len(pickles) > 1 else f"{shown} {first!r}, which"
        return f"{told} {_pickled(folder / first)}"
    if "config.json" in names:
        return (
            "holds a network (config.json) but no scheduler_config.json, without which the noise it was "
            "trained with is not known: save the whole pipeline, or put its scheduler_config.json there"
        )
    kept = max(tensors, key=_rank) if tensors else next(n for n in names if n.lower().endswith(_WEIGHTS))
    form = form_of(read_header(folder / kept)) if tensors else None
    of = "" if form is None else f" of {form.name}"
    if form is not None and form.options is not None:
        return f"holds the weights{of} ({kept!r}): {_convert(folder / kept, form.options)}"
    if form is not None:
        return (
            f"holds the weights{of} ({kept!r}), and neither its settings nor its noise: put "
            f"{_CONFIGS[form.name]} beside them"
        )
    return (
        f"holds weights{of} ({kept!r}) and no configuration that says of which network: add the config.json "
        "and scheduler_config.json of its library, or audit the network by a function of yours: --model "
        "package.module:factory --i-trust-this-code"
    )


def _rank(name: str) -> tuple[bool, bool, list[int]]:
    """Averaged weights first, those of an optimiser last, later steps before earlier ones."""
    words = re.split(r"[^a-z]+", name.lower())
    steps = [int(one) for one in re.findall(r"\d+", name.rpartition("/")[2])]
    return not _aside(name), "ema" in words, steps


def _aside(name: str) -> bool:
    """Whether a file keeps what training goes on with beside the weights: an optimiser, generators."""
    return (
        re.match(r"(opt|random_states|scaler|scheduler\.|training_args)", name.rpartition("/")[2]) is not None
    )


def _convert(file: Path, options: str) -> str:
    trust = "" if file.suffix == ".safetensors" else f" {FLAG}"
    more = f" {options}" if options else ""
    return (
        f"`latentprint convert {shlex.quote(str(file))} OUT{trust}{more}` makes a folder that --model takes"
    )


def _pickled(file: Path) -> str:
    """What a pickle looks like by the names in it, and the command that helps, as the end of a sentence."""
    found = names_in(file)
    form = form_of(found.words)
    from_lightning = "pytorch-lightning_version" in found.words
    wrapped = " in a checkpoint of Lightning" if from_lightning else ""
    why = "it is a pickle, which can run any code while it is read, so that takes a command of its own"
    if file.name.startswith("network-snapshot") or any("persistence" in one for one in found.classes):
        return (
            "looks like a snapshot of EDM (Karras et al.), a pickle that carries code: docs/models.md, "
            "under 'An EDM snapshot', has the command that writes its tensors where it was trained"
        )
    if any(name.startswith("cond_stage_model.transformer.") for name in found.words):
        return (
            "looks like Stable Diffusion, which diffusers turns into a folder that --model takes: "
            "StableDiffusionPipeline.from_single_file(FILE).save_pretrained(FOLDER)"
        )
    if form is not None and form.options is not None:
        return f"looks like {form.name}{wrapped}; {why}: {_convert(file, form.options)}"
    if form is not None:
        heads = prefixes(found.words, form)
        head = next((one for one in heads if is_average(one)), heads[0])
        prefix = f" --prefix {head}" if head else ""
        return (
            f"looks like {form.name}{wrapped}, and holds neither its settings nor its noise: put "
            f"{_CONFIGS[form.name]} into FOLDER; `latentprint convert {shlex.quote(str(file))} "
            f"FOLDER/weights.safetensors {FLAG}{prefix}` adds its weights, and --model FOLDER audits it"
        )
    if found.foreign and not from_lightning:
        return (
            f"holds objects that only their own code can read ({', '.join(found.foreign[:3])}); where it was "
            'made, torch.save(network.state_dict(), "weights.pt") writes the tensors alone, and `latentprint '
            "convert` reads those"
        )
    whose = "of a network of yours" if from_lightning else "of a network that its names do not give away"
    kind = "a checkpoint of Lightning" if from_lightning else "a pickle"
    command = f"latentprint convert {shlex.quote(str(file))} weights.safetensors {FLAG}"
    return (
        f"is {kind}, {whose}: `{command}` takes its weights out, and --model package.module:factory "
        "--i-trust-this-code audits your network with them"
    )


_CONFIGS = {
    "a UNet2DModel of diffusers": "config.json (network.save_config) and scheduler_config.json "
    "(scheduler.save_pretrained)",
    "a DiffusionModelUNet of MONAI": "the JSON or YAML that names its network and scheduler "
    "(configs/inference.json)",
}
