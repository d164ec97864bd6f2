"""From the name of a source to images to train on and images held out.

    digits                 1,797 handwritten digits, 8 x 8, stored 0 .. 16    (UCI, in scikit-learn)
    phantom:N[:SIDE]       N drawn images of SIDE x SIDE (28)                 (`latentprint.data.phantom`)
    phantom3d:N[:SIDE]     N drawn volumes of SIDE^3 (16)
    medmnist:NAME          train trains, val and test are held out            (`latentprint.data.medmnist`)
    a folder of NIfTI      volumes                                           (`latentprint.data.nifti`)
    a folder or .zip       image files (`data.files`, `data.tree`); of a folder also DICOM (`data.dicom`)
    an .npz                `images`, or `train_images` with `val_images` and/or `test_images` held out
    an .npy                one array of images
    .parquet, a dataset    tables of Hugging Face, `save_to_disk` too         (`latentprint.data.tables`)

``images=N`` draws N of the images available for training, without replacement, by the seed; a larger N keeps
the images of a smaller one. If the source has no split of its own, all others are held out. Without N, the
share ``heldout`` is held out, in whole persons if persons are known. Only drawn images are read.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from latentprint import keys
from latentprint.contracts import quoted
from latentprint.data import dicom, files, nifti, series, tables, tree
from latentprint.data.archive import Stored, channel_axis, open_arrays, require_images
from latentprint.data.draw import Source, drawn
from latentprint.data.images import MAX_BYTES, MAX_SIDE, DataError, ImageSet, ValueRange
from latentprint.data.listing import Listing, Preparation, Rows, of_array
from latentprint.data.medmnist import open_medmnist, require_name
from latentprint.data.phantom import HELDOUT, SIDE, SIDE3D, phantom, phantom3d
from latentprint.data.split import Split

SOURCES = (
    "digits, phantom:N, phantom3d:N, medmnist:NAME; a folder or .zip of images (PNG, JPEG, TIFF, BMP, WebP);"
    " a folder of DICOM or NIfTI; an .npz with `images` or with `train_images` and `test_images`; an .npy, a"
    " .parquet, or a dataset that was saved to disk"
)

_PHANTOMS = re.compile(r"(phantom(?:3d)?):([0-9]{1,9})(?::([0-9]{1,5}))?")

_TYPES: dict[str, ValueRange] = {"uint8": (0, 255), "uint16": (0, 65535)}


def load(
    source: str | os.PathLike[str],
    *,
    seed: int,
    root: str | os.PathLike[str] | None = None,
    images: int | None = None,
    download: bool = False,
    heldout: float = 0.2,
    resize: int | None = None,
    convert: Literal["rgb", "grey"] | None = None,
    stored_range: ValueRange | None = None,
    pattern: str | None = None,
    labels: str | os.PathLike[str] | None = None,
    window: dicom.WindowChoice = "file",
    orientation: nifti.Orientation = "ras",
    patient: str | None = None,
    groups: str | None = None,
    volumes: bool = False,
) -> Split:
    """The images of a source, split into those to train on and those held out.

    Args:
        source: one of the module's table.
        seed: draws the subset and the split, and the phantoms.
        root: the folder of the MedMNIST files; default MEDMNIST_ROOT, otherwise ~/.medmnist.
        images: how many to train on; None: all that are available.
        download: whether a missing MedMNIST file may be fetched from its publisher.
        heldout: the share held out if neither the source nor ``images`` decides, in (0, 1).
        resize: resizes every image to a square of that side (``data.resize``); None leaves them as stored.
        convert: makes every image colour or grey.
        stored_range: the stored values that become -1 and 1, if they are not the type's limits.
        pattern: selects files of a folder or zip by name (``data.tree``); with "!" the others.
        labels: a CSV of file names and classes, if folders do not name the classes.
        window: how DICOM and NIfTI values are mapped.
        orientation: how the axes of NIfTI volumes are turned.
        patient: a regular expression that finds the person in a file's name, by its group or its whole match.
        groups: a CSV of file names and persons, "FILE" or "FILE:COLUMN".
        volumes: DICOM files are slices of series, or have frames, and form volumes (``data.series``).

    Raises:
        DataError: the source is unknown, missing, damaged or too large; its images differ in size, mode or
            type, or are not numbers in the range of their type; ``images`` is below 2 or more than there are;
            nothing is held out.
    """
    text = os.fspath(source)
    if seed < 0:
        raise DataError(f"a seed must be 0 or more, got {seed}")
    if images is not None and images < 2:
        raise DataError(f"a model must be trained on 2 images or more, got {images}")
    if not 0.0 < heldout < 1.0:
        raise DataError(f"the held-out share must lie between 0 and 1, got {heldout}")
    if patient is not None and groups is not None:
        raise DataError(
            "persons are named by a pattern (--group-pattern) or by a CSV (--groups), not by both"
        )
    require_source(text)
    how = Preparation(resize, convert, stored_range)
    table = None if labels is None else Path(labels)
    if text == "digits":
        found = _digits(how)
    elif match := _PHANTOMS.fullmatch(text):
        found = _phantom(match[1], int(match[2]), int(match[3] or 0), seed, how)
    elif text.startswith("medmnist:"):
        place = None if root is None else Path(root)
        found = _medmnist(text.removeprefix("medmnist:"), place, download, how)
    else:
        found = _path(Path(text), how, pattern, table, window, orientation, volumes)
    if (pattern is not None or table is not None) and found.train.names is None:
        raise DataError(
            "--files and --labels are for image files in a folder or zip, and these images have no names"
        )
    for asked, of_persons in ((patient, Listing.of_persons), (groups, Listing.in_groups)):
        if asked is not None:
            held = None if found.heldout is None else of_persons(found.heldout, asked)
            found = replace(found, train=of_persons(found.train, asked), heldout=held)
    return drawn(replace(found, side=resize), images, heldout, seed)


def require_source(text: str) -> None:
    """Check that ``text`` names a source or something on disk.

    Raises:
        DataError: it names neither, or both.
    """
    if text == "digits" and os.path.exists(text):
        raise DataError(
            "'digits' is the set that comes with latentprint, and something here has the same name: write"
            " ./digits for that, or give the command in another folder for the set"
        )
    if text.startswith("medmnist:"):
        require_name(text.removeprefix("medmnist:"))
        return
    named = text == "digits" or _PHANTOMS.fullmatch(text) is not None
    if not text:
        raise DataError(f"no source was named; supported are {SOURCES}")
    if not named and not os.path.exists(text):
        raise DataError(
            f"{quoted(text, 60)} is neither a file or folder that exists nor a source; supported are "
            f"{SOURCES}"
        )


def _path(
    path: Path,
    how: Preparation,
    pattern: str | None,
    table: Path | None,
    window: dicom.WindowChoice,
    orientation: nifti.Orientation = "ras",
    volumes: bool = False,
) -> Source:
    suffix = path.suffix.lower()
    if os.path.isdir(path):
        if tables.is_saved_dataset(path):
            return _tables(tables.saved_sides(path), f"the dataset {quoted(path)}", "a saved dataset", how)
        within = tree.folder_tree(path)
        scans = dicom.dicom_names(within)
        if scans.names:
            return _dicom(within, scans.matching(pattern), window, how, volumes)
        if volumes:
            raise DataError(f"--volumes is for DICOM files, and {within.where} holds none")
        found = within.with_suffix(nifti.SUFFIXES)
        if found.names:
            return _nifti(within, found.matching(pattern), table, window, how, orientation)
        if not within.with_suffix(files.SUFFIXES).names and (
            parquet := within.with_suffix((".parquet",)).names
        ):
            sides = tables.parquet_sides([path / name for name in parquet])
            return _tables(sides, f"the folder {quoted(path)}", "Parquet files", how)
        nifti.require_known(within)
        return _files(within, "a folder of images", how, pattern, table)
    if suffix in (".npz", ".npy"):
        return _arrays(path, how)
    if suffix == ".zip" and os.path.isfile(path):
        return _files(tree.zip_tree(path), "a zip of images", how, pattern, table)
    if suffix == ".parquet" and os.path.isfile(path):
        return _tables({"": (path,)}, quoted(path), "a Parquet file", how)
    require_source(os.fspath(path))
    if path.name.lower().endswith((*nifti.SUFFIXES, *nifti.OTHERS)):
        raise DataError(f"{quoted(path)} is one volume; name the folder of the volumes, as NIfTI or DICOM")
    raise DataError(f"{quoted(path)} is a file of a kind that is not read; supported are {SOURCES}")


def read_all(
    path: Path,
    allowed: Sequence[str],
    source: str,
    how: Preparation | None = None,
    window: dicom.WindowChoice = "file",
    orientation: nifti.Orientation = "ras",
) -> ImageSet:
    """Every image of a folder, zip, .npz (one of the ``allowed`` arrays), .npy, Parquet file or dataset.

    ``how``, ``window`` and ``orientation`` are for folders of NIfTI, whose values come from a scanner.
    """
    if path.suffix.lower() in (".npz", ".npy") and not path.is_dir():
        arrays = open_arrays(path, allowed)
        if len(arrays) != 1:
            raise DataError(
                f"{quoted(path.name)} must hold its images under one of {', '.join(allowed)}, got "
                f"{sorted(arrays)}"
            )
        key = next(iter(arrays))
        require_images(arrays[key], f"{key!r} in {quoted(path.name)}")
        listing = _stored({"images": arrays[key]}, ("",), source, Preparation(), quoted(path.name))
    else:
        scans = os.path.isdir(path) and tree.folder_tree(path).with_suffix(nifti.SUFFIXES).names
        prepared = how if how is not None and scans else Preparation()
        found = _path(path, prepared, None, None, window if scans else "file", orientation)
        if found.heldout is not None:
            raise DataError(f"{quoted(path.name)} has several sides; name the one whose images are meant")
        listing = found.train
    return replace(listing.images(np.arange(listing.count)), source=source)


def read_stored(path: Path) -> NDArray[Any]:
    """One image or volume as stored: an image file, NIfTI, or the only array of an .npy."""
    if path.suffix.lower() == ".npy":
        stored = open_arrays(path, ())["images"]
        if math.prod(stored.shape) * stored.dtype.itemsize > tree.MAX_FILE:
            raise DataError(f"{quoted(path)} holds {stored.shape} values, more than one image or volume")
        return stored.read()
    if path.name.lower().endswith(nifti.SUFFIXES):  # a mask: every value except 0
        stored = nifti.voxels(path, path.name, nifti.read_header(path, path.name), "closest")
        return (stored != 0).astype(np.uint8) * 255
    return files.read_image(path, path.name)


def _digits(how: Preparation) -> Source:
    from sklearn.datasets import load_digits

    # Stored as floats, but by definition counts of set pixels in 4 x 4 blocks: whole numbers from 0 to 16.
    bunch: Any = load_digits()
    mapped = how.stored_range or (0, 16)
    how = Preparation(how.resize, how.convert, mapped)
    labels = tuple(int(one) for one in bunch.target)
    return Source(of_array(np.asarray(bunch.images, dtype=np.uint8), "digits", how, labels), mapped=mapped)


def _phantom(kind: str, count: int, side: int, seed: int, how: Preparation) -> Source:
    paint, usual, axes = (phantom, SIDE, 2) if kind == "phantom" else (phantom3d, SIDE3D, 3)
    side = side or usual
    name = f"{kind}:{count}" if side == usual else f"{kind}:{count}:{side}"
    if not 8 <= side <= MAX_SIDE or (count + HELDOUT) * side**axes > MAX_BYTES:
        raise DataError(
            f"{name}: sides from 8 to {MAX_SIDE} and up to {MAX_BYTES} pixels in all can be drawn"
        )

    def painted(purpose: str, most: int) -> Listing:
        def read(rows: Rows) -> Iterator[ImageSet]:
            for row in rows.tolist():
                image = paint(side, keys.generator(seed, f"{kind} {purpose}", row))
                yield how.images(image[None], name)

        return Listing(name, most, read)

    return Source(painted("train", count), painted("heldout", HELDOUT), how.stored_range or (0, 255))


def _medmnist(name: str, root: Path | None, download: bool, how: Preparation) -> Source:
    arrays = open_medmnist(name, root, download=download)
    source = f"medmnist:{name}"
    train, held = _stored(arrays, ("train",), source, how), _stored(arrays, ("val", "test"), source, how)
    return Source(train, held, how.stored_range or (0, 255))


def _arrays(path: Path, how: Preparation) -> Source:
    where, source = quoted(path), f"an {path.suffix.lower()} file"
    keys_ = [f"{side}{kind}" for side in ("", "train_", "val_", "test_") for kind in ("images", "labels")]
    arrays = open_arrays(path, keys_)
    others = [side for side in ("val", "test") if f"{side}_images" in arrays]
    if ("images" in arrays) == ("train_images" in arrays) or ("images" in arrays and others):
        named = " and ".join(f"`{key}`" for key in arrays if key.endswith("images")) or "none of these"
        raise DataError(
            f"{where} must hold either `images` or `train_images` with `test_images`, got {named}"
        )
    if "train_images" in arrays and not others:
        raise DataError(
            f"{where} holds `train_images` but neither `test_images` nor `val_images` to hold out"
        )
    for key in (key for key in arrays if key.endswith("images")):
        require_images(arrays[key], f"{key!r} in {where}")
    first = arrays["images" if "images" in arrays else "train_images"]
    mapped = how.stored_range or _TYPES.get(first.dtype.newbyteorder("=").name, (-1.0, 1.0))
    if "images" in arrays:
        whole = _stored(arrays, ("",), source, how, where)
        return Source(whole, None, mapped, how.stored_range is not None)
    train = _stored(arrays, ("train",), source, how, where)
    for side in others:
        _require_alike(first, arrays[f"{side}_images"], where)
    return Source(train, _stored(arrays, others, source, how, where), mapped, how.stored_range is not None)


def _stored(
    arrays: dict[str, Stored], parts: Sequence[str], source: str, how: Preparation, where: str = ""
) -> Listing:
    """The images of some of a file's arrays, one after another, with their labels if all have some."""
    prefixes = [f"{part}_" if part else "" for part in parts]
    stored = [arrays[f"{prefix}images"] for prefix in prefixes]
    axis = channel_axis(stored[0].shape, f"'{prefixes[0]}images' in {where or source}")
    known = [
        _labels(arrays.get(f"{prefix}labels"), len(one)) for prefix, one in zip(prefixes, stored, strict=True)
    ]
    labels = tuple(label for some in known if some is not None for label in some)
    starts = np.cumsum([0, *map(len, stored)])

    def read(rows: Rows) -> Iterator[ImageSet]:
        for start, one in zip(starts, stored, strict=False):
            own = rows[(rows >= start) & (rows < start + len(one))] - start
            for chunk in one.take(own) if len(own) else ():
                yield how.images(np.moveaxis(chunk, 1, -1) if axis == 1 else chunk, source)

    return Listing(
        source, int(starts[-1]), read, labels=labels if all(k is not None for k in known) else None
    )


def _labels(stored: Stored | None, count: int) -> tuple[int, ...] | None:
    """The classes of images: whole numbers, one each; None if an array is not that."""
    if (
        stored is None
        or stored.dtype.kind not in "ui"
        or math.prod(stored.shape) != count
        or len(stored) != count
    ):
        return None
    return tuple(int(label) for label in stored.read().reshape(-1))


def _files(
    within: tree.Tree, source: str, how: Preparation, pattern: str | None, table: Path | None
) -> Source:
    found = within.with_suffix(files.SUFFIXES)
    if not found.names:
        raise DataError(f"{within.where} holds no {files.KINDS}")
    found = found.matching(pattern)
    sides = tree.sides(found, files.KINDS, table)
    labels = sides.labels or (None, None)
    train = files.file_listing(sides.train, source, how, labels[0])
    held = None
    if sides.heldout is not None:
        held = files.file_listing(sides.heldout, source, how, labels[1])
    first = files.decode(sides.train.read(sides.train.names[0]), sides.train.names[0], how.convert).stored
    mapped = how.stored_range or _TYPES.get(first.dtype.name, (-1.0, 1.0))
    warning = tree.masks(found.names) if pattern is None else ""
    notes = [warning] if warning else []
    return Source(train, held, mapped, how.stored_range is not None, sides.classes, tuple(notes))


def _tables(parts: dict[str, tuple[Path, ...]], where: str, source: str, how: Preparation) -> Source:
    train, held = tables.table_sides(parts, where)
    listed = tables.table_listing(train, source, how)
    rest = None if held is None else tables.table_listing(held, source, how)
    shown = next(iter(listed.read(np.zeros(1, np.int64))))
    mapped = how.stored_range or {8.0: (0, 255), 16.0: (0, 65535)}.get(shown.bit_depth or 0.0, (-1.0, 1.0))
    return Source(listed, rest, mapped, how.stored_range is not None, train.classes)


def _dicom(
    within: tree.Tree, scans: tree.Tree, window: dicom.WindowChoice, how: Preparation, volumes: bool
) -> Source:
    if within.with_suffix(files.SUFFIXES).names:
        raise DataError(
            f"{within.where} holds DICOM files and other images; put each kind in a folder of its own"
        )
    if how.stored_range is not None:
        raise DataError("--stored-range is not for DICOM files, whose values a window maps (--window)")
    sides = tree.sides(scans, "DICOM files")
    listing = series.series_listing if volumes else dicom.dicom_listing
    train = listing(sides.train, window, how)
    held = None if sides.heldout is None else listing(sides.heldout, window, how)
    notes = ()
    if train.identities is None:
        notes = (
            "no file has a PatientID, so persons are unknown: images of one person may be both trained on and"
            " held out",
        )
    return Source(train, held, notes=notes)


def _nifti(
    within: tree.Tree,
    volumes: tree.Tree,
    table: Path | None,
    window: dicom.WindowChoice,
    how: Preparation,
    orientation: nifti.Orientation,
) -> Source:
    if within.with_suffix(files.SUFFIXES).names:
        raise DataError(
            f"{within.where} holds NIfTI volumes and images; put each kind in a folder of its own"
        )
    sides = tree.sides(volumes, nifti.KINDS, table)
    labels, text = sides.labels or (None, None), str(window)
    train = nifti.nifti_listing(sides.train, text, how, orientation, labels[0])
    held = None
    if sides.heldout is not None:
        held = nifti.nifti_listing(sides.heldout, text, how, orientation, labels[1])
    warning = tree.masks([name.removesuffix(".gz") for name in volumes.names])
    return Source(train, held, classes=sides.classes, notes=(warning,) if warning else ())


def _require_alike(train: Stored, others: Stored, where: str) -> None:
    if train.shape[1:] != others.shape[1:] or train.dtype != others.dtype:
        raise DataError(
            f"{where}: training and held-out images must be alike, but are {train.dtype} {train.shape[1:]} "
            f"and {others.dtype} {others.shape[1:]}"
        )
