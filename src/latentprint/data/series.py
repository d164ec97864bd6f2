"""DICOM series and multi-frame files as volumes: one per SeriesInstanceUID, or one per file with frames.

    position along the volume = ImagePositionPatient . (row direction x column direction)

Slices are sorted by it. Their distances must be equal, because a missing slice was not trained on either.
Values are mapped like those of single images (``data.dicom``), axes are (slice, row, column), and nothing is
resampled.

Source: DICOM PS3.3 C.7.6.2 (image plane), C.7.6.16 (multi-frame functional groups).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from latentprint.contracts import quoted
from latentprint.data import dicom
from latentprint.data.images import DataError, ImageSet
from latentprint.data.listing import Listing, Preparation, Rows, converted
from latentprint.data.resize import averaged
from latentprint.data.tree import Tree

_SOURCE = "DICOM volumes"
_UNEVEN = 0.05  # share by which the distances of slices may differ
_TURNED = 1e-3

_GROUPS = {
    "RescaleSlope": "PixelValueTransformationSequence",
    "RescaleIntercept": "PixelValueTransformationSequence",
    "WindowCenter": "FrameVOILUTSequence",
    "WindowWidth": "FrameVOILUTSequence",
}
"""Where a multi-frame file has what a single image has at its top level."""


@dataclass(frozen=True)
class Plane:
    """A slice or frame: its file, series, patient, place and directions."""

    name: str
    series: str
    patient: str | None
    frames: int
    position: tuple[float, ...] | None
    directions: tuple[float, ...] | None
    pixel: tuple[float, ...]


@dataclass(frozen=True)
class Volume:
    """The files of one volume in order, and for a multi-frame file the order of its frames."""

    names: tuple[str, ...]
    frames: tuple[int, ...]
    patient: str | None
    spacing: tuple[float, ...]


def series_listing(tree: Tree, window: dicom.WindowChoice, how: Preparation) -> Listing:
    """DICOM files as volumes with their patients as identities; headers are read now, pixels when asked for.

    Raises:
        DataError: a header cannot be read; a folder holds two series of one patient; a series is mixed, or
            lacks slices or positions; spacing differs, or only some have a patient. On reading: sizes differ.
    """
    dicom.window_of(window)
    found = [_planes(tree, name) for name in tree.names]
    volumes = [_frames(planes) for planes in found if len(planes) > 1]
    series: dict[str, list[Plane]] = {}
    for planes in found:
        if len(planes) == 1:
            series.setdefault(planes[0].series, []).append(planes[0])
    _require_apart(series)
    volumes += [_sorted(planes) for planes in series.values()]
    volumes.sort(key=lambda one: one.names[0])
    first = volumes[0]
    for one in volumes:
        if not np.allclose(one.spacing, first.spacing, rtol=1e-3):
            raise DataError(
                f"the volumes of a source must have one spacing, but that of {quoted(one.names[0])} is "
                f"{_mm(one)} and that of {quoted(first.names[0])} {_mm(first)}; resample them as in training"
            )
    patients = tuple(one.patient for one in volumes if one.patient is not None)
    if patients and len(patients) != len(volumes):
        raise DataError(
            f"{len(volumes) - len(patients)} of {len(volumes)} series have no PatientID; give each one (a "
            "pseudonym will do), or none"
        )

    def read(rows: Rows) -> Iterator[ImageSet]:
        for row in rows.tolist():
            yield _read(tree, volumes[row], window, how)

    said = f"volumes have a spacing of {_mm(first)} (slice, row, column)"
    names = tuple(one.names[0] for one in volumes)
    return Listing(
        _SOURCE, len(volumes), read, names=names, identities=patients or None, remark=lambda _: said
    )


def _mm(one: Volume) -> str:
    return " x ".join(f"{side:.4g}" for side in one.spacing) + " mm"


def _planes(tree: Tree, name: str) -> list[Plane]:
    """What the header says, once per frame."""
    path = tree.read(name)
    if isinstance(path, bytes):
        raise DataError("DICOM files are read from a folder; unpack the zip")
    with dicom.opened(path, name, pixels=False) as data:
        frames = int(data.get("NumberOfFrames", 1) or 1)
        if not 1 <= frames <= 2**14:
            raise DataError(f"{quoted(name)} claims {frames} frames; at most {2**14} are read")
        patient = str(data.get("PatientID", "") or "").strip() or None
        series = str(data.get("SeriesInstanceUID", "") or "")
        if not series:
            raise DataError(f"{quoted(name)} has no SeriesInstanceUID, so its volume is unknown")
        out: list[Plane] = []
        for i in range(frames):
            groups = _groups(data, i)
            at = _numbers(data, groups, "ImagePositionPatient", "PlanePositionSequence", 3)
            way = _numbers(data, groups, "ImageOrientationPatient", "PlaneOrientationSequence", 6)
            pixel = _numbers(data, groups, "PixelSpacing", "PixelMeasuresSequence", 2) or (1.0, 1.0)
            out.append(Plane(name, series, patient, frames, at, way, pixel))
        return out


def _groups(data: Any, frame: int) -> list[Any]:
    """The functional groups of one frame: its own before those of all."""
    own = data.get("PerFrameFunctionalGroupsSequence") or []
    shared = data.get("SharedFunctionalGroupsSequence") or []
    return [*own[frame : frame + 1], *shared[:1]]


def _numbers(data: Any, groups: Sequence[Any], tag: str, group: str, count: int) -> tuple[float, ...] | None:
    for place in (*(one.get(group)[0] for one in groups if one.get(group)), data):
        if place.get(tag) is not None:
            values = tuple(float(one) for one in place.get(tag))
            if len(values) == count and np.isfinite(values).all():
                return values
    return None


def _require_apart(series: dict[str, list[Plane]]) -> None:
    """Refuse a folder with two series of one patient, because it is unclear which is meant."""
    seen: dict[tuple[str, str | None], str] = {}
    for uid, planes in series.items():
        folder = planes[0].name.rpartition("/")[0]
        other = seen.setdefault((folder, planes[0].patient), uid)
        if other != uid:
            raise DataError(
                f"{quoted(series[other][0].name)} and {quoted(planes[0].name)} lie in one folder and belong"
                " to two series of one patient; give each a folder of its own, or leave one out by --files"
            )


def _frames(planes: list[Plane]) -> Volume:
    if any(plane.position is None for plane in planes):  # frames without positions are in their stored order
        return Volume(
            (planes[0].name,), tuple(range(len(planes))), planes[0].patient, (1.0, *planes[0].pixel)
        )
    order, gap = _along(planes)
    return Volume((planes[0].name,), tuple(order), planes[0].patient, (gap, *planes[0].pixel))


def _sorted(planes: list[Plane]) -> Volume:
    first = planes[0]
    if len(planes) < 2:
        raise DataError(
            f"{quoted(first.name)} is the only slice of its series; a volume needs 2 or more (without "
            "--volumes each file is an image)"
        )
    if other := next((one for one in planes if one.patient != first.patient), None):
        raise DataError(
            f"{quoted(first.name)} and {quoted(other.name)} belong to one series but to two patients"
        )
    order, gap = _along(planes)
    names = tuple(planes[i].name for i in order)
    return Volume(names, (), first.patient, (gap, *first.pixel))


def _along(planes: list[Plane]) -> tuple[list[int], float]:
    """The order of slices along their normal, and the distance between them.

    Raises:
        DataError: positions are missing or equal; slices are not parallel, or missing.
    """
    first = planes[0]
    if lacking := next((one for one in planes if one.position is None or one.directions is None), None):
        raise DataError(
            f"{quoted(lacking.name)} has no ImagePositionPatient and ImageOrientationPatient, so its place "
            "in the volume is unknown"
        )
    ways = np.array([one.directions for one in planes])
    if (turned := np.abs(ways - ways[0]).max(1)).max() > _TURNED:
        raise DataError(
            f"{quoted(planes[int(turned.argmax())].name)} has another orientation than {quoted(first.name)},"
            " although both belong to one series"
        )
    other = next((one for one in planes if one.pixel != first.pixel), None)
    if other is not None:
        raise DataError(
            f"{quoted(other.name)} has another PixelSpacing than {quoted(first.name)} of its series"
        )
    at = np.array([one.position for one in planes]) @ np.cross(ways[0][:3], ways[0][3:])
    order = np.argsort(at, kind="stable")
    gaps = np.diff(at[order])
    usual = float(np.median(gaps))
    if (same := np.flatnonzero(gaps < 1e-4)).size:
        a, b = (planes[int(order[same[0] + i])].name for i in range(2))
        raise DataError(f"{quoted(a)} and {quoted(b)} lie at the same place in their series")
    if (wide := np.flatnonzero(np.abs(gaps - usual) > _UNEVEN * usual)).size:
        a, b = (planes[int(order[wide[0] + i])].name for i in range(2))
        raise DataError(
            f"the slices {quoted(a)} and {quoted(b)} are {gaps[wide[0]]:.4g} mm apart, others of their "
            f"series {usual:.4g} mm: slices are missing, or it is not one volume"
        )
    return [int(i) for i in order], usual


def _read(tree: Tree, volume: Volume, window: dicom.WindowChoice, how: Preparation) -> ImageSet:
    """The volume as pixels (1, C, D, H, W).

    Raises:
        DataError: its slices differ in size or in how values are mapped, or cannot be read.
    """
    parts = [_part(cast(Path, tree.read(name)), name, volume.frames, window) for name in volume.names]
    first = parts[0]
    for name, part in zip(volume.names, parts, strict=True):
        if part.pixels.shape != first.pixels.shape or part.scale != first.scale:
            raise DataError(
                f"the slices of a volume must be alike, but {quoted(name)} is {part.pixels.shape[-1]} x "
                f"{part.pixels.shape[-2]} ({part.scale}) and {quoted(volume.names[0])} "
                f"{first.pixels.shape[-1]} x {first.pixels.shape[-2]} ({first.scale})"
            )
    whole = first.pixels if volume.frames else np.stack([part.pixels for part in parts], axis=1)
    pixels, depth = _prepared(whole, how), first.bit_depth if how.resize is None else None
    digest = sha256("\n".join(part.sha256 for part in parts).encode()).hexdigest()
    return ImageSet(pixels[None], (digest,), _SOURCE, bit_depth=depth)


def _part(path: Path, name: str, order: tuple[int, ...], window: dicom.WindowChoice) -> dicom.Picture:
    if not order:
        return dicom.read_dicom(path, name, window)
    with dicom.opened(path, name) as data:
        dicom.require_plain(data, name, len(order))
        for tag, group in _GROUPS.items():
            values = {
                str(one)
                for i in order
                for g in _groups(data, i)
                if g.get(group) and (one := g.get(group)[0].get(tag)) is not None
            }
            if len(values) > 1:
                raise DataError(f"{quoted(name)} has frames of more than one {tag}; write them out with one")
            if values and data.get(tag) is None:
                found = next(g for i in order for g in _groups(data, i) if g.get(group))
                setattr(data, tag, found.get(group)[0].get(tag))
        stored = np.asarray(cast(NDArray[Any], data.pixel_array))[list(order)]
        return dicom.picture(data, stored, name, window)


def _prepared(pixels: NDArray[np.float32], how: Preparation) -> NDArray[np.float32]:
    last = np.moveaxis(pixels, 0, -1)
    last = converted(last[None], how.convert)[0]
    last = last if last.ndim == 4 else last[..., None]
    if how.resize is not None:
        last = np.clip(averaged(last, how.resize), -1.0, 1.0)
    return np.ascontiguousarray(np.moveaxis(last, -1, 0), dtype=np.float32)
