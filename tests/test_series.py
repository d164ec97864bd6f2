"""DICOM series and multi-frame files as volumes: order by place, patients, each mixed or missing slice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_dicom import written

from latentprint.data import DataError, load

pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed (extra dicom)")

DIRECTIONS = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]


def values(seed: int, shape: tuple[int, ...] = (5, 6, 7)) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 4096, shape, dtype=np.uint16)


def series(root: Path, number: int, patient: str | None = "", **over: Any) -> np.ndarray[Any, Any]:
    """One series, its files named in another order than they lie in."""
    volume = values(number)
    for i, name in enumerate(np.random.default_rng(number).permutation(5).tolist()):
        tags: dict[str, Any] = {
            "SeriesInstanceUID": f"1.2.{number + 1}",
            "PatientID": f"P{number}" if patient == "" else patient,
            "ImagePositionPatient": [0.0, 0.0, 10.0 - 2.5 * i],
            "ImageOrientationPatient": DIRECTIONS,
            "PixelSpacing": [0.8, 0.8],
            "BitsStored": 12,
        }
        written(root / f"{name}.dcm", volume[i], **(tags | over))
    return volume[::-1]  # the last file written lies lowest


def test_series_are_volumes_sorted_by_place(tmp_path: Path) -> None:
    truth = [series(tmp_path / f"case{i}", i) for i in range(4)]
    split = load(tmp_path, seed=0, images=2, volumes=True, window="none")
    assert split.train.shape == (1, 5, 6, 7) and split.train.bit_depth == 12
    for name, pixels, person in zip(
        split.train.names or (), split.train.pixels, split.train.identities or (), strict=True
    ):
        at = int(name[4])
        assert person == f"P{at}" and np.allclose(pixels[0], truth[at] / 4095 * 2 - 1, atol=1e-6)
    assert any("2.5 x 0.8 x 0.8 mm" in one for one in split.remarks)
    small = load(tmp_path, seed=0, images=2, volumes=True, window="none", resize=4)
    assert small.train.shape == (1, 4, 4, 4) and small.train.bit_depth is None
    flat = tmp_path / "flat"
    for i in range(3):  # several patients in one folder are told apart by their series
        series(flat / f"s{i}", i)
        for file in sorted((flat / f"s{i}").iterdir()):
            file.rename(flat / f"{i}-{file.name}")
    assert load(flat, seed=0, images=2, volumes=True, window="none").train.shape == (1, 5, 6, 7)


def _frames(
    path: Path, volume: np.ndarray[Any, Any], heights: list[float], number: int, slope: Any = None
) -> None:
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    written(path, volume[0], BitsStored=12, SeriesInstanceUID=f"1.3.{number}", PatientID=f"Q{number}")
    data = pydicom.dcmread(path)
    data.NumberOfFrames, data.PixelData = len(volume), volume.tobytes()
    own: list[Any] = []
    for i, height in enumerate(heights):
        place, group = Dataset(), Dataset()
        place.ImagePositionPatient = [0.0, 0.0, height]
        group.PlanePositionSequence = Sequence([place])
        if slope is not None:
            scaled = Dataset()
            scaled.RescaleSlope, scaled.RescaleIntercept = slope[i], 0.0
            group.PixelValueTransformationSequence = Sequence([scaled])
        own.append(group)
    way, measures, shared = Dataset(), Dataset(), Dataset()
    way.ImageOrientationPatient, measures.PixelSpacing = DIRECTIONS, [1.0, 1.0]
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = Sequence([way]), Sequence([measures])
    data.PerFrameFunctionalGroupsSequence, data.SharedFunctionalGroupsSequence = (
        Sequence(own),
        Sequence([shared]),
    )
    data.save_as(path, enforce_file_format=True)


def test_frames_are_a_volume_in_the_order_of_their_places(tmp_path: Path) -> None:
    for i in range(4):
        _frames(tmp_path / f"{i}.dcm", values(i), [4.0, 0.0, 1.0, 2.0, 3.0], i, [2.0] * 5)
    split = load(tmp_path, seed=0, images=3, volumes=True, window="4095,8190")
    sorted_ = [values(i)[[1, 2, 3, 4, 0]] * 2.0 for i in range(4)]
    expected = [np.clip((one - 4094.5) / 8189 + 0.5, 0, 1) * 2 - 1 for one in sorted_]
    for pixels in split.train.pixels:
        assert min(np.abs(pixels[0] - one).max() for one in expected) < 1e-3
    with pytest.raises(DataError, match=r"holds 5 frames; --volumes"):
        load(tmp_path, seed=0, images=3)
    _frames(tmp_path / "9.dcm", values(9), [0.0, 1.0, 2.0, 3.0, 4.0], 9, [1.0, 1.0, 2.0, 1.0, 1.0])
    with pytest.raises(DataError, match="frames of more than one RescaleSlope"):
        load(tmp_path, seed=0, volumes=True, window="none", heldout=0.3)


BAD: dict[str, tuple[Any, str]] = {
    "missing": (lambda root: (root / "case1" / "2.dcm").unlink(), "slices are missing"),
    "twice": (
        lambda root: (
            _change(root / "case1" / "2.dcm", ImagePositionPatient=[0.0, 0.0, 5.0])
            or _change(root / "case1" / "3.dcm", ImagePositionPatient=[0.0, 0.0, 5.0])
        ),
        "at the same place",
    ),
    "no place": (
        lambda root: _change(root / "case1" / "2.dcm", ImagePositionPatient=None),
        "ImagePositionPatient",
    ),
    "no series": (
        lambda root: _change(root / "case1" / "2.dcm", SeriesInstanceUID=None),
        "no SeriesInstanceUID",
    ),
    "two series": (
        lambda root: series(root / "case1" / "x", 7, "P1") is None or _up(root / "case1"),
        "two series",
    ),
    "two patients": (lambda root: _change(root / "case1" / "2.dcm", PatientID="other"), "two patients"),
    "turned": (
        lambda root: _change(
            root / "case1" / "2.dcm", ImageOrientationPatient=[0.0, 1.0, 0.0, 1.0, 0.0, 0.0]
        ),
        "has another orientation",
    ),
    "size": (
        lambda root: written(root / "case1" / "2.dcm", values(3, (4, 7)), **_tags(root)),
        "must be alike",
    ),
    "spacing": (lambda root: series(root / "case9", 9, PixelSpacing=[1.0, 1.0]), "one spacing"),
    "some persons": (lambda root: series(root / "case9", 9, None), "1 of 4 series have no PatientID"),
    "one slice": (
        lambda root: written(root / "z" / "1.dcm", values(3, (6, 7)), SeriesInstanceUID="9"),
        "only slice",
    ),
}


def _tags(root: Path) -> dict[str, Any]:
    data = pydicom.dcmread(root / "case1" / "2.dcm")
    names = (
        "SeriesInstanceUID",
        "PatientID",
        "ImagePositionPatient",
        "ImageOrientationPatient",
        "PixelSpacing",
    )
    return {name: getattr(data, name) for name in names} | {"BitsStored": 12}


def _change(path: Path, **tags: Any) -> None:
    data = pydicom.dcmread(path)
    for name, value in tags.items():
        if value is None:
            delattr(data, name)
        else:
            setattr(data, name, value)
    data.save_as(path, enforce_file_format=True)


def _up(folder: Path) -> None:
    for file in sorted((folder / "x").iterdir()):
        file.rename(folder / f"x{file.name}")


@pytest.mark.parametrize("kind", BAD)
def test_mixed_and_missing_slices_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    for i in range(3):
        series(tmp_path / f"case{i}", i)
    change, words = BAD[kind]
    change(tmp_path)
    with pytest.raises(DataError, match=words) as caught:
        load(tmp_path, seed=0, volumes=True, window="none", heldout=0.3)
    assert "\n" not in str(caught.value)


def test_volumes_are_asked_of_dicom_alone(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(DataError, match="--volumes is for DICOM"):
        load(tmp_path, seed=0, volumes=True)
