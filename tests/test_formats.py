"""Images as people have them, in files that the libraries themselves wrote: each gives back what went in."""

from __future__ import annotations

import os
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import ExifTags, Image, ImageOps

from latentprint.contracts import InputError
from latentprint.data import DataError, Split, draw, files, load, stack
from latentprint.data.load import read_all
from latentprint.data.tree import masks


def drawn(n=12, shape=(9, 7), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, *shape)).astype(np.uint8)


def saved(folder, images, suffix="png", stem="{:03d}", **options):
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{stem.format(i)}.{suffix}", **options)
    return folder


def everything(split):
    return Counter(split.train.sha256 + split.heldout.sha256)


def hashes(images):
    return Counter(stack(images, "x").sha256)


def zipped(path, folder, around=""):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, around + file.relative_to(folder).as_posix())
    return path


def encoded(image):
    import io

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


# Formats


@pytest.mark.parametrize(
    ("suffix", "options"),
    [("bmp", {}), ("webp", {"lossless": True}), ("WEBP", {"lossless": True}), ("tif", {})],
)
@pytest.mark.parametrize("shape", [(9, 7), (9, 7, 3)])
def test_lossless_files_are_read_as_they_were_drawn(tmp_path, suffix, options, shape):
    images = drawn(shape=shape)
    split = load(saved(tmp_path, images, suffix, **options), seed=0)
    grey_webp = suffix.lower() == "webp" and len(shape) == 2  # WebP knows colour only
    assert everything(split) == hashes(images[..., None].repeat(3, 3) if grey_webp else images)


@pytest.mark.parametrize("around", ["", "scans/", "scans/2024/"])
def test_a_zip_is_read_as_its_folder_is(tmp_path, around):
    folder = saved(tmp_path / "in", drawn())
    (folder / "__MACOSX").mkdir()
    (folder / "__MACOSX" / "._000.png").write_bytes(b"no image")
    path = zipped(tmp_path / "x.ZIP", folder, around)
    (folder / "__MACOSX" / "._000.png").unlink()
    assert load(path, seed=3).train.sha256 == load(folder, seed=3).train.sha256


def test_a_zip_with_sides_is_split_by_them_and_bombs_are_refused(tmp_path):
    saved(tmp_path / "in" / "train", drawn(6))
    saved(tmp_path / "in" / "test", drawn(3, seed=1))
    split = load(zipped(tmp_path / "x.zip", tmp_path / "in"), seed=0)
    assert split.train.names[0] == "train/000.png" and split.heldout.names[2] == "test/002.png"
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(2**27))
    with pytest.raises(DataError, match=r"would grow from .* as no image file does"):
        load(tmp_path / "bomb.zip", seed=0)
    (tmp_path / "no.zip").write_bytes(b"PK\x03\x04 and then nothing")
    with pytest.raises(DataError, match="cannot be read as a zip"):
        load(tmp_path / "no.zip", seed=0)


@pytest.mark.parametrize("suffix", [".npy", ".NPY"])
def test_an_npy_is_one_array_of_images(tmp_path, suffix):
    images = drawn(20)
    with (tmp_path / f"x{suffix}").open("wb") as file:
        np.save(file, images)
    assert everything(load(tmp_path / f"x{suffix}", seed=0)) == hashes(images)


def test_an_npz_in_capitals_is_one(tmp_path):
    with (tmp_path / "x.NPZ").open("wb") as file:
        np.savez(file, images=drawn())
    assert everything(load(tmp_path / "x.NPZ", seed=0)) == hashes(drawn())


def test_of_a_sparse_file_of_64_gib_only_what_is_drawn_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(draw, "MOST_HELDOUT", 5 * 256 * 256)
    path = tmp_path / "large.npy"
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "|u1", "fortran_order": False, "shape": (2**20, 256, 256)}
        )
        file.truncate(file.tell() + 2**36)
    with pytest.raises(DataError, match="each of the 5 held-out images is a copy"):  # all are black
        load(path, seed=0, images=8)
    with pytest.raises(DataError, match=r"need 204\.8 GiB of memory"):
        load(path, seed=0)


def test_a_large_compressed_array_is_read_in_passing(tmp_path, monkeypatch):
    """The file holds 256 MiB; 12 of its 4,096 images are kept, and the peak stays far below the whole."""
    import tracemalloc

    images = np.zeros((4096, 256, 256), np.uint8)
    images[:, :9, :7] = drawn(4096)
    np.savez_compressed(tmp_path / "x.npz", images=images)
    monkeypatch.setattr(draw, "MOST_HELDOUT", 8 * 256 * 256)
    tracemalloc.start()
    split = load(tmp_path / "x.npz", seed=0, images=12)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (len(split.train), len(split.heldout)) == (12, 8) and peak < 96 * 2**20
    assert set(split.train.sha256 + split.heldout.sha256) <= set(hashes(images))
    assert split.notes == ("of 4,084 images that are not trained on 8 were drawn as held out",)


@pytest.mark.parametrize("kind", ["struct", "binary"])
def test_parquet_files_give_back_images_and_labels(tmp_path, kind):
    images, labels = drawn(11), [i % 3 for i in range(11)]
    column = [encoded(image) for image in images]
    for name, rows in (
        ("train-00000-of-00002", slice(0, 4)),
        ("train-00001-of-00002", slice(4, 8)),
        ("test", slice(8, 11)),
    ):
        some = column[rows] if kind == "struct" else [one["bytes"] for one in column[rows]]
        table = pa.table({"image": some, "label": labels[rows]})
        (tmp_path / "data").mkdir(exist_ok=True)
        pq.write_table(table, tmp_path / "data" / f"{name}.parquet", row_group_size=3)
    split = load(tmp_path, seed=0)
    assert split.train.sha256 == stack(images[:8], "x").sha256
    assert split.heldout.sha256 == stack(images[8:], "x").sha256
    assert split.train.labels == tuple(labels[:8]) and split.heldout.labels == tuple(labels[8:])
    one = (
        load(tmp_path / "data" / "train-00000-of-00002.parquet", seed=0, images=2)
        if kind == "struct"
        else None
    )
    assert one is None or len(one.train) == 2


def test_parquet_that_is_no_table_of_images_is_refused(tmp_path):
    pq.write_table(pa.table({"text": ["a", "b"], "n": [1, 2]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"one column of encoded images .* its columns are text, n"):
        load(tmp_path / "a.parquet", seed=0)
    (tmp_path / "b.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(DataError, match="cannot be read; it may be damaged"):
        load(tmp_path / "b.parquet", seed=0)
    rows = [{"bytes": None, "path": "elsewhere.png"}] * 5
    kind = pa.list_(pa.int8()) and pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"image": pa.array(rows, kind)}), tmp_path / "c.parquet")
    with pytest.raises(DataError, match="row 0 holds no image bytes"):
        load(tmp_path / "c.parquet", seed=0)


@pytest.mark.parametrize("parts", [("train", "test"), ("train", "validation"), ()])
def test_what_datasets_saves_to_disk_is_read(tmp_path, parts, monkeypatch):
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    features = datasets.Features(
        image=datasets.Image(), label=datasets.ClassLabel(names=["benign", "malignant"])
    )

    def made(images):
        rows = {"image": [Image.fromarray(i) for i in images], "label": [i % 2 for i in range(len(images))]}
        return datasets.Dataset.from_dict(rows, features=features)

    images = drawn(12)
    if parts:
        datasets.DatasetDict({parts[0]: made(images[:8]), parts[1]: made(images[8:])}).save_to_disk(
            tmp_path / "d"
        )
        split = load(tmp_path / "d", seed=0)
        assert split.train.sha256 == stack(images[:8], "x").sha256
        assert split.heldout.sha256 == stack(images[8:], "x").sha256
        assert split.train.labels == (0, 1) * 4
    else:
        made(images).save_to_disk(tmp_path / "d", num_shards=3)
        split = load(tmp_path / "d", seed=0)
        assert everything(split) == hashes(images)
    assert split.classes == ("benign", "malignant")
    made(images).to_parquet(tmp_path / "p.parquet")
    assert load(tmp_path / "p.parquet", seed=0).classes == split.classes


# What was done to the pixels


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_carried_out_as_pillow_does_and_said(tmp_path, orientation):
    images = drawn(8, (8, 8))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    saved(tmp_path, images, "jpg", exif=exif, quality=95)
    split = load(tmp_path, seed=0)
    for name, pixels in zip(split.train.names, split.train.pixels, strict=True):
        with Image.open(tmp_path / name) as image:
            wanted = np.asarray(ImageOps.exif_transpose(image))
        assert np.array_equal(np.rint((pixels[0] + 1) * 127.5), wanted)
    said = [note for note in split.notes if "EXIF asks to turn" in note]
    assert len(said) == (
        2 if orientation != 1 and len(split.train) != len(split.heldout) else int(orientation != 1)
    )


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "LA", "1", "CMYK"])
@pytest.mark.parametrize("to", ["rgb", "grey"])
def test_conversion_is_that_of_pillow(tmp_path, mode, to):
    suffix = "tif" if mode == "CMYK" else "png"
    colour = drawn(6, (9, 7, 3))
    for i, image in enumerate(colour):
        Image.fromarray(image).convert(mode).save(tmp_path / f"{i}.{suffix}")
    split = load(tmp_path, seed=0, convert=to)
    assert split.train.shape == ((3 if to == "rgb" else 1), 9, 7)
    for name, pixels in zip(split.train.names, split.train.pixels, strict=True):
        with Image.open(tmp_path / name) as image:
            wanted = np.asarray(image.convert("RGB" if to == "rgb" else "L"))
        channels = np.moveaxis(wanted, -1, 0) if to == "rgb" else wanted[None]
        assert np.array_equal(np.rint((pixels + 1) * 127.5), channels)


def test_grey_and_colour_in_one_folder_name_the_way_out(tmp_path):
    saved(tmp_path, [*drawn(3), *drawn(3, (9, 7, 3))])
    with pytest.raises(DataError, match="--convert rgb or --convert grey brings all to the same colours"):
        load(tmp_path, seed=0)
    assert load(tmp_path, seed=0, convert="rgb").train.shape == (3, 9, 7)


@pytest.mark.parametrize(
    ("images", "setting"),
    [
        (drawn(9).astype(np.uint16) * 16, "0,4095"),  # 12 bits in 16
        (drawn(9) / np.float32(255), "0,1"),
        (drawn(9) // 128, "0,1"),
        (drawn(9).astype(np.uint16) * 64 + 3, "0,16383"),
    ],
)
def test_a_range_that_is_not_in_use_is_said_with_the_setting_that_mends_it(tmp_path, images, setting):
    np.savez(tmp_path / "x.npz", images=images)
    split = load(tmp_path / "x.npz", seed=0)
    assert split.used.narrow and f"--stored-range {setting} stretches them" in str(split.used)
    assert str(split.used) in split.remarks
    with pytest.raises(DataError, match=f"--stored-range {setting}"):
        split.used.require()
    low, high = (float(part) for part in setting.split(","))
    mended = load(tmp_path / "x.npz", seed=0, stored_range=(low, high))
    mended.used.require()
    wanted = {np.float32(2 * v / (high - low) - 1).round(4) for v in images.ravel().astype(float)}
    assert {v.round(4) for v in mended.train.pixels.ravel()} <= wanted
    as_they_are = load(tmp_path / "x.npz", seed=0, stored_range=split.used.of)
    as_they_are.used.require()
    assert np.array_equal(as_they_are.train.pixels, split.train.pixels)


def test_a_dark_image_that_uses_most_of_its_range_is_no_cause_for_alarm(tmp_path):
    np.savez(tmp_path / "x.npz", images=drawn(9) // 3 * 2)
    split = load(tmp_path / "x.npz", seed=0)
    assert not split.used.narrow and split.remarks == ()
    with pytest.raises(DataError, match="must lie in \\[0, 100\\]"):
        load(tmp_path / "x.npz", seed=0, stored_range=(0, 100))


# Sides, classes, patterns


@pytest.mark.parametrize("held", ["heldout", "val", "test", "Validation"])
def test_the_usual_names_of_folders_are_the_split(tmp_path, held):
    saved(tmp_path / "train", drawn(6))
    saved(tmp_path / held, drawn(3, seed=1))
    split = load(tmp_path, seed=0)
    assert split.train.sha256 == stack(drawn(6), "x").sha256
    assert split.heldout.sha256 == stack(drawn(3, seed=1), "x").sha256
    saved(tmp_path / "testing", drawn(2, seed=2))
    assert len(load(tmp_path, seed=0).heldout) == 5


def test_folders_name_the_classes_as_imagefolder_numbers_them(tmp_path):
    from torchvision.datasets import ImageFolder

    for side, seed in (("train", 0), ("val", 9)):
        for i, name in enumerate(("b10", "a", "b2")):
            saved(tmp_path / side / name, drawn(4, seed=seed + i))
    split = load(tmp_path, seed=0)
    theirs = ImageFolder(str(tmp_path / "train"))
    assert split.classes == tuple(theirs.classes)
    own = dict(zip(split.train.names, split.train.labels, strict=True))
    assert own == {Path(path).relative_to(tmp_path).as_posix(): label for path, label in theirs.samples}
    assert split.named_classes == "0 = a, 1 = b10, 2 = b2" and split.notes == ()


def test_a_csv_names_the_classes(tmp_path):
    saved(tmp_path / "in", drawn(6))
    table = tmp_path / "labels.csv"
    table.write_text("file_name,label\n" + "".join(f"{i:03d}.png,{7 if i % 2 else 3}\n" for i in range(6)))
    split = load(tmp_path / "in", seed=0, labels=table)
    assert all(
        label == (7 if int(name[:3]) % 2 else 3)
        for name, label in zip(split.train.names, split.train.labels, strict=True)
    )
    assert set(split.under(7).peers.tolist()) == {i for i, one in enumerate(split.train.labels) if one == 7}
    table.write_text("000.png,1\n")
    with pytest.raises(DataError, match=r"names no class of the image '001.png'"):
        load(tmp_path / "in", seed=0, labels=table)
    with pytest.raises(DataError, match="are for image files"):
        load("digits", seed=0, labels=table)


def test_a_target_of_another_class_is_refused():
    every = load("digits", seed=0, images=100)
    target = 5
    own = every.train.labels[target]
    under = every.under(own)
    under.require_peer(target)
    assert under.peers.tolist() == [i for i, one in enumerate(every.train.labels) if one == own]
    other = (own + 1) % 10
    with pytest.raises(DataError, match=f"image 5 is of class {own}, and a model .* for class {other}"):
        every.under(other).require_peer(target)
    with pytest.raises(DataError, match="no training image is of class 10; the classes are 0, 1, 2"):
        every.under(10)
    with pytest.raises(DataError, match="nothing says which images are of that class"):
        load("phantom:20", seed=0).under(0)
    assert len(every.under(None).peers) == 100


def test_masks_beside_images_are_warned_of_and_left_out_by_a_pattern(tmp_path):
    saved(tmp_path, drawn(10), stem="benign ({})")
    saved(tmp_path, drawn(10, seed=1), stem="benign ({})_mask")
    (warning,) = load(tmp_path, seed=0).notes
    assert warning.startswith("10 of 20 image files are named as another one with '_mask' after it")
    pattern = warning.split("--files '")[1].split("'")[0]
    split = load(tmp_path, seed=0, pattern=pattern)
    assert everything(split) == hashes(drawn(10)) and split.notes == ()
    assert everything(load(tmp_path, seed=0, pattern="*_mask.png")) == hashes(drawn(10, seed=1))
    with pytest.raises(DataError, match=r"none of the 20 files .* matches --files"):
        load(tmp_path, seed=0, pattern="*.jpeg")
    assert masks([f"{i:03d}.png" for i in range(50)]) == masks(["a.png", "ab.png", "c.png", "d.png"]) == ""


def test_a_folder_called_as_a_source_is_must_be_told_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved(tmp_path / "digits", drawn())
    with pytest.raises(DataError, match=r"write \./digits"):
        load("digits", seed=0)
    assert everything(load("./digits", seed=0)) == hashes(drawn())


def test_a_subfolder_that_cannot_be_read_is_refused(tmp_path, monkeypatch):
    saved(tmp_path, drawn())
    (tmp_path / "locked").mkdir()
    real = os.scandir

    def scandir(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(DataError, match=r"locked' cannot be read \(Permission denied\); what it holds might"):
        load(tmp_path, seed=0)


def test_only_the_images_that_are_drawn_are_decoded(tmp_path, monkeypatch):
    saved(tmp_path, drawn(60))
    monkeypatch.setattr(draw, "MOST_HELDOUT", 10 * 63)
    names = list[str]()
    real = files.decode

    def decode(content, name, convert=None):
        names.append(name)
        return real(content, name, convert)

    monkeypatch.setattr(files, "decode", decode)
    split = load(tmp_path, seed=0, images=7)
    assert (len(split.train), len(split.heldout)) == (7, 10)
    assert len(set(names)) <= 18 and not set(split.train.names) & set(split.heldout.names)
    assert split.notes == ("of 53 images that are not trained on 10 were drawn as held out",)


def test_held_out_images_that_were_trained_on_are_left_out(tmp_path):
    images = drawn(20)
    saved(tmp_path / "train", images[:12])
    saved(tmp_path / "val", images[8:])
    split = load(tmp_path, seed=0)
    assert [held for held, _, _ in split.overlap.pairs] == [0, 1, 2, 3]
    assert split.heldout.sha256 == stack(images[12:], "x").sha256


def test_a_resize_that_no_memory_holds_is_refused_at_once():
    with pytest.raises(DataError, match=r"1,439 images of 1 x 16384 x 16384 need 1,439\.0 GiB"):
        load("digits", seed=0, resize=16384)


@pytest.mark.parametrize("kind", ["folder", "zip", "npz", "npy", "parquet"])
def test_a_set_of_samples_is_read_whole(tmp_path, kind):
    images, path = drawn(5), tmp_path / f"x.{kind}"
    if kind in ("folder", "zip"):
        path = saved(tmp_path / "in", images)
    if kind == "zip":
        path = zipped(tmp_path / "x.zip", path)
    elif kind == "npz":
        np.savez(path, samples=images)
    elif kind == "npy":
        np.save(path, images)
    elif kind == "parquet":
        pq.write_table(pa.table({"image": [encoded(image) for image in images]}), path)
    found = read_all(path, ("samples", "images"), "samples")
    assert found.sha256 == stack(images, "x").sha256 and found.source == "samples"


def test_persons_of_files_come_from_a_column_of_a_csv(tmp_path: Path) -> None:
    """The second column, or one by its heading; names in full, by their last part, or without an ending."""
    for side, first in (("train", 0), ("val", 8)):
        for i in range(first, first + 8):
            (tmp_path / "set" / side).mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(i).integers(0, 256, (8, 8), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "set" / side / f"{i}.png")
    table = tmp_path / "whose.csv"

    def read(text: str, column: str = "", **more: Any) -> Split:
        table.write_text(text)
        return load(tmp_path / "set", seed=0, groups=f"{table}{column}", **more)

    whose = [f"p{i // 2}" for i in range(16)]
    plain = "".join(f"{i}.png,{p}\n" for i, p in enumerate(whose))
    wide = "age,patient_id,image_id\n" + "".join(f"40,{p},{i}\n" for i, p in enumerate(whose))
    for split in (read(plain), read("file,whose\n" + plain), read(wide, ":patient_id")):
        for one in (split.train, split.heldout):
            assert one.identities == tuple(whose[int(Path(name).stem)] for name in one.names or ())
    for text, column, more, said in (
        (plain.replace("8.png,p4", "8.png,p0"), "", {}, "1 patients have images both"),
        (plain.replace("3.png", "x.png"), "", {}, "names no person of the image"),
        (wide, ":person", {}, "no column 'person' among age, patient_id, image_id"),
        ("a\n", "", {}, "a file name and a person"),
        (plain, "", {"patient": "x"}, "not by both"),
    ):
        with pytest.raises(DataError, match=said):
            read(text, column, **more)
    with pytest.raises(DataError, match="no names"):
        load("digits", seed=0, groups=str(table))
    with pytest.raises(InputError, match="no_such"):
        load(tmp_path / "set", seed=0, groups=str(tmp_path / "no_such.csv"))
