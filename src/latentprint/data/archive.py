"""Arrays from an .npz file that nobody vouches for.

An .npz is a zip of .npy members: a magic string, a header that states type, order and shape, then the values.
Nothing is believed before it is checked: pickled objects are never loaded, and no memory is set aside until
the shape in the header, the size in the zip's directory and the limits of this library agree.

Source: NumPy, "A simple file format for NumPy arrays" (NEP 1); PKWARE, APPNOTE.TXT (the zip format).
"""

from __future__ import annotations

import math
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from latentprint.data.images import MAX_BYTES, MAX_SIDE, DataError

_READ = 2**24  # bytes read at once
_BOMB_RATIO, _BOMB_BYTES = 500, 2**26  # images do not shrink five-hundredfold; small ones may, and do no harm


def read_archive(path: Path, allowed: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Those of the ``allowed`` arrays that the file holds; others in it are left unread.

    Raises:
        DataError: the file is missing, empty, damaged or no .npz; an array holds objects, is no stack of
            images, is too large, or is compressed to a suspicious degree.
    """
    if not path.is_file():
        raise DataError(f"there is no file {str(path)!r}")
    try:
        with warnings.catch_warnings(), zipfile.ZipFile(path) as archive:
            warnings.simplefilter("ignore")  # odd headers; what matters is checked below
            names = archive.namelist()
            for key in allowed:  # readers differ on which of two arrays of one name they show
                if names.count(f"{key}.npy") > 1:
                    raise DataError(
                        f"{str(path)!r} holds the array {key!r} twice, so which is meant is unclear"
                    )
            present = [key for key in allowed if f"{key}.npy" in archive.NameToInfo]
            return {key: _read_member(archive, f"{key}.npy", path) for key in present}
    except DataError:
        raise
    except Exception as error:  # zipfile, decompressors and NumPy's header parser let any type through
        raise DataError(
            f"{str(path)!r} cannot be read as an .npz file; it may be truncated or damaged ({_brief(error)})"
        ) from error


def _read_member(archive: zipfile.ZipFile, name: str, path: Path) -> NDArray[Any]:
    member, where = archive.getinfo(name), f"{name!r} in {str(path)!r}"
    if member.file_size > MAX_BYTES:
        raise DataError(f"{where} holds {member.file_size} bytes; at most {MAX_BYTES} are read")
    if member.compress_size > path.stat().st_size:
        raise DataError(f"{where} is longer than its file, which must be truncated or damaged")
    if member.file_size > _BOMB_BYTES and member.file_size > _BOMB_RATIO * member.compress_size:
        raise DataError(
            f"{where} would grow from {member.compress_size} to {member.file_size} bytes, as no images do; "
            "save it again with numpy.savez if it is meant so"
        )
    with archive.open(member) as stream:
        dtype, shape, fortran = _header(stream, where)
        header, size = stream.tell(), math.prod(shape) * dtype.itemsize
        if header + size != member.file_size:
            raise DataError(
                f"{where} states {size} bytes ({dtype}, {shape}), but holds {member.file_size - header}"
            )
        flat = np.frombuffer(_read_all(stream, size, where), dtype=dtype)
    return flat.reshape(shape[::-1]).T if fortran else flat.reshape(shape)


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
    if len(shape) not in (3, 4):
        raise DataError(
            f"{where} has the shape {shape}; images must be (N, H, W), (N, H, W, C) or (N, C, H, W)"
        )
    if any(side < 1 for side in shape) or any(side > MAX_SIDE for side in shape[1:]):
        raise DataError(f"{where} has the shape {shape}; N must be 1 or more, the sides from 1 to {MAX_SIDE}")
    return dtype, shape, fortran


def _read_all(stream: IO[bytes], size: int, where: str) -> bytearray:
    values = bytearray()
    while chunk := stream.read(_READ):
        values += chunk
        if len(values) > size:
            break
    if len(values) != size:
        raise DataError(f"{where} is damaged: {size} bytes were stated, {len(values)} came")
    return values


def channels_last(stored: NDArray[Any], where: str) -> NDArray[Any]:
    """(N, H, W), (N, H, W, C) or (N, C, H, W) -> (N, H, W) or (N, H, W, C), where C is 1 or 3.

    Raises:
        DataError: no axis, or either axis, can be the channels.
    """
    if stored.ndim == 3:
        return stored
    last, first = stored.shape[3] in (1, 3), stored.shape[1] in (1, 3)
    if last == first:
        reason = (
            "both the second and the last axis could be"
            if last
            else "neither the second nor the last axis can be"
        )
        raise DataError(
            f"{where} has the shape {stored.shape}: {reason} the channels, of which there must be 1 or 3"
        )
    return stored if last else np.moveaxis(stored, 1, 3)


def _brief(error: BaseException) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
