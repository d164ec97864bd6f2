"""Images as hospitals have them: a folder of DICOM files, one image each, with the patient as the identity.

    stored v  ->  y = slope v + intercept  ->  window  ->  [-1, 1]  ->  turned over where MONOCHROME1

A window of centre c and width w maps y (PS3.3 C.11.2.1.2 and C.11.2.1.3), before it is brought to [-1, 1]:

    LINEAR         (y - (c - 1/2)) / (w - 1) + 1/2    cut to [0, 1]
    LINEAR_EXACT   (y - c) / w + 1/2                  cut to [0, 1]
    SIGMOID        1 / (1 + exp(-4 (y - c) / w))

Without a window the whole range of the BitsStored is mapped, (v - least) / (2^bits - 1): nothing is stretched
to what an image happens to hold. Colour is read as 8-bit RGB. Files are never trusted: sizes are checked on
the header before pixels are decoded, and the deflated transfer syntax, which expands on reading, is refused.

Source: DICOM PS3.3 (C.7.6.3, C.11.1, C.11.2) and PS3.5; pydicom for the parsing (extra
``latentprint[dicom]``).
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from latentprint import keys
from latentprint.data.files import MAX_PIXELS
from latentprint.data.images import MAX_BYTES, MAX_SIDE, DataError, ImageSet, image_sha256
from latentprint.data.resize import resized
from latentprint.data.split import Split

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
        """Values -> [0, 1], by the module's table."""
        if self.function == "SIGMOID":
            steep = np.clip(-4.0 * (values - self.center) / self.width, -700.0, 700.0)
            return 1.0 / (1.0 + np.exp(steep))
        exact = self.function == "LINEAR_EXACT"
        center, width = (self.center, self.width) if exact else (self.center - 0.5, self.width - 1.0)
        if width == 0:  # LINEAR of width 1 is a threshold
            return (values > center).astype(np.float64)
        return np.clip((values - center) / width + 0.5, 0.0, 1.0)


WindowChoice = Window | Literal["file", "none"]
"""A window for all files; the first that each file names (none where it names none); or none."""


@dataclass(frozen=True)
class Picture:
    """One DICOM file.

    Attributes:
        pixels: (C, H, W) float32 in [-1, 1].
        sha256: of the stored values, before any of the steps above.
        identity: the patient's id; None where the file has none.
        bit_depth: log2 of the number of values a pixel can take; None where a window is no straight line.
        scale: how values were mapped, in words: files of one folder must agree on it unless each brings its
            window.
    """

    pixels: NDArray[np.float32]
    sha256: str
    identity: str | None
    bit_depth: float | None
    scale: str


def dicom_files(folder: Path) -> list[Path]:
    """The DICOM files at any depth, sorted: by suffix, or without one by "DICM" after 128 bytes.

    Links to folders are not followed; an index (DICOMDIR) is no image.
    """
    found: list[Path] = []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        shown = [name for name in names if not name.startswith(".")]
        found += [Path(parent, n) for n in shown if n.lower().endswith(SUFFIXES) or _marked(Path(parent, n))]
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def _marked(path: Path) -> bool:
    """Whether a file without a suffix begins as a DICOM file does."""
    if path.suffix.strip(".0123456789") or path.name.upper() == "DICOMDIR" or not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def read_dicom(path: Path, name: str, window: WindowChoice = "file") -> Picture:
    """One file -> its picture.

    Args:
        name: what the file is called in an error's sentence.

    Raises:
        DataError: pydicom is missing, the file is damaged, too large, deflated, holds several frames, or is
            of a kind that is not understood.
    """
    pydicom = _pydicom()
    if not path.is_file():
        raise DataError(f"{name!r} is not a file that can be read")
    if path.stat().st_size > MAX_FILE:
        raise DataError(f"{name!r} has more than the {MAX_FILE} bytes that are read of a DICOM file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # values off the standard; what matters is checked below
            meta = pydicom.filereader.read_file_meta_info(path)
            if str(meta.get("TransferSyntaxUID", "")) == _DEFLATED:
                raise DataError(f"{name!r} is deflated, and could expand without bound; save it uncompressed")
            data = pydicom.dcmread(path)
            _require_plain(data, name)
            stored = cast(NDArray[Any], data.pixel_array)
            return _picture(data, np.asarray(stored), name, window)
    except DataError:
        raise
    except Exception as error:  # pydicom and its decoders let errors of any type through on a damaged file
        said = " ".join(str(error).split())[:160] or type(error).__name__
        raise DataError(f"{name!r} cannot be read as DICOM: {said}") from error


def _pydicom() -> Any:
    try:
        import pydicom
    except ImportError as error:
        raise DataError(
            "DICOM files need pydicom, which is not installed: install latentprint with its extra dicom, "
            "pip install 'latentprint[dicom]'"
        ) from error
    return pydicom


def _require_plain(data: Any, name: str) -> None:
    """What the header says, before any pixel is decoded."""
    rows, columns = int(data.get("Rows", 0) or 0), int(data.get("Columns", 0) or 0)
    if "PixelData" not in data or min(rows, columns) < 1:
        raise DataError(f"{name!r} holds no image with whole-number pixels")
    if max(rows, columns) > MAX_SIDE or rows * columns > MAX_PIXELS:
        raise DataError(
            f"{name!r} is {columns} x {rows}; sides up to {MAX_SIDE} and {MAX_PIXELS} pixels are read"
        )
    frames = int(data.get("NumberOfFrames", 1) or 1)
    if frames != 1:
        raise DataError(f"{name!r} holds {frames} frames; save each as a file of its own")
    kind, samples = str(data.get("PhotometricInterpretation", "")), int(data.get("SamplesPerPixel", 1))
    if (kind, samples) not in (("MONOCHROME1", 1), ("MONOCHROME2", 1), ("RGB", 3)):
        raise DataError(
            f"{name!r} is {kind[:40] or 'of no stated kind'} with {samples} samples a pixel; understood are "
            "MONOCHROME1, MONOCHROME2 and RGB"
        )
    allocated, bits = int(data.BitsAllocated), int(data.BitsStored)
    if allocated not in (8, 16) or not 2 <= bits <= allocated or (samples == 3 and bits != 8):
        raise DataError(
            f"{name!r} stores {bits} of {allocated} bits a value; understood are 2 to 16 bits, and 8 for "
            "colour"
        )


def _picture(data: Any, stored: NDArray[Any], name: str, window: WindowChoice) -> Picture:
    bits, signed = int(data.BitsStored), int(data.get("PixelRepresentation", 0)) == 1
    least = -(2 ** (bits - 1)) if signed else 0
    if stored.size and not least <= int(stored.min()) <= int(stored.max()) < least + 2**bits:
        raise DataError(f"{name!r} holds values outside the {bits} bits that it says it stores")
    if stored.ndim == 3:  # colour: no rescaling and no window
        shares, depth, scale = stored.astype(np.float64) / 255.0, 8.0, "8-bit RGB"
    else:
        slope, intercept = (
            _finite(data, "RescaleSlope", 1.0, name),
            _finite(data, "RescaleIntercept", 0.0, name),
        )
        if slope == 0:
            raise DataError(f"{name!r} has a RescaleSlope of 0")
        chosen = _window(data, name) if window == "file" else None if window == "none" else window
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
        pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(np.moveaxis(pixels, 2, 0)),
        image_sha256(stored),
        identity or None,
        depth,
        scale,
    )


def _finite(data: Any, tag: str, default: float, name: str) -> float:
    found = data.get(tag)
    value = default if found is None else float(found)
    if not math.isfinite(value):
        raise DataError(f"{name!r} has a {tag} that is no finite number")
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
        raise DataError(f"{name!r}: {error}") from error


def _depth(window: Window, slope: float) -> float | None:
    """log2 of how many whole stored values a straight window tells apart, whose steps are 2 slope / width."""
    if window.function == "SIGMOID":
        return None
    width = window.width - 1.0 if window.function == "LINEAR" else window.width
    return math.log2(width / abs(slope) + 1.0)


def read_dicom_folder(
    folder: Path, files: Sequence[Path], window: WindowChoice = "file", resize: int | None = None
) -> ImageSet:
    """``files``, which lie in ``folder``, as images with their patients as identities.

    ``resize`` brings each to a square of that side; hashes stay those of the values as they were stored.

    Raises:
        DataError: there is none, one cannot be read, they differ in size or in how values are mapped, or some
            have a patient's id and some not.
    """
    if not files:
        raise DataError(f"the folder {str(folder)!r} holds no DICOM files ({', '.join(SUFFIXES)})")
    names = tuple(path.relative_to(folder).as_posix() for path in files)
    first = _sized(read_dicom(files[0], names[0], window), resize)
    if first.pixels.nbytes * len(files) > 4 * MAX_BYTES:
        raise DataError(f"{len(files)} images like {names[0]!r} need more than {4 * MAX_BYTES} bytes")
    pixels = np.empty((len(files), *first.pixels.shape), dtype=np.float32)
    pictures = list[Picture]()
    for row, (path, name) in enumerate(zip(files, names, strict=True)):
        picture = first if row == 0 else _sized(read_dicom(path, name, window), resize)
        if picture.pixels.shape != first.pixels.shape or picture.scale != first.scale:
            raise DataError(
                f"the images of a folder must be alike, but {name!r} is {_kind(picture)} and {names[0]!r} is "
                f"{_kind(first)}{_way_out(picture, first)}"
            )
        pixels[row] = picture.pixels
        pictures.append(
            Picture(pixels[row], picture.sha256, picture.identity, picture.bit_depth, picture.scale)
        )
    identities = tuple(p.identity for p in pictures if p.identity is not None)
    if identities and len(identities) != len(pictures):
        raise DataError(
            f"{len(pictures) - len(identities)} of {len(pictures)} files have no PatientID; give each one (a "
            "pseudonym "
            "will do), or none, so that images of one patient are known as such"
        )
    depths = {p.bit_depth for p in pictures}
    return ImageSet(
        pixels,
        tuple(p.sha256 for p in pictures),
        _SOURCE,
        identities=identities or None,
        bit_depth=depths.pop() if len(depths) == 1 else None,
        names=names,
    )


def _sized(picture: Picture, side: int | None) -> Picture:
    """A resized image has no bit depth: its values are mixtures of stored ones."""
    if side is None or picture.pixels.shape[1:] == (side, side):
        return picture
    pixels = np.moveaxis(resized(np.moveaxis(picture.pixels, 0, 2), side), 2, 0)
    inside = np.clip(np.ascontiguousarray(pixels), -1.0, 1.0)  # rounding of the filter
    return replace(picture, pixels=inside, bit_depth=None)


def _way_out(picture: Picture, first: Picture) -> str:
    """What to do where nothing but the size differs."""
    only_size = picture.scale == first.scale and len(picture.pixels) == len(first.pixels)
    return "; --resize N brings all to one size" if only_size else ""


def _kind(picture: Picture) -> str:
    channels, height, width = picture.pixels.shape
    return f"{width} x {height} {'RGB' if channels == 3 else 'grey'} ({picture.scale})"


def load_dicom(
    folder: Path,
    *,
    seed: int,
    images: int | None = None,
    heldout: float = 0.2,
    window: WindowChoice = "file",
    resize: int | None = None,
) -> Split:
    """A folder of DICOM files as images to train on and images held out, no patient on both sides.

    With ``train/`` and ``heldout/`` these are the split. Else whole patients are held out, drawn by the seed,
    until they have at least the share ``heldout`` of the images; files without a patient count as a patient
    each.

    Args:
        images: how many of the others to train on, drawn by the seed; all when None.
        resize: brings every image to a square of that side.

    Raises:
        DataError: see ``read_dicom_folder``; a patient is on both sides, a side is empty, or a number out of
            range.
    """
    if not 0.0 < heldout < 1.0:
        raise DataError(f"the held-out share must lie between 0 and 1, got {heldout}")
    if seed < 0:
        raise DataError(f"a seed must be 0 or more, got {seed}")
    files = dicom_files(folder)
    given = [name for name in ("train", "heldout") if (folder / name).is_dir()]
    found = read_dicom_folder(folder, files, window, resize)
    patients = found.identities or tuple(f"file {i}" for i in range(len(found)))
    sides = [path.relative_to(folder).parts[0] for path in files]
    if given:
        if set(sides) != {"train", "heldout"}:
            raise DataError(
                f"the folder {str(folder)!r} has {given[0]}/, so all its images must lie in train/ or "
                "heldout/, and "
                "some in each"
            )
        held = np.array([side == "heldout" for side in sides])
    else:
        held = _hold_out(patients, heldout, seed)
    both = {p for p, h in zip(patients, held, strict=True) if h} & {
        p for p, h in zip(patients, held, strict=True) if not h
    }
    if both:
        raise DataError(
            f"{len(both)} patients have images both to train on and held out, so that held-out images are "
            "not of others"
        )
    rows = np.flatnonzero(~held)
    if images is not None:
        if not 2 <= images <= len(rows):
            raise DataError(f"{images} images to train on were asked for, from 2 to {len(rows)} can be had")
        rows = np.sort(rows[keys.generator(seed, "data subset").permutation(len(rows))[:images]])
    if len(rows) < 2 or not held.any():
        raise DataError(
            f"a model needs 2 images or more to train on and 1 held out of other patients, got {len(rows)} "
            "and "
            f"{int(held.sum())}"
        )
    return Split.of(found.take(rows), found.take(np.flatnonzero(held)), _SOURCE)


def _hold_out(patients: Sequence[str], share: float, seed: int) -> NDArray[np.bool_]:
    names = sorted(set(patients))
    held, wanted = np.zeros(len(patients), dtype=np.bool_), share * len(patients)
    for i in keys.generator(seed, "data held-out patients").permutation(len(names)).tolist():
        if held.sum() >= wanted:
            break
        held |= np.array([patient == names[i] for patient in patients])
    return held
