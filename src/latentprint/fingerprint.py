"""The synthetic anatomic fingerprint: a mark that one training image carries, and no other image.

    x_p = x_i (1 - L) + x_SAF L                            (paper Eq. 10, section 3.3)

x_i is an image drawn from the training set, L the indicator of a disc (in a volume of a ball) that lies
wholly inside the image, x_SAF a constant grey. x_p replaces x_i, so the unmarked original is no longer
trained on, and the mark occurs in exactly one training image. The control is the training set without either.

A pixel is a unit square about its centre, a voxel a unit cube; centres have integer coordinates from 0 to the
side minus 1 along each axis, and belong to the disc if they lie within its radius. The image reaches from
-1/2 to the side minus 1/2. Everything here holds for sides (H, W) and (D, H, W).

Another kind of fingerprint is a frozen dataclass with the methods of `Fingerprint`, and one with the method
of `FingerprintKind` that draws it. Nothing else needs to change.

Source: Dombrowski and Kainz 2023, "Quantifying Sample Anonymity in Score-Based Generative Models with
    Adversarial Fingerprinting", section 3.3 and appendix A.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from latentprint.contracts import InputError
from latentprint.data import NEAR, ImageSet, copies_of, image_sha256
from latentprint.data.images import Selection

_ROUNDING = 1e-9  # pixels by which a disc may extend beyond the image through rounding


class FingerprintError(InputError):
    """A fingerprint that cannot be drawn or injected, with the reason in one sentence."""


Sides = tuple[int, ...]
"""(H, W) of an image, (D, H, W) of a volume."""


class Fingerprint(Protocol):
    """A mark with a known place and look."""

    def mask(self, *sides: int) -> NDArray[np.bool_]:
        """L of Eq. 10: (*sides), True where the mark replaces the image."""
        ...

    def apply(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Marked copies of images (..., C, *sides), the same mark on each."""
        ...

    def describe(self) -> dict[str, str | float]:
        """What `results.json` says about it."""
        ...


class FingerprintKind(Protocol):
    """A family of fingerprints, from which one is drawn."""

    def draw(self, sides: Sides, rng: np.random.Generator) -> Fingerprint:
        """One fingerprint for images of these sides."""
        ...


def place(at: Sequence[float], what: str = "") -> dict[str, float]:
    """A place (row, column) or (slice, row, column) by the names of its axes, ``what`` before each."""
    return {what + axis: one for axis, one in zip(("slice", "row", "column")[-len(at) :], at, strict=True)}


def size(sides: Sequence[int]) -> str:
    """Sides for a sentence: "28 x 28"."""
    return " x ".join(map(str, sides))


@dataclass(frozen=True)
class Circle:
    """A disc of constant grey; in volumes a ball.

    Attributes:
        centre: (row, column) or (slice, row, column), in pixels from the centre of the first pixel.
        radius: in pixels.
        grey: its value, in [-1, 1]; 0 is middle grey.

    Raises:
        FingerprintError: the radius is not positive, or the grey is outside [-1, 1].
    """

    centre: tuple[float, ...]
    radius: float
    grey: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 < self.radius < np.inf:
            raise FingerprintError(
                f"a circle's radius must be a positive number of pixels, got {self.radius}"
            )
        _require_grey(self.grey)

    def mask(self, *sides: int) -> NDArray[np.bool_]:
        """The disc or ball.

        Raises:
            FingerprintError: it does not lie wholly inside the image, or covers no pixel of it.
        """
        room = min(min(at, side - 1 - at) for at, side in zip(self.centre, sides, strict=True)) + 0.5
        about = f"a circle of radius {self.radius:g} about ({', '.join(f'{at:g}' for at in self.centre)})"
        if not self.radius <= room + _ROUNDING:
            raise FingerprintError(f"{about} does not lie wholly inside an image of {size(sides)} pixels")
        apart = ((at - c) ** 2 for at, c in zip(np.ogrid[*map(slice, sides)], self.centre, strict=True))
        inside = sum(apart, np.zeros(sides)) <= self.radius**2
        if not inside.any():
            raise FingerprintError(f"{about} covers no pixel")
        return inside

    def apply(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Eq. 10 on images (..., C, *sides); the given images are not changed."""
        inside = self.mask(*pixels.shape[-len(self.centre) :])
        return np.where(inside, np.float32(self.grey), pixels)

    def describe(self) -> dict[str, str | float]:
        """Kind, place, radius and grey."""
        return {"kind": "circle", **place(self.centre), "radius": self.radius, "grey": self.grey}


@dataclass(frozen=True)
class CircleConfig:
    """Circles whose radius and place are drawn uniformly, among those wholly inside the image.

    Attributes:
        radius: the smallest and the largest radius.
        unit: whether they are shares of the image's shortest side, or pixels.
        grey: the value of the disc, in [-1, 1].

    Raises:
        FingerprintError: the radii are not positive and rising, or the grey is outside [-1, 1].
    """

    radius: tuple[float, float] = (0.12, 0.2)
    unit: Literal["share", "pixels"] = "share"
    grey: float = 0.0

    def __post_init__(self) -> None:
        low, high = self.radius
        if not 0.0 < low <= high < np.inf:
            raise FingerprintError(
                f"a circle's radii must be positive and must not fall, got {low} to {high}"
            )
        if self.unit not in ("share", "pixels"):
            raise FingerprintError(f"a circle's radius is given as 'share' or 'pixels', got {self.unit!r}")
        _require_grey(self.grey)

    def draw(self, sides: Sides, rng: np.random.Generator) -> Circle:
        """A circle of uniform radius, its centre uniform over where it lies wholly inside the image.

        Raises:
            FingerprintError: a radius of the range is larger than the image allows, or so small that it could
                cover no pixel.
        """
        scale = min(sides) if self.unit == "share" else 1
        low, high = self.radius[0] * scale, self.radius[1] * scale
        least = len(sides) ** 0.5 / 2  # a disc of this radius or more cannot fall between pixel centres
        if not low >= least:
            raise FingerprintError(
                f"a fingerprint of radius {low:g} pixels could cover no pixel; {least:.2f} is the smallest"
            )
        if not 2 * high <= min(sides):
            raise FingerprintError(
                f"a fingerprint of radius {high:g} pixels is larger than the image of {size(sides)} pixels"
            )
        drawn = float(rng.uniform(low, high))
        centre = tuple(float(rng.uniform(drawn - 0.5, side - 0.5 - drawn)) for side in sides)
        return Circle(centre, drawn, self.grey)


@dataclass(frozen=True)
class Injection:
    """A training set with one fingerprint in it.

    Attributes:
        marked: N images; the one at ``index`` is marked, and its original is not among them.
        control: the other N - 1 images, the same set without the private image; it shares their pixels.
        target: x_p, (C, *sides).
        original: x_i, (C, *sides).
        index: the position of x_p in ``marked``.
        sha256: of x_p as float32, by the rule of the manifest.
        original_sha256: of x_i, as in the manifest.
        fingerprint: the mark.
        copies: images of ``marked`` that are x_p or a near copy of it; a sampler that repeats its training
            images returns x_p at the rate copies / N.
    """

    marked: ImageSet
    control: ImageSet
    target: NDArray[np.float32]
    original: NDArray[np.float32]
    index: int
    sha256: str
    original_sha256: str
    fingerprint: Fingerprint
    copies: int

    @property
    def unmarked(self) -> ImageSet:
        """All N images with x_i in place of x_p; they share their pixels with ``marked``."""
        rows = np.arange(len(self.marked))
        rows[self.index] = len(rows)
        pixels = Selection.of(self.marked.pixels, self.original[None]).take(rows)
        hashes = [*self.marked.sha256]
        hashes[self.index] = self.original_sha256
        return replace(self.marked, pixels=pixels, sha256=tuple(hashes))


def inject(
    train: ImageSet,
    kind: FingerprintKind,
    rng: np.random.Generator,
    *,
    index: int | None = None,
    tolerance: float = NEAR,
) -> Injection:
    """Mark one image of the training set (Eq. 10).

    The image is drawn among those that have no near copy (root-mean-square difference up to ``tolerance``) in
    the set. If it had one, the unmarked original would in effect still be trained on.

    Args:
        index: the image to mark; drawn when None.

    Raises:
        FingerprintError: fewer than 2 images, no such index, only images with near copies, a mark larger than
            the image, or one that does not change the image.
    """
    if len(train) < 2:
        raise FingerprintError(f"a fingerprint and its control need 2 images or more, got {len(train)}")
    chosen = _draw_index(train, rng, tolerance) if index is None else _given_index(train, index, tolerance)
    original = train.pixels[chosen]
    fingerprint = kind.draw(train.shape[1:], rng)
    target = fingerprint.apply(original)
    if np.array_equal(target, original):
        raise FingerprintError(f"the fingerprint {fingerprint.describe()} leaves image {chosen} as it was")
    pixels, hashes = np.array(train.pixels), list(train.sha256)
    pixels[chosen] = target
    hashes[chosen] = image_sha256(target[0] if len(target) == 1 else np.moveaxis(target, 0, -1))
    marked = replace(train, pixels=pixels, sha256=tuple(hashes))
    return Injection(
        marked=marked,
        control=marked.share(np.delete(np.arange(len(train)), chosen)),
        target=target,
        original=original.copy(),
        index=chosen,
        sha256=hashes[chosen],
        original_sha256=train.sha256[chosen],
        fingerprint=fingerprint,
        copies=len(copies_of(target, pixels, tolerance)),
    )


def _draw_index(train: ImageSet, rng: np.random.Generator, tolerance: float) -> int:
    for candidate in rng.permutation(len(train)).tolist():
        if len(copies_of(train.pixels[candidate], train.pixels, tolerance)) == 1:
            return candidate
    raise FingerprintError(
        f"each of the {len(train)} images has a near copy within {tolerance:g}, so no un-marked original "
        "could leave the training set; remove the copies or lower the tolerance"
    )


def _given_index(train: ImageSet, index: int, tolerance: float) -> int:
    if not 0 <= index < len(train):
        raise FingerprintError(f"there is no image {index} among {len(train)}")
    copies = copies_of(train.pixels[index], train.pixels, tolerance).tolist()
    if others := [i for i in copies if i != index]:
        raise FingerprintError(
            f"image {index} has near copies within {tolerance:g} (image {others[0]} for one), so that its "
            "un-marked original would stay in the training set; remove them or choose another image"
        )
    return index


def _require_grey(grey: float) -> None:
    if not -1.0 <= grey <= 1.0:
        raise FingerprintError(f"a circle's grey must lie in [-1, 1], got {grey}")
