"""Files that are either wholly there or not there at all, and a lock.

    write aside -> fsync -> rename -> fsync of the folder

A rename within a folder replaces the old file at once (POSIX), so a reader or a killed writer sees the old
content or the new, never a part. What a kill leaves behind is a file of the form ``.NAME.tmp``, which is
swept up at the next opening.

Source: POSIX.1-2017, rename(), fsync(), fcntl() record locks.
"""

from __future__ import annotations

import errno
import json
import math
import os
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import numpy as np

from latentprint.contracts import InputError

_FULL = (errno.ENOSPC, errno.EDQUOT)


class RunError(InputError):
    """A run that cannot be opened, read or written, for the reason given in one sentence."""


@contextmanager
def disk(path: Path, doing: str) -> Generator[None]:
    """Turns the operating system's refusals into a sentence about ``path``.

    Raises:
        RunError: the disk is full or the operating system refused.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise RunError(
                f"the disk is full, so {str(path)!r} could not be {doing}; what was finished is kept: "
                "make room and repeat the command"
            ) from error
        raise RunError(f"{str(path)!r} could not be {doing}: {error.strerror or error}") from error


def write_aside(path: Path, content: bytes) -> None:
    """Writes ``path`` whole or not at all.

    Raises:
        RunError: the disk is full or the operating system refused; ``path`` is as it was before.
    """
    aside = path.with_name(f".{path.name}.tmp")
    with disk(path, "written"):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with aside.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
            _sync_folder(path.parent)
        except BaseException:
            with suppress(OSError):
                aside.unlink(missing_ok=True)
            raise


def _sync_folder(folder: Path) -> None:
    if sys.platform == "win32":  # folders cannot be opened there; renames are in the journal
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sweep(folder: Path) -> None:
    """Removes what killed writers left in ``folder``."""
    for aside in folder.glob(".*.tmp"):
        with disk(aside, "removed"):
            aside.unlink(missing_ok=True)


class Lock:
    """One process at a time.

    The lock belongs to the process, not to the file: the operating system drops it when the process ends,
    however it ends, so a lock left by a dead process is free. Processes forked from the owner do not inherit
    it.

    Raises:
        RunError: another process holds it, or the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        with disk(path, "locked"):
            self._handle = os.open(
                path, os.O_RDWR | os.O_CREAT, 0o644
            )  # not inherited by programs started (PEP 446)
            try:
                held = _try_lock(self._handle)
                holder = os.read(self._handle, 20).decode("ascii", "replace").strip()
                if held:
                    os.lseek(self._handle, 0, os.SEEK_SET)
                    os.ftruncate(self._handle, 0)
                    os.write(self._handle, b"%d\n" % os.getpid())
            except BaseException:
                os.close(self._handle)
                raise
        if not held:
            os.close(self._handle)
            raise RunError(
                f"the run {str(path.parent)!r} is being written by another process ({holder or 'unknown'}); "
                "wait for it or end it"
            )

    def release(self) -> None:
        """Gives the lock back; the file stays."""
        os.close(self._handle)


def _try_lock(handle: int) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(handle, 2**30, os.SEEK_SET)  # beyond the content, which others may then still read
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
            os.lseek(handle, 0, os.SEEK_SET)
        else:
            import fcntl

            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
            return False
        raise
    return True


def plain(value: object, where: str) -> Any:
    """A value in JSON's own types, mappings in their order; NumPy's numbers become Python's.

    Raises:
        RunError: a number that is not finite, a key that is no string, or a type that JSON lacks; ``where``
            names it.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise RunError(f"{where} is {value}, which no JSON file can hold; an unknown number must be null")
        return value
    if isinstance(value, Mapping):
        entries = cast("Mapping[object, object]", value)
        if odd := [key for key in entries if not isinstance(key, str)]:
            raise RunError(f"{where} has the key {odd[0]!r}, but the keys of a JSON object are strings")
        return {str(key): plain(entry, f"{where}.{key}") for key, entry in entries.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview):
        items = cast("Sequence[object]", value)
        return [plain(item, f"{where}[{i}]") for i, item in enumerate(items)]
    raise RunError(f"{where} is of the type {type(value).__name__}, which no JSON file can hold")


def to_json(value: object, where: str) -> bytes:
    """Text that is the same for the same values: keys in their order, floats by their shortest exact form.

    Raises:
        RunError: as `plain`.
    """
    return (json.dumps(plain(value, where), indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def from_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        RunError: the file is missing or holds no JSON object.
    """
    with disk(path, "read"):
        content = path.read_bytes()
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise RunError(f"{str(path)!r} is damaged: it holds no JSON") from error
    if not isinstance(value, dict):
        raise RunError(f"{str(path)!r} is damaged: it holds no JSON object")
    return cast("dict[str, Any]", value)
