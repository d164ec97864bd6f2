"""Reading model files that nobody vouches for: JSON and safetensors, each checked before memory is set aside.

A safetensors file is

    8 bytes   n, little-endian
    n bytes   a JSON object: name -> {dtype, shape, data_offsets [begin, end)}, and "__metadata__"
    the rest  the values, with no gaps and no overlaps

so whether every tensor is what it says is known from the first 8 + n bytes and the size of the file. Pickles
are refused unread, because reading a pickle can run any code; so is every file that lies outside the folder
which was named, by ``..`` or through a link.

Source: the safetensors format (safetensors README, "Format").
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeGuard, cast

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from latentprint.adapters.fields import short
from latentprint.contracts import quoted
from latentprint.files import FileError, parse_json
from latentprint.files import read_json as read_bounded
from latentprint.networks import ModelError

MAX_JSON = 2**22
"""The most bytes of a configuration or an index (4 MiB)."""

MAX_HEADER = 2**25
"""The most bytes of a safetensors header (32 MiB)."""

MAX_TENSORS = 100_000
MAX_DIMENSIONS = 8
MAX_SHARDS = 1_000

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
WEIGHTS = "diffusion_pytorch_model.safetensors"

_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_READ = 2**20


@dataclass(frozen=True)
class Stated:
    """What a header says of one tensor."""

    dtype: str
    shape: tuple[int, ...]


def inside(folder: Path, name: str) -> Path:
    """The file ``name`` of a folder.

    Raises:
        ModelError: it would lie outside, by its name or through a link, or is there but no plain file.
    """
    if "\0" in name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise ModelError(f"a model may name files of its own folder only, got {short(name)}")
    path = folder / name
    try:
        real, root = path.resolve(), folder.resolve()
        found, plain = os.path.lexists(path), path.is_file()
    except (OSError, RuntimeError) as error:  # a link that goes round in a circle
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
        ModelError: it is a link that leads out, or no folder.
    """
    path = folder / name
    try:
        outside = not path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError) as error:  # a link that goes round in a circle
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


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of at most MAX_JSON bytes.

    Raises:
        ModelError: the file is missing, too large, or holds something else.
    """
    try:
        return read_bounded(path, most=MAX_JSON, infinite=True)
    except FileError as error:
        raise ModelError(str(error)) from error


def read_header(path: Path) -> dict[str, Stated]:
    """The tensors that a safetensors file states, checked against the size of the file; no value is read.

    Raises:
        ModelError: the file is missing, truncated, no safetensors file, or its header does not describe its
            content exactly: absurd shapes, gaps, overlaps and other sizes than stated are refused.
    """
    if not path.is_file():
        raise ModelError(f"there is no file {path.name!r} in {str(path.parent)!r}")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(MAX_HEADER, size - 8):
                raise ModelError(
                    f"{path.name!r} is not a safetensors file: its header would have {length} bytes in a "
                    f"file of {size}"
                )
            raw = file.read(length)
    except OSError as error:
        raise ModelError(f"{path.name!r} cannot be read: {error.strerror}") from error
    try:
        header = parse_json(raw.decode(), f"the header of {quoted(path.name)}")
    except ValueError as error:  # FileError is one, and so is what is not UTF-8
        raise ModelError(f"{quoted(path.name)} is not a safetensors file: {error}") from error
    header.pop("__metadata__", None)
    if len(header) > MAX_TENSORS:
        raise ModelError(f"{path.name!r} states {len(header)} tensors; at most {MAX_TENSORS} are read")
    stated, spans = dict[str, Stated](), list[tuple[int, int]]()
    for name, entry in header.items():
        stated[name], span = _stated(name, entry, path.name)
        spans.append(span)
    at = 0
    for begin, end in sorted(spans):
        if begin != at:
            raise ModelError(f"the tensors of {path.name!r} overlap or leave gaps at byte {begin}")
        at = end
    if at != size - 8 - length:
        raise ModelError(
            f"{path.name!r} states {at} bytes of tensors, but holds {size - 8 - length}; it may be truncated"
        )
    return stated


def _stated(name: str, entry: object, file: str) -> tuple[Stated, tuple[int, int]]:
    """One entry of the header -> what it says, and the bytes it takes."""
    where = f"tensor {short(name)} of {file!r}"
    if not isinstance(entry, dict):
        raise ModelError(f"{where} must be described by a JSON object")
    values = cast(dict[str, Any], entry)
    dtype, shape, span = values.get("dtype"), values.get("shape"), values.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in _BYTES:
        raise ModelError(f"{where} is of type {short(dtype)}; understood are {', '.join(_BYTES)}")
    if not _whole_numbers(shape) or len(shape) > MAX_DIMENSIONS:
        raise ModelError(f"{where} must have a shape of up to {MAX_DIMENSIONS} whole numbers")
    if not _whole_numbers(span) or len(span) != 2 or span[0] > span[1]:
        raise ModelError(f"{where} must state where its bytes begin and end")
    count = math.prod(shape)
    if count * _BYTES[dtype] != span[1] - span[0]:
        raise ModelError(
            f"{where} is of shape {short(shape)}, which does not fit its {span[1] - span[0]} bytes"
        )
    return Stated(dtype, tuple(shape)), (span[0], span[1])


def _whole_numbers(value: object) -> TypeGuard[list[int]]:
    if not isinstance(value, list):
        return False
    entries = cast(list[object], value)
    return all(isinstance(v, int) and not isinstance(v, bool) and 0 <= v < 2**63 for v in entries)


def weight_files(folder: Path, usual_name: str = WEIGHTS) -> list[Path]:
    """The safetensors files that hold the weights of a network's folder; sharded ones by their index.

    ``usual_name`` is what its library calls the file.

    Raises:
        ModelError: there are none, or only pickles, or several of which none is the usual one; an index names
            files outside the folder.
    """
    index = inside(folder, f"{usual_name}.index.json")
    if index.is_file():
        named = read_json(index).get("weight_map")
        if not isinstance(named, dict) or not named:
            raise ModelError(f"{index.name!r} must hold a weight_map")
        shards = set(cast(dict[str, object], named).values())
        if len(shards) > MAX_SHARDS or not all(isinstance(s, str) for s in shards):
            raise ModelError(f"{index.name!r} must name up to {MAX_SHARDS} files")
        return [_shard(folder, name, index.name) for name in sorted(cast(set[str], shards))]
    usual = inside(folder, usual_name)
    if usual.is_file():
        return [usual]
    names = sorted(os.listdir(folder)) if folder.is_dir() else []
    others = [n for n in names if n.lower().endswith(".safetensors")]
    if len(others) == 1:
        return [inside(folder, others[0])]
    if others:
        raise ModelError(
            f"{str(folder)!r} holds several safetensors files and no {usual_name!r}: {short(others)}"
        )
    refuse_pickle(next((n for n in names if n.lower().endswith(PICKLES)), ""))
    raise ModelError(f"{str(folder)!r} holds no weights: {usual_name!r} is looked for")


def _shard(folder: Path, name: str, index: str) -> Path:
    if not name.lower().endswith(".safetensors"):
        refuse_pickle(name)
        raise ModelError(f"{index!r} names {short(name)}, which is no safetensors file")
    return inside(folder, name)


def refuse_pickle(name: str) -> None:
    """Nothing, unless a file of this name would be a pickle.

    Raises:
        ModelError: it would; the way out is named.
    """
    if name.lower().endswith(PICKLES):
        raise ModelError(
            f"{Path(name).name!r} is a pickle, which can run any code while it is read, so it is refused; if "
            "you know "
            f"where it comes from, `latentprint convert {Path(name).name} OUT.safetensors "
            "--i-trust-this-file` writes its tensors as safetensors"
        )


Rename = Callable[[str, Mapping[str, tuple[int, ...]]], str]
"""(name in a file, the network's tensors) -> the name that the network gives this one."""


def read_tensors(
    files: Sequence[Path],
    expected: Mapping[str, tuple[int, ...]],
    rename: Rename | None = None,
    ignored: Callable[[str], bool] = lambda name: False,
) -> dict[str, Tensor]:
    """The tensors of ``files``, which must be those expected, in float32 (whole numbers as they are).

    Those whose name is ``ignored`` are left where they are, unless they are expected.

    Names and shapes are compared on the headers, so nothing is loaded that the network would not take.

    Raises:
        ModelError: a file cannot be read, or a tensor is missing, left over, doubled or of another shape.
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


_OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def renamed(name: str, expected: Mapping[str, tuple[int, ...]]) -> str:
    """The name that attention weights of diffusers before 0.18 have today; other names as they are."""
    if name in expected:
        return name
    *path, part, kind = name.split(".") if name.count(".") >= 2 else ["", name, ""]
    return ".".join([*path, _OLD[part], kind]) if part in _OLD else name


def _require_fit(stated: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> None:
    if missing := sorted(set(expected) - set(stated)):
        raise ModelError(
            f"the weights lack {len(missing)} of the network's tensors, {short(missing[0])} for one"
        )
    if extra := sorted(set(stated) - set(expected)):
        raise ModelError(
            f"the weights hold {len(extra)} tensors the network has not, {short(extra[0])} for one"
        )
    for name, shape in stated.items():
        # attention was once written as 1 x 1 convolutions: the same numbers, in the same order
        if shape != expected[name] and shape != (*expected[name], 1, 1):
            raise ModelError(
                f"tensor {short(name)} must have shape {expected[name]}, got {short(list(shape))}"
            )


def files_sha256(files: Sequence[Path], root: Path) -> str:
    """The sha256 of one file; of several, that of the lines ``sha256  name``, sorted by name.

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
        lines.append(f"{digest.hexdigest()}  {file.relative_to(root).as_posix()}")
    return lines[0][:64] if len(lines) == 1 else sha256("\n".join(lines).encode()).hexdigest()
