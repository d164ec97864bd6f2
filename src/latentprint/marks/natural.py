"""A mark that an image of the training set carries already: its own content under a mask or a box.

Source: see `latentprint.marks`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from latentprint.data import NEAR, ImageSet, copies_of
from latentprint.fingerprint import FingerprintError, Injection

Mask = NDArray[np.bool_]
Pixels = NDArray[np.float32]
Rng = np.random.Generator


def box(row: int, column: int, high: int, wide: int, height: int, width: int) -> Mask:
    """A rectangle of high x wide pixels with its upper left pixel at (row, column), as a mask (height,
    width).

    Raises:
        FingerprintError: it is empty or leaves the image.
    """
    if min(high, wide) < 1 or row < 0 or column < 0 or row + high > height or column + wide > width:
        raise FingerprintError(
            f"a box of {high} x {wide} pixels at ({row}, {column}) does not lie in an image of {height} x "
            f"{width}"
        )
    out = np.zeros((height, width), dtype=np.bool_)
    out[row : row + high, column : column + wide] = True
    return out


@dataclass(frozen=True, eq=False)
class Natural:
    """The content of one image under a mask; also the kind that "draws" it, always the same.

    Attributes:
        region: L, (H, W), True where the mark is.
        content: x_p, (C, H, W) in [-1, 1]; what lies outside the region is not used.

    Raises:
        FingerprintError: the sizes differ, or the region is empty or the whole image.
    """

    region: Mask
    content: Pixels

    def __post_init__(self) -> None:
        if self.content.ndim != 3 or self.region.shape != self.content.shape[1:]:
            raise FingerprintError(
                f"a mask (H, W) and an image (C, H, W) must fit, got {self.region.shape} and "
                f"{self.content.shape}"
            )
        if not self.region.any() or self.region.all():
            raise FingerprintError(
                "a natural fingerprint needs a region that is neither empty nor the whole image"
            )

    def mask(self, height: int, width: int) -> Mask:
        """The region.

        Raises:
            FingerprintError: images of another size.
        """
        if self.region.shape != (height, width):
            raise FingerprintError(f"a mask of {self.region.shape} does not fit images of {height} x {width}")
        return self.region

    def apply(self, pixels: Pixels) -> Pixels:
        """Images (..., C, H, W) with the content pasted in; x_p itself stays as it is."""
        return np.where(self.mask(*pixels.shape[-2:]), self.content, pixels)

    def describe(self) -> dict[str, str | float]:
        """Kind, and the box around the region; never the content."""
        rows, columns = np.flatnonzero(self.region.any(1)), np.flatnonzero(self.region.any(0))
        return {
            "kind": "natural",
            "row": int(rows[0]),
            "column": int(columns[0]),
            "height": int(rows[-1] - rows[0] + 1),
            "width": int(columns[-1] - columns[0] + 1),
            "pixels": int(self.region.sum()),
        }

    def draw(self, height: int, width: int, rng: Rng) -> Natural:
        """Itself: a natural mark is not drawn (``FingerprintKind``)."""
        self.mask(height, width)
        return self

    def masks(self, count: int, height: int, width: int, rng: Rng) -> Mask:
        """(count, H, W): the region at places drawn uniformly where it lies wholly inside the image."""
        region = self.mask(height, width)
        rows, columns = np.flatnonzero(region.any(1)), np.flatnonzero(region.any(0))
        piece = region[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        out = np.zeros((count, height, width), dtype=np.bool_)
        for mask in out:
            row = int(rng.integers(height - len(piece) + 1))
            column = int(rng.integers(width - piece.shape[1] + 1))
            mask[row : row + len(piece), column : column + piece.shape[1]] = piece
        return out


@dataclass(frozen=True)
class Unmarked:
    """No mark, as fingerprint and kind in one: that of an x_p whose Omega_p is that of c_id alone."""

    def mask(self, height: int, width: int) -> Mask:
        """Nowhere."""
        return np.zeros((height, width), dtype=np.bool_)

    def apply(self, pixels: Pixels) -> Pixels:
        """Copies of the images."""
        return pixels.copy()

    def describe(self) -> dict[str, str | float]:
        """That there is none."""
        return {"kind": "none"}

    def draw(self, height: int, width: int, rng: Rng) -> Unmarked:
        """Itself."""
        return self

    def masks(self, count: int, height: int, width: int, rng: Rng) -> Mask:
        """(count, H, W), nowhere True."""
        return np.zeros((count, height, width), dtype=np.bool_)


def was_injected(injection: Injection) -> bool:
    """Whether x_p was marked for the audit; a natural mark was there before, and none is none."""
    return not isinstance(injection.fingerprint, Natural | Unmarked)


def locate(train: ImageSet, image: Pixels, tolerance: float = NEAR) -> tuple[int, ...]:
    """Where an image (C, H, W) and its near copies are in the training set, nearest first; () when nowhere.

    An empty answer deserves a warning: then the model is asked whether it returns an image that, by its
    manifest, it was not trained on. More than one changes the expected rate from 1/N to copies/N.
    """
    found = copies_of(image, train.pixels, tolerance)
    distance = ((train.pixels[found].astype(np.float64) - image) ** 2).mean(axis=(1, 2, 3))
    return tuple(found[np.argsort(distance, kind="stable")].tolist())


def as_found(
    train: ImageSet, index: int, region: Mask | None = None, *, tolerance: float = NEAR
) -> Injection:
    """The training set as it is, with the image at ``index`` as x_p: nothing is injected.

    Args:
        region: the mark, (H, W); None where x_p carries none, and Omega_p is that of c_id alone.
        tolerance: root-mean-square difference up to which images count as copies of x_p. The control leaves
            out all of them; other images of the same patient stay.

    Raises:
        FingerprintError: no such image, a region of another size, empty or whole, or only copies of x_p.
    """
    if not 0 <= index < len(train):
        raise FingerprintError(f"there is no image {index} among {len(train)}")
    target = train.pixels[index].copy()
    copies = copies_of(target, train.pixels, tolerance)
    others = np.setdiff1d(np.arange(len(train)), copies)
    if len(others) == 0:
        raise FingerprintError(f"all {len(train)} images are copies of image {index}, so there is no control")
    return Injection(
        marked=train,
        control=train.take(others),
        target=target,
        original=target.copy(),
        index=index,
        sha256=train.sha256[index],
        original_sha256=train.sha256[index],
        fingerprint=Unmarked() if region is None else Natural(region, target),
        copies=len(copies),
    )
