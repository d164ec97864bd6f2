"""What is done to a document, a file or a folder, before a command reads it."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MARK = "@@edge@@"
GONE = "removed"

KINDS: dict[str, str] = {
    "null": "null",
    "true": "true",
    "zero": "0",
    "negative": "-1",
    "half": "0.5",
    "tiny": "1e-320",
    "huge": "1e300",
    "overflow": "1e400",
    "nan": "NaN",
    "infinity": "-Infinity",
    "many": str(10**12),
    "digits": "1" * 5000,
    "empty text": '""',
    "text": '"thorough"',
    "long text": '"' + "x/y " * 25_000 + '"',
    "surrogate": '"\\ud800"',
    "list": "[]",
    "table": "{}",
    "deep": "[" * 100_000 + "]" * 100_000,
    GONE: "",
}
TOML = KINDS | {
    "null": "nul",
    "nan": "nan",
    "infinity": "-inf",
    "deep": "[" * 20_000 + "]" * 20_000,
    "long text": '"' + "x/y " * 10_000 + '"',
    "datetime": "2020-01-01T00:00:00Z",
}
"""The kinds of a value in JSON, and in TOML."""


@dataclass(frozen=True)
class Case:
    """One input.

    Attributes:
        group: what it belongs to; of every group as many cases are tried, while it has some.
        name: what is read and how it was changed.
        needs: what of the prepared folder it works on.
        make: changes it.
        read: reads it; an exit code.
        noticed: whether exit 0 would mean that a change went unnoticed.
    """

    group: str
    name: str
    needs: tuple[str, ...]
    make: Callable[[Path], object]
    read: Callable[[Path], int]
    noticed: bool = False


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a document, tables and lists themselves included."""
    if path:
        yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in inner:
        yield from places(below, (*path, key))


def changed(document: Any, path: tuple[Any, ...], kind: str) -> bytes:
    """The document as JSON, with the value at ``path`` replaced."""
    whole = json.loads(json.dumps(document))
    at = whole
    for key in path[:-1]:
        at = at[key]
    if kind == GONE:
        del at[path[-1]]
        return json.dumps(whole).encode()
    at[path[-1]] = MARK
    return json.dumps(whole).replace(f'"{MARK}"', KINDS[kind]).encode()


def same(document: Any, path: tuple[Any, ...], kind: str) -> bool:
    """Whether the replacement is what stood there."""
    for key in path:
        document = document[key]
    with contextlib.suppress(ValueError, RecursionError):
        if kind in ("zero", "tiny") and document == 0 and not isinstance(document, bool):
            return True  # the same to the last bit that a number between 0 and 1 has
        return json.dumps(document) == json.dumps(json.loads(KINDS[kind])) if KINDS[kind] else False
    return False


def put(path: Path, content: bytes) -> None:
    """A file of its own: what stood there may be a link to the prepared one."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def _instead(make: Callable[[Path], object]) -> Callable[[Path], object]:
    def apply(path: Path) -> None:
        path.unlink()
        make(path)

    return apply


DAMAGES: dict[str, Callable[[Path], object]] = {
    GONE: lambda path: path.unlink(),
    "empty": lambda path: put(path, b""),
    "cut": lambda path: put(path, path.read_bytes()[: path.stat().st_size // 2]),
    "noise": lambda path: put(path, random.Random(0).randbytes(5000)),
    "pickle": lambda path: put(path, pickle.dumps({"a": 1})),
    "text": lambda path: put(path, b"\xff\x00{"),
    "deep": lambda path: put(path, b"[" * 100_000),
    "folder": _instead(lambda path: path.mkdir()),
    "pipe": _instead(os.mkfifo),
    "zero": _instead(lambda path: path.symlink_to("/dev/zero")),
    "loop": _instead(lambda path: path.symlink_to(path.name)),
    "sparse": lambda path: (put(path, path.read_bytes()), os.truncate(path, 2**33)),
}
"""What befalls a file."""


def spoiled(content: bytes, at: random.Random) -> bytes:
    """Bytes as a bad disk, a cut transfer or an ill-meaning sender leaves them.

    Its beginning and its end are hit most: headers, and the directories of zip and Parquet.
    """
    raw = bytearray(content)
    size = len(raw)
    span = at.choice([(0, min(size, 64)), (max(0, size - 120), size), (0, size)])
    place = at.randrange(*span) if size else 0
    width = at.choice([1, 2, 4, 8])
    match at.choice(["bit", "bytes", "ones", "zeros", "large", "cut", "insert", "twice", "swap"]):
        case "bit":
            raw[place] ^= 1 << at.randrange(8)
        case "bytes":
            raw[place : place + width] = at.randbytes(width)
        case "ones":
            raw[place : place + width] = b"\xff" * width
        case "zeros":
            raw[place : place + width] = b"\0" * width
        case "large":
            raw[place : place + 4] = at.choice([2**31 - 1, 2**24, 65_536]).to_bytes(
                4, at.choice(["little", "big"])
            )
        case "cut":
            del raw[place:]
        case "insert":
            raw[place:place] = at.randbytes(at.choice([1, 7, 300]))
        case "twice":
            raw[place:place] = raw[place : place + 200]
        case _:
            other = at.randrange(size)
            raw[place], raw[other] = raw[other], raw[place]
    return bytes(raw)
