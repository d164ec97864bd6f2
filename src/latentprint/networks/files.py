"""Tensors with a note about them, in a folder, such that a crash at any moment leaves a whole set behind.

    tensors-XXXXXXXX.safetensors   the tensors; XXXXXXXX is the start of their sha256
    commit.json                    names that file, and holds the note; written last

The set counts once ``commit.json`` names it; files that it does not name are remains, which the next commit
removes. Nothing is ever pickled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import safetensors
import safetensors.torch
from torch import Tensor

from latentprint.contracts import quoted
from latentprint.files import FileError, read, read_json, write

MARKER = "commit.json"

MAX_WEIGHTS = 2**38
"""The most bytes of a file of tensors (256 GiB); what memory holds is less."""


def pack(tensors: Mapping[str, Tensor]) -> bytes:
    """Tensors in safetensors format."""
    return safetensors.torch.save({k: v.detach().cpu().contiguous() for k, v in tensors.items()})


def unpack(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        FileError: the file is missing, truncated or in another format.
    """
    try:
        return safetensors.torch.load(read(file, MAX_WEIGHTS))
    except (safetensors.SafetensorError, ValueError) as error:
        if isinstance(error, FileError):
            raise
        raise FileError(f"{quoted(file)} cannot be read as safetensors: {error}") from error


def commit(folder: Path, tensors: Mapping[str, Tensor], note: Mapping[str, Any]) -> None:
    """Replace what ``folder`` holds by ``tensors`` and ``note`` (plain values), in one indivisible step.

    Raises:
        FileError: the disk is full or the folder cannot be written; the set before stays.
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
