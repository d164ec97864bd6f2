"""Conversion of weights that exist only as a pickle: to safetensors, or to a folder that ``--model`` takes.

    latentprint convert IN OUT --i-trust-this-file

Reading a pickle can run any code, so an audit never does it. IN is read only on request, in a separate,
isolated process with ``torch.load(weights_only=True)``, which only knows tensors and plain containers
(``unpickle``). torch's own allow-list is a second barrier and not a proof: convert only files whose origin
you know, on a machine that you can afford to lose. This module decides by their names what the tensors are:

    a known training code         one of CONVERTERS: EMA first, with the settings that follow     -> a folder
    a folder of diffusers         every .bin of its parts                                         -> a folder
    one state dict                its tensors, by their own names                                 -> a file
    several                       the EMA where one is named so, else nothing until --take says which

The result says what was taken and what was left out, because a clean verdict on the wrong weights is the
worst answer of all.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import file_digest
from pathlib import Path
from typing import cast

import safetensors.torch
import torch
from torch import Tensor

from latentprint.adapters import compvis, edm, lucidrains, medfusion, openai
from latentprint.adapters.fields import short
from latentprint.adapters.files import FLAG, PICKLES, WEIGHTS, read_header, read_json, read_metadata
from latentprint.adapters.statedict import (
    Groups,
    Parts,
    Tensors,
    Told,
    groups_of,
    likely,
    one_of_them,
    wrapped,
)
from latentprint.files import Raw
from latentprint.networks import ModelError
from latentprint.networks.files import unpack

_TIMEOUT = 3600.0

CONVERTERS: tuple[Callable[[Groups, Told], Parts | None], ...] = (
    lucidrains.converted,
    openai.converted,
    compvis.converted,
    medfusion.converted,
    edm.converted,
)
"""The training codes whose checkpoints become a folder; a new one is a file and a row here."""


@dataclass(frozen=True)
class Converted:
    """The result of a conversion.

    Attributes:
        hashes: (sha256, name) of every file read and written.
        said: what was taken and what was left out, in sentences.
    """

    hashes: tuple[tuple[str, str], ...]
    said: tuple[str, ...]


def convert(
    source: Path,
    target: Path,
    *,
    trusted: bool,
    take: str | None = None,
    flags: Mapping[str, object] | None = None,
    prefix: str | None = None,
) -> Converted:
    """Write the weights of the pickle ``source`` to ``target``, a .safetensors file or a new folder.

    Args:
        source: a pickle, or a folder of diffusers whose parts are pickles.
        target: what to write; nothing is overwritten.
        trusted: whether ``source`` may be read.
        take: which of several state dicts, by the key that holds it.
        flags: the settings that it was trained with, where a checkpoint does not hold them.
        prefix: what the names of the network begin with, where a larger module holds it ("net.").

    Raises:
        ModelError: ``trusted`` is not given, a path is unsuitable, or the file is not a state dict of plain
            tensors, or it holds several and none was named.
    """
    safe = source.suffix == ".safetensors"
    if not trusted and not safe:
        raise ModelError(
            f"reading {source.name!r} can run any code it holds; give {FLAG} if you know where it comes from"
        )
    if target.exists():
        raise ModelError(f"{str(target)!r} exists already and is not overwritten")
    if source.is_dir():
        return _folder(source, target)
    if not source.is_file():
        raise ModelError(f"there is no file {str(source)!r}")
    tensors, plain, left = _plain(source) if safe else _read(source)
    groups = groups_of(tensors)
    beside = tuple(sorted(one.name for one in source.resolve().parent.iterdir()))
    told = Told(source.name, beside, take, flags, plain)
    if target.suffix.lower() != ".safetensors":
        parts = _known(groups, told, prefix)
        if parts is not None:
            return _written(source, target, parts, left)
    weights, said = one_of_them(groups, take, prefix)
    if target.suffix.lower() != ".safetensors":
        raise ModelError(
            f"{source.name!r} holds {len(weights)} tensors{likely(weights)}, and does not say which network "
            f"they belong to: put that network's configuration into a folder, name a file in it that ends in "
            f".safetensors ({target / 'weights.safetensors'}) in the place of {str(target)!r}, and audit the "
            "folder; or make the network in Python (--model package.module:factory)"
        )
    said += _common(weights)
    _require_finite(source, weights)
    scale = tensors.get("scale_factor", plain.get("scale_factor"))  # MAISI keeps that of its latents here
    kept = {} if scale is None else {"scale_factor": repr(float(scale))}
    _save(weights, target, kept)
    said += tuple(f"kept beside them: {name} {value}" for name, value in kept.items())
    return Converted(((_sha256(source), str(source)), (_sha256(target), str(target))), (*said, *left))


def _known(groups: Groups, told: Told, prefix: str | None) -> Parts | None:
    """What the converter of a known training code makes of it, alone or within a larger module."""
    if prefix is None:
        for converter in CONVERTERS:
            if (parts := converter(groups, told)) is not None:
                return parts
    inner = wrapped(groups, told, prefix)
    if inner is None:
        return None
    return next((parts for one in CONVERTERS if (parts := one(*inner)) is not None), None)


def _common(weights: Tensors) -> tuple[str, ...]:
    """The note for names that all have the prefix of a larger module."""
    tops = {name.partition(".")[0] for name in weights if "." in name}
    if len(tops) != 1 or any("." not in name for name in weights):
        return ()
    top = f"{tops.pop()}."
    return (f"every name begins with {top!r}; --prefix {top} takes that off, where its network has it not",)


def _plain(source: Path) -> tuple[dict[str, Tensor], Raw, tuple[str, ...]]:
    """The same of safetensors, which need no other process."""
    read_header(source)
    return safetensors.torch.load_file(source), Raw(read_metadata(source)), ()


def _read(source: Path) -> tuple[dict[str, Tensor], Raw, tuple[str, ...]]:
    """The tensors and plain values of a pickle by the keys that lead to them, and what was left out."""
    worker = Path(__file__).with_name("unpickle.py")
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "tensors.safetensors"
        call = [sys.executable, "-I", str(worker), str(source.resolve()), str(out)]
        try:
            done = subprocess.run(call, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
            answer: dict[str, object] = json.loads(done.stdout) if done.stdout.strip() else {}
        except subprocess.TimeoutExpired:
            answer = {"reason": "it took more than an hour"}
        except ValueError:
            answer = {}
        if "plain" not in answer:
            raise ModelError(f"{source.name!r} cannot be converted: {_reason(answer)}")
        tensors = safetensors.torch.load(out.read_bytes())
    classes = cast(list[str], answer["left"])
    seen = f"objects of {', '.join(classes)} were left unread" if classes else ""
    return tensors, cast(Raw, answer["plain"]), (seen,) if seen else ()


def _reason(answer: Mapping[str, object]) -> str:
    reason = answer.get("reason", "the process that read it ended without a message")
    if reason != "classes":
        return str(reason)
    named = ", ".join(cast(list[str], answer.get("classes") or ["a class"]))
    return (
        f"it holds more than tensors ({named}), and what else a file holds is never run; where the model was "
        'trained, torch.save(network.state_dict(), "weights.pt") writes its tensors alone'
    )


def _folder(source: Path, target: Path) -> Converted:
    """A folder of diffusers: its configurations are copied, and every pickle of its parts is converted."""
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
                made[one.relative_to(source)] = unpack(one)
            continue
        if len(weights) != 1:
            raise ModelError(
                f"{part.name!r} holds {len(weights)} pickles and no safetensors; one was looked for"
            )
        tensors, _, _ = _read(weights[0])
        state, words = one_of_them(groups_of(tensors), None)
        made[part.relative_to(source) / WEIGHTS] = state
        said += [f"{part.name or 'the network'} ({kind}): {words[0]}"]
        hashes.append((_sha256(weights[0]), str(weights[0])))
    for config in configs:
        (target / config.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(config, target / config.relative_to(source))
    for name, state in made.items():
        _save(state, target / name)
        hashes.append((_sha256(target / name), str(target / name)))
    return Converted(tuple(hashes), tuple(said))


def _written(source: Path, target: Path, parts: Parts, left: tuple[str, ...]) -> Converted:
    """The folder that a converter made from a checkpoint."""
    for weights in parts.weights.values():
        _require_finite(source, weights)
    hashes = [(_sha256(source), str(source))]
    target.mkdir(parents=True)
    for name, content in parts.configs.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_text(json.dumps(content, indent=1) + "\n")
    for part, weights in parts.weights.items():
        file = target / part / WEIGHTS
        file.parent.mkdir(parents=True, exist_ok=True)
        _save(weights, file)
        hashes.append((_sha256(file), str(file)))
    return Converted(tuple(hashes), (*parts.said, *left))


def _require_finite(source: Path, weights: Tensors) -> None:
    bad = [name for name, one in weights.items() if not bool(torch.isfinite(one.float()).all())]
    if bad:
        raise ModelError(f"{source.name!r} holds NaN or infinite values, in {short(bad[0])} for one")


def _save(weights: Tensors, file: Path, words: dict[str, str] | None = None) -> None:
    safetensors.torch.save_file({name: one.contiguous() for name, one in weights.items()}, file, words)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()
