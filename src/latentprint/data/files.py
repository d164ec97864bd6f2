"""Images from a folder of PNG, JPEG and TIFF files that nobody vouches for.

All images of a folder must have one size and one of the modes below; they are taken as stored, without
resizing, conversion or rotation. What is not such a file is passed over, hidden files too.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from latentprint.data.images import MAX_BYTES, MAX_SIDE, DataError
from latentprint.data.resize import resized

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")

MAX_PIXELS = 2**26
"""The most pixels of one image file."""

_TYPES: dict[str, np.dtype[Any]] = {
    "L": np.dtype(np.uint8),
    "RGB": np.dtype(np.uint8),
    "I;16": np.dtype(np.uint16),
    "I;16L": np.dtype(np.uint16),
    "I;16B": np.dtype(np.uint16),
    "F": np.dtype(np.float32),
}


@dataclass(frozen=True)
class Folder:
    """Images (N, H, W) or (N, H, W, 3) and their names relative to the folder, sorted by name."""

    stored: NDArray[Any]
    names: tuple[str, ...]


def image_files(folder: Path) -> list[Path]:
    """The image files at any depth, sorted by their relative names; links to folders are not followed."""
    found: list[Path] = []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [
            Path(parent, name)
            for name in names
            if name.lower().endswith(SUFFIXES) and not name.startswith(".")
        ]
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def read_folder(folder: Path, files: Sequence[Path], resize: int | None = None) -> Folder:
    """Reads ``files``, which lie in ``folder``; ``resize`` brings each to a square of that side.

    Raises:
        DataError: a file is broken, too large, or of another size or mode than the first; the file is named.
    """
    names = tuple(path.relative_to(folder).as_posix() for path in files)
    first = _sized(read_image(files[0], names[0]), resize)
    if first.nbytes * len(files) > MAX_BYTES:
        raise DataError(
            f"{len(files)} images like {names[0]!r} need more than the {MAX_BYTES} bytes that are read"
        )
    stored = np.empty((len(files), *first.shape), dtype=first.dtype)
    for i, (path, name) in enumerate(zip(files, names, strict=True)):
        image = first if i == 0 else _sized(read_image(path, name), resize)
        if image.shape != first.shape or image.dtype != first.dtype:
            raise DataError(
                f"the images of a folder must be alike, but {name!r} is {_kind(image)} "
                f"and {names[0]!r} is {_kind(first)}{_way_out(image, first)}"
            )
        stored[i] = image
    return Folder(stored, names)


def read_image(path: Path, name: str) -> NDArray[Any]:
    """One image file -> (H, W) or (H, W, 3) of uint8, uint16 or float32, as stored.

    Raises:
        DataError: the file is missing, broken, too large, holds several images, or is of a mode not
            understood.
    """
    if not path.is_file():  # a pipe or a device would be waited for without end
        raise DataError(f"the image {name!r} is not a file that can be read")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damaged tags; what matters is checked below
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=("PNG", "JPEG", "TIFF")) as image:
                _require_plain(image, name)
                pixels = np.asarray(image)
    except DataError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"the image {name!r} has more than the {MAX_PIXELS} pixels that are read") from error
    except Exception as error:  # Pillow's parsers let errors of any type through on a damaged file
        raise DataError(
            f"the image {name!r} cannot be read; it may be damaged or no PNG, JPEG or TIFF file"
        ) from error
    return pixels.astype(pixels.dtype.newbyteorder("="), copy=False)


def _require_plain(image: Image.Image, name: str) -> None:
    width, height = image.size
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS or min(width, height) < 1:
        raise DataError(
            f"the image {name!r} is {width} x {height}; read are {MAX_SIDE} a side, {MAX_PIXELS} in all"
        )
    if getattr(image, "n_frames", 1) != 1:  # only formats that can hold several images have the attribute
        raise DataError(f"the image {name!r} holds several images; save each as a file of its own")
    if image.mode not in _TYPES:
        raise DataError(
            f"the image {name!r} has the mode {image.mode}; save it as 8-bit grey, 8-bit RGB, 16-bit grey "
            "or float grey"
        )
    tiles: object = getattr(
        image, "tile", None
    )  # how the decoder reads the file; "RGB;16B" and the like in it
    if _TYPES[image.mode].itemsize == 1 and ";16" in str(tiles):
        raise DataError(
            f"the image {name!r} has 16-bit colours, of which half would be lost; save it as 8-bit RGB"
        )


def _sized(image: NDArray[Any], side: int | None) -> NDArray[Any]:
    return image if side is None else resized(image, side)


def _way_out(image: NDArray[Any], first: NDArray[Any]) -> str:
    """What to do where nothing but the size differs."""
    only_size = image.dtype == first.dtype and image.shape[2:] == first.shape[2:]
    return "; --resize N brings all to one size" if only_size else ""


def _kind(image: NDArray[Any]) -> str:
    height, width, *channels = image.shape
    return f"{width} x {height} {'RGB' if channels else 'grey'} {image.dtype}"
