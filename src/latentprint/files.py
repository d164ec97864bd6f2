"""Reading and writing files: one reader with limits, and one writer whose files are complete or absent.

Reading: only plain files with a limited number of bytes; JSON and TOML with at most `MAX_DEPTH` levels, and
without NaN, infinity or endless numbers. The result can be traversed, printed and converted safely.

Writing: aside -> fsync -> rename -> fsync of the folder

A rename within a folder replaces the old file at once (POSIX), so a reader or a killed writer sees the old
content or the new, never a part. A kill can leave a file ``.NAME.tmp`` behind. Files and folders are readable
only by their owner from the moment they exist, unless the writer says that everybody may read them.

Source: POSIX.1-2017, rename(), fsync().
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import stat
import sys
import tomllib
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import numpy as np

from latentprint.contracts import InputError, quoted

MAX_JSON = 2**26
"""The most bytes of a JSON file (64 MiB)."""

MAX_TOML = 2**16
"""The most bytes of a TOML file (64 KiB): tomllib takes quadratic time on long dotted keys."""

MAX_DEPTH = 64
MAX_VALUES = 10**7
MAX_INTEGER = 10**40

_SENTENCES = {
    errno.ENOSPC: "the disk is full; what was finished is kept: make room and repeat the command",
    errno.EDQUOT: "the disk is full, as far as your quota goes; what was finished is kept: make room and"
    " repeat the command",
    errno.EFBIG: "files may not grow that large here (see `ulimit -f`); what was finished is kept: raise the"
    " limit and repeat the command",
    errno.EACCES: "you have no permission; change it (chmod, chown) or name another place",
    errno.EPERM: "you have no permission; change it (chmod, chown) or name another place",
    errno.EROFS: "the file system is read-only; name a place that can be written",
    errno.ENOENT: "it does not exist",
    errno.EISDIR: "it is a folder, and a file is needed",
    errno.EPIPE: "the program that read it has ended",
    errno.ENAMETOOLONG: "the name is too long",
}


class FileError(InputError):
    """A file that cannot be read or written, with the reason in one sentence."""


def reason(error: OSError) -> str:
    """Why the operating system refused, and what to do about it if that is known."""
    return _SENTENCES.get(error.errno or 0) or error.strerror or str(error)


@contextmanager
def disk(path: Path, doing: str) -> Generator[None]:
    """Turn the operating system's refusals into a sentence about ``path``, which could not be ``doing``.

    Raises:
        FileError: the disk is full, or the operating system refused for another reason.
    """
    try:
        yield
    except OSError as error:
        raise FileError(f"{quoted(path)} could not be {doing}: {reason(error)}") from error
    except ValueError as error:
        if isinstance(error, InputError) or "null" not in str(error):
            raise
        raise FileError(f"{quoted(path)} could not be {doing}: a name cannot contain a zero byte") from error


def read(path: Path, most: int) -> bytes:
    """The bytes of a plain file (or of a link to one): at most ``most``.

    Raises:
        FileError: it is missing, larger, or a folder, device or pipe (nothing waits for those).
    """
    with disk(path, "read"):
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with open(handle, "rb") as file:
            about = os.fstat(handle)
            if not stat.S_ISREG(about.st_mode):
                raise FileError(f"{quoted(path)} is not a plain file, so it is not read")
            # Files under /proc state no size, so the bytes are counted too.
            content = b"" if about.st_size > most else file.read(min(most, max(about.st_size, 2**20)) + 1)
    if about.st_size > most or len(content) > most:
        raise FileError(f"{quoted(path)} has more than {most:,} bytes, the most that is read")
    return content


MAX_WEIGHTS = 2**30
"""The most bytes of a file of weights that settings name (1 GiB)."""


def read_weights(path: Path, digest: str) -> bytes:
    """The bytes of a file of weights that settings name together with its sha256.

    Raises:
        FileError: it cannot be read (`read`), or has another hash.
    """
    content = read(path, MAX_WEIGHTS)
    found = hashlib.sha256(content).hexdigest()
    if found != digest.lower():
        raise FileError(f"{quoted(path)} has sha256 {found}, not the {quoted(digest)} that was asked for")
    return content


def sha256_of(path: Path) -> str:
    """Hash of a file of any size, which is read in parts.

    Raises:
        FileError: the operating system refused.
    """
    with disk(path, "read"), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_text(path: Path, most: int) -> str:
    """The text of a file in UTF-8.

    Raises:
        FileError: the file cannot be read (`read`), or is not UTF-8.
    """
    try:
        return read(path, most).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FileError(f"{quoted(path)} is not UTF-8 text") from error


Raw = dict[str, Any]
"""What a file holds as plain values, before anything has checked them."""


def read_json(path: Path, *, most: int = MAX_JSON, infinite: bool = False) -> Raw:
    """The JSON object in a file; ``infinite`` accepts NaN and Infinity, which some programs write.

    Raises:
        FileError: the file cannot be read (`read`), or is not such an object (`parse_json`).
    """
    return parse_json(read_text(path, most), quoted(path), infinite=infinite)


def parse_json(text: str, what: str, *, infinite: bool = False) -> Raw:
    """The JSON object in ``text``; ``what`` names it in the refusal.

    Raises:
        FileError: it is not a JSON object, repeats a key, is nested too deeply, or contains a number that is
            not finite or has more than 40 digits, or text that is not Unicode.
    """
    try:
        value: object = json.loads(text, object_pairs_hook=_once)
    except RecursionError as error:
        raise FileError(f"{what} is nested more than {MAX_DEPTH} levels deep") from error
    except ValueError as error:
        raise FileError(f"{what} holds no JSON that can be read: {str(error)[:150]}") from error
    if not isinstance(value, dict):
        raise FileError(f"{what} must hold a JSON object, got {type(value).__name__}")
    found = cast(Raw, value)
    require_plain(found, what, infinite)
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, object]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise ValueError("a key occurs twice, and readers differ on which one counts")
    return out


def read_toml(path: Path) -> dict[str, object]:
    """The table in a TOML file.

    Raises:
        FileError: the file cannot be read (`read`), or is not TOML (`parse_toml`).
    """
    return parse_toml(read_text(path, MAX_TOML), quoted(path))


def parse_toml(text: str, what: str) -> dict[str, object]:
    """The table in ``text``; ``what`` names it in the refusal.

    Raises:
        FileError: it is not TOML, is nested too deeply, or contains a number that is not finite or has more
            than 40 digits.
    """
    try:
        found = tomllib.loads(text)
    except RecursionError as error:
        raise FileError(f"{what} is nested more than {MAX_DEPTH} levels deep") from error
    except ValueError as error:
        raise FileError(f"{what} is not valid TOML: {str(error)[:150]}") from error
    require_plain(found, what, infinite=False)
    return found


def require_plain(value: object, what: str, infinite: bool) -> None:
    """Check that a value read from a file can be walked: level by level, so that no depth ends the stack.

    Raises:
        FileError: too deep, too large (YAML's references can stand for any number of values), no Unicode,
            or a number that no computation survives.
    """
    level = [value]
    for _ in range(MAX_DEPTH):
        below: list[object] = []
        for one in level:
            if isinstance(one, dict):
                entries = cast("dict[str, object]", one)
                below.extend(entries)
                below.extend(entries.values())
            elif isinstance(one, list):
                below.extend(cast("list[object]", one))
            elif isinstance(one, str):
                if not one.isascii() and not _unicode(one):
                    raise FileError(f"{what} holds text that is not Unicode: {quoted(one)}")
            elif isinstance(one, float):
                if not infinite and not math.isfinite(one):
                    raise FileError(f"{what} holds the number {one}; only finite ones can be used")
            elif isinstance(one, int) and abs(one) >= MAX_INTEGER:
                raise FileError(f"{what} holds a whole number of more than 40 digits")
        if not below:
            return
        if len(below) > MAX_VALUES:
            raise FileError(f"{what} stands for more than {MAX_VALUES:,} values")
        level = below
    raise FileError(f"{what} is nested more than {MAX_DEPTH} levels deep")


def _unicode(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def real(path: Path) -> Path:
    """The path without links, as far as it can be followed (``Path.resolve`` raises at a link to itself)."""
    return Path(os.path.realpath(path))


def make_folder(path: Path) -> None:
    """Make a folder and its missing parents, each readable only by its owner.

    Raises:
        FileError: the operating system refused, or something else has that name.
    """
    with disk(path, "made"):
        missing: list[Path] = []
        while not path.is_dir():
            missing.append(path)
            if path.parent == path:
                break
            path = path.parent
        for folder in reversed(missing):
            with suppress(FileExistsError):
                folder.mkdir(mode=0o700)
            if not folder.is_dir():
                raise FileError(f"{quoted(folder)} is not a folder, so nothing can be written there")


def write(path: Path, content: bytes, *, public: bool = False) -> None:
    """Write ``path`` completely or not at all; readable by its owner only (0600), or by everybody if
    ``public``.

    Raises:
        FileError: the disk is full, the operating system refused, or there is a folder, device or pipe of
            that name; ``path`` is as it was before.
    """
    if not path.name:
        raise FileError(f"{quoted(path)} could not be written: it is not a plain file")
    aside = path.with_name(f".{path.name}.tmp")
    make_folder(path.parent)
    with disk(path, "written"):
        if path.exists() and not path.is_file():  # a rename would put a file where /dev/null was
            raise FileError(f"{quoted(path)} could not be written: it is not a plain file")
        try:
            aside.unlink(missing_ok=True)  # what a kill left may have another mode, or be a link
            handle = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
            with open(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(handle)
            if public:
                aside.chmod(0o644)
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
    """Remove what killed writers left in ``folder``.

    Raises:
        FileError: the operating system refused.
    """
    for aside in folder.glob(".*.tmp"):
        with disk(aside, "removed"):
            aside.unlink(missing_ok=True)


def plain(value: object, where: str) -> Any:
    """A value in JSON's own types, mappings in their order; NumPy's numbers become Python's.

    Raises:
        FileError: a number that is not finite, a key that is not a string, or a type that JSON lacks;
            ``where`` names it.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        if not value.isascii() and not _unicode(value):
            raise FileError(f"{where} is text that is not Unicode: {quoted(value)}")
        return str(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise FileError(
                f"{where} is {value}, which no JSON file can hold; an unknown number must be null"
            )
        return value
    if isinstance(value, Mapping):
        entries = cast("Mapping[object, object]", value)
        if odd := [key for key in entries if not isinstance(key, str)]:
            raise FileError(f"{where} has the key {odd[0]!r}, but the keys of a JSON object are strings")
        return {str(key): plain(entry, f"{where}.{key}") for key, entry in entries.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview):
        items = cast("Sequence[object]", value)
        return [plain(item, f"{where}[{i}]") for i, item in enumerate(items)]
    raise FileError(f"{where} is of the type {type(value).__name__}, which no JSON file can hold")


def to_json(value: object, where: str) -> bytes:
    """JSON text that is the same for the same values: keys in their order, floats in their shortest exact
    form.

    Raises:
        FileError: as `plain`.
    """
    return (json.dumps(plain(value, where), indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
