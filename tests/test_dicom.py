"""DICOM: grey values from the standard's formulas on files written here, and pydicom's own test files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from latentprint.data import DataError, image_sha256, load
from latentprint.data.dicom import Window, dicom_listing, dicom_names, read_dicom
from latentprint.data.listing import Preparation
from latentprint.data.tree import folder_tree

pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed (extra dicom)")


def written(path: Path, stored: np.ndarray, **tags: Any) -> Path:
    """A DICOM file of these stored values; uncompressed, little-endian."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = tags.pop("syntax", ExplicitVRLittleEndian)
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    bits = 8 * stored.dtype.itemsize
    usual: dict[str, Any] = {
        "Rows": stored.shape[0],
        "Columns": stored.shape[1],
        "SamplesPerPixel": 3 if stored.ndim == 3 else 1,
        "PhotometricInterpretation": "RGB" if stored.ndim == 3 else "MONOCHROME2",
        "BitsAllocated": bits,
        "BitsStored": bits,
        "PixelRepresentation": int(stored.dtype.kind == "i"),
    }
    if stored.ndim == 3:
        usual["PlanarConfiguration"] = 0
    for tag, value in (usual | tags).items():
        if value is not None:
            setattr(data, tag, value)
    data.HighBit = data.BitsStored - 1
    data.PixelData = stored.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return path


def pixels(path: Path, window: Any = "file") -> np.ndarray:
    return read_dicom(path, path.name, window).pixels[0]


def test_twelve_of_sixteen_bits_and_monochrome1(tmp_path: Path) -> None:
    stored = np.array([[0, 1], [2048, 4095]], dtype=np.uint16)
    expected = 2 * stored / 4095 - 1
    plain = read_dicom(written(tmp_path / "a.dcm", stored, BitsStored=12), "a")
    assert np.allclose(plain.pixels[0], expected, atol=1e-7) and plain.bit_depth == 12
    assert plain.sha256 == image_sha256(stored)
    turned = written(tmp_path / "b.dcm", stored, BitsStored=12, PhotometricInterpretation="MONOCHROME1")
    assert np.allclose(pixels(turned), -expected, atol=1e-7)


def test_eight_sixteen_and_signed_bits(tmp_path: Path) -> None:
    eight = np.array([[0, 255], [128, 1]], dtype=np.uint8)
    assert np.allclose(pixels(written(tmp_path / "a.dcm", eight)), 2.0 * eight / 255.0 - 1, atol=1e-7)
    sixteen = np.array([[0, 65535], [32768, 1]], dtype=np.uint16)
    assert np.allclose(pixels(written(tmp_path / "b.dcm", sixteen)), 2.0 * sixteen / 65535 - 1, atol=1e-7)
    signed = np.array([[-2048, 2047], [0, -1]], dtype=np.int16)
    found = pixels(written(tmp_path / "c.dcm", signed, BitsStored=12))
    assert np.allclose(found, 2 * (signed + 2048.0) / 4095 - 1, atol=1e-6)


def test_windows_follow_the_standard(tmp_path: Path) -> None:
    hounsfield = np.array([[-1000, -160], [40, 41], [240, 3000]], dtype=np.int16)
    rescaled = {"RescaleSlope": 2, "RescaleIntercept": -1024, "BitsStored": 16}
    stored = ((hounsfield + 1024) // 2).astype(np.int16)
    y = stored * 2.0 - 1024
    file = written(tmp_path / "a.dcm", stored, WindowCenter=40, WindowWidth=400, **rescaled)
    linear = np.clip((y - 39.5) / 399 + 0.5, 0, 1)
    assert np.allclose(pixels(file), 2 * linear - 1, atol=1e-6)
    assert read_dicom(file, "a").bit_depth == pytest.approx(np.log2(399 / 2 + 1))
    exact = np.clip((y - 40) / 400 + 0.5, 0, 1)
    assert np.allclose(pixels(file, Window(40, 400, "LINEAR_EXACT")), 2 * exact - 1, atol=1e-6)
    sigmoid = 1 / (1 + np.exp(-4 * (y - 40) / 400))
    assert np.allclose(pixels(file, Window(40, 400, "SIGMOID")), 2 * sigmoid - 1, atol=1e-6)
    assert np.allclose(pixels(file, "none"), 2 * (stored + 32768.0) / 65535 - 1, atol=1e-6)
    several = written(tmp_path / "b.dcm", stored, WindowCenter=[40, 600], WindowWidth=[400, 2800], **rescaled)
    assert np.allclose(pixels(several), pixels(file))
    threshold = pixels(file, Window(40, 1))
    assert np.array_equal(threshold, np.where(y > 39.5, 1, -1))


@pytest.mark.parametrize("wrong", [(40, 0), (40, -1), (float("nan"), 4), (40, float("inf"))])
def test_windows_that_are_none_are_refused(tmp_path: Path, wrong: tuple[float, float]) -> None:
    with pytest.raises(DataError, match="width"):
        Window(*wrong)


def test_colour(tmp_path: Path) -> None:
    stored = np.arange(24, dtype=np.uint8).reshape(2, 4, 3) * 10
    found = read_dicom(written(tmp_path / "a.dcm", stored), "a")
    assert np.allclose(found.pixels, 2.0 * np.moveaxis(stored, 2, 0) / 255.0 - 1, atol=1e-6)


@pytest.mark.parametrize(
    ("tags", "said"),
    [
        ({"NumberOfFrames": 2}, "2 frames"),
        ({"Rows": 65535, "Columns": 65535}, "sides up to"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "supported are"),
        ({"PhotometricInterpretation": "YBR_FULL", "SamplesPerPixel": 3}, "supported are"),
        ({"BitsStored": 1}, "1 of 16 bits"),
        ({"RescaleSlope": 0}, "RescaleSlope of 0"),
        ({"WindowCenter": 1, "WindowWidth": -5}, "width"),
        ({"Rows": 4, "Columns": 4}, "cannot be read"),
        ({"Rows": 0}, "no image"),
    ],
)
def test_what_is_not_understood_is_refused(tmp_path: Path, tags: dict[str, Any], said: str) -> None:
    file = written(tmp_path / "a.dcm", np.array([[0, 1], [2, 4000]], dtype=np.uint16), **tags)
    with pytest.raises(DataError, match=said):
        read_dicom(file, "a")


def test_deflated_files_are_refused_before_they_expand(tmp_path: Path) -> None:
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    stored = np.zeros((2048, 2048), dtype=np.uint16)
    file = written(tmp_path / "a.dcm", stored, syntax=DeflatedExplicitVRLittleEndian)
    assert file.stat().st_size < 100_000 < stored.nbytes  # a bomb, if a small one
    with pytest.raises(DataError, match="deflated"):
        read_dicom(file, "a")


def patients(folder: Path, counts: dict[str, int], seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    for patient, count in counts.items():
        for i in range(count):
            stored = rng.integers(0, 4096, (4, 4), dtype=np.uint16)
            written(folder / f"{patient}-{i}.dcm", stored, BitsStored=12, PatientID=patient)


def test_no_patient_is_on_both_sides(tmp_path: Path) -> None:
    patients(tmp_path, {f"p{i}": 1 + i % 3 for i in range(12)})
    split = load(tmp_path, seed=3, heldout=0.3)
    assert len(split.train) + len(split.heldout) == 24 and len(split.heldout) >= 8
    assert split.train.identities and split.heldout.identities
    assert not set(split.train.identities) & set(split.heldout.identities)
    for name, patient in zip(split.train.names or (), split.train.identities, strict=True):
        assert name.split("-")[0] == patient
    assert split.train.bit_depth == 12
    other = load(tmp_path, seed=4, heldout=0.3)
    assert set(other.heldout.identities or ()) != set(split.heldout.identities)
    fewer = load(tmp_path, seed=3, heldout=0.3, images=5)
    assert len(fewer.train) == 5 and set(fewer.train.sha256) < set(split.train.sha256)
    assert fewer.heldout.sha256 == split.heldout.sha256


def test_a_given_split_is_kept_and_shared_patients_refused(tmp_path: Path) -> None:
    patients(tmp_path / "train", {"a": 2, "b": 1})
    patients(tmp_path / "heldout", {"c": 1}, seed=1)
    split = load(tmp_path, seed=0)
    assert split.train.identities == ("a", "a", "b") and split.heldout.identities == ("c",)
    patients(tmp_path / "heldout", {"a": 1}, seed=2)
    with pytest.raises(DataError, match="1 patients have images both"):
        load(tmp_path, seed=0)


def scans(folder: Path, window: Any = "file", **how: Any) -> Any:
    listing = dicom_listing(dicom_names(folder_tree(folder)), window, Preparation(**how))
    return listing.images(np.arange(listing.count))


def test_folders_must_be_alike(tmp_path: Path) -> None:
    patients(tmp_path, {"a": 2})
    stored = np.zeros((4, 4), dtype=np.uint16)
    for tags, said in (
        ({"BitsStored": 16, "PatientID": "z"}, "must have the same size and values"),
        ({"BitsStored": 12, "PatientID": "z", "WindowCenter": 3, "WindowWidth": 9}, "--window none maps"),
        ({"BitsStored": 12}, "no PatientID"),
    ):
        written(tmp_path / "z.dcm", stored, **tags)
        with pytest.raises(DataError, match=said):
            scans(tmp_path)
    written(tmp_path / "z.dcm", stored, BitsStored=12, PatientID="z", WindowCenter=3, WindowWidth=9)
    assert len(scans(tmp_path, "none")) == len(scans(tmp_path, "3,9")) == 3  # both ways out that are named
    written(tmp_path / "z.dcm", np.zeros((4, 5), dtype=np.uint16), BitsStored=12, PatientID="z")
    with pytest.raises(DataError, match="5 x 4 grey"):
        scans(tmp_path)


def test_unknown_persons_are_said(tmp_path: Path) -> None:
    patients(tmp_path, {f"p{i}": 1 for i in range(6)})
    assert load(tmp_path, seed=0).notes == ()
    for i in range(6):
        data = pydicom.dcmread(tmp_path / f"p{i}-0.dcm")
        del data.PatientID
        data.save_as(tmp_path / f"p{i}-0.dcm")
    (note,) = load(tmp_path, seed=0).notes
    assert note.startswith("no file has a PatientID, so persons are unknown")


def test_grey_scans_become_colour_on_request(tmp_path: Path) -> None:
    patients(tmp_path, {"a": 1, "b": 2})
    grey, colour = scans(tmp_path), scans(tmp_path, convert="rgb")
    assert np.array_equal(colour.pixels, grey.pixels.repeat(3, axis=1)) and colour.sha256 == grey.sha256
    assert np.array_equal(scans(tmp_path, convert="grey").pixels, grey.pixels)


def own_file(name: str) -> Path:
    """A file that pydicom brings along (nothing is fetched)."""
    path = Path(pydicom.__file__).parent / "data" / "test_files" / name
    if not path.is_file():
        pytest.skip(f"this pydicom has no {name}")
    return path


def test_files_of_other_hands() -> None:
    ct = read_dicom(own_file("CT_small.dcm"), "ct", Window(40, 400))
    stored = pydicom.dcmread(own_file("CT_small.dcm")).pixel_array.astype(float)
    expected = np.clip((stored - 1024 - 39.5) / 399 + 0.5, 0, 1)
    assert ct.pixels.shape == (1, 128, 128) and ct.identity == "1CT1"
    assert np.allclose(ct.pixels[0], 2 * expected - 1, atol=1e-6)
    mr = read_dicom(own_file("MR_small.dcm"), "mr")
    data = pydicom.dcmread(own_file("MR_small.dcm"))
    y, c, w = data.pixel_array.astype(float), float(data.WindowCenter), float(data.WindowWidth)
    assert np.allclose(mr.pixels[0], 2 * np.clip((y - c + 0.5) / (w - 1) + 0.5, 0, 1) - 1, atol=1e-6)
    for other in ("MR_small_RLE.dcm", "MR_small_bigendian.dcm", "MR_small_implicit.dcm"):
        again = read_dicom(own_file(other), other)
        assert np.array_equal(again.pixels, mr.pixels), other


def test_every_file_of_pydicom_is_read_or_refused_with_a_sentence() -> None:
    folder = Path(pydicom.__file__).parent / "data" / "test_files"
    files = sorted(folder.glob("*.dcm"))
    if not files:
        pytest.skip("this pydicom has no test files")
    read = 0
    for file in files:
        try:
            found = read_dicom(file, file.name)
        except DataError as error:
            assert file.name in str(error) and "\n" not in str(error)  # noqa: PT017
        else:
            read += 1
            assert np.isfinite(found.pixels).all() and np.abs(found.pixels).max() <= 1
    assert read >= 10


@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=4)), max_size=6), st.floats(0, 1))
def test_fuzz_damaged_files(tmp_path: Path, patches: list[tuple[float, bytes]], kept: float) -> None:
    good = tmp_path / "good.dcm"
    if not good.is_file():
        written(
            good, np.arange(64, dtype=np.uint16).reshape(8, 8), PatientID="p", WindowCenter=8, WindowWidth=9
        )
    raw = bytearray(good.read_bytes())
    for place, patch in patches:
        at = int(place * (len(raw) - 1))
        raw[at : at + len(patch)] = patch
    bad = tmp_path / "bad.dcm"
    bad.write_bytes(raw[: int(kept * len(raw))] if kept < 0.5 else raw)
    try:
        found = read_dicom(bad, "bad")
    except DataError as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert np.isfinite(found.pixels).all() and np.abs(found.pixels).max() <= 1


def test_without_pydicom_the_way_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(DataError, match=r"latentprint\[dicom\]"):
        read_dicom(tmp_path / "a.dcm", "a")
