"""Readers of images and tables: files of every format, spoiled; and files that state too much."""

from __future__ import annotations

import io
import json
import os
import random
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from mutations import DAMAGES, Case, put, spoiled
from PIL import Image

from latentprint.adapters.samples import open_samples
from latentprint.audit.images import place_of, read_images
from latentprint.config import DataSettings, resolve
from latentprint.data import load
from latentprint.marks import FingerprintSettings

EACH = 120
"""Spoiled forms of each file."""

COUNT = 6
_PIXELS = np.random.default_rng(0).integers(0, 256, (COUNT, 8, 8, 3), dtype=np.uint8)


def prepared(folder: Path) -> None:
    """One folder for each format, with the images of `_PIXELS`."""
    grey = _PIXELS[..., 0]
    pictures: dict[str, tuple[str, Callable[[int], Image.Image], dict[str, Any]]] = {
        "png": ("png", lambda i: Image.fromarray(grey[i]), {}),
        "png-rgb": ("png", lambda i: Image.fromarray(_PIXELS[i]), {}),
        "png-16": ("png", lambda i: Image.fromarray(grey[i].astype(np.uint16) * 257), {}),
        "png-palette": ("png", lambda i: Image.fromarray(_PIXELS[i]).quantize(16), {}),
        "png-alpha": ("png", lambda i: Image.fromarray(_PIXELS[i]).convert("RGBA"), {}),
        "jpg": ("jpg", lambda i: Image.fromarray(_PIXELS[i]), {}),
        "bmp": ("bmp", lambda i: Image.fromarray(grey[i]), {}),
        "webp": ("webp", lambda i: Image.fromarray(_PIXELS[i]), {"lossless": True}),
        "tif": ("tif", lambda i: Image.fromarray(grey[i]), {}),
        "tif-lzw": ("tif", lambda i: Image.fromarray(grey[i].astype(np.uint16)), {"compression": "tiff_lzw"}),
    }
    for name, (suffix, picture, how) in pictures.items():
        (folder / name).mkdir(parents=True)
        for i in range(COUNT):
            picture(i).save(folder / name / f"{i}.{suffix}", **how)
    for name in ("npz", "npz-sides", "npy", "zip", "parquet", "dataset", "dicom", "labels"):
        (folder / name).mkdir()
    for name, suffix in (("nifti", "nii"), ("nifti-gz", "nii.gz")) if find_spec("nibabel") else ():
        import nibabel

        (folder / name).mkdir()
        for i in range(COUNT):
            volume = nibabel.nifti1.Nifti1Image(np.moveaxis(_PIXELS[i], -1, 0), np.diag([1.0, 1, 2, 1]))
            nibabel.save(volume, folder / name / f"{i}.{suffix}")
    np.savez(folder / "npz" / "0.npz", images=grey)
    np.savez_compressed(
        folder / "npz-sides" / "0.npz",
        train_images=grey,
        train_labels=np.arange(COUNT) % 2,
        test_images=255 - grey[:3],
        test_labels=np.arange(3) % 2,
    )
    np.save(folder / "npy" / "0.npy", (grey / 127.5 - 1).astype(np.float32))
    with zipfile.ZipFile(folder / "zip" / "0.zip", "w") as archive:
        for i in range(COUNT):
            archive.write(folder / "png" / f"{i}.png", f"in/{i}.png")
    _tables(folder)
    for i in range(COUNT):
        put(folder / "labels" / f"{i}.png", (folder / "png" / f"{i}.png").read_bytes())
        _dicom(folder / "dicom" / f"{i}.dcm", grey[i])
    lines = "\n".join(f"{i}.png,{'ab'[i % 2]}" for i in range(COUNT))
    (folder / "labels" / "table.csv").write_text(f"file,class\n{lines}\n")


def _tables(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    encoded = [(folder / "png" / f"{i}.png").read_bytes() for i in range(COUNT)]
    images = pa.StructArray.from_arrays(
        [pa.array(encoded, pa.binary()), pa.array([None] * COUNT, pa.string())], ["bytes", "path"]
    )
    table = pa.table({"image": images, "label": pa.array([i % 2 for i in range(COUNT)])})
    pq.write_table(table, folder / "parquet" / "0.parquet")
    data = str(folder / "dataset" / "data.arrow")
    with pa.OSFile(data, "wb") as sink, pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    (folder / "dataset" / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))


def _dicom(path: Path, stored: np.ndarray) -> None:
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = f"1.2.3.{path.stem}"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    values = {
        "SOPClassUID": meta.MediaStorageSOPClassUID,
        "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "PatientID": f"p{path.stem}",
        "Rows": 8,
        "Columns": 8,
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 8,
        "BitsStored": 8,
        "HighBit": 7,
        "PixelRepresentation": 0,
        "WindowCenter": "128",
        "WindowWidth": "256",
        "RescaleSlope": "1",
        "RescaleIntercept": "0",
        "PixelData": stored.tobytes(),
    }
    for tag, value in values.items():
        setattr(data, tag, value)
    data.save_as(path, enforce_file_format=True)


@cache
def _train() -> Any:
    return load("digits", seed=0, images=20).train


def _data(source: str, **more: Any) -> Callable[[Path], int]:
    def read(folder: Path) -> int:
        table = {"source": str(folder / source), "images": None, **more}
        if "labels" in table:
            table["labels"] = str(folder / table["labels"])
        read_images(resolve({"data": table}, preset="demo"), None, False)
        return 0

    return read


def _samples(source: str) -> Callable[[Path], int]:
    return lambda folder: len(open_samples(folder / source)) * 0


def _target(source: str) -> Callable[[Path], int]:
    return lambda folder: 0 * (place_of(_train(), folder / source, DataSettings()) or 0)


def _region(source: str) -> Callable[[Path], int]:
    return lambda folder: 0 * FingerprintSettings(kind="natural", region=str(folder / source)).mask(8, 8).size


def cases(folder: Path) -> Iterator[Case]:
    """Every case; ``folder`` is `prepared`."""
    for place in sorted(path for path in folder.iterdir() if path.is_dir()):
        first = next(f for f in sorted(place.iterdir()) if f.suffix not in (".json",))
        name = place.name
        file = f"{name}/{first.name}"
        whole = file if name in ("npz", "npz-sides", "npy", "zip", "parquet") else name
        readers: dict[str, Callable[[Path], int]] = {"data": _data(whole)}
        if name != "npz-sides":
            readers["samples"] = _samples(whole)
        if name.startswith(("png", "jpg", "bmp", "tif", "webp")):
            readers |= {"target": _target(file), "region": _region(file), "resize": _data(whole, resize=4)}
        if name in ("png-palette", "png-alpha"):  # refused as they are
            readers = {"data": _data(name, convert="rgb"), "resize": _data(name, convert="grey", resize=4)}
        if name == "labels":
            file, readers = "labels/table.csv", {"data": _data(name, labels="labels/table.csv")}
        content = (folder / file).read_bytes()
        for reader, read in readers.items():
            for damage, apply in DAMAGES.items():
                yield Case(
                    f"{reader} images",
                    f"{reader}: {file} {damage}",
                    (name,),
                    lambda at, f=file, a=apply: a(at / f),
                    read,
                )
            for i in range(EACH):
                yield Case(
                    f"{reader} {name}",
                    f"{reader}: {file} spoiled {i}",
                    (name,),
                    lambda at, f=file, c=content, i=i: put(at / f, spoiled(c, random.Random(f"{f} {i}"))),
                    read,
                )
    yield from _state_too_much()


def _state_too_much() -> Iterator[Case]:
    """Files that state more than they hold, or that grow as they are read."""
    made = {
        "wide.png": lambda path: put(path, _png(100_000, 100_000)),
        "long.png": lambda path: put(path, _png(16_000, 1)),
        "square.png": lambda path: put(path, _png(16_000, 16_000)),
        "sparse.npy": _sparse,
        "constant.npz": _constant,
        "constant.parquet": _parquet,
        "bomb.zip": _bomb,
    }
    for name, make in made.items():
        for reader, read in (
            ("data", _data("x")),
            ("file", _data(f"x/{name}")),
            ("samples", _samples("x")),
            ("sample file", _samples(f"x/{name}")),
            ("resize", _data("x", resize=8)),
            ("target", _target(f"x/{name}")),
            ("region", _region(f"x/{name}")),
        ):
            yield Case(
                "states too much",
                f"{reader}: {name}",
                (),
                lambda at, n=name, m=make: ((at / "x").mkdir(), m(at / "x" / n)),
                read,
            )


def _png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(min(2**28, (width + 1) * height)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def _sparse(path: Path) -> None:
    head = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({2**25}, 8, 8), }}"
    head = head.ljust(-(-(len(head) + 11) // 64) * 64 - 11) + "\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head.encode())
    os.truncate(path, path.stat().st_size + 2**31)


def _constant(path: Path) -> None:
    raw = io.BytesIO()
    np.save(raw, np.zeros((2**18, 16, 16), np.uint8))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", raw.getvalue())


def _parquet(path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    one = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(one, "png")
    rows = 2**12
    images = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([one.getvalue()]))
    pq.write_table(pa.table({"image": images.dictionary_decode()}), path, use_dictionary=True)


def _bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for i in range(COUNT):
            archive.writestr(f"{i}.png", bytes(2**27))
