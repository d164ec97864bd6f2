"""The way out for weights that exist only as a pickle: its tensors as safetensors, or a folder that
``--model`` takes.

    latentprint convert IN OUT --i-trust-this-file

Reading a pickle can run any code, so an audit never does it. IN is read in a separate, isolated process with
``torch.load(weights_only=True)``, which knows tensors and plain containers only (``unpickle``), and only
when told to. torch's own allow-list is a second wall, not a proof: convert what you know the origin of, and
on a machine that may be lost. What the tensors are is decided here, by their names:

    denoising-diffusion-pytorch   model-N.pt: the EMA's, with the settings that follow from them  -> a folder
    a folder of diffusers         every .bin of its parts                                         -> a folder
    one state dict                its tensors, by their own names                                 -> a file
    several                       the EMA where one is named so, else nothing until --take says which

What was taken and what was left is said, for a clean verdict on the wrong weights is the worst answer of all.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import file_digest
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch
from torch import Tensor

from latentprint.adapters import lucidrains
from latentprint.adapters.fields import short
from latentprint.adapters.files import PICKLES, WEIGHTS, read_json
from latentprint.networks import ModelError

FLAG = "--i-trust-this-file"
_TIMEOUT = 3600.0
_SEPARATOR = "\n"
_EMA = ("ema", "model_ema", "ema_model", "ema_state_dict", "state_dict_ema", "ema_weights", "params_ema")
_SHADOWS = ("shadow_params", "collected_params")


@dataclass(frozen=True)
class Converted:
    """What became of a pickle.

    Attributes:
        hashes: (sha256, name) of every file read and written.
        said: what was taken and what was left, in sentences.
    """

    hashes: tuple[tuple[str, str], ...]
    said: tuple[str, ...]


def convert(source: Path, target: Path, *, trusted: bool, take: str | None = None) -> Converted:
    """Write the weights of the pickle ``source`` to ``target``, a .safetensors file or a new folder.

    Args:
        source: a pickle, or a folder of diffusers whose parts are pickles.
        target: what to write; nothing that is there is written over.
        trusted: whether ``source`` may be read.
        take: which of several state dicts, by the key that holds it.

    Raises:
        ModelError: ``trusted`` is not given, a path is unsuitable, or the file is no state dict of plain
            tensors, or several of which none was named.
    """
    if not trusted:
        raise ModelError(
            f"reading {source.name!r} can run any code it holds; give {FLAG} if you know where it comes from"
        )
    if target.exists():
        raise ModelError(f"{str(target)!r} is there already; it is not written over")
    if source.is_dir():
        return _folder(source, target)
    if not source.is_file():
        raise ModelError(f"there is no file {str(source)!r}")
    tensors, left = _read(source)
    groups = _groups(tensors)
    found = _lucidrains(groups, take)
    if found is not None:
        settings, weights, said = found
        return _written(source, target, weights, (*said, *left), settings)
    name, weights, said = _one(groups, take)
    if target.suffix.lower() != ".safetensors":
        raise ModelError(
            f"{source.name!r} holds {len(weights)} tensors{_likely(weights)}, and does not say which "
            "network they "
            "belong to: name a file that ends in .safetensors, put it beside that network's "
            "configuration, and "
            "audit that folder, or make the network in Python (--model package.module:factory)"
        )
    del name
    return _written(source, target, weights, (*said, *left), None)


def _read(source: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors of a pickle by the keys that lead to them, and what was passed over."""
    worker = Path(__file__).with_name("unpickle.py")
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "tensors.safetensors"
        call = [sys.executable, "-I", str(worker), str(source.resolve()), str(out)]
        try:
            done = subprocess.run(call, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
            answer: dict[str, Any] = json.loads(done.stdout) if done.stdout.strip() else {}
        except subprocess.TimeoutExpired:
            answer = {"reason": "it took more than an hour"}
        except ValueError:
            answer = {}
        if "plain" not in answer:
            raise ModelError(f"{source.name!r} cannot be converted: {_reason(answer)}")
        tensors = safetensors.torch.load(out.read_bytes())
    classes = cast(list[str], answer["left"])
    seen = f"objects of {', '.join(classes)} were left unread" if classes else ""
    return tensors, (seen,) if seen else ()


def _reason(answer: Mapping[str, Any]) -> str:
    reason = answer.get("reason", "the process that read it ended without a word")
    if reason != "classes":
        return str(reason)
    named = ", ".join(cast(list[str], answer.get("classes") or ["a class"]))
    return (
        f"it holds more than tensors ({named}), and what else a file holds is never run; where the model was "
        'trained, torch.save(network.state_dict(), "weights.pt") writes its tensors alone'
    )


def _groups(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The state dicts of a file, by the keys that lead to each; those of optimisers are none."""
    out: dict[str, dict[str, Tensor]] = {}
    for path, one in tensors.items():
        *keys, name = path.split(_SEPARATOR)
        where = "/".join(keys)
        if "optimizer" in where or "optim" in keys or "opt" in keys or where.startswith("scaler"):
            continue
        out.setdefault(where, {})[name] = one
    whole_number = {
        where: group for where, group in out.items() if any(one.ndim > 1 for one in group.values())
    }
    return whole_number or out


def _lucidrains(
    groups: Mapping[str, Mapping[str, Tensor]], take: str | None
) -> tuple[dict[str, Any], dict[str, Tensor], tuple[str, ...]] | None:
    """(settings, EMA weights, what is said) of a checkpoint of denoising-diffusion-pytorch."""
    averaged, plain = groups.get("ema", {}), groups.get("model", {})
    if take is not None and lucidrains.is_checkpoint(groups.get(take, {})):
        inner = dict(groups[take])
        settings, kept = lucidrains.settings_of(inner), "not averaged, as you asked"
        weights = {n.removeprefix("model."): one for n, one in inner.items() if n.startswith("model.")}
        return settings, weights, (f"taken: {take}, {len(weights)} tensors, {kept}",)
    if take is not None:
        return None
    if not lucidrains.is_checkpoint(averaged, "ema_model."):
        if lucidrains.is_checkpoint(plain) or any(lucidrains.is_checkpoint(one) for one in groups.values()):
            raise ModelError(
                "it looks like a checkpoint of denoising-diffusion-pytorch without its EMA (no 'ema'), "
                "from which its "
                "trainer samples; if these are the weights you mean to publish, name them: --take model"
            )
        return None
    steps = averaged.get("step")
    if steps is not None and int(steps) == 0:
        raise ModelError("its EMA has seen 0 steps: it holds what the network was before training")
    inner = {
        name.removeprefix("ema_model."): one
        for name, one in averaged.items()
        if name.startswith("ema_model.")
    }
    settings = lucidrains.settings_of(inner)
    weights = {name.removeprefix("model."): one for name, one in inner.items() if name.startswith("model.")}
    network = cast(dict[str, Any], settings["network"])
    said = (
        "denoising-diffusion-pytorch (lucidrains): the EMA weights were taken (ema / ema_model.model), "
        f"{len(weights)} tensors" + ("" if steps is None else f", after {int(steps):,} steps"),
        f"dim {network['dim']}, dim_mults {tuple(network['dim_mults'])}, {network['channels']} channels; "
        f"it predicts {settings['predicts']} over {len(settings['betas'])} timesteps (from its buffers)",
        f"left: the weights that are not averaged ({len(plain)} tensors), the optimiser",
    )
    return settings, weights, said


def _one(
    groups: Mapping[str, Mapping[str, Tensor]], take: str | None
) -> tuple[str, dict[str, Tensor], tuple[str, ...]]:
    """The one state dict: the only one, the one that is named, or the EMA."""
    shown = ", ".join(f"{name or 'the top'} ({len(one)} tensors)" for name, one in sorted(groups.items()))
    if take is not None:
        if take not in groups:
            raise ModelError(
                f"--take {short(take)} names none of its state dicts; there are {shown or 'none'}"
            )
        chosen = take
    elif len(groups) == 1:
        chosen = next(iter(groups))
    else:
        averages = [one for one in groups if one.split("/")[-1] in _EMA]
        if len(averages) != 1:
            raise ModelError(
                f"it holds {len(groups)} state dicts, and which of them generates images is not written: "
                "name "
                f"one with --take ({shown})"
            )
        chosen = averages[0]
    if chosen.split("/")[-1] in _SHADOWS:
        raise ModelError("its averaged weights are a list without names, so which is which is not known")
    weights = dict(groups[chosen])
    shared = _averaged(weights)
    if shared:
        weights = shared
    average = bool(shared) or chosen.split("/")[-1] in _EMA
    rest = [f"{name or 'the top'} ({len(one)} tensors)" for name, one in groups.items() if name != chosen]
    said = (
        f"taken: {chosen or 'the state dict itself'}, {len(weights)} tensors, "
        f"{'averaged (EMA)' if average else 'not averaged: no EMA was found or asked for'}{_likely(weights)}",
        f"left: {', '.join(rest) if rest else 'nothing'}",
    )
    return chosen, weights, said


def _averaged(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """CompVis's "model_ema.", where names have lost their dots -> the averaged weights by their names."""
    short_names = {name.replace(".", ""): name for name in weights if not name.startswith("model_ema.")}
    shadows = {
        name.removeprefix("model_ema."): one for name, one in weights.items() if name.startswith("model_ema.")
    }
    counters = ("decay", "num_updates")
    named = {
        short_names.get(f"model{name}", ""): one for name, one in shadows.items() if name not in counters
    }
    if not named:
        return {}
    if "" in named or len(named) != sum(name not in counters for name in shadows):
        raise ModelError("its averaged weights (model_ema) do not match the names of its network")
    updates = shadows.get("num_updates")
    if updates is not None and int(updates) == 0:
        raise ModelError("its EMA has seen 0 steps: it holds what the network was before training")
    rest = {n: one for n, one in weights.items() if not n.startswith("model_ema.") and n not in named}
    return rest | named


def _likely(weights: Mapping[str, Tensor]) -> str:
    """What the names look like, in words that go on a sentence."""
    signs = (
        ("input_blocks.0.0.weight", "the U-Net of openai's guided-diffusion"),
        ("model.diffusion_model.input_blocks.0.0.weight", "a latent diffusion model of CompVis"),
        ("model.map_layer0.weight", "a network of EDM (Karras et al.)"),
        ("noise_estimator.in_conv.conv.weight", "medfusion"),
    )
    found = next((words for name, words in signs if name in weights), None)
    return "" if found is None else f" (they look like {found})"


def _folder(source: Path, target: Path) -> Converted:
    """A folder of diffusers, its configurations copied and every pickle of its parts converted."""
    configs = [one for one in sorted(source.rglob("*.json")) if not one.is_symlink()]
    parts = [one.parent for one in configs if one.name == "config.json"]
    if not parts:
        raise ModelError(f"{str(source)!r} holds no config.json of a network; name a single file to convert")
    made, said, hashes = dict[Path, dict[str, Tensor]](), list[str](), list[tuple[str, str]]()
    for part in parts:
        kind = read_json(part / "config.json").get("_class_name")
        weights = [one for one in sorted(part.iterdir()) if one.suffix in PICKLES and "optim" not in one.name]
        if any(one.suffix == ".safetensors" for one in part.iterdir()):
            said.append(f"{part.name or 'the network'}: its safetensors were copied")
            for one in part.glob("*.safetensors"):
                made[one.relative_to(source)] = safetensors.torch.load(one.read_bytes())
            continue
        if len(weights) != 1:
            raise ModelError(
                f"{part.name!r} holds {len(weights)} pickles and no safetensors; one was looked for"
            )
        tensors, _ = _read(weights[0])
        _, state, words = _one(_groups(tensors), None)
        made[part.relative_to(source) / WEIGHTS] = state
        said += [f"{part.name or 'the network'} ({kind}): {words[0]}"]
        hashes.append((_sha256(weights[0]), str(weights[0])))
    for config in configs:
        (target / config.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(config, target / config.relative_to(source))
    for name, state in made.items():
        safetensors.torch.save_file({k: v.contiguous() for k, v in state.items()}, target / name)
        hashes.append((_sha256(target / name), str(target / name)))
    return Converted(tuple(hashes), tuple(said))


def _written(
    source: Path,
    target: Path,
    weights: Mapping[str, Tensor],
    said: tuple[str, ...],
    settings: Mapping[str, Any] | None,
) -> Converted:
    """The weights as safetensors; with settings, in a folder beside them."""
    bad = [name for name, one in weights.items() if not bool(torch.isfinite(one.float()).all())]
    if bad:
        raise ModelError(f"{source.name!r} holds NaN or infinite values, in {short(bad[0])} for one")
    file = target
    if settings is not None:
        if target.suffix:
            raise ModelError(f"this model becomes a folder: name one to write, not {target.name!r}")
        target.mkdir(parents=True)
        file = target / WEIGHTS
        (target / lucidrains.CONFIG).write_text(json.dumps(settings, indent=1) + "\n")
    safetensors.torch.save_file({name: one.contiguous() for name, one in weights.items()}, file)
    return Converted(((_sha256(source), str(source)), (_sha256(file), str(file))), said)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()
