"""From the name of a source to images to train on and images held out.

    digits            1,797 handwritten digits, 8 x 8, stored 0 .. 16        (UCI, in scikit-learn)
    phantom:N[:SIDE]  N drawn images of SIDE x SIDE (28)                     (`latentprint.data.phantom`)
    medmnist:NAME     train trains, val and test are held out                (`latentprint.data.medmnist`)
    a folder          of PNG, JPEG or TIFF; with train/ and heldout/ these are the split
    a file.npz        ``images``, or ``train_images`` with ``val_images`` and/or ``test_images`` held out

``images=N`` draws N of the images that may train, without replacement, by the seed; a larger N keeps the
images of a smaller one. Where the source has no split of its own, all others are held out; without N, the
share ``heldout`` is.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentprint import keys
from latentprint.data.archive import channels_last, read_archive
from latentprint.data.files import Folder, image_files, read_folder
from latentprint.data.images import MAX_BYTES, MAX_SIDE, DataError, ImageSet, stack
from latentprint.data.medmnist import read_medmnist
from latentprint.data.phantom import HELDOUT, SIDE, phantoms
from latentprint.data.resize import all_resized
from latentprint.data.split import Split

SOURCES = (
    "digits, phantom:N, medmnist:NAME, a folder of PNG, JPEG or TIFF images, or an .npz file with `images` "
    "or with `train_images` and `test_images`"
)


def load(
    source: str | os.PathLike[str],
    *,
    seed: int,
    root: str | os.PathLike[str] | None = None,
    images: int | None = None,
    download: bool = False,
    heldout: float = 0.2,
    resize: int | None = None,
) -> Split:
    """The images of a source, split into those to train on and those held out.

    Args:
        source: one of the module's table.
        seed: draws the subset and the split, and the phantoms.
        root: the folder of the MedMNIST files; else MEDMNIST_ROOT, else ~/.medmnist.
        images: how many to train on; all that may train when None.
        download: whether a missing MedMNIST file may be fetched from its publisher.
        heldout: the share held out where neither the source nor ``images`` decides, in (0, 1).
        resize: brings every image to a square of that side (``data.resize``); None leaves them as stored.

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
    if text == "digits":
        return _digits(images, seed, heldout, resize)
    if match := re.fullmatch(r"phantom:([0-9]{1,9})(?::([0-9]{1,5}))?", text):
        return _phantom(int(match[1]), int(match[2] or SIDE), images, seed, resize)
    if text.startswith("medmnist:"):
        place = None if root is None else Path(root)
        return _medmnist(text.removeprefix("medmnist:"), place, images, seed, download, resize)
    if os.path.isdir(text):
        return _folder(Path(text), images, seed, heldout, resize)
    if text.endswith(".npz"):
        return _archive(Path(text), images, seed, heldout, resize)
    raise DataError(
        f"{text[:200]!r} is neither a file or folder that exists nor a source; understood are {SOURCES}"
    )


def _digits(images: int | None, seed: int, heldout: float, resize: int | None) -> Split:
    from sklearn.datasets import load_digits

    # Stored as floats, but counts of set pixels in 4 x 4 blocks: whole numbers from 0 to 16 by definition.
    bunch: Any = load_digits()
    stored = np.asarray(bunch.images, dtype=np.uint8)
    return _divide(all_resized(stored, resize), None, "digits", images, seed, heldout, maximum=16)


def _phantom(count: int, side: int, images: int | None, seed: int, resize: int | None) -> Split:
    name = f"phantom:{count}" if side == SIDE else f"phantom:{count}:{side}"
    if not 8 <= side <= MAX_SIDE or (count + HELDOUT) * side**2 > MAX_BYTES:
        raise DataError(
            f"{name}: sides from 8 to {MAX_SIDE} and up to {MAX_BYTES} pixels in all can be drawn"
        )
    rows = _choose(count, images, seed, name)
    train = all_resized(phantoms(count, side, seed, "train")[rows], resize)
    others = all_resized(phantoms(HELDOUT, side, seed, "heldout"), resize)
    return Split.of(stack(train, name), stack(others, name), name)


def _medmnist(
    name: str, root: Path | None, images: int | None, seed: int, download: bool, resize: int | None
) -> Split:
    arrays = read_medmnist(name, root, download=download)
    others = np.concatenate([arrays["val_images"], arrays["test_images"]])
    train = all_resized(arrays["train_images"], resize)
    return _given(train, all_resized(others, resize), f"medmnist:{name}", images, seed)


def _archive(path: Path, images: int | None, seed: int, heldout: float, resize: int | None) -> Split:
    where = repr(str(path))
    arrays = {
        key: all_resized(channels_last(values, f"{key!r} in {where}"), resize)
        for key, values in read_archive(path, ("images", "train_images", "val_images", "test_images")).items()
    }
    others = [arrays[key] for key in ("val_images", "test_images") if key in arrays]
    if ("images" in arrays) == ("train_images" in arrays) or ("images" in arrays and others):
        raise DataError(
            f"{where} must hold either `images` or `train_images` with `test_images`, got {_names(arrays)}"
        )
    if "images" in arrays:
        return _divide(arrays["images"], None, "an .npz file", images, seed, heldout)
    if not others:
        raise DataError(
            f"{where} holds `train_images` but neither `test_images` nor `val_images` to hold out"
        )
    train = arrays["train_images"]
    for values in others:
        _require_alike(train, values, where)
    return _given(train, np.concatenate(others), "an .npz file", images, seed)


def _names(arrays: dict[str, NDArray[Any]]) -> str:
    return " and ".join(f"`{key}`" for key in arrays) or "none of these"


def _folder(folder: Path, images: int | None, seed: int, heldout: float, resize: int | None) -> Split:
    files = image_files(folder)
    where, kinds = repr(str(folder)), "PNG, JPEG or TIFF images"
    if not files:
        raise DataError(f"the folder {where} holds no {kinds}")
    subfolders = {
        name: [f for f in files if f.relative_to(folder).parts[0] == name] for name in ("train", "heldout")
    }
    given = [name for name in subfolders if (folder / name).is_dir()]
    if not given:
        content = read_folder(folder, files, resize)
        return _divide(content.stored, content.names, "a folder of images", images, seed, heldout)
    for name in subfolders:
        if not subfolders[name]:
            raise DataError(
                f"the folder {where} has {given[0]}/ but no {kinds} in {name}/; both are needed, or neither"
            )
    if len(files) != sum(map(len, subfolders.values())):
        raise DataError(
            f"the folder {where} has images outside its train/ and heldout/; move them into one of these"
        )
    content = read_folder(folder, subfolders["train"] + subfolders["heldout"], resize)
    n = len(subfolders["train"])
    train, others = (
        Folder(content.stored[:n], content.names[:n]),
        Folder(content.stored[n:], content.names[n:]),
    )
    return _given(
        train.stored, others.stored, "a folder of images", images, seed, (train.names, others.names)
    )


def _given(
    train: NDArray[Any],
    others: NDArray[Any],
    source: str,
    images: int | None,
    seed: int,
    names: tuple[tuple[str, ...], tuple[str, ...]] | None = None,
) -> Split:
    """A split that the source itself makes; only the training images are drawn from."""
    rows = _choose(len(train), images, seed, source)
    train_names = None if names is None else tuple(names[0][i] for i in rows.tolist())
    held_names = None if names is None else names[1]
    return Split.of(
        stack(train[rows], source, names=train_names), stack(others, source, names=held_names), source
    )


def _divide(
    stored: NDArray[Any],
    names: tuple[str, ...] | None,
    source: str,
    images: int | None,
    seed: int,
    heldout: float,
    maximum: int | None = None,
) -> Split:
    """A split of images that come without one."""
    total = len(stored)
    if images is None:
        images = total - max(1, round(heldout * total))
        if images < 2:
            raise DataError(f"{source}: {total} images are too few to train on 2 and hold out {heldout:.0%}")
    rows = _choose(total, images, seed, source)
    if len(rows) == total:
        raise DataError(f"{source}: of {total} images {images} would train, which leaves none to hold out")

    def part(at: NDArray[np.int64]) -> ImageSet:
        chosen = None if names is None else tuple(names[i] for i in at.tolist())
        return stack(stored[at], source, maximum=maximum, names=chosen)

    return Split.of(part(rows), part(np.setdiff1d(np.arange(total), rows)), source)


def _choose(total: int, images: int | None, seed: int, source: str) -> NDArray[np.int64]:
    """Rising positions of the images to train on: the first N of a permutation drawn by the seed."""
    if images is not None and images > total:
        raise DataError(f"{source}: {images} images were asked for, but there are {total}")
    if total < 2:
        raise DataError(f"{source}: a model must be trained on 2 images or more, but there are {total}")
    if images is None:
        return np.arange(total)
    return np.sort(keys.generator(seed, "data subset").permutation(total)[:images])


def _require_alike(train: NDArray[Any], others: NDArray[Any], where: str) -> None:
    if train.shape[1:] != others.shape[1:] or train.dtype != others.dtype:
        raise DataError(
            f"{where}: training and held-out images must be alike, but are {train.dtype} {train.shape[1:]} "
            f"and {others.dtype} {others.shape[1:]}"
        )
