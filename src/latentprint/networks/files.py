"""Tensors with a note about them, in a folder, such that a crash at any moment leaves a complete set behind.

    tensors-XXXXXXXX.safetensors   the tensors; XXXXXXXX is the start of their sha256
    commit.json                    names that file, and holds the note; written last

A set is valid once ``commit.json`` names it. Files that it does not name are leftovers, which the next commit
removes. Nothing is ever pickled.

A safetensors file is

    8 bytes   n, little-endian
    n bytes   a JSON object: name -> {dtype, shape, data_offsets [begin, end)}, and "__metadata__"
    the rest  the values, with no gaps and no overlaps

so the first 8 + n bytes and the size of the file show whether every tensor is as stated.

Source: the safetensors format (safetensors README, "Format").
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TypeGuard, cast

import safetensors
import safetensors.torch
from torch import Tensor

from latentprint.contracts import quoted
from latentprint.files import FileError, disk, parse_json, read, read_json, write

MARKER = "commit.json"

MAX_WEIGHTS = 2**38
"""The most bytes of a file of tensors (256 GiB); memory holds less."""


MAX_HEADER = 2**25
"""The most bytes of a safetensors header (32 MiB)."""

MAX_TENSORS = 100_000
MAX_DIMENSIONS = 8

_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


@dataclass(frozen=True)
class Stated:
    """What a header says about one tensor."""

    dtype: str
    shape: tuple[int, ...]


def read_header(path: Path) -> dict[str, Stated]:
    """The tensors that a safetensors file states, checked against the size of the file; no value is read."""
    if not path.is_file():
        raise FileError(f"there is no file {path.name!r} in {str(path.parent)!r}")
    with disk(path, "read"), path.open("rb") as file:
        size = path.stat().st_size
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(MAX_HEADER, size - 8):
            raise FileError(
                f"{path.name!r} is not a safetensors file: its header would have {length} bytes in a "
                f"file of {size}"
            )
        raw = file.read(length)
    try:
        header = parse_json(raw.decode(), f"the header of {quoted(path.name)}")
    except ValueError as error:  # FileError is one, and so is text that is not UTF-8
        raise FileError(f"{quoted(path.name)} is not a safetensors file: {error}") from error
    header.pop("__metadata__", None)
    if len(header) > MAX_TENSORS:
        raise FileError(f"{path.name!r} states {len(header)} tensors; at most {MAX_TENSORS} are read")
    stated, spans = dict[str, Stated](), list[tuple[int, int]]()
    for name, entry in header.items():
        stated[name], span = _stated(name, entry, path.name)
        spans.append(span)
    at = 0
    for begin, end in sorted(spans):
        if begin != at:
            raise FileError(f"the tensors of {path.name!r} overlap or leave gaps at byte {begin}")
        at = end
    if at != size - 8 - length:
        raise FileError(
            f"{path.name!r} states {at} bytes of tensors, but holds {size - 8 - length}; it may be truncated"
        )
    return stated


def _stated(name: str, entry: object, file: str) -> tuple[Stated, tuple[int, int]]:
    """One entry of the header -> what it states, and the bytes it takes."""
    where = f"tensor {quoted(name)} of {file!r}"
    if not isinstance(entry, dict):
        raise FileError(f"{where} must be described by a JSON object")
    values = cast(dict[str, object], entry)
    dtype, shape, span = values.get("dtype"), values.get("shape"), values.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in _BYTES:
        raise FileError(f"{where} is of type {quoted(dtype)}; supported are {', '.join(_BYTES)}")
    if not _whole_numbers(shape) or len(shape) > MAX_DIMENSIONS:
        raise FileError(f"{where} must have a shape of up to {MAX_DIMENSIONS} whole numbers")
    if not _whole_numbers(span) or len(span) != 2 or span[0] > span[1]:
        raise FileError(f"{where} must state where its bytes begin and end")
    count = math.prod(shape)
    if count * _BYTES[dtype] != span[1] - span[0]:
        raise FileError(
            f"{where} is of shape {quoted(shape)}, which does not fit its {span[1] - span[0]} bytes"
        )
    return Stated(dtype, tuple(shape)), (span[0], span[1])


def _whole_numbers(value: object) -> TypeGuard[list[int]]:
    if not isinstance(value, list):
        return False
    entries = cast(list[object], value)
    return all(isinstance(v, int) and not isinstance(v, bool) and 0 <= v < 2**63 for v in entries)


def pack(tensors: Mapping[str, Tensor]) -> bytes:
    """Tensors in safetensors format."""
    return safetensors.torch.save({k: v.detach().cpu().contiguous() for k, v in tensors.items()})


def unpack(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file."""
    read_header(file)  # before memory is allocated
    return _unpacked(file, read(file, MAX_WEIGHTS))


def _unpacked(file: Path, content: bytes) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(content)
    except (safetensors.SafetensorError, ValueError) as error:
        raise FileError(f"{quoted(file)} cannot be read as safetensors: {error}") from error


def commit(folder: Path, tensors: Mapping[str, Tensor], note: Mapping[str, object]) -> None:
    """Replace the set in ``folder`` by ``tensors`` and ``note`` (plain values), in one atomic step.

    Raises:
        FileError: the disk is full or the folder cannot be written; the earlier set stays.
    """
    content = pack(tensors)
    name = _named(content)
    write(folder / name, content)
    write(folder / MARKER, json.dumps({"tensors": name, "note": dict(note)}, indent=1).encode())
    for old in folder.glob("tensors-*.safetensors"):
        if old.name != name:
            old.unlink(missing_ok=True)


def committed(folder: Path) -> tuple[dict[str, Tensor], dict[str, object]] | None:
    """(tensors, note) of the last commit; None if there never was one.

    Raises:
        FileError: there was a commit, but its files are missing or damaged.
    """
    if not (folder / MARKER).exists():
        return None
    found = read_json(folder / MARKER)
    name, note = found.get("tensors"), found.get("note")
    if not isinstance(name, str) or not isinstance(note, dict) or Path(name).name != name:
        raise FileError(f"{folder / MARKER} does not name its tensors and its note")
    read_header(folder / name)
    content = read(folder / name, MAX_WEIGHTS)
    if name != _named(content):
        raise FileError(f"{quoted(folder / name)} was changed after it was written")
    return _unpacked(folder / name, content), cast(dict[str, object], note)


def _named(content: bytes) -> str:
    return f"tensors-{sha256(content).hexdigest()[:8]}.safetensors"
