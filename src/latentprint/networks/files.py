"""Tensors with a note about them, in a folder, such that a crash at any moment leaves a whole set behind.

    tensors-XXXXXXXX.safetensors   the tensors; XXXXXXXX is the start of their sha256
    commit.json                    names that file, and holds the note; written last

Every file is written aside, flushed to the disk and renamed. The set counts once ``commit.json`` names it;
files that it does not name are remains, which the next commit removes. Nothing is ever pickled.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import safetensors
import safetensors.torch
from torch import Tensor

from latentprint.contracts import InputError

MARKER = "commit.json"


class FileError(InputError):
    """A folder that does not hold what it should, for the reason given in one sentence."""


def write(file: Path, content: bytes) -> None:
    """Write a file wholly or not at all: aside, flushed, renamed.

    Raises:
        OSError: the disk is full or the folder cannot be written; what was there before stays.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f".{file.name}.aside")
    try:
        with aside.open("wb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        aside.replace(file)
    finally:
        aside.unlink(missing_ok=True)
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def pack(tensors: Mapping[str, Tensor]) -> bytes:
    """Tensors in safetensors format."""
    return safetensors.torch.save({k: v.detach().cpu().contiguous() for k, v in tensors.items()})


def unpack(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        FileError: the file is missing, truncated or in another format.
    """
    try:
        return safetensors.torch.load(file.read_bytes())
    except (OSError, safetensors.SafetensorError) as error:
        raise FileError(f"{file} cannot be read as safetensors: {_reason(error)}") from error


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        FileError: the file is missing or is no JSON object.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FileError(f"{file} cannot be read as JSON: {_reason(error)}") from error
    if not isinstance(found, dict):
        raise FileError(f"{file} must hold a JSON object, got {type(found).__name__}")
    return cast(dict[str, Any], found)


def commit(folder: Path, tensors: Mapping[str, Tensor], note: Mapping[str, Any]) -> None:
    """Replace what ``folder`` holds by ``tensors`` and ``note`` (plain values), in one indivisible step.

    Raises:
        OSError: the disk is full or the folder cannot be written; the set before stays.
    """
    content = pack(tensors)
    name = f"tensors-{sha256(content).hexdigest()[:8]}.safetensors"
    write(folder / name, content)
    write(folder / MARKER, json.dumps({"tensors": name, "note": dict(note)}, indent=1).encode())
    for old in folder.glob("tensors-*.safetensors"):
        if old.name != name:
            old.unlink(missing_ok=True)


def committed(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """(tensors, note) of the last commit; None where there never was one.

    Raises:
        FileError: there was one, but its files are missing or damaged.
    """
    if not (folder / MARKER).exists():
        return None
    found = read_json(folder / MARKER)
    name, note = found.get("tensors"), found.get("note")
    if not isinstance(name, str) or not isinstance(note, dict) or Path(name).name != name:
        raise FileError(f"{folder / MARKER} does not name its tensors and its note")
    return unpack(folder / name), cast(dict[str, Any], note)


def _reason(error: Exception) -> str:
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return said[:1].lower() + said[1:]
