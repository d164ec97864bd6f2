"""A folder of DICOM files, one image each, with the patient as the identity.

    stored v  ->  y = slope v + intercept  ->  window  ->  [-1, 1]  ->  turned over where MONOCHROME1

A window of centre c and width w maps y (PS3.3 C.11.2.1.2 and C.11.2.1.3), before it is brought to [-1, 1]:

    LINEAR         (y - (c - 1/2)) / (w - 1) + 1/2    cut to [0, 1]
    LINEAR_EXACT   (y - c) / w + 1/2                  cut to [0, 1]
    SIGMOID        1 / (1 + exp(-4 (y - c) / w))

Without a window the whole range of the BitsStored is mapped, (v - least) / (2^bits - 1); values are never
stretched to the range of one image. Colour is read as 8-bit RGB. Files are not trusted: sizes are checked
from the header before pixels are decoded, and the deflated transfer syntax, which expands on reading, is
refused.

Source: DICOM PS3.3 (C.7.6.3, C.11.1, C.11.2) and PS3.5; pydicom for the parsing (extra
``latentprint[dicom]``).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from latentprint.contracts import quoted
from latentprint.data.files import MAX_PIXELS
from latentprint.data.images import MAX_SIDE, DataError, ImageSet, image_sha256
from latentprint.data.listing import Listing, Preparation, Rows, converted
from latentprint.data.resize import resized
from latentprint.data.tree import Tree

SUFFIXES = (".dcm", ".dicom", ".ima")

MAX_FILE = 2**29
"""The most bytes of one file (512 MiB)."""

_DEFLATED = "1.2.840.10008.1.2.1.99"
_SOURCE = "DICOM images"


@dataclass(frozen=True)
class Window:
    """Which values become black and white.

    Attributes:
        center, width: in the units of the rescaled values (Hounsfield units in CT).
        function: "LINEAR", "LINEAR_EXACT" or "SIGMOID".

    Raises:
        DataError: a number is not finite, the width is not positive (1 or more for LINEAR), or the function
            unknown.
    """

    center: float
    width: float
    function: str = "LINEAR"

    def __post_init__(self) -> None:
        least = 1.0 if self.function == "LINEAR" else 0.0
        if self.function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
            raise DataError(
                f"a window's function is LINEAR, LINEAR_EXACT or SIGMOID, got {self.function[:40]!r}"
            )
        finite = math.isfinite(self.center) and math.isfinite(self.width)
        if not finite or self.width < least or self.width == 0:
            raise DataError(
                f"a window needs a positive width, got centre {self.center} and width {self.width}"
            )

    def apply(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Map values to [0, 1] with `pydicom.pixels.apply_windowing`, as unsigned 16-bit numbers."""
        data = _pydicom().Dataset()
        data.PhotometricInterpretation, data.BitsStored, data.PixelRepresentation = "MONOCHROME2", 16, 0
        data.WindowCenter, data.WindowWidth, data.VOILUTFunction = self.center, self.width, self.function
        with np.errstate(over="ignore"):  # a sigmoid far from its centre
            shown = _pydicom().pixels.apply_windowing(values, data)
        return np.asarray(shown / 65535.0, dtype=np.float64)


WindowChoice = Window | str
"""A window for all files, also as "CENTRE,WIDTH"; "file": each file's first window; "none"."""


def window_of(choice: WindowChoice) -> Window | None:
    """The window for all files; None if each file's own is used, or none.

    Raises:
        DataError: the text is not a window.
    """
    if isinstance(choice, Window) or choice in ("file", "none"):
        return choice if isinstance(choice, Window) else None
    try:
        center, width = (float(part) for part in choice.split(","))
    except ValueError as error:
        raise DataError(
            f'a window is "file", "none" or "CENTRE,WIDTH" in the units of the values, got {quoted(choice)}'
        ) from error
    return Window(center, width)


@dataclass(frozen=True)
class Picture:
    """One DICOM file.

    Attributes:
        pixels: (C, H, W) float32 in [-1, 1].
        sha256: of the stored values, before any of the steps above.
        identity: the patient's id; None if the file has none.
        bit_depth: log2 of the number of values a pixel can take; None if a window is not linear.
        scale: how values were mapped, in words. Files of one folder must agree on it unless each has its own
            window.
    """

    pixels: NDArray[np.float32]
    sha256: str
    identity: str | None
    bit_depth: float | None
    scale: str


def dicom_names(tree: Tree) -> Tree:
    """The DICOM files of a folder, recognised by their suffix or, without one, by "DICM" after 128 bytes.

    An index (DICOMDIR) is not an image.
    """
    return tree.only([name for name in tree.names if name.lower().endswith(SUFFIXES) or _marked(tree, name)])


def _marked(tree: Tree, name: str) -> bool:
    """Whether a file without a suffix begins as a DICOM file does."""
    bare = name.rpartition("/")[2]
    if Path(bare).suffix.strip(".0123456789") or bare.upper() == "DICOMDIR":
        return False
    path = tree.read(name)
    if not isinstance(path, Path) or not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def read_dicom(path: Path, name: str, window: WindowChoice = "file") -> Picture:
    """One file -> its picture.

    Args:
        name: the file's name in error sentences.

    Raises:
        DataError: pydicom is missing, the file is damaged, too large, deflated, holds several frames, or is
            of an unsupported kind.
    """
    with opened(path, name) as data:
        require_plain(data, name)
        stored = cast(NDArray[Any], data.pixel_array)
        return picture(data, np.asarray(stored), name, window)


@contextmanager
def opened(path: Path, name: str, *, pixels: bool = True) -> Generator[Any]:
    """The data set of one file. Errors that its parser or decoder raises on a damaged file become
    sentences."""
    pydicom = _pydicom()
    if not path.is_file():
        raise DataError(f"{quoted(name)} is not a file that can be read")
    if path.stat().st_size > MAX_FILE:
        raise DataError(f"{quoted(name)} has more than {MAX_FILE:,} bytes, the most that is read")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # values off the standard; what matters is checked
            meta = pydicom.filereader.read_file_meta_info(path)
            if str(meta.get("TransferSyntaxUID", "")) == _DEFLATED:
                raise DataError(
                    f"{quoted(name)} is deflated, and could expand without bound; save it uncompressed"
                )
            yield pydicom.dcmread(path, stop_before_pixels=not pixels)
    except DataError:
        raise
    except Exception as error:  # pydicom and its decoders raise errors of any type on a damaged file
        said = " ".join(str(error).split())[:160] or type(error).__name__
        raise DataError(f"{quoted(name)} cannot be read as DICOM: {said}") from error


def _pydicom() -> Any:
    try:
        import pydicom
        import pydicom.pixels  # pyright: ignore[reportUnusedImport] (a part that is not loaded by itself)
    except ImportError as error:
        raise DataError(
            "DICOM files need pydicom, which is not installed: install latentprint with its extra dicom, "
            "pip install 'latentprint[dicom]'"
        ) from error
    return pydicom


def require_plain(data: Any, name: str, expected: int = 1) -> None:
    """Refuse a file, before any pixel is decoded, whose header says that it is not supported.

    Args:
        expected: frames.

    Raises:
        DataError: it is too large, has another number of frames, or is of an unsupported kind.
    """
    rows, columns = int(data.get("Rows", 0) or 0), int(data.get("Columns", 0) or 0)
    if "PixelData" not in data or min(rows, columns) < 1:
        raise DataError(f"{quoted(name)} holds no image with whole-number pixels")
    if max(rows, columns) > MAX_SIDE or rows * columns > MAX_PIXELS:
        raise DataError(
            f"{quoted(name)} is {columns} x {rows}; sides up to {MAX_SIDE} and {MAX_PIXELS} pixels are read"
        )
    frames = int(data.get("NumberOfFrames", 1) or 1)
    if frames != expected:
        raise DataError(
            f"{quoted(name)} holds {frames} frames; --volumes reads them as one volume, or save each as "
            "a file of its own"
        )
    kind, samples = str(data.get("PhotometricInterpretation", "")), int(data.get("SamplesPerPixel", 1))
    if (kind, samples) not in (("MONOCHROME1", 1), ("MONOCHROME2", 1), ("RGB", 3)):
        raise DataError(
            f"{quoted(name)} is {kind[:40] or 'of no stated kind'} with {samples} samples a pixel; "
            "supported are "
            "MONOCHROME1, MONOCHROME2 and RGB"
        )
    allocated, bits = int(data.BitsAllocated), int(data.BitsStored)
    if allocated not in (8, 16) or not 2 <= bits <= allocated or (samples == 3 and bits != 8):
        raise DataError(
            f"{quoted(name)} stores {bits} of {allocated} bits a value; supported are 2 to 16 bits, and 8 "
            "for "
            "colour"
        )


def picture(data: Any, stored: NDArray[Any], name: str, window: WindowChoice) -> Picture:
    """The picture of stored values (H, W), frames (D, H, W), or either with colours last.

    Raises:
        DataError: values do not fit the header, or the window is invalid.
    """
    bits, signed = int(data.BitsStored), int(data.get("PixelRepresentation", 0)) == 1
    least = -(2 ** (bits - 1)) if signed else 0
    if stored.size and not least <= int(stored.min()) <= int(stored.max()) < least + 2**bits:
        raise DataError(f"{quoted(name)} holds values outside the {bits} bits that it says it stores")
    colour = int(data.get("SamplesPerPixel", 1)) == 3
    if colour:  # no rescaling and no window
        shares, depth, scale = stored.astype(np.float64) / 255.0, 8.0, "8-bit RGB"
    else:
        slope, intercept = (
            _finite(data, "RescaleSlope", 1.0, name),
            _finite(data, "RescaleIntercept", 0.0, name),
        )
        if slope == 0:
            raise DataError(f"{quoted(name)} has a RescaleSlope of 0")
        chosen = _window(data, name) if window == "file" else window_of(window)
        if chosen is None:
            shares, depth = (stored.astype(np.float64) - least) / (2.0**bits - 1.0), float(bits)
            scale = f"{bits}-bit {'signed' if signed else 'unsigned'}, without a window"
        else:
            shares, depth = chosen.apply(stored.astype(np.float64) * slope + intercept), _depth(chosen, slope)
            scale = "a window"
    if data.PhotometricInterpretation == "MONOCHROME1":
        shares = 1.0 - shares
    pixels = (2.0 * shares - 1.0).astype(np.float32)
    identity = str(data.get("PatientID", "") or "").strip()
    return Picture(
        np.ascontiguousarray(np.moveaxis(pixels, -1, 0)) if colour else pixels[None],
        image_sha256(stored),
        identity or None,
        depth,
        scale,
    )


def _finite(data: Any, tag: str, default: float, name: str) -> float:
    found = data.get(tag)
    value = default if found is None else float(found)
    if not math.isfinite(value):
        raise DataError(f"{quoted(name)} has a {tag} that is not a finite number")
    return value


def _window(data: Any, name: str) -> Window | None:
    """The first window that the file names."""
    centers, widths = data.get("WindowCenter"), data.get("WindowWidth")
    if centers is None or widths is None or centers == "" or widths == "":
        return None
    first = [
        float(v[0] if isinstance(v, Sequence) or hasattr(v, "__getitem__") else v) for v in (centers, widths)
    ]
    try:
        return Window(first[0], first[1], str(data.get("VOILUTFunction", "LINEAR") or "LINEAR"))
    except DataError as error:
        raise DataError(f"{quoted(name)}: {error}") from error


def _depth(window: Window, slope: float) -> float | None:
    """log2 of the number of whole stored values that a linear window distinguishes; its steps are 2 slope /
    width."""
    if window.function == "SIGMOID":
        return None
    width = window.width - 1.0 if window.function == "LINEAR" else window.width
    return math.log2(width / abs(slope) + 1.0)


def dicom_listing(tree: Tree, window: WindowChoice, how: Preparation) -> Listing:
    """DICOM files as images with their patients as identities; headers are read now, pixels when asked for.

    Files without a patient's id show unknown persons. ``how`` resizes and converts; hashes stay those of the
    stored values.

    Raises:
        DataError: a header cannot be read, or some files have a patient's id and some not. On reading: they
            differ in size or in how values are mapped.
    """
    window_of(window)
    patients = [_patient(tree, name) for name in tree.names]
    known = tuple(one for one in patients if one is not None)
    if known and len(known) != len(patients):
        raise DataError(
            f"{len(patients) - len(known)} of {len(patients)} files have no PatientID; give each one (a "
            "pseudonym will do), or none, so that images of one patient are known as such"
        )

    def one(name: str) -> Picture:
        path = tree.read(name)
        if isinstance(path, bytes):
            raise DataError("DICOM files are read from a folder; unpack the zip")
        return _prepared(read_dicom(path, name, window), how)

    def read(rows: Rows) -> Iterator[ImageSet]:
        first = one(tree.names[0])
        for row in rows.tolist():
            picture = first if row == 0 else one(tree.names[row])
            if picture.pixels.shape != first.pixels.shape or picture.scale != first.scale:
                raise DataError(
                    "the images of a folder must have the same size and values, but"
                    f" {quoted(tree.names[row])} is {_kind(picture)} and {quoted(tree.names[0])} is"
                    f" {_kind(first)}{_way_out(picture, first)}"
                )
            yield ImageSet(picture.pixels[None], (picture.sha256,), _SOURCE, bit_depth=picture.bit_depth)

    return Listing(_SOURCE, len(tree.names), read, names=tree.names, identities=known or None)


def _patient(tree: Tree, name: str) -> str | None:
    path = tree.read(name)
    if isinstance(path, bytes):
        raise DataError("DICOM files are read from a folder; unpack the zip")
    with opened(path, name, pixels=False) as data:
        return str(data.get("PatientID", "") or "").strip() or None


def _prepared(picture: Picture, how: Preparation) -> Picture:
    """Convert and resize. A resized image has no bit depth, because its values are mixtures of stored
    ones."""
    pixels = picture.pixels
    if how.convert is not None:
        last = np.moveaxis(pixels, 0, -1)[None]
        grey = converted(last if len(pixels) == 3 else last[..., 0], how.convert)[0]
        pixels = grey[None] if grey.ndim == 2 else np.moveaxis(grey, -1, 0)
    if how.resize is None or pixels.shape[1:] == (how.resize, how.resize):
        return replace(picture, pixels=np.ascontiguousarray(pixels))
    sized = np.moveaxis(resized(np.moveaxis(pixels, 0, 2), how.resize), 2, 0)
    inside = np.clip(np.ascontiguousarray(sized), -1.0, 1.0)  # rounding of the filter
    return replace(picture, pixels=inside, bit_depth=None)


def _way_out(picture: Picture, first: Picture) -> str:
    """What the user can do about the difference."""
    if picture.scale != first.scale and "window" in picture.scale + first.scale:
        return (
            "; --window none maps all that each file can store, and --window "
            "CENTRE,WIDTH is one window for all"
        )
    only_size = picture.scale == first.scale and len(picture.pixels) == len(first.pixels)
    return "; --resize N brings all to one size" if only_size else ""


def _kind(picture: Picture) -> str:
    channels, height, width = picture.pixels.shape
    return f"{width} x {height} {'RGB' if channels == 3 else 'grey'} ({picture.scale})"
