"""NIfTI files, one volume each, with axes from left to right, back to front, foot to head (RAS+).

    stored v  ->  y = slope v + intercept  ->  axes turned  ->  window  ->  [-1, 1]

A window of centre c and width w maps y to (y - c) / w + 1/2, cut to [0, 1]. "file" is the display range of
the header (cal_min to cal_max), if it states one. Without a window values are mapped like those of any array,
by the range of their type or a stated one (``data.images``). The axes stay (x, y, z), as in MONAI and
nibabel. Nothing is resampled: spacing is kept and stated, and must be the same for all volumes.

Files are not trusted: header and size must agree before a voxel is read. Extensions and the free text of the
header (descrip, aux_file, db_name) are ignored and published nowhere.

Source: Cox et al. 2004, the NIfTI-1 format; nibabel for header and axes (extra ``latentprint[nifti]``).
"""

from __future__ import annotations

import gzip
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from latentprint.contracts import quoted
from latentprint.data.images import MAX_SIDE, DataError, ImageSet, image_sha256
from latentprint.data.listing import Listing, Preparation, Rows
from latentprint.data.tree import Tree

SUFFIXES = (".nii", ".nii.gz")
KINDS = "NIfTI volumes"
OTHERS = (".hdr", ".img", ".mgh", ".mgz", ".mnc", ".nrrd", ".nhdr", ".mha", ".mhd")
"""Formats of volumes that are not read."""

Orientation = Literal["ras", "closest", "stored"]
"""Axes turned to RAS+ if they are straight; to the nearest of those axes; or left as they are stored."""

_MOST = 2**28  # voxels of one volume
_HEADER = {
    348: 352,
    540: 544,
}  # bytes of a NIfTI-1 and NIfTI-2 header, and the earliest place of voxels
_OFFSET = 2**24  # bytes of header and extensions
_BOMB_RATIO, _BOMB_BYTES = 500, 2**26  # as for arrays (``data.archive``)
_OBLIQUE = 1.0  # degrees
_TYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")


@dataclass(frozen=True)
class Header:
    """What a file says before its voxels: the shape (x, y, z), the spacing in its own order, and the axes."""

    kind: np.dtype[Any]
    shape: tuple[int, int, int]
    spacing: tuple[float, ...]
    affine: NDArray[np.float64] | None
    slope: float
    intercept: float
    shown: tuple[float, float] | None
    offset: int


def read_header(path: Path, name: str) -> Header:
    """The header of one file."""
    nibabel, where = _nibabel(), f"the volume {quoted(name)}"
    if not path.is_file():
        raise DataError(f"{where} is not a file that can be read")
    try:
        with _stream(path) as file:
            block = file.read(348)
            size = next((n for n in _HEADER for order in ("<i4", ">i4") if _int(block, order) == n), 0)
            if not size:
                raise DataError(f"{where} is not a NIfTI file: its header has none of the sizes 348 and 540")
            block += file.read(size - 348)
        kind = nibabel.Nifti1Header if size == 348 else nibabel.Nifti2Header
        header = kind(block, check=False)
        shape = [int(side) for side in header.get_data_shape()]
        slope, intercept = header.get_slope_inter()
        dtype, offset = header.get_data_dtype(), max(int(header["vox_offset"]), _HEADER[size])
        spacing = tuple(float(one) for one in header.get_zooms()[:3])
        coded = int(header["sform_code"]) > 0 or int(header["qform_code"]) > 0
        affine = np.asarray(header.get_best_affine(), np.float64) if coded else None
        low, high = float(header["cal_min"]), float(header["cal_max"])
    except DataError:
        raise
    except Exception as error:  # gzip and nibabel raise errors of any type on a damaged file
        said = " ".join(str(error).split())[:120] or type(error).__name__
        raise DataError(f"{where} cannot be read as NIfTI; it may be damaged ({said})") from error
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    if len(shape) != 3:
        what = f"a series of {shape[3]} volumes" if len(shape) == 4 else f"an array of {len(shape)} axes"
        raise DataError(
            f"{where} holds {what} {_by(shape)}; save each volume of three axes as a file of its own"
        )
    if min(shape) < 1 or max(shape) > MAX_SIDE or math.prod(shape) > _MOST:
        raise DataError(
            f"{where} claims {_by(shape)} voxels; at most {MAX_SIDE} per side and {_MOST:,} in all are read"
        )
    if dtype.newbyteorder("=").name not in _TYPES:
        what = "colours" if dtype.names else f"values of the type {str(dtype)[:40]}"
        raise DataError(f"{where} holds {what}; supported are volumes of {', '.join(_TYPES)}")
    if affine is not None and not (np.isfinite(affine).all() and abs(np.linalg.det(affine[:3, :3])) > 0):
        raise DataError(f"{where} has an affine that turns no axes (it is not finite, or not invertible)")
    _require_size(path, where, math.prod(shape) * dtype.itemsize, offset)
    scale = 1.0 if slope is None else float(slope), 0.0 if intercept is None else float(intercept)
    shown = (low, high) if math.isfinite(low) and math.isfinite(high) and low < high else None
    return Header(dtype, cast(Any, tuple(shape)), spacing, affine, *scale, shown, offset)


def _int(block: bytes, order: str) -> int:
    return int(np.frombuffer(block[:4], order)[0]) if len(block) == 348 else 0


def _by(shape: list[int]) -> str:
    return " x ".join(map(str, shape))


def _require_size(path: Path, where: str, values: int, offset: int) -> None:
    held = path.stat().st_size
    if offset > _OFFSET:
        raise DataError(
            f"{where} begins its voxels after {offset} bytes; headers of up to {_OFFSET} are read"
        )
    if _packed(path):
        if values > _BOMB_BYTES and values > _BOMB_RATIO * held:
            raise DataError(
                f"{where} would grow from {held} to {values} bytes, as no volumes do; save it unpacked"
            )
    elif held < offset + values:
        raise DataError(f"{where} is cut off: it claims {offset + values} bytes and has {held}")


def _packed(path: Path) -> bool:
    return path.name.lower().endswith(".gz")


def _stream(path: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path) if _packed(path) else path.open("rb"))


def _nibabel() -> Any:
    try:
        import nibabel
        import nibabel.affines  # pyright: ignore[reportUnusedImport] (a part that is not loaded by itself)
    except ImportError as error:
        raise DataError(
            "NIfTI files need nibabel, which is not installed: install latentprint with its extra nifti, "
            "pip install 'latentprint[nifti]'"
        ) from error
    return nibabel


def voxels(path: Path, name: str, header: Header, orientation: Orientation) -> NDArray[Any]:
    """The stored values of a file, with its axes turned."""
    turn, where = _turn(header, name, orientation), f"the volume {quoted(name)}"
    count = math.prod(header.shape)
    try:
        with _stream(path) as file:
            if len(file.read(header.offset)) != header.offset:
                raise EOFError
            content = file.read(count * header.kind.itemsize)
    except Exception as error:  # decompressors raise errors of any type
        raise DataError(
            f"{where} is damaged: {' '.join(str(error).split())[:120] or 'it ends early'}"
        ) from error
    if len(content) != count * header.kind.itemsize:
        raise DataError(f"{where} is cut off: its {_by(list(header.shape))} voxels are not all there")
    stored = np.frombuffer(content, header.kind).reshape(header.shape, order="F")
    return stored if turn is None else _nibabel().apply_orientation(stored, turn)


def _turn(header: Header, name: str, orientation: Orientation) -> NDArray[np.float64] | None:
    if orientation == "stored":
        return None
    if header.affine is None:
        raise DataError(
            f"the volume {quoted(name)} does not say how it lies (sform and qform codes are 0); give it an "
            "affine, or --orientation stored takes the axes of all volumes as they are"
        )
    nibabel = _nibabel()
    angle = float(np.degrees(nibabel.affines.obliquity(header.affine)).max())
    if angle > _OBLIQUE and orientation != "closest":
        raise DataError(
            f"the volume {quoted(name)} is oblique: its axes are off by {angle:.1f} degrees; resample it "
            "(nibabel.processing.resample_to_output), or --orientation closest turns it to the nearest axes, "
            "as MONAI's Orientation does"
        )
    return nibabel.io_orientation(header.affine)


def require_known(tree: Tree) -> None:
    """Refuse a folder of volumes in another format."""
    if others := tree.with_suffix(OTHERS).names:
        raise DataError(
            f"{tree.where} holds {quoted(others[0])}: of volumes, NIfTI (.nii, .nii.gz) and DICOM are read;"
            " nibabel or MONAI's SaveImage writes others as NIfTI"
        )


def nifti_listing(
    tree: Tree,
    window: str,
    how: Preparation,
    orientation: Orientation = "ras",
    labels: tuple[int, ...] | None = None,
) -> Listing:
    """NIfTI files as volumes; headers are read now, voxels when asked for."""
    headers = [read_header(_path(tree, name), name) for name in tree.names]
    first = _spacing(headers[0], tree.names[0], orientation)
    for header, name in zip(headers, tree.names, strict=True):
        own = _spacing(header, name, orientation)
        if not np.allclose(own, first, rtol=1e-3):
            raise DataError(
                f"the volumes of a source must have one spacing, but {quoted(name)} has {_mm(own)} and "
                f"{quoted(tree.names[0])} {_mm(first)}; resample them as their training did "
                "(nibabel.processing.resample_to_output)"
            )

    def read(rows: Rows) -> Iterator[ImageSet]:
        for row in rows.tolist():
            name = tree.names[row]
            yield volume(_path(tree, name), name, headers[row], window, how, orientation)

    axes = "as stored" if orientation == "stored" else "left-right, back-front, foot-head"
    said = f"volumes have a spacing of {_mm(first)} ({axes})"
    return Listing(KINDS, len(tree.names), read, names=tree.names, labels=labels, remark=lambda _: said)


def volume(
    path: Path, name: str, header: Header, window: str, how: Preparation, orientation: Orientation
) -> ImageSet:
    """One volume as pixels (1, 1, *sides) with its hash."""
    stored = voxels(path, name, header, orientation)
    values = stored.astype(stored.dtype.newbyteorder("="), copy=False)
    if (header.slope, header.intercept) != (1.0, 0.0):
        values = (values.astype(np.float64) * header.slope + header.intercept).astype(np.float32)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise DataError(
            f"the volume {quoted(name)} holds NaN or infinite values; every voxel must be a finite number"
        )
    low_high = _window(window, header)
    if how.stored_range is None and low_high is not None:
        low, high = low_high
        values = (np.clip((values.astype(np.float64) - low) / (high - low), 0, 1) * 2 - 1).astype(np.float32)
    elif values.dtype.name not in ("uint8", "uint16"):
        if how.stored_range is None and values.dtype.kind != "f":
            raise DataError(
                f"the volume {quoted(name)} holds {values.dtype.name} values, whose range cannot be known: "
                "--window CENTRE,WIDTH cuts them (CT: 40,400), or --stored-range LOW,HIGH states it"
            )
        values = values.astype(np.float32)
    try:
        found = how.images(values[None], KINDS)
    except DataError as error:
        raise DataError(f"the volume {quoted(name)}: {error}") from error
    return ImageSet(found.pixels, (image_sha256(stored),), KINDS, bit_depth=found.bit_depth)


def _window(window: str, header: Header) -> tuple[float, float] | None:
    """The values that become -1 and 1."""
    if window in ("file", "none"):
        return header.shown if window == "file" else None
    from latentprint.data.dicom import window_of

    found = window_of(window)
    return None if found is None else (found.center - found.width / 2, found.center + found.width / 2)


def _spacing(header: Header, name: str, orientation: Orientation) -> tuple[float, ...]:
    turn = _turn(header, name, orientation)
    order = [0, 1, 2] if turn is None else [int(one) for one in np.argsort(turn[:, 0])]
    return tuple(header.spacing[axis] for axis in order)


def _mm(spacing: tuple[float, ...]) -> str:
    return " x ".join(f"{one:.4g}" for one in spacing) + " mm"


def _path(tree: Tree, name: str) -> Path:
    path = tree.read(name)
    if isinstance(path, bytes):
        raise DataError("NIfTI files are read from a folder; unpack the zip")
    return path
