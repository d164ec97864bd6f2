"""Images, manifests and splits against what the sources publish, and bad input against one sentence each."""

from __future__ import annotations

import io
import math
import os
import struct
import zipfile
import zlib
from collections import Counter
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from latentprint.data import (
    DataError,
    ImageSet,
    archive,
    copies_of,
    image_sha256,
    listing,
    load,
    near_duplicates,
    stack,
)
from latentprint.data.archive import read_archive
from latentprint.data.files import read_image
from latentprint.data.medmnist import MD5
from latentprint.data.tree import persons

ROOT = Path(os.environ.get("MEDMNIST_ROOT") or Path(__file__).parents[2] / "shared" / "medmnist")


def rng(seed=0):
    return np.random.default_rng(seed)


def stored(n=12, shape=(9, 7), seed=0):
    return rng(seed).integers(0, 256, (n, *shape)).astype(np.uint8)


def savez(path, **arrays):
    np.savez(path, **arrays)
    return path


def folder_of(path, images, suffix="png"):
    path.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(path / f"{i:03d}.{suffix}")
    return path


def refused(source, words, **options):
    with pytest.raises(DataError, match=words) as caught:
        load(source, **{"seed": 0, **options})
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    return str(caught.value)


# The rule from stored values to pixels, and the manifest


def test_pixels_follow_the_type_and_never_the_range():
    dark = np.array([[[0, 1], [2, 3]]])
    eight, sixteen = stack(dark.astype(np.uint8), "x"), stack(dark.astype(np.uint16), "x")
    for i in range(2):
        for j in range(2):
            assert eight.pixels[0, 0, i, j] == np.float32(2 * dark[0, i, j] / 255 - 1)
            assert sixteen.pixels[0, 0, i, j] == np.float32(2 * dark[0, i, j] / 65535 - 1)
    ends = stack(np.array([[[0, 255]]], np.uint8), "x").pixels
    assert ends.tolist() == [[[[-1.0, 1.0]]]]
    assert stack(np.array([[[0, 65535]]], ">u2"), "x").pixels.tolist() == [[[[-1.0, 1.0]]]]
    floats = rng().uniform(-0.2, 0.3, (3, 4, 5))
    assert np.array_equal(stack(floats, "x").pixels[:, 0], floats.astype(np.float32))
    assert (eight.bit_depth, sixteen.bit_depth, stack(floats, "x").bit_depth) == (8.0, 16.0, None)


def test_channels_stay_as_they_are():
    colour = stored(3, (5, 4, 3))
    pixels = stack(colour, "x").pixels
    assert pixels.shape == (3, 3, 5, 4) and stack(stored(3, (5, 4, 1)), "x").shape == (1, 5, 4)
    assert pixels[2, 1, 4, 0] == np.float32(2 * int(colour[2, 4, 0, 1]) / 255 - 1)


def test_the_manifest_is_a_sha256_of_type_shape_and_bytes_as_stored():
    images = stored(4, (5, 3, 3))
    done = stack(images, "x")
    wanted = [sha256(b"|u1\x005,3,3\x00" + image.tobytes()).hexdigest() for image in images]
    assert list(done.sha256) == wanted
    assert done.manifest == sha256("\n".join(wanted).encode()).hexdigest()
    small, big = images[0, ..., 0].astype("<u2"), images[0, ..., 0].astype(">u2")
    assert image_sha256(small) == image_sha256(big) == image_sha256(np.asfortranarray(small))
    assert image_sha256(small) == sha256(b"<u2\x005,3\x00" + small.tobytes()).hexdigest()
    # The same bytes in another shape or type are another image.
    flat = np.zeros((4, 4), np.uint8)
    assert (
        len({image_sha256(a) for a in (flat, flat.reshape(2, 8), flat.view(np.uint16), flat.view(np.int8))})
        == 4
    )


def test_take_keeps_images_hashes_and_names_together():
    done = stack(stored(5), "x", names=tuple("abcde"))
    taken = done.take([4, 0, 4])
    assert np.array_equal(taken.pixels, done.pixels[[4, 0, 4]]) and taken.names == ("e", "a", "e")
    assert taken.sha256 == tuple(done.sha256[i] for i in (4, 0, 4)) and taken.bit_depth == 8.0


@pytest.mark.parametrize(
    "dtype", ["int8", "int16", "int32", "int64", "uint32", "uint64", "bool", "complex64"]
)
def test_types_whose_range_is_unknown_are_refused(tmp_path, dtype):
    with pytest.raises(DataError, match=f"got {dtype}"):
        stack(np.zeros((3, 4, 4), dtype), "x")
    refused(savez(tmp_path / "x.npz", images=np.zeros((3, 4, 4), dtype)), f"{dtype}|bool")


@pytest.mark.parametrize(
    ("value", "words"), [(np.nan, "image 2 holds NaN"), (np.inf, "image 2 holds NaN or infinite")]
)
def test_nan_and_infinity_are_refused_wherever_they_come_in(tmp_path, value, words):
    images = rng().uniform(-1, 1, (6, 4, 4)).astype(np.float32)
    images[2, 3, 1] = value
    with pytest.raises(DataError, match=words):
        stack(images, "x")
    with pytest.raises(DataError, match=words):
        ImageSet(images[:, None], ("a",) * 6, "x")
    refused(savez(tmp_path / "x.npz", train_images=images, test_images=images[:1]), words)
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{i}.tiff")
    refused(tmp_path, "NaN")


@pytest.mark.parametrize("scale", [1.001, 255.0])
def test_floats_outside_the_range_are_refused_not_rescaled(tmp_path, scale):
    images = np.linspace(0, scale, 3 * 16, dtype=np.float64).reshape(3, 4, 4)
    refused(savez(tmp_path / "x.npz", images=images), r"must lie in \[-1, 1\], got values from 0 to")


def test_an_image_set_is_checked():
    pixels = np.zeros((2, 1, 4, 4), np.float32)
    for make, words in (
        (lambda: ImageSet(pixels.astype(np.float64), ("a", "b"), "x"), "float32"),
        (lambda: ImageSet(pixels[0], ("a", "b"), "x"), "shape"),
        (lambda: ImageSet(pixels, ("a",), "x"), "sha256 needs one entry for each of 2"),
        (lambda: ImageSet(pixels, ("a", "b"), "x", identities=("p",)), "identities needs one entry"),
        (lambda: stack(np.zeros((2, 4, 4, 2), np.uint8), "x"), "1 or 3 channels, got 2"),
        (lambda: stack(np.zeros((0, 4, 4), np.uint8), "x"), "shape"),
    ):
        with pytest.raises(DataError, match=words):
            make()


# Sources


def test_digits_are_all_there_once_and_scaled_by_their_known_maximum():
    from sklearn.datasets import load_digits

    original = load_digits().images
    split = load("digits", seed=1, images=100)
    assert len(split.train) == 100 and len(split.heldout) == 1697
    back = (np.concatenate([split.train.pixels, split.heldout.pixels])[:, 0] + 1) * 8
    assert Counter(x.tobytes() for x in np.rint(back)) == Counter(
        x.tobytes() for x in original.astype(np.float32)
    )
    assert split.train.bit_depth == math.log2(17)
    # A subset without any 16 is still scaled by 16.
    assert np.unique(back).tolist() == list(range(17))


def test_subsets_follow_the_seed_and_grow_by_adding():
    one, two, more = (load("digits", seed=s, images=n).train.sha256 for s, n in ((0, 50), (1, 50), (0, 120)))
    assert one == load("digits", seed=0, images=50).train.sha256
    assert set(one) != set(two) and set(one) < set(more)


def test_a_subset_is_drawn_uniformly(tmp_path):
    path = savez(tmp_path / "x.npz", train_images=stored(10), test_images=stored(1, seed=1))
    hashes = load(path, seed=0).train.sha256
    counts = Counter(h for s in range(600) for h in load(path, seed=s, images=3).train.sha256)
    # Each image is drawn with probability 0.3: 180 +- 3.9 standard deviations of 11.2 (0.999 for ten images).
    assert all(abs(counts[h] - 180) < 3.9 * math.sqrt(600 * 0.3 * 0.7) for h in hashes)


def test_train_and_heldout_share_no_image_and_lose_none(tmp_path):
    path = savez(tmp_path / "x.npz", images=stored(50))
    for options in ({}, {"heldout": 0.5}, {"images": 7}):
        split = load(path, seed=4, **options)
        assert Counter(split.train.sha256 + split.heldout.sha256) == Counter(stack(stored(50), "x").sha256)
    assert [len(load(path, seed=4, **o).train) for o in ({}, {"heldout": 0.5}, {"images": 7})] == [40, 25, 7]


def test_phantoms_are_a_function_of_seed_and_index():
    few, many, other = load("phantom:10", seed=0), load("phantom:40", seed=0), load("phantom:10", seed=1)
    assert many.train.sha256[:10] == few.train.sha256 and few.heldout.sha256 == many.heldout.sha256
    assert not set(few.train.sha256) & set(other.train.sha256)
    every = many.train.sha256 + many.heldout.sha256
    assert len(set(every)) == len(every) == 40 + 512
    assert many.train.shape == (1, 28, 28) and many.train.bit_depth == 8.0
    assert load("phantom:5:48", seed=0).train.shape == (1, 48, 48)
    assert len(load("phantom:40", seed=0, images=15).train) == 15
    assert set(load("phantom:40", seed=0, images=15).train.sha256) < set(many.train.sha256)


def test_phantoms_look_like_bodies_on_a_dark_ground():
    split = load("phantom:200", seed=0)
    pixels = split.train.pixels[:, 0]
    corners = pixels[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert corners.max() < -0.75 and pixels[:, 10:18, 10:18].mean() > -0.5  # air around, tissue in the middle
    lungs, spine = pixels[:, 12:15, 8:10].mean(), pixels[:, 19:22, 13:15].mean()
    assert lungs < spine - 0.3
    spread = pixels.reshape(200, -1).std(axis=0).mean()
    assert spread > 0.15  # they differ from one another
    assert near_duplicates(split.train.pixels, 0.05) == []


@pytest.mark.skipif(
    not (ROOT / "breastmnist.npz").is_file(), reason="MedMNIST files are not here (MEDMNIST_ROOT)"
)
@pytest.mark.parametrize(
    ("name", "train", "heldout", "shape"),
    [
        ("breastmnist", 546, 78 + 156, (1, 28, 28)),
        ("retinamnist", 1080, 120 + 400, (3, 28, 28)),
        ("pneumoniamnist", 4708, 524 + 624, (1, 28, 28)),
    ],
)
def test_medmnist_has_the_published_counts_and_its_own_split(name, train, heldout, shape):
    split = load(f"medmnist:{name}", seed=0, root=ROOT)
    assert (len(split.train), split.overlap.heldout, split.train.shape) == (train, heldout, shape)
    with np.load(ROOT / f"{name}.npz") as file:
        others = np.concatenate([file["val_images"], file["test_images"]])
        first, last = file["train_images"][0], others[split.overlap.clean[-1]]
    for pixels, image in ((split.train.pixels[0], first), (split.heldout.pixels[-1], last)):
        channels = image[None] if image.ndim == 2 else np.moveaxis(image, 2, 0)
        assert np.array_equal(np.rint((pixels + 1) * 127.5), channels)
    assert split.name == f"medmnist:{name}" and split.train.bit_depth == 8.0


def test_the_md5_table_is_that_of_the_medmnist_package():
    info = pytest.importorskip("medmnist.info")
    published = {name: entry["MD5"] for name, entry in info.INFO.items() if not name.endswith("3d")}
    assert published == MD5


def test_medmnist_root_comes_from_the_argument_then_the_environment_then_home(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDMNIST_ROOT", str(tmp_path / "env"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    refused("medmnist:breastmnist", "given/breastmnist.npz.*--root or MEDMNIST_ROOT", root=tmp_path / "given")
    refused("medmnist:breastmnist", "env/breastmnist.npz")
    monkeypatch.delenv("MEDMNIST_ROOT")
    refused("medmnist:breastmnist", "home/.medmnist/breastmnist.npz")
    assert list(tmp_path.iterdir()) == []  # nothing was made, nothing downloaded


@pytest.mark.parametrize("content", [b"", b"not a zip", None])
def test_a_medmnist_file_that_is_not_the_official_one_is_refused(tmp_path, content):
    path = tmp_path / "breastmnist.npz"
    if content is None:
        savez(path, train_images=stored(), val_images=stored(), test_images=stored())
    else:
        path.write_bytes(content)
    words = refused("medmnist:breastmnist", "not the official file", root=tmp_path)
    assert MD5["breastmnist"] in words


@pytest.mark.skipif(
    not (ROOT / "breastmnist.npz").is_file(), reason="MedMNIST files are not here (MEDMNIST_ROOT)"
)
def test_a_truncated_medmnist_file_is_refused(tmp_path):
    whole = (ROOT / "breastmnist.npz").read_bytes()
    (tmp_path / "breastmnist.npz").write_bytes(whole[:-1])
    refused("medmnist:breastmnist", "may be truncated", root=tmp_path)


@pytest.mark.parametrize(
    "name", ["../../etc/x", "../breastmnist", "/etc/passwd", "", "mnist", "organmnist2d", "a\0b"]
)
def test_other_medmnist_names_are_refused_with_the_list(tmp_path, name):
    assert "pathmnist" in refused(
        f"medmnist:{name}", "there is no MedMNIST set", root=tmp_path, download=True
    )


def test_a_download_is_made_only_when_asked_for_and_its_failure_is_a_sentence(tmp_path, monkeypatch):
    medmnist = pytest.importorskip("medmnist")
    asked = []

    def unreachable(split, root, download):
        asked.append((split, root, download))
        print("this must not reach stdout")
        raise RuntimeError("no\nnetwork")

    monkeypatch.setattr(medmnist, "BreastMNIST", unreachable)
    refused("medmnist:breastmnist", "there is no file", root=tmp_path)
    assert asked == []
    refused(
        "medmnist:breastmnist", "could not be downloaded.*no network", root=tmp_path / "new", download=True
    )
    assert asked == [("train", str(tmp_path / "new"), True)]


def test_a_download_keeps_stdout_clean(tmp_path, monkeypatch, capsys):
    medmnist = pytest.importorskip("medmnist")
    monkeypatch.setattr(medmnist, "BreastMNIST", lambda **_: print("noise"))
    refused("medmnist:breastmnist", "no file came", root=tmp_path, download=True)
    assert capsys.readouterr().out == ""


# Folders


@pytest.mark.parametrize("suffix", ["png", "tif", "PNG"])
def test_a_folder_gives_back_its_images_with_their_names(tmp_path, suffix):
    images = stored(10)
    folder_of(tmp_path / "in" / "deep", images, suffix)
    (tmp_path / "in" / "notes.txt").write_text("x")
    (tmp_path / "in" / "._000.png").write_text("hidden")
    split = load(tmp_path / "in", seed=0)
    assert (len(split.train), len(split.heldout)) == (8, 2)
    for part in (split.train, split.heldout):
        for pixels, name in zip(part.pixels, part.names, strict=True):
            assert name.startswith("deep/") and name.endswith(suffix)
            assert np.array_equal(np.rint((pixels[0] + 1) * 127.5), images[int(name[5:8])])
    assert Counter(split.train.sha256 + split.heldout.sha256) == Counter(stack(images, "x").sha256)
    assert str(tmp_path) not in split.name + split.train.source


def test_train_and_heldout_folders_are_the_split(tmp_path):
    folder_of(tmp_path / "train", stored(9, seed=1))
    folder_of(tmp_path / "heldout", stored(4, seed=2))
    split = load(tmp_path, seed=0)
    assert split.train.sha256 == stack(stored(9, seed=1), "x").sha256
    assert split.heldout.sha256 == stack(stored(4, seed=2), "x").sha256
    few = load(tmp_path, seed=0, images=5)
    assert len(few.train) == 5 and few.heldout.sha256 == split.heldout.sha256
    folder_of(tmp_path / "other", stored(1))
    refused(tmp_path, "outside its train/ and heldout/")
    for path in (*(tmp_path / "other").iterdir(), *(tmp_path / "heldout").iterdir()):
        path.unlink()
    refused(tmp_path, "no PNG, JPEG, TIFF, BMP or WebP images in heldout/, val/ or test/")


def test_colour_jpeg_and_16_bit_png_and_float_tiff_are_read_as_stored(tmp_path):
    flat = stored(4, (16, 16, 3))
    assert load(folder_of(tmp_path / "jpeg", flat, "jpg"), seed=0).train.shape == (3, 16, 16)
    deep = rng().integers(0, 65536, (5, 6, 6)).astype(np.uint16)
    split = load(folder_of(tmp_path / "deep", deep), seed=0)
    assert split.train.bit_depth == 16.0
    i = int(split.train.names[0][:3])
    assert np.array_equal(np.rint((split.train.pixels[0, 0].astype(np.float64) + 1) * 32767.5), deep[i])
    real = rng().uniform(-1, 1, (5, 6, 6)).astype(np.float32)
    split = load(folder_of(tmp_path / "real", real, "tiff"), seed=0)
    assert np.array_equal(split.train.pixels[0, 0], real[int(split.train.names[0][:3])])


def bad_folder(tmp_path, make):
    folder_of(tmp_path, stored(5))
    make(tmp_path / "003.png")
    return tmp_path


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: p.write_bytes(b""), "'003.png' cannot be read"),
        (lambda p: p.write_bytes(p.read_bytes()[:-30]), "'003.png' cannot be read"),
        (
            lambda p: p.write_bytes(p.read_bytes()[:60] + b"\0\0\0" + p.read_bytes()[63:]),
            "'003.png' cannot be read",
        ),
        (lambda p: p.write_text("<svg>"), "'003.png' cannot be read"),
        (
            lambda p: Image.new("L", (9, 9)).save(p),
            "'003.png' is 9 x 9 grey uint8 and '000.png' is 7 x 9 grey uint8",
        ),
        (lambda p: Image.new("RGB", (7, 9)).save(p), "'003.png' is 7 x 9 RGB uint8 and"),
        (lambda p: Image.new("I;16", (7, 9)).save(p), "'003.png' is 7 x 9 grey uint16 and"),
        (lambda p: Image.new("RGBA", (7, 9)).save(p), "'003.png' has the mode RGBA"),
        (lambda p: Image.new("P", (7, 9)).save(p), "'003.png' has the mode P"),
        (lambda p: Image.new("1", (7, 9)).save(p), "'003.png' has the mode 1"),
        (lambda p: Image.new("LA", (7, 9)).save(p), "'003.png' has the mode LA"),
        (lambda p: Image.new("L", (7, 9)).save(p, "GIF"), "'003.png' cannot be read"),
        (
            lambda p: Image.new("L", (7, 9)).save(
                p, "TIFF", save_all=True, append_images=[Image.new("L", (7, 9))]
            ),
            "'003.png' holds several images",
        ),
        (
            lambda p: (p.unlink(), p.mkdir(), Image.new("L", (9, 9)).save(p / "a.png")),
            "'003.png/a.png' is 9 x 9",
        ),
        (lambda p: (p.unlink(), p.symlink_to("nowhere.png")), "'003.png' is not a file"),
        (lambda p: (p.unlink(), os.mkfifo(p)), "'003.png' is not a file"),
        (lambda p: (p.unlink(), p.symlink_to("/dev/zero")), "'003.png' is not a file"),
    ],
)
def test_a_bad_image_in_a_folder_is_named(tmp_path, make, words):
    refused(bad_folder(tmp_path, make), words)


def png(width, height, depth=8, colour=0, data=b""):
    """The bytes of a PNG that claims to be width x height."""

    def chunk(kind, content):
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("width", "height"), [(100_000, 1), (1, 100_000), (10_000, 10_000), (2**31 - 1, 2**31 - 1)]
)
def test_absurd_images_are_refused_before_they_are_decoded(tmp_path, width, height):
    refused(bad_folder(tmp_path, lambda p: p.write_bytes(png(width, height))), "'003.png' (is|has more)")


def test_sixteen_bit_colours_are_refused_since_half_would_be_lost(tmp_path):
    row = b"\0" + bytes(range(7 * 6))
    (tmp_path / "a.png").write_bytes(png(7, 9, depth=16, colour=2, data=row * 9))
    refused(tmp_path, "'a.png' has 16-bit colours")


def test_an_empty_folder_and_one_of_other_files_are_refused(tmp_path):
    refused(tmp_path, "holds no PNG, JPEG, TIFF, BMP or WebP")
    (tmp_path / "a.txt").write_bytes(b"DICM")
    refused(tmp_path, "holds no PNG, JPEG, TIFF, BMP or WebP")


def test_more_than_the_memory_holds_is_refused_before_it_is_read(tmp_path, monkeypatch):
    folder_of(tmp_path, stored(5))
    (tmp_path / "004.png").write_bytes(b"never read")
    monkeypatch.setattr(listing, "free_memory", lambda: 4 * 5 * 63)
    refused(tmp_path, "5 images of 1 x 9 x 7 need 0.0 GiB of memory, .* --images N reads only those")


def test_names_with_line_breaks_stay_one_sentence(tmp_path):
    (tmp_path / "a\nb.png").write_bytes(b"x")
    refused(tmp_path, r"'a\\nb.png' cannot be read")


# .npz files


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["uint8", "<u2", ">u2", "<f4", ">f8", "f2"])
def test_an_npz_gives_back_its_images_in_any_layout(tmp_path, order, dtype):
    kind = np.dtype(dtype)
    images = (rng().uniform(0, 1, (8, 5, 4)) * (1 if kind.kind == "f" else np.iinfo(kind).max)).astype(kind)
    path = savez(tmp_path / "x.npz", train_images=np.asarray(images[2:], order=order), test_images=images[:2])
    split = load(path, seed=0)
    top = 1.0 if kind.kind == "f" else float(np.iinfo(kind).max)
    wanted = images.astype(np.float64) if kind.kind == "f" else 2 * images.astype(np.float64) / top - 1
    np.testing.assert_allclose(split.train.pixels[:, 0], wanted[2:], atol=1e-7)
    assert split.heldout.sha256 + split.train.sha256 == stack(images, "x").sha256


def test_channels_are_found_on_the_last_or_the_second_axis(tmp_path):
    last = stored(6, (8, 9, 3))
    first = np.moveaxis(last, 3, 1)
    a = load(savez(tmp_path / "a.npz", train_images=last[2:], test_images=last[:2]), seed=0)
    b = load(savez(tmp_path / "b.npz", train_images=first[2:], test_images=first[:2]), seed=0)
    assert np.array_equal(a.train.pixels, b.train.pixels) and a.train.shape == (3, 8, 9)
    assert a.train.manifest == b.train.manifest
    refused(savez(tmp_path / "c.npz", images=stored(6, (3, 9, 3))), "both the second and the last axis")
    refused(savez(tmp_path / "d.npz", images=stored(6, (8, 9, 4))), "neither the second nor the last axis")


def test_val_and_test_images_are_both_held_out_and_other_arrays_are_left_alone(tmp_path):
    labels = np.array([{"a": 1}], dtype=object)
    path = savez(
        tmp_path / "x.npz",
        train_images=stored(4),
        val_images=stored(2, seed=1),
        test_images=stored(3, seed=2),
        l=labels,
    )
    split = load(path, seed=0)
    wanted = stack(np.concatenate([stored(2, seed=1), stored(3, seed=2)]), "x").sha256
    assert split.heldout.sha256 == wanted and len(split.train) == 4


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        (
            {"x": stored()},
            "must hold either `images` or `train_images` with `test_images`, got none of these",
        ),
        ({"train_images": stored()}, "neither `test_images` nor `val_images`"),
        ({"images": stored(), "train_images": stored()}, "must hold either"),
        ({"images": stored(), "test_images": stored()}, "must hold either"),
        ({"test_images": stored()}, "must hold either"),
        ({"train_images": stored(), "test_images": stored(3, (8, 8))}, "must be alike"),
        ({"train_images": stored(), "test_images": stored().astype(np.uint16)}, "must be alike"),
        ({"images": stored(1)}, "1 images are too few"),
        ({"images": stored(2)}, "2 images are too few"),
        ({"train_images": stored(1), "test_images": stored()}, "2 images or more, but there are 1"),
        ({"images": np.zeros((0, 4, 4), np.uint8)}, "N must be 1 or more"),
        ({"images": np.zeros((4, 0, 4), np.uint8)}, "sides from 1"),
        ({"images": np.zeros((2, 1, 100_000), np.uint8)}, "sides from 1 to 16384"),
        ({"images": np.zeros((4, 4), np.uint8)}, "images must be"),
        ({"images": np.zeros((), np.uint8)}, "images must be"),
        ({"images": np.zeros((2, 2, 2, 3, 1, 1), np.uint8)}, "images must be"),
        ({"images": np.array([{"a": 1}], dtype=object)}, "Python objects, which are never loaded"),
        ({"images": np.zeros((3, 4, 4), [("a", object)])}, "Python objects"),
        ({"images": np.zeros((3, 4, 4), [("a", "u1")])}, "holds .* values"),
        ({"images": np.zeros((3, 4, 4), "U5")}, "values; images must be"),
        ({"images": np.zeros((3, 4, 4), np.longdouble)}, "values; images must be"),
    ],
)
def test_an_npz_of_something_else_is_refused(tmp_path, arrays, words):
    refused(savez(tmp_path / "x.npz", **arrays), words)


def write_member(path, header, body, declared=None, **options):
    """An .npz with one member ``images``: a header as given (version 1.0), and a body."""
    text = header.encode() if isinstance(header, str) else header
    member = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + body
    with zipfile.ZipFile(path, "w", **options) as file:
        file.writestr("images.npy", member)
    if declared is not None:  # the directory at the end of a zip states the size: rewrite it
        content = path.read_bytes()
        real, false = struct.pack("<I", len(member)), struct.pack("<I", declared)
        path.write_bytes(content.replace(real, false))
    return path


def head(shape, descr="'|u1'"):
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n"


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (head("(1000000, 10000, 10000)"), "states 100000000000000 bytes"),
        (head("(9999999999999999999999999999, 28, 28)"), "states 78"),
        (head("(2, 3, 99)"), "states 594 bytes .* but holds 12"),
        (head("(-1, 3, 4)"), "N must be 1 or more"),
        (head("(1, -3, -4)"), "sides from 1"),
        (head("(1, 3, 4.0)"), "cannot be read as an .npz"),
        (head("(True, 3, 4)"), "cannot be read as an .npz|may be|states|too few"),
        (head("(" * 3000 + ")" * 3000), "cannot be read as an .npz"),
        (head("(1,3,4)", "'O'"), "Python objects"),
        (head("(1,3,4)", "'|V0'"), "values; images must be"),
        (head("(1,3,4)", "[('a', '<f8', (999999999, 99))]"), "values; images must be|cannot be read"),
        ("__import__('os').system('touch /tmp/owned')", "cannot be read as an .npz"),
        ("", "cannot be read as an .npz"),
        (b"\xff\xfe\x00", "cannot be read as an .npz"),
        (head("(1, 3, 4)") + " " * 20000, "cannot be read as an .npz"),
    ],
)
def test_absurd_headers_are_refused_before_anything_is_set_aside(tmp_path, header, words):
    refused(write_member(tmp_path / "x.npz", header, bytes(12)), words)


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path):
    size = 2**27
    path = write_member(
        tmp_path / "x.npz", head(f"({size // 1024}, 32, 32)"), bytes(size), compression=zipfile.ZIP_DEFLATED
    )
    assert path.stat().st_size < 2**18
    refused(path, "would grow from")


def test_a_member_larger_than_the_limit_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "MAX_BYTES", 1000)
    refused(savez(tmp_path / "x.npz", images=stored(20)), "at most 1000 are read")


@pytest.mark.parametrize("declared", [10, 100, 2**20, 2**31])
def test_a_zip_that_lies_about_its_sizes_is_refused(tmp_path, declared):
    path = write_member(tmp_path / "x.npz", head("(2, 8, 8)"), bytes(128), declared)
    refused(path, "damaged|truncated|grow|states|at most")


def test_an_npz_that_is_no_file_or_no_zip_is_refused(tmp_path):
    refused(tmp_path / "none.npz", "neither a file or folder that exists")
    (tmp_path / "empty.npz").write_bytes(b"")
    refused(tmp_path / "empty.npz", "cannot be read as an .npz file; it may be truncated")
    np.save(tmp_path / "x.npy", stored())
    (tmp_path / "x.npy").rename(tmp_path / "x.npz")
    refused(tmp_path / "x.npz", "cannot be read as an .npz file")
    (tmp_path / "p.npz").write_bytes(b"\x80\x04cos\nsystem\n(S'touch /tmp/owned'\ntR.")
    refused(tmp_path / "p.npz", "cannot be read as an .npz file")
    os.mkfifo(tmp_path / "f.npz")
    refused(tmp_path / "f.npz", "there is no file")


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_npz_is_refused(tmp_path, keep):
    path = savez(tmp_path / "x.npz", images=stored(40))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    refused(path, "truncated")


# Arguments


@pytest.mark.parametrize("n", [-1, 0, 1])
@pytest.mark.parametrize("source", ["digits", "phantom:50", "folder", "file"])
def test_fewer_than_two_images_are_refused(tmp_path, source, n):
    source = {"folder": tmp_path, "file": tmp_path / "x.npz"}.get(source, source)
    refused(source, f"2 images or more, got {n}", images=n)


def test_more_images_than_there_are_are_refused(tmp_path):
    refused("digits", "1798 images were asked for, but there are 1797", images=1798)
    refused("digits", "leaves none to hold out", images=1797)
    refused("phantom:50", "51 images were asked for, but there are 50; ask for fewer", images=51)
    refused(savez(tmp_path / "x.npz", images=stored(5)), "6 images were asked for", images=6)
    for source, words in (
        ("phantom:0", "there are 0"),
        ("phantom:1", "there are 1"),
        ("phantom:999999999", "can be drawn"),
    ):
        refused(source, words)
    refused("phantom:10:4", "sides from 8")
    refused("phantom:10:99999", "can be drawn|sides from 8")


@pytest.mark.parametrize(
    "source",
    [
        "",
        "mnist",
        "Digits",
        "phantom",
        "phantom:",
        "phantom:ten",
        "phantom:-5",
        "phantom:1e9",
        "no/such/folder",
        "a\0b",
        "x" * 5000,
        "~",
        "http://x/y.png",
    ],
)
def test_an_unknown_source_is_refused_with_what_is_understood(source):
    words = refused(source, "supported are")
    for known in ("digits", "phantom:N", "medmnist:NAME", "folder", ".npz"):
        assert known in words


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 1.5, math.nan])
def test_a_share_held_out_lies_between_none_and_all(share):
    refused("digits", "held-out share must lie between 0 and 1", heldout=share)
    refused("digits", "a seed must be 0 or more, got -1", seed=-1)


# Copies


def brute(pixels, tolerance):
    """Groups by comparing every pair, joined until nothing changes."""
    n = len(pixels)
    near = [[math.sqrt(np.mean((a.astype(float) - b) ** 2)) <= tolerance for b in pixels] for a in pixels]
    label = list(range(n))
    for _ in range(n):
        for i in range(n):
            label[i] = min(label[j] for j in range(n) if near[i][j])
    groups = {}
    for i, g in enumerate(label):
        groups.setdefault(g, []).append(i)
    return sorted(tuple(g) for g in groups.values() if len(g) > 1)


@given(
    st.integers(0, 10**6),
    st.sampled_from([0.0, 0.01, 0.05, 0.3]),
    st.sampled_from([None, 1, 3]),
    st.booleans(),
    st.sampled_from([(1, 4, 4), (1, 2, 24, 25)]),
)
@settings(max_examples=60, deadline=None)
def test_near_duplicates_are_those_of_the_comparison_of_all_pairs(seed, tolerance, tile, mixed, shape):
    """Small images, and volumes large enough to be compared by sums of their values first."""
    draw = rng(seed)
    base = draw.uniform(-0.8, 0.8, (6, *shape))
    picks, each = draw.integers(0, 6, 14), (14, *[1] * len(shape))
    shift = draw.choice([0.0, 0.005, 0.02, 0.2], each) * draw.choice(
        [-1.0, 1.0], (14, *shape) if mixed else each
    )
    pixels = (base[picks] + shift).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        if tile:
            patch.setattr("latentprint.data.near._TILE", tile)
            patch.setattr("latentprint.data.near._VALUES", tile)
        assert sorted(near_duplicates(pixels, tolerance)) == brute(pixels, tolerance)


def test_exact_copies_are_found_among_many_and_near_ones_join_in_chains():
    pixels = rng().uniform(-1, 1, (300, 1, 8, 8)).astype(np.float32)
    pixels[250] = pixels[7]
    pixels[9] = pixels[7]
    for i in range(1, 5):
        pixels[100 + i] = np.clip(pixels[100], -0.9, 0.9) + 0.015 * i
    pixels[100] = np.clip(pixels[100], -0.9, 0.9)
    assert near_duplicates(pixels, 0.0) == [(7, 9, 250)]
    assert sorted(near_duplicates(pixels, 0.016)) == [(7, 9, 250), (100, 101, 102, 103, 104)]
    assert sorted(near_duplicates(pixels, 0.014)) == [(7, 9, 250)]
    assert copies_of(pixels[7], pixels, 0.0).tolist() == [7, 9, 250]
    assert copies_of(pixels[102], pixels, 0.016).tolist() == [101, 102, 103]
    assert near_duplicates(pixels[:0]) == []


def test_thousands_of_copies_need_little_memory():
    import tracemalloc

    pixels = np.zeros((6000, 1, 8, 8), np.float32)
    pixels += rng().uniform(0, 1e-3, (6000, 1, 1, 1)).astype(np.float32)
    tracemalloc.start()
    assert near_duplicates(pixels, 0.02) == [tuple(range(6000))]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 250 * 2**20  # all pairs would be 6000^2 / 2 of 16 bytes, 288 MiB, beside their distances


def test_a_tolerance_is_a_number_of_zero_or_more():
    pixels = np.zeros((2, 1, 4, 4), np.float32)
    for tolerance in (-0.1, math.nan):
        with pytest.raises(DataError, match="tolerance"):
            near_duplicates(pixels, tolerance)
        with pytest.raises(DataError, match="tolerance"):
            copies_of(pixels[0], pixels, tolerance)
    with pytest.raises(DataError, match="cannot be compared"):
        copies_of(pixels[0, :, :2], pixels)


# Damage of any kind


def damaged(whole, edits, cut):
    content = bytearray(whole)
    for at, value in edits:
        content[at % len(content)] = value
    return bytes(content[: len(content) - cut % len(content)])


def or_a_sentence(read):
    """What a reader gives, or None where it refuses in one sentence; any other error comes through."""
    try:
        return read()
    except DataError as refusal:
        sentence = str(refusal)
    assert sentence and "\n" not in sentence
    return None


EDITS = st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), max_size=6)
CUT = st.one_of(st.just(0), st.integers(0, 2**16))
FUZZ = settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def npz_bytes(compressed):
    out = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(
        out, images=stored(3, (4, 4)), train_images=stored(3, (4, 4))
    )
    return out.getvalue()


NPZ = [npz_bytes(False), npz_bytes(True)]


@given(st.sampled_from(NPZ), EDITS, CUT)
@FUZZ
def test_a_damaged_npz_never_gives_another_error(tmp_path, whole, edits, cut):
    path = tmp_path / "x.npz"
    path.write_bytes(damaged(whole, edits, cut))
    arrays = or_a_sentence(lambda: read_archive(path, ("images", "train_images")))
    assert arrays is None or all(values.ndim in (3, 4) for values in arrays.values())


@given(st.text(max_size=60) | st.binary(max_size=60))
@FUZZ
def test_any_header_never_gives_another_error(tmp_path, header):
    text = header.encode("utf-8", "replace") if isinstance(header, str) else header
    or_a_sentence(lambda: read_archive(write_member(tmp_path / "x.npz", text, bytes(12)), ("images",)))


def image_bytes(kind, mode):
    out = io.BytesIO()
    noise = Image.fromarray(stored(1, (16, 16, 3))[0])
    noise.convert(mode).save(out, kind)
    return out.getvalue()


IMAGES = [image_bytes(kind, mode) for kind in ("PNG", "JPEG", "TIFF") for mode in ("L", "RGB")]


@given(st.sampled_from(IMAGES), EDITS, CUT)
@FUZZ
def test_a_damaged_image_never_gives_another_error(tmp_path, whole, edits, cut):
    path = tmp_path / "x.png"
    path.write_bytes(damaged(whole, edits, cut))
    image = or_a_sentence(lambda: read_image(path, "x.png"))
    assert image is None or image.ndim in (2, 3)


@given(
    st.binary(max_size=200),
    st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"PK\x03\x04"]),
)
@FUZZ
def test_any_bytes_never_give_another_error(tmp_path, content, start):
    path = tmp_path / "x"
    path.write_bytes(start + content)
    or_a_sentence(lambda: read_image(path, "x"))
    or_a_sentence(lambda: read_archive(path, ("images",)))


def test_a_file_with_two_values_in_a_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "who.csv").write_text("file,person\na.png,p0\nb.png,p1\na.png,p0\n")
    assert persons(["a.png", "b.png"], str(tmp_path / "who.csv")) == ("p0", "p1")
    (tmp_path / "who.csv").write_text("file,person\na.png,p0\nb.png,p1\na.png,p9\n")
    with pytest.raises(DataError, match="two person values, 'p0' and 'p9'"):
        persons(["a.png", "b.png"], str(tmp_path / "who.csv"))
