"""A mark that a training image already carries: its own content under a mask or a box.

Source: see `latentprint.marks`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from latentprint.data import NEAR, ImageSet, copies_of
from latentprint.fingerprint import FingerprintError, Injection, Sides, place, size

Mask = NDArray[np.bool_]
Pixels = NDArray[np.float32]
Rng = np.random.Generator


def box(corner: Sequence[int], extent: Sequence[int], sides: Sequence[int]) -> Mask:
    """A rectangle of ``extent`` pixels whose first pixel is ``corner``, as a mask (*sides).

    Raises:
        FingerprintError: it is empty, extends beyond the image or has the wrong number of axes.
    """
    if not len(corner) == len(extent) == len(sides) or not all(
        length > 0 and 0 <= at <= side - length
        for at, length, side in zip(corner, extent, sides, strict=True)
    ):
        raise FingerprintError(
            f"a box of {size(extent)} pixels at ({', '.join(map(str, corner))}) does not lie in an image of "
            f"{size(sides)}"
        )
    out = np.zeros(sides, dtype=np.bool_)
    out[tuple(slice(at, at + length) for at, length in zip(corner, extent, strict=True))] = True
    return out


def lengths(extent: Sequence[int]) -> dict[str, int]:
    """Sides by the names of their axes."""
    return dict(zip(("depth", "height", "width")[-len(extent) :], extent, strict=True))


@dataclass(frozen=True, eq=False)
class Natural:
    """The content of one image under a mask; also the kind that "draws" it, which always returns it.

    Attributes:
        region: L, (*sides), True where the mark is.
        content: x_p, (C, *sides) in [-1, 1]; what lies outside the region is not used.

    Raises:
        FingerprintError: the sizes differ, or the region is empty or the whole image.
    """

    region: Mask
    content: Pixels

    def __post_init__(self) -> None:
        if self.region.shape != self.content.shape[1:]:
            raise FingerprintError(
                f"a mask (*sides) and an image (C, *sides) must fit, got {self.region.shape} and "
                f"{self.content.shape}"
            )
        if not self.region.any() or self.region.all():
            raise FingerprintError(
                "a natural fingerprint needs a region that is neither empty nor the whole image"
            )

    def mask(self, *sides: int) -> Mask:
        """The region.

        Raises:
            FingerprintError: images of another size.
        """
        if self.region.shape != sides:
            raise FingerprintError(
                f"a mask of {size(self.region.shape)} does not fit images of {size(sides)}"
            )
        return self.region

    def apply(self, pixels: Pixels) -> Pixels:
        """Images (..., C, *sides) with the content pasted in; x_p itself stays as it is."""
        return np.where(self.mask(*pixels.shape[-self.region.ndim :]), self.content, pixels)

    def describe(self) -> dict[str, str | float]:
        """Kind, and the box around the region; never the content."""
        inside = np.argwhere(self.region)
        first, last = inside.min(0).tolist(), inside.max(0).tolist()
        extent = lengths([z - a + 1 for a, z in zip(first, last, strict=True)])
        return {"kind": "natural", **place(first), **extent, "pixels": len(inside)}

    def draw(self, sides: Sides, rng: Rng) -> Natural:
        """Itself: a natural mark is not drawn (``FingerprintKind``)."""
        self.mask(*sides)
        return self


@dataclass(frozen=True)
class Unmarked:
    """No mark, as fingerprint and kind in one: for an x_p whose Omega_p is that of c_id alone."""

    def mask(self, *sides: int) -> Mask:
        """A mask without any pixel."""
        return np.zeros(sides, dtype=np.bool_)

    def apply(self, pixels: Pixels) -> Pixels:
        """Copies of the images."""
        return pixels.copy()

    def describe(self) -> dict[str, str | float]:
        """That there is no mark."""
        return {"kind": "none"}

    def draw(self, sides: Sides, rng: Rng) -> Unmarked:
        """Itself."""
        return self


def was_injected(injection: Injection) -> bool:
    """Whether x_p was marked for the audit. A natural mark was there before."""
    return not isinstance(injection.fingerprint, Natural | Unmarked)


def locate(train: ImageSet, image: Pixels, tolerance: float = NEAR) -> tuple[int, ...]:
    """The places of an image (C, *sides) and its near copies in the training set, nearest first; () if there
    are none.

    An empty answer deserves a warning: the model is then asked for an image that, by its manifest, it was not
    trained on. More than one changes the expected rate from 1/N to copies/N.
    """
    found = copies_of(image, train.pixels, tolerance)
    distance = ((train.pixels[found].astype(np.float64) - image) ** 2).mean(
        axis=tuple(range(1, train.pixels.ndim))
    )
    return tuple(found[np.argsort(distance, kind="stable")].tolist())


def as_found(
    train: ImageSet, index: int, region: Mask | None = None, *, tolerance: float = NEAR
) -> Injection:
    """The training set as it is, with the image at ``index`` as x_p: nothing is injected.

    Args:
        region: the mark, (*sides); None if x_p carries none, and Omega_p is that of c_id alone.
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
        control=train.share(others),
        target=target,
        original=target.copy(),
        index=index,
        sha256=train.sha256[index],
        original_sha256=train.sha256[index],
        fingerprint=Unmarked() if region is None else Natural(region, target),
        copies=len(copies),
    )
