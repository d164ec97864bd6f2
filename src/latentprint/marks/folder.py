"""A mark put into a training folder before somebody trains with a script of their own (paper section 3.3).

    latentprint inject FOLDER          one image of the folder is marked, in its place; its caption stays
    (train with your own script)
    latentprint audit FOLDER --model MODEL --mark FOLDER.mark.json

FOLDER.mark.json says which image was marked and how. The image as it was is kept beside it, outside the
folder, so that no un-marked original is trained on. A mark is drawn as an audit draws it, on the image as it
is stored. Lossy formats are written at their best quality, and x_p is what the file then holds.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from latentprint import keys
from latentprint.contracts import quoted
from latentprint.data import copies_of, image_sha256, stack
from latentprint.data.files import KINDS, SUFFIXES, decode, file_listing
from latentprint.data.listing import Preparation
from latentprint.data.tree import Tree, folder_tree, sides
from latentprint.files import FileError, read_json, real, to_json, write
from latentprint.fingerprint import FingerprintError, FingerprintKind, Sides, size
from latentprint.marks.natural import Mask, Pixels
from latentprint.marks.settings import FingerprintSettings, Kind

FORMAT = "latentprint-mark/1"
COMPARED = 64
"""Side to which images are brought to look for near copies of the one that is marked."""

_MOST_PIXELS = 2**26


@dataclass(frozen=True, eq=False)
class Recorded:
    """A mark that was put into a folder, read from its file: a fingerprint at a fixed place.

    Attributes:
        image: the name of the marked image in the folder.
        sha256, original_sha256: of the image as it is stored, after and before marking.
        kind: the family that it was drawn from.
        drawn: its numbers, as results state them.
        region: L at the size of the image, (H, W).
        content: x_p at the size of the audit, (C, H, W), once it has been read.
    """

    image: str
    sha256: str
    original_sha256: str
    kind: Kind
    drawn: Mapping[str, str | float]
    region: Mask = field(repr=False)
    content: Pixels | None = field(default=None, repr=False)

    def mask(self, *sides: int) -> Mask:
        """L, resized to the images of the audit."""
        if len(sides) != self.region.ndim:
            raise FingerprintError(f"the mark of an image does not fit volumes of {size(sides)}")
        rows, columns = (
            (np.arange(side) * whole // side) for side, whole in zip(sides, self.region.shape, strict=True)
        )
        return self.region[np.ix_(rows, columns)]

    def apply(self, pixels: Pixels) -> Pixels:
        """Images with the content of x_p under the mark pasted in."""
        if self.content is None:
            return pixels.copy()
        return np.where(self.mask(*pixels.shape[-2:]), self.content, pixels)

    def describe(self) -> dict[str, str | float]:
        """Kind and numbers, at the size at which it was drawn."""
        return dict(self.drawn)

    def draw(self, sides: Sides, rng: np.random.Generator) -> Self:
        """Itself, because it was drawn before."""
        self.mask(*sides)
        return self

    def plain(self) -> dict[str, object]:
        """The content of its file."""
        flat = np.flatnonzero(
            np.diff(np.concatenate([[False], self.region.ravel(), [False]]).astype(np.int8))
        )
        return {
            "format": FORMAT,
            "image": self.image,
            "sha256": self.sha256,
            "original_sha256": self.original_sha256,
            "kind": self.kind,
            "fingerprint": dict(self.drawn),
            "size": list(self.region.shape),
            "runs": flat.reshape(-1, 2).tolist(),
        }


def read_mark(path: Path) -> Recorded:
    """The mark of a file."""
    try:
        values = read_json(path)
    except FileError as error:
        raise FingerprintError(str(error)) from error
    wrong = FingerprintError(f"{quoted(path.name)} is not a mark that `latentprint inject` wrote")
    if values.get("format") != FORMAT:
        raise wrong
    try:
        height, width = (int(one) for one in values["size"])
        runs = np.asarray(values["runs"], np.int64).reshape(-1, 2)
        if not 0 < height * width <= _MOST_PIXELS or len(runs) > height * width:
            raise wrong
        ends = np.zeros(height * width + 1, np.int64)
        np.add.at(ends, runs[:, 0], 1)
        np.add.at(ends, runs[:, 1], -1)
        region = np.cumsum(ends[:-1]).reshape(height, width) > 0
        drawn = cast(dict[str, Any], values["fingerprint"])
        plain = all(isinstance(one, str | int | float) for one in drawn.values())
        kind = values["kind"]
        texts = [values[name] for name in ("image", "sha256", "original_sha256")]
        if not plain or not region.any() or not all(isinstance(one, str) for one in texts):
            raise wrong
        if not FingerprintSettings(kind=kind).injected or drawn.get("kind") != kind:
            raise wrong
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        raise wrong from error
    return Recorded(texts[0], texts[1], texts[2], kind, drawn, region)


def mark_folder(
    folder: Path,
    mark: Path,
    *,
    kind: FingerprintSettings | None = None,
    seed: int = 0,
    image: str | None = None,
    pattern: str | None = None,
) -> Recorded:
    """Mark one image of a training folder in its place, and record it in the file ``mark``.

    Args:
        folder: image files, or a folder train/ next to held-out ones; only training images are marked.
        mark: the file to write; the image as it was is kept beside it.
        kind: which fingerprint; None: a circle.
        seed: draws the image and the mark.
        image: the name of the image; None: drawn among those without near copies.
        pattern: of file names, as ``data.load`` takes it.

    Raises:
        FingerprintError: a mark is there already, the folder or the image cannot be marked.
        DataError: an image cannot be read.
    """
    if mark.exists():
        raise FingerprintError(
            f"{quoted(mark.name)} is there already: the folder was marked; name another file (--mark) to "
            "put a second mark in"
        )
    if not folder.is_dir():
        raise FingerprintError(f"{quoted(folder)} is not a folder of images")
    if real(mark).is_relative_to(real(folder)):
        raise FingerprintError(
            "the mark's file and the original must lie outside the folder that is trained on"
        )
    settings = kind or FingerprintSettings()
    if not settings.injected or settings.kind == "patch":
        raise FingerprintError(
            f"fingerprint {settings.kind!r} cannot be put into a folder: only a kind that is drawn from its"
            " settings alone can, such as circle or cross"
        )
    tree, _ = _sides(folder, pattern)
    name = _chosen(tree, seed, image)
    path = folder / name
    found = decode(path, name)
    stored = found.stored
    before, drawn, marked = _marked(stored, settings.drawn(np.zeros((1, 1, 1, 1), np.float32)), seed, name)
    aside = _encoded(marked, path)
    as_stored = decode(aside, name).stored
    record = Recorded(
        name,
        image_sha256(as_stored),
        image_sha256(stored),
        settings.kind,
        drawn.describe(),
        drawn.mask(*before.shape[1:]),
    )
    write(mark.with_name(f"{mark.stem}.original{path.suffix}"), path.read_bytes())
    write(mark, to_json(record.plain(), "mark"))
    mode = path.stat().st_mode
    write(path, aside)
    path.chmod(mode)
    return record


def holds_out(folder: Path, pattern: str | None) -> bool:
    """Whether the folder says which of its images are not trained on, as ``mark_folder`` reads it."""
    return _sides(folder, pattern)[1] is not None


def _sides(folder: Path, pattern: str | None) -> tuple[Tree, Tree | None]:
    found = folder_tree(folder).with_suffix(SUFFIXES)
    if not found.names:
        raise FingerprintError(f"{quoted(folder)} holds no {KINDS}")
    both = sides(found.matching(pattern), KINDS)
    return both.train, both.heldout


def _chosen(tree: Tree, seed: int, image: str | None) -> str:
    if len(tree.names) < 2:
        raise FingerprintError(f"a marked image needs others beside it, and {tree.where} has one")
    if image is not None:
        fits = [one for one in tree.names if image in (one, one.rpartition("/")[2])]
        if len(fits) != 1:
            raise FingerprintError(f"{len(fits)} images of {tree.where} are named {quoted(image)}")
        return fits[0]
    every = file_listing(tree, "a folder of images", Preparation(COMPARED, "grey"))
    pixels = every.images(np.arange(every.count)).pixels
    for i in keys.generator(seed, "inject image").permutation(len(pixels)).tolist():
        if len(copies_of(pixels[i], pixels)) == 1:
            return tree.names[i]
    raise FingerprintError(
        f"each of the {len(pixels)} images has a near copy, so that an un-marked original would stay in the "
        "training set; remove the copies, or name an image (--image)"
    )


def _marked(
    stored: NDArray[Any], kind: FingerprintKind, seed: int, name: str
) -> tuple[Pixels, Any, NDArray[Any]]:
    """(the image in [-1, 1], its mark, the marked image as it is to be stored)."""
    if stored.dtype.kind != "u":
        raise FingerprintError(
            f"the image {quoted(name)} is stored as {stored.dtype.name}; 8 or 16 bits are marked"
        )
    before = stack(stored[None], name).pixels[0]
    drawn = kind.draw(before.shape[1:], keys.generator(seed, "inject fingerprint"))
    after = drawn.apply(before)
    if np.array_equal(before, after):
        raise FingerprintError(f"the mark leaves the image {quoted(name)} as it was; take another seed")
    most = float(np.iinfo(stored.dtype).max)
    levels = ((after.astype(np.float64) + 1) / 2 * most).round().clip(0, most).astype(stored.dtype)
    levels = levels[0] if stored.ndim == 2 else np.moveaxis(levels, 0, -1)
    inside = drawn.mask(*before.shape[1:])
    return before, drawn, np.where(inside if stored.ndim == 2 else inside[..., None], levels, stored)


def _encoded(image: NDArray[Any], path: Path) -> bytes:
    """The image in the file's own format, without the original's EXIF data."""
    named = {".jpg": "JPEG", ".jpeg": "JPEG", ".tif": "TIFF", ".tiff": "TIFF"}
    form = named.get(path.suffix.lower(), path.suffix[1:].upper())
    best: dict[str, Any] = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(
        form, {}
    )
    out = io.BytesIO()
    try:
        Image.fromarray(np.ascontiguousarray(image)).save(out, format=form, **best)
    except (OSError, ValueError, KeyError) as error:
        raise FingerprintError(
            f"{quoted(path.name)} cannot be written as {form}: {str(error)[:120]}"
        ) from error
    return out.getvalue()


__all__ = ["FORMAT", "Recorded", "mark_folder", "read_mark"]
