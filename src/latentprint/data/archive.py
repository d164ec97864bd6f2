"""Arrays from untrusted .npz and .npy files.

An .npz is a zip of .npy members: a magic string, a header that states type, order and shape, then the values.
Everything is checked before use. Pickled objects are never loaded, and no memory is allocated until the shape
in the header, the size in the file's directory and the limits of this library agree. Values are read as a
stream, and only the images asked for are kept, so a file may be larger than the memory.

Source: NumPy, "A simple file format for NumPy arrays" (NEP 1); PKWARE, APPNOTE.TXT (the zip format).
"""

from __future__ import annotations

import math
import os
import warnings
import zipfile
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from latentprint.contracts import quoted
from latentprint.data.images import MAX_BYTES, MAX_SIDE, DataError
from latentprint.data.listing import Rows, in_chunks

_BOMB_RATIO, _BOMB_BYTES = 500, 2**26  # images do not compress five-hundredfold; small files do no harm
_FORTRAN = 2**30


@dataclass(frozen=True)
class Stored:
    """An array in a file, not yet read.

    Attributes:
        path: the file.
        member: its name in an .npz; None for an .npy.
        dtype, shape, fortran: what its header says.
        offset: bytes before the values.
    """

    path: Path
    member: str | None
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran: bool
    offset: int

    def __len__(self) -> int:
        return self.shape[0]

    def take(self, rows: Rows) -> Iterator[NDArray[Any]]:
        """The entries at rising positions of the first axis, a few at a time."""
        each = math.prod(self.shape[1:])
        with _opened(self.path, self.member) as stream:
            _skip(stream, self.offset)
            if self.fortran:  # the first axis is innermost, so everything must be read
                if math.prod(self.shape) * self.dtype.itemsize > _FORTRAN:
                    raise DataError(f"{quoted(self.path)} is large and in Fortran order; save it in C order")
                values = _exactly(stream, math.prod(self.shape) * self.dtype.itemsize)
                whole = np.frombuffer(values, self.dtype).reshape(self.shape[::-1]).T
                yield from (whole[some] for some in in_chunks(rows, each))
                return
            at = 0
            for some in in_chunks(rows, each):
                out = np.empty((len(some), *self.shape[1:]), self.dtype)
                for i, row in enumerate(some.tolist()):
                    _skip(stream, (row - at) * each * self.dtype.itemsize)
                    out[i] = np.frombuffer(_exactly(stream, out[i].nbytes), self.dtype).reshape(out[i].shape)
                    at = row + 1
                yield out

    def read(self) -> NDArray[Any]:
        """The whole array."""
        return np.concatenate(list(self.take(np.arange(len(self)))))


def open_arrays(path: Path, allowed: Sequence[str]) -> dict[str, Stored]:
    """The ``allowed`` arrays that an .npz holds; of an .npy its only array, as ``images``."""
    if not os.path.isfile(path):
        raise DataError(f"there is no file {quoted(path)}")
    if path.suffix.lower() == ".npy":
        return {"images": _about(path, None, path.stat().st_size, path.stat().st_size)}
    with _reading(path), zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        for key in allowed:  # readers differ on which of two arrays with the same name they show
            if names.count(f"{key}.npy") > 1:
                raise DataError(f"{quoted(path)} holds the array {key!r} twice, so which is meant is unclear")
        present = {key: archive.NameToInfo.get(f"{key}.npy") for key in allowed}
    return {
        key: _about(path, f"{key}.npy", member.file_size, member.compress_size)
        for key, member in present.items()
        if member is not None
    }


def read_archive(path: Path, allowed: Sequence[str]) -> dict[str, NDArray[Any]]:
    """The ``allowed`` arrays of the file, completely; see ``open_arrays``."""
    found = open_arrays(path, allowed)
    for key, stored in found.items():
        require_images(stored, f"{key!r} in {quoted(path)}")
    return {key: stored.read() for key, stored in found.items()}


def require_images(stored: Stored, where: str) -> None:
    """Check that an array can be images or volumes."""
    shape = stored.shape
    if len(shape) not in (3, 4, 5):
        raise DataError(
            f"{where} has the shape {shape}; images must be (N, H, W), (N, H, W, C) or (N, C, H, W); volumes"
            " must be (N, D, H, W), (N, D, H, W, C) or (N, C, D, H, W)"
        )
    if any(side < 1 for side in shape) or any(side > MAX_SIDE for side in shape[1:]):
        raise DataError(f"{where} has the shape {shape}; N must be 1 or more, the sides from 1 to {MAX_SIDE}")
    native = stored.dtype.newbyteorder("=")
    if native not in (np.dtype(np.uint8), np.dtype(np.uint16)) and native.kind != "f":
        raise DataError(
            f"{where} holds {stored.dtype} values, whose range cannot be known; images must be uint8, "
            "uint16 or "
            "floats in [-1, 1]"
        )


def _about(path: Path, name: str | None, size: int, packed: int) -> Stored:
    where = quoted(path) if name is None else f"{name!r} in {quoted(path)}"
    if size > (MAX_BYTES if name else 2**40):  # the values of an .npy are skipped without being read
        raise DataError(f"{where} holds {size} bytes; at most {MAX_BYTES} are read")
    if packed > path.stat().st_size:
        raise DataError(f"{where} is longer than its file, which must be truncated or damaged")
    if size > _BOMB_BYTES and size > _BOMB_RATIO * packed:
        raise DataError(
            f"{where} would grow from {packed} to {size} bytes, which images never do; if it is intended,"
            " save it again with numpy.savez"
        )
    with _opened(path, name) as stream:
        dtype, shape, fortran = _header(stream, where)
        offset = stream.tell()
    if any(side < 0 for side in shape):
        raise DataError(f"{where} has the shape {shape}; N must be 1 or more, the sides from 1 to {MAX_SIDE}")
    stated = math.prod(shape) * dtype.itemsize
    if offset + stated != size:
        raise DataError(f"{where} states {stated} bytes ({dtype}, {shape}), but holds {size - offset}")
    return Stored(path, name, dtype, shape, fortran, offset)


@contextmanager
def _opened(path: Path, member: str | None) -> Generator[IO[bytes]]:
    with _reading(path):
        if member is None:
            with path.open("rb") as file:
                yield file
        else:
            with zipfile.ZipFile(path) as archive, archive.open(member) as stream:
                yield stream


@contextmanager
def _reading(path: Path) -> Generator[None]:
    """Turn every error that a damaged file causes in its parsers into a sentence."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # unusual headers; what matters is checked
            yield
    except DataError:
        raise
    except Exception as error:  # zipfile, decompressors and NumPy's header parser raise errors of any type
        kind = "an .npy" if path.suffix.lower() == ".npy" else "an .npz"
        raise DataError(
            f"{quoted(path)} cannot be read as {kind} file; it may be truncated or damaged ({_brief(error)})"
        ) from error


def _header(stream: IO[bytes], where: str) -> tuple[np.dtype[Any], tuple[int, ...], bool]:
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(stream)
    else:
        raise DataError(f"{where} has the .npy version {version}; image arrays have version 1 or 2")
    if dtype.hasobject:
        raise DataError(f"{where} holds Python objects, which are never loaded; images must be plain numbers")
    if dtype.kind not in "uif" or dtype.itemsize > 8:
        raise DataError(f"{where} holds {dtype} values; images must be uint8, uint16 or floats in [-1, 1]")
    return dtype, shape, fortran


def _skip(stream: IO[bytes], size: int) -> None:
    """Skip so many bytes: by a seek if that is free, otherwise by reading them in pieces."""
    if not isinstance(stream, zipfile.ZipExtFile):
        stream.seek(size, 1)
        return
    while size > 0:
        got = len(stream.read(min(size, 2**22)))
        if not got:
            raise DataError("the file is damaged: it ends before its values do")
        size -= got


def _exactly(stream: IO[bytes], size: int) -> bytes:
    values = stream.read(size)
    if len(values) != size:
        raise DataError(f"the file is damaged: {size} bytes were stated, {len(values)} came")
    return values


def channels_last(stored: NDArray[Any], where: str) -> NDArray[Any]:
    """(N, *S), (N, *S, C) or (N, C, *S) -> (N, *S) or (N, *S, C), with C = 1 or 3."""
    return stored if channel_axis(stored.shape, where) != 1 else np.moveaxis(stored, 1, -1)


def channel_axis(shape: tuple[int, ...], where: str) -> int | None:
    """Which axis of stored images or volumes holds 1 or 3 channels: 1, the last, or none.

    Four axes, none of which can be the channels, are volumes (N, D, H, W) with sides of 5 or more.
    """
    if len(shape) == 3:
        return None
    last, first = shape[-1] in (1, 3), shape[1] in (1, 3)
    if len(shape) == 4 and min(shape[1], shape[-1]) > 4:
        return None
    if last == first:
        reason = (
            "both the second and the last axis could be"
            if last
            else "neither the second nor the last axis can be"
        )
        raise DataError(
            f"{where} has the shape {shape}: {reason} the channels, of which there must be 1 or 3"
        )
    return len(shape) - 1 if last else 1


def _brief(error: BaseException) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
