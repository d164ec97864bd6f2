"""NIfTI volumes, written by nibabel: values, axes, spacing against nibabel's; every bad file a sentence."""

from __future__ import annotations

import gzip
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from latentprint.cli import app
from latentprint.data import DataError, load
from latentprint.data.listing import Preparation
from latentprint.data.nifti import read_header, volume, voxels
from latentprint.marks import FingerprintSettings

nib: Any = pytest.importorskip("nibabel")

RAS = np.diag([1.0, 1.0, 2.0, 1.0])


def write(
    path: Path, values: np.ndarray[Any, Any], affine: np.ndarray[Any, Any] | None = RAS, **header: Any
) -> Path:
    image = nib.Nifti1Image(values, affine)
    for name, value in header.items():
        image.header[name] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    return path


def values(seed: int = 0, shape: tuple[int, ...] = (6, 7, 8)) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def folder(root: Path, count: int = 8, suffix: str = ".nii.gz", **header: Any) -> Path:
    for i in range(count):
        write(root / f"sub-{i // 2:02d}_scan-{i}{suffix}", values(i), **header)
    return root


@pytest.mark.parametrize("axcodes", ["RAS", "LPS", "SAL", "PIR"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_axes_and_values_are_nibabels(tmp_path: Path, axcodes: str, suffix: str) -> None:
    turn = nib.orientations.axcodes2ornt(tuple(axcodes))
    stored = values(1)
    affine = nib.orientations.inv_ornt_aff(turn, stored.shape) @ RAS
    path = write(tmp_path / f"a{suffix}", stored, affine)
    expected = np.asarray(nib.as_closest_canonical(nib.load(path)).dataobj)
    header = read_header(path, "a")
    assert np.array_equal(voxels(path, "a", header, "ras"), expected)
    assert np.array_equal(voxels(path, "a", header, "stored"), stored)


def test_a_folder_becomes_volumes_with_spacing_persons_and_masks(tmp_path: Path) -> None:
    split = load(folder(tmp_path / "set"), seed=0, patient="sub-([0-9]+)")
    assert split.train.shape == (1, 6, 7, 8) and split.train.bit_depth == 8
    assert split.train.identities is not None and split.heldout.identities is not None
    assert not set(split.train.identities) & set(split.heldout.identities)
    at = int((split.train.names or ())[0].partition("scan-")[2].partition(".")[0])
    assert np.allclose(split.train.pixels[0, 0], values(at) / 127.5 - 1, atol=1e-6)
    assert any("1 x 1 x 2 mm" in one for one in split.remarks)
    for i in range(8):
        write(tmp_path / "set" / f"sub-{i // 2:02d}_scan-{i}_seg.nii.gz", values(9) // 200)
    assert any("--files '!*_seg.*'" in one for one in load(tmp_path / "set", seed=0).remarks)
    assert len(load(tmp_path / "set", seed=0, images=4, pattern="!*_seg.*").heldout) == 4
    for wrong, words in (("(", "regular expression"), ("pat-([0-9]+)", "finds nothing")):
        with pytest.raises(DataError, match=words):
            load(tmp_path / "set", seed=0, patient=wrong)


def test_windows_and_ranges_map_values(tmp_path: Path) -> None:
    hounsfield = np.random.default_rng(0).integers(-1000, 1500, (4, 5, 6), dtype=np.int16)
    for i in range(4):
        write(tmp_path / f"ct{i}.nii.gz", hounsfield + i)
    pixels = load(tmp_path, seed=0, images=3, window="40,400", pattern="*").train.pixels
    own = [np.clip((hounsfield + i + 160) / 400, 0, 1) * 2 - 1 for i in range(4)]
    assert all(min(np.abs(one[0] - other).max() for other in own) < 1e-6 for one in pixels)
    ranged = load(tmp_path, seed=0, images=3, stored_range=(-1000, 2000)).train
    other = [(hounsfield + i + 1000) / 1500 - 1 for i in range(4)]
    assert all(min(np.abs(one[0] - o).max() for o in other) < 1e-5 for one in ranged.pixels)
    with pytest.raises(DataError, match="int16 values, whose range cannot be known: --window"):
        load(tmp_path, seed=0, images=3)
    with pytest.raises(DataError, match=r"must lie in \[0, 500\]"):
        load(tmp_path, seed=0, images=3, stored_range=(0, 500))
    shown = tmp_path / "shown"
    for i in range(4):  # slope, intercept, and the display range of the header
        write(shown / f"mr{i}.nii", values(i), scl_slope=2.0, scl_inter=10.0, cal_min=10.0, cal_max=310.0)
        (shown / f"mr{i}.nii").write_bytes(_scaled((shown / f"mr{i}.nii").read_bytes(), 2.0, 10.0))
    pixels = load(shown, seed=0, images=3).train.pixels
    own = [np.clip((values(i) * 2.0 + 10 - 10) / 300, 0, 1) * 2 - 1 for i in range(4)]
    assert all(min(np.abs(one[0] - other).max() for other in own) < 1e-5 for one in pixels)


def _scaled(content: bytes, slope: float, intercept: float) -> bytes:
    """nibabel's writer chooses slope and intercept itself; here they are what a scanner wrote."""
    return content[:112] + struct.pack("<2f", slope, intercept) + content[120:]


def _oblique() -> np.ndarray[Any, Any]:
    c, s = np.cos(0.3), np.sin(0.3)
    return np.array([[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])


def _bad(root: Path, kind: str) -> None:
    folder(root, 5)
    path, floats = root / "bad.nii.gz", values(9).astype(np.float32) / 255
    if kind == "nan":
        floats[1, 2, 3] = np.nan
        for i in range(5):
            write(root / f"sub-{i // 2:02d}_scan-{i}.nii.gz", values(i).astype(np.float32) / 255)
        write(path, floats)
    elif kind == "series":
        write(path, values(9, (6, 7, 8, 5)))
    elif kind == "oblique":
        write(path, values(9), _oblique())
    elif kind == "missing affine":
        write(path, values(9), RAS, sform_code=0, qform_code=0)
        image = nib.Nifti1Image(values(9), None)
        nib.save(image, path)
    elif kind == "spacing":
        write(path, values(9), np.diag([1.0, 1.0, 3.0, 1.0]))
    elif kind == "size":
        write(path, values(9, (6, 7, 9)))
    elif kind == "bomb":
        header = nib.Nifti1Header()
        header.set_data_shape((1000, 1000, 200))
        header.set_data_dtype(np.uint8)
        header.set_sform(RAS, 1)
        header["magic"], header["vox_offset"] = b"n+1", 352
        with gzip.open(path, "wb") as file:
            file.write(header.binaryblock + bytes(4))
            for _ in range(200):
                file.write(bytes(10**6))
    elif kind == "huge":
        header = nib.Nifti2Header()
        header.set_data_shape((10**5, 10**5, 10**5))
        header.set_data_dtype(np.uint8)
        (root / "bad.nii").write_bytes(header.binaryblock + bytes(100))
    elif kind == "cut":
        content = write(root / "bad.nii", values(9)).read_bytes()
        (root / "bad.nii").write_bytes(content[:-50])
    elif kind == "cut gz":
        content = write(path, values(9)).read_bytes()
        path.write_bytes(content[:-60])
    elif kind == "no nifti":
        path.write_bytes(gzip.compress(b"hello" * 200))
    elif kind == "no gzip":
        path.write_bytes(b"hello" * 200)
    elif kind == "colours":
        write(path, values(9).repeat(3).view([("R", "u1"), ("G", "u1"), ("B", "u1")]).reshape(6, 7, 8))
    elif kind == "extensions":
        content = bytearray(write(root / "bad.nii", values(9)).read_bytes())
        content[108:112] = struct.pack("<f", 3e8)
        (root / "bad.nii").write_bytes(content)


BAD = {
    "nan": "NaN or infinite",
    "series": "a series of 5 volumes",
    "oblique": "off by 17.2 degrees",
    "missing affine": "sform and qform codes are 0",
    "spacing": "1 x 1 x 3 mm",
    "size": "must be alike",
    "bomb": "would grow from",
    "huge": "100000 x 100000 x 100000",
    "cut": "is cut off",
    "cut gz": "damaged|cut off",
    "no nifti": "not a NIfTI file",
    "no gzip": "cannot be read as NIfTI",
    "colours": "holds colours",
    "extensions": "begins its voxels",
}


@pytest.mark.parametrize("kind", BAD)
def test_every_bad_file_is_a_sentence_with_its_name(tmp_path: Path, kind: str) -> None:
    _bad(tmp_path, kind)
    with pytest.raises(DataError, match=BAD[kind]) as caught:
        load(tmp_path, seed=0)
    assert "\n" not in str(caught.value) and ("bad.nii" in str(caught.value) or kind == "size")


@pytest.mark.parametrize("kind", ["series", "bomb"])
def test_the_command_ends_with_2(tmp_path: Path, kind: str) -> None:
    _bad(tmp_path / "data", kind)
    ended = CliRunner().invoke(app, ["check", str(tmp_path / "data"), "--preset", "small3d", "--images", "4"])
    assert ended.exit_code == 2 and "Traceback" not in ended.output


def test_what_can_be_done_about_axes_is_done(tmp_path: Path) -> None:
    for i in range(6):
        write(tmp_path / "oblique" / f"{i}.nii", values(i), _oblique())
        nib.save(nib.Nifti1Image(values(i), None), _into(tmp_path / "bare") / f"{i}.nii")
    assert load(tmp_path / "oblique", seed=0, images=4, orientation="closest").train.shape == (1, 6, 7, 8)
    assert load(tmp_path / "bare", seed=0, images=4, orientation="stored").train.shape == (1, 6, 7, 8)


def _into(path: Path) -> Path:
    path.mkdir(exist_ok=True)
    return path


def test_free_text_of_headers_goes_nowhere(tmp_path: Path) -> None:
    folder(tmp_path, 6, descrip=b"Jane Doe 1970", aux_file=b"jane", db_name=b"DOE^JANE")
    split = load(tmp_path, seed=0, images=4)
    assert "ane" not in json.dumps([split.remarks, split.train.source, split.name])


def test_regions_are_masks_in_the_same_axes(tmp_path: Path) -> None:
    mask = np.zeros((6, 7, 8), np.uint8)
    mask[1:3, 2:5, 3:7] = 1
    path = write(tmp_path / "mask.nii.gz", mask[::-1], np.diag([-1.0, 1.0, 2.0, 1.0]))
    found = FingerprintSettings(kind="natural", region=str(path)).mask(6, 7, 8)
    assert found is not None and np.array_equal(found, mask.astype(bool))


OWN = Path(nib.__file__).parent / "tests" / "data"
"""nibabel's own test files."""

SAID = {
    "example4d.nii.gz": "a series of 2 volumes",
    "example_nifti2.nii.gz": "a series of 2 volumes",
    "functional.nii": "a series of 20 volumes",
    "resampled_anat_moved.nii": "NaN or infinite",
    "row_major.dconn.nii": "an array of 6 axes",
}


@pytest.mark.skipif(not OWN.is_dir(), reason="this nibabel came without its test files")
def test_nibabels_own_files_are_read_as_nibabel_reads_them_or_refused() -> None:
    found = sorted(one for one in OWN.iterdir() if one.name.endswith((".nii", ".nii.gz")))
    how, read = Preparation(stored_range=(-4096.0, 32768.0)), 0
    for path in found:
        if path.name in SAID:
            with pytest.raises(DataError, match=rf"'{path.name}' holds .*{SAID[path.name]}"):
                volume(path, path.name, read_header(path, path.name), "none", how, "closest")
            continue
        pixels = volume(path, path.name, read_header(path, path.name), "none", how, "closest").pixels[0, 0]
        stored = np.asarray(nib.as_closest_canonical(nib.load(path)).dataobj, np.float64)
        expected = (stored.reshape(pixels.shape) + 4096) * (2 / 36864) - 1
        assert np.abs(pixels - expected).max() < 1e-6, path.name
        read += 1
    assert read + len(SAID) == len(found) and read >= 3


@pytest.mark.parametrize("name", ["nifti1.hdr", "test.mgz", "small.mnc"])
@pytest.mark.skipif(not OWN.is_dir(), reason="this nibabel came without its test files")
def test_volumes_of_other_formats_are_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes((OWN / name).read_bytes())
    with pytest.raises(DataError, match=rf"'{name}': of volumes, NIfTI .* and DICOM are read"):
        load(tmp_path, seed=0)
    with pytest.raises(DataError, match="is one volume; name the folder"):
        load(tmp_path / name, seed=0)
