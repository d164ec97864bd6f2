"""Reading untrusted model files: JSON and safetensors, both checked before memory is allocated.

Pickles are refused unread, because reading a pickle can run any code. Every file outside the named folder is
refused too, whether reached by ``..`` or through a link.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from latentprint.adapters.fields import short
from latentprint.adapters.peek import is_average
from latentprint.files import FileError, Raw
from latentprint.files import read_json as read_bounded
from latentprint.networks import ModelError
from latentprint.networks.files import Stated
from latentprint.networks.files import read_header as header_of

MAX_JSON = 2**22
"""The most bytes of a configuration or an index (4 MiB)."""

MAX_SHARDS = 1_000

FLAG = "--i-trust-this-file"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
WEIGHTS = "diffusion_pytorch_model.safetensors"

_READ = 2**20


def inside(folder: Path, name: str) -> Path:
    """The file ``name`` of a folder.

    Raises:
        ModelError: it would be outside, by its name or through a link, or is not a plain file.
    """
    if "\0" in name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise ModelError(f"a model may name files of its own folder only, got {short(name)}")
    path = folder / name
    try:
        real, root = path.resolve(), folder.resolve()
        found, plain = os.path.lexists(path), path.is_file()
    except (OSError, RuntimeError) as error:  # a circular link
        raise ModelError(f"{short(name)} cannot be followed to a file of the model's folder") from error
    if not real.is_relative_to(root):
        raise ModelError(
            f"{short(name)} is a link that leads out of the model's folder; copy the files it stands for "
            "into the "
            "folder (cp -rL does it)"
        )
    if found and not plain:
        raise ModelError(f"{short(name)} is not a file that can be read")
    return path


def subfolder(folder: Path, name: str) -> Path:
    """The folder ``name`` of a folder, which need not exist.

    Raises:
        ModelError: it is a link that leads outside, or not a folder.
    """
    path = folder / name
    try:
        outside = not path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError) as error:  # a circular link
        raise ModelError(f"{short(name)} cannot be followed to a folder of the model") from error
    if outside:
        raise ModelError(
            f"{short(name)} is a link that leads out of the model's folder; copy what it stands for into the "
            "folder "
            "(cp -rL does it)"
        )
    if os.path.lexists(path) and not path.is_dir():
        raise ModelError(f"{short(name)} of the model must be a folder")
    return path


def read_json(path: Path) -> Raw:
    """A JSON object of at most MAX_JSON bytes.

    Raises:
        ModelError: the file is missing, too large, or not a JSON object.
    """
    try:
        return read_bounded(path, most=MAX_JSON, infinite=True)
    except FileError as error:
        raise ModelError(str(error)) from error


def read_header(path: Path) -> dict[str, Stated]:
    """The tensors that a safetensors file states (``networks.files.read_header``).

    Raises:
        ModelError: the file is missing, or its header does not describe its content exactly.
    """
    try:
        return header_of(path)
    except FileError as error:
        raise ModelError(str(error)) from error


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata words of a safetensors file that was read before."""
    with safetensors.safe_open(path, "pt") as file:
        return cast(dict[str, str], cast(Any, file).metadata() or {})


def weight_files(folder: Path, usual_name: str = WEIGHTS) -> list[Path]:
    """The safetensors files that hold the weights of a network's folder; sharded ones by their index.

    ``usual_name`` is the library's name for the file.

    Raises:
        ModelError: there are none, or only pickles, or several without the usual name; an index names files
            outside the folder.
    """
    index = inside(folder, f"{usual_name}.index.json")
    if index.is_file():
        named = read_json(index).get("weight_map")
        if not isinstance(named, dict) or not named:
            raise ModelError(f"{index.name!r} must hold a weight_map")
        every = list(cast(dict[str, object], named).values())
        shards = {one for one in every if isinstance(one, str)}
        if len(shards) > MAX_SHARDS or not all(isinstance(one, str) for one in every):
            raise ModelError(f"{index.name!r} must name up to {MAX_SHARDS} files")
        return [_shard(folder, name, index.name) for name in sorted(shards)]
    usual = inside(folder, usual_name)
    if usual.is_file():
        return [usual]
    names = sorted(os.listdir(folder)) if folder.is_dir() else []
    others = [n for n in names if n.lower().endswith(".safetensors")]
    if len(others) == 1:
        return [inside(folder, others[0])]
    if others:
        raise ModelError(
            f"{str(folder)!r} holds {len(others)} files of weights ({', '.join(map(short, others[:2]))}"
            f"{', ...' if others[2:] else ''}), and which of them generates images is not written: name that "
            f"one {usual_name!r}, or leave it alone there"
        )
    if pickle := next((n for n in names if n.lower().endswith(PICKLES)), None):
        whole = next((one for one in (folder.parent, folder) if (one / "model_index.json").exists()), folder)
        raise ModelError(
            f"the weights of {folder.name!r} are a pickle ({pickle!r}), which can run any code while it is "
            f"read, so they are refused; if you know where they come from, `latentprint convert "
            f"{shlex.quote(str(whole))} NEW {FLAG}` writes the whole folder as safetensors"
        )
    raise ModelError(f"{str(folder)!r} holds no weights; it needs {usual_name!r}")


def _shard(folder: Path, name: str, index: str) -> Path:
    if not name.lower().endswith(".safetensors"):
        refuse_pickle(name)
        raise ModelError(f"{index!r} names {short(name)}, which is not a safetensors file")
    return inside(folder, name)


def refuse_pickle(name: str) -> None:
    """Refuse a file whose name is that of a pickle.

    Raises:
        ModelError: it is, with the command that helps.
    """
    if name.lower().endswith(PICKLES):
        raise ModelError(
            f"{Path(name).name!r} is a pickle, which can run any code while it is read, so it is refused; if "
            f"you know where it comes from, `latentprint convert {name} OUT.safetensors {FLAG}` writes its "
            "tensors as safetensors"
        )


Rename = Callable[[str, Mapping[str, tuple[int, ...]]], str]
"""(name in a file, the network's tensors) -> the network's name for this tensor."""


def read_tensors(
    files: Sequence[Path],
    expected: Mapping[str, tuple[int, ...]],
    rename: Rename | None = None,
    ignored: Callable[[str], bool] = lambda name: False,
) -> dict[str, Tensor]:
    """The tensors of ``files``, which must be those expected, in float32 (whole numbers as they are).

    Tensors whose name is ``ignored`` are not read, unless they are expected.

    Names and shapes are compared in the headers, so nothing is loaded that the network would not take.

    Raises:
        ModelError: a file cannot be read, or a tensor is missing, left over, duplicated or has another shape.
    """
    stated = dict[str, Stated]()
    for file in files:
        header = read_header(file)
        if doubled := sorted(set(header) & set(stated)):
            raise ModelError(f"tensor {short(doubled[0])} comes in two files")
        stated |= {name: one for name, one in header.items() if name in expected or not ignored(name)}
    names = {name: (rename or renamed)(name, expected) for name in stated}
    if len(set(names.values())) != len(names):
        raise ModelError("two tensors of the weights stand for the same part of the network")
    _require_fit({names[n]: s.shape for n, s in stated.items()}, expected)
    out = dict[str, Tensor]()
    for file in files:
        try:
            loaded = safetensors.torch.load_file(file)
        except (OSError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
            raise ModelError(f"{file.name!r} cannot be read as safetensors: {short(str(error))}") from error
        for name, tensor in loaded.items():
            if name not in names:
                continue
            values = tensor.to(torch.float32) if tensor.is_floating_point() else tensor
            if not bool(torch.isfinite(values).all()):
                raise ModelError(f"tensor {short(name)} of {file.name!r} holds NaN or infinite values")
            out[names[name]] = values.reshape(expected[names[name]])
    return out


def load_into(network: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """The network with these tensors as its own, in evaluation mode; it needs no gradient.

    Raises:
        ModelError: one holds integers or booleans where the network has floats, or the other way round.
    """
    for name, own in network.state_dict().items():
        if own.is_floating_point() != tensors[name].is_floating_point():
            raise ModelError(
                f"tensor {short(name)} is of type {tensors[name].dtype}, where the network has {own.dtype}:"
                " quantised or damaged weights cannot be used; save them in float32"
            )
    network.load_state_dict(dict(tensors), strict=True, assign=True)
    return network.eval().requires_grad_(False)


_OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def renamed(name: str, expected: Mapping[str, tuple[int, ...]]) -> str:
    """Today's name of attention weights of diffusers before 0.18; other names as they are."""
    if name in expected:
        return name
    *path, part, kind = name.split(".") if name.count(".") >= 2 else ["", name, ""]
    return ".".join([*path, _OLD[part], kind]) if part in _OLD else name


def _require_fit(stated: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> None:
    missing, extra = sorted(set(expected) - set(stated)), sorted(set(stated) - set(expected))
    if missing or extra:
        counts = {f"lack {len(missing)} of the network's {len(expected)} tensors": missing}
        counts |= {f"hold {len(extra)} that it has not": extra}
        heads = prefixes_of(set(stated), set(expected))
        if heads:
            which = " or ".join(f"--prefix {head}" for head in heads)
            raise ModelError(
                f"the weights are those of a larger module, in which the network's names begin with "
                f"{' or '.join(map(repr, heads))}: convert them again with {which}"
            )
        told = " and ".join(
            f"{words} ({short(names[0])} for one)" for words, names in counts.items() if names
        )
        raise ModelError(
            f"the weights {told}: configuration and weights are of two different networks; take both from "
            "where the model was saved"
        )
    for name, shape in stated.items():
        # attention was once written as 1 x 1 convolutions: the same numbers in the same order
        if shape != expected[name] and shape != (*expected[name], 1, 1):
            raise ModelError(
                f"tensor {short(name)} must have shape {expected[name]}, got {short(list(shape))}"
            )


def prefixes_of(stated: set[str], expected: set[str]) -> list[str]:
    """Under which words all of a network's names stand, averaged ones first."""
    first = min(expected, default="")
    heads = {name.removesuffix(first) for name in stated if name != first and name.endswith(f".{first}")}
    found = [head for head in heads if all(head + name in stated for name in expected)]
    return sorted(found, key=lambda head: (not is_average(head), head))


def files_sha256(files: Sequence[Path], *roots: Path) -> str:
    """The sha256 of one file; of several, that of the lines ``sha256  name``, sorted by file.

    A name is relative to the first of the roots that the file is in.

    Raises:
        ModelError: a file cannot be read.
    """
    lines = list[str]()
    for file in sorted(files):
        digest = sha256()
        try:
            with file.open("rb") as stream:
                while chunk := stream.read(_READ):
                    digest.update(chunk)
        except OSError as error:
            raise ModelError(f"{file.name!r} cannot be read: {error.strerror}") from error
        root = next(one for one in roots if file.is_relative_to(one))
        lines.append(f"{digest.hexdigest()}  {file.relative_to(root).as_posix()}")
    return lines[0][:64] if len(lines) == 1 else sha256("\n".join(lines).encode()).hexdigest()
