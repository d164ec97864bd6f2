"""Untrusted image files: PNG, JPEG, TIFF, BMP and WebP in a folder or a zip.

All images of one source must have one size and one of the modes below; they are used as stored. Only a
rotation in EXIF is applied, as in the loaders that people train with (datasets' ``Image``,
``PIL.ImageOps.exif_transpose``). Other modes need ``convert``, which is Pillow's own conversion.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from latentprint.contracts import quoted
from latentprint.data.images import MAX_SIDE, DataError, ImageSet
from latentprint.data.listing import Listing, Preparation, Rows
from latentprint.data.tree import MAX_FILE, Tree

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
KINDS = "PNG, JPEG, TIFF, BMP or WebP images"

MAX_PIXELS = 2**26
"""The most pixels of one image file."""

_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP")
_TYPES: dict[str, np.dtype[Any]] = {
    "L": np.dtype(np.uint8),
    "RGB": np.dtype(np.uint8),
    "I;16": np.dtype(np.uint16),
    "I;16L": np.dtype(np.uint16),
    "I;16B": np.dtype(np.uint16),
    "F": np.dtype(np.float32),
}
_CONVERTED = {"1", "P", "LA", "PA", "RGBA", "RGBX", "CMYK", "YCbCr"}
"""Modes that Pillow converts to grey or RGB without losing bits of a channel."""

Colours = Literal["rgb", "grey"]


@dataclass(frozen=True)
class Decoded:
    """One image, (H, W) or (H, W, 3) of uint8, uint16 or float32; ``turned``: EXIF asked for a rotation."""

    stored: NDArray[Any]
    turned: bool


def decode(content: Path | bytes, name: str, convert: Colours | None = None) -> Decoded:
    """One image file, by its path or its bytes.

    Args:
        name: its name in error sentences.
        convert: for modes that are neither grey nor RGB.

    Raises:
        DataError: the file is missing, broken, too large, holds several images, or has an unsupported mode.
    """
    where = f"the image {quoted(name)}"
    if isinstance(content, Path) and not content.is_file():  # opening a pipe would wait forever
        raise DataError(f"{where} is not a file that can be read")
    if (content.stat().st_size if isinstance(content, Path) else len(content)) > MAX_FILE:
        raise DataError(f"{where} has more than {MAX_FILE:,} bytes, the most that is read")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damaged tags; what matters is checked below
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            opened = content if isinstance(content, Path) else io.BytesIO(content)
            with Image.open(opened, formats=_FORMATS) as image:
                _require_plain(image, where, convert)
                turned = image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)
                shown = ImageOps.exif_transpose(image) if turned else image
                if image.mode in _CONVERTED:
                    shown = shown.convert("RGB" if convert == "rgb" else "L")
                pixels = np.asarray(shown)
    except DataError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{where} has more than {MAX_PIXELS:,} pixels, the most that is read") from error
    except Exception as error:  # Pillow's parsers raise errors of any type on a damaged file
        raise DataError(f"{where} cannot be read; it may be damaged or no {KINDS[:-1]} file") from error
    return Decoded(pixels.astype(pixels.dtype.newbyteorder("="), copy=False), turned)


def read_image(path: Path, name: str, convert: Colours | None = None) -> NDArray[Any]:
    """One image file as stored; see ``decode``."""
    return decode(path, name, convert).stored


def _require_plain(image: Image.Image, where: str, convert: Colours | None) -> None:
    width, height = image.size
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS or min(width, height) < 1:
        raise DataError(
            f"{where} is {width} x {height}; at most {MAX_SIDE} per side and {MAX_PIXELS:,}"
            " pixels in all are read"
        )
    if getattr(image, "n_frames", 1) != 1:  # only formats that can hold several images have the attribute
        raise DataError(f"{where} holds several images; save each as a file of its own")
    if image.mode in _CONVERTED and convert is None:
        raise DataError(
            f"{where} has the mode {image.mode}; --convert rgb or --convert grey reads it as Pillow's "
            "convert does"
        )
    if image.mode not in _TYPES and image.mode not in _CONVERTED:
        raise DataError(
            f"{where} has the mode {image.mode}; save it as 8-bit grey, 8-bit RGB, 16-bit grey or float grey"
        )
    # How the decoder reads the file, such as "RGB;16B".
    tiles: object = getattr(image, "tile", None)
    if image.mode not in ("I;16", "I;16L", "I;16B", "F") and ";16" in str(tiles):
        raise DataError(f"{where} has 16-bit colours, of which half would be lost; save it as 8-bit RGB")


def file_listing(
    tree: Tree, source: str, how: Preparation, labels: tuple[int, ...] | None = None, first: str | None = None
) -> Listing:
    """The image files of a tree; ``first`` names a file of another side with which they must agree."""
    head = first or tree.names[0]

    def one(name: str, like: tuple[str, ImageSet, NDArray[Any]] | None) -> tuple[str, ImageSet, NDArray[Any]]:
        decoded = decode(tree.read(name), name, how.convert)
        if like is not None:
            _require_alike(decoded.stored, name, like[2], like[0], how)
        return name, how.images(decoded.stored[None], source), decoded.stored

    def read(rows: Rows) -> Iterator[ImageSet]:
        like = one(head, None)
        for row in rows.tolist():
            name = tree.names[row]
            yield (like if name == head else one(name, like))[1]

    def remark(rows: Rows) -> str:
        count = turned(tree, rows)
        told = "EXIF asks to turn {} of {} images, and they were turned, as datasets' imagefolder does it"
        return told.format(count, len(rows)) if count else ""

    return Listing(source, len(tree.names), read, names=tree.names, labels=labels, remark=remark)


def turned(tree: Tree, rows: Rows) -> int:
    """How many files have a rotation in EXIF; only headers are read."""
    count = 0
    for row in rows.tolist():
        content = tree.read(tree.names[row])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(content if isinstance(content, Path) else io.BytesIO(content)) as image:
                count += image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)
    return count


def _require_alike(image: NDArray[Any], name: str, first: NDArray[Any], head: str, how: Preparation) -> None:
    """Check that an image has the size, channels and type of the first, as far as preparation leaves them."""
    size = how.resize is not None or image.shape[:2] == first.shape[:2]
    colours = how.convert is not None or image.shape[2:] == first.shape[2:]
    if size and colours and image.dtype == first.dtype:
        return
    ways = ["--resize N brings all to one size"] * (not size) + [
        "--convert rgb or --convert grey brings all to the same colours"
    ] * (not colours)
    hint = f"; {', '.join(ways)}" if image.dtype == first.dtype else ""
    raise DataError(
        f"the images of a source must be alike, but {quoted(name)} is {_kind(image)} and {quoted(head)} is "
        f"{_kind(first)}{hint}"
    )


def _kind(image: NDArray[Any]) -> str:
    height, width, *channels = image.shape
    return f"{width} x {height} {'RGB' if channels else 'grey'} {image.dtype}"
