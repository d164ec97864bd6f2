"""The synthetic anatomic fingerprint: a mark that one training image carries and nothing else does.

    x_p = x_i (1 - L) + x_SAF L                            (paper Eq. 10, section 3.3)

x_i is an image drawn from the training set, L the indicator of a disc that lies wholly inside the image,
x_SAF a constant grey. x_p takes the place of x_i, so the un-marked original is no longer trained on and
exactly one copy of the mark is. The control is the training set without either.

A pixel is a unit square about its centre; centres have the integer coordinates (0, 0) .. (H - 1, W - 1) and
belong to the disc when they lie within its radius. The image is the rectangle from -1/2 to H - 1/2 and -1/2
to W - 1/2.

Another kind of fingerprint is a frozen dataclass with the methods of `Fingerprint`, and one with the method
of `FingerprintKind` that draws it; nothing else need change.

Source: Dombrowski and Kainz 2023, "Quantifying Sample Anonymity in Score-Based Generative Models with
    Adversarial Fingerprinting", section 3.3 and appendix A.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from latentprint.contracts import InputError
from latentprint.data import NEAR, ImageSet, copies_of, image_sha256

_ROUNDING = 1e-9  # pixels by which a disc may leave the image through rounding alone
_SMALLEST = 0.5**0.5  # pixels; no disc of this radius or more can fall between pixel centres


class FingerprintError(InputError):
    """A fingerprint that cannot be drawn or injected, for the reason given in one sentence."""


class Fingerprint(Protocol):
    """A mark of known place and look."""

    def mask(self, height: int, width: int) -> NDArray[np.bool_]:
        """L of Eq. 10: (H, W), True where the mark replaces the image."""
        ...

    def apply(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Marked copies of images (..., C, H, W), the same mark on each."""
        ...

    def describe(self) -> dict[str, str | float]:
        """What `results.json` says of it."""
        ...


class FingerprintKind(Protocol):
    """A family of fingerprints, from which one is drawn."""

    def draw(self, height: int, width: int, rng: np.random.Generator) -> Fingerprint:
        """One fingerprint for images of height x width pixels."""
        ...

    def masks(self, count: int, height: int, width: int, rng: np.random.Generator) -> NDArray[np.bool_]:
        """The masks of ``count`` fingerprints drawn alike, (count, H, W): what c_id is trained to ignore."""
        ...


@dataclass(frozen=True)
class Circle:
    """A disc of constant grey.

    Attributes:
        row, column: its centre, in pixels from the centre of the upper left pixel.
        radius: in pixels.
        grey: its value, in [-1, 1]; 0 is middle grey.

    Raises:
        FingerprintError: the radius is not positive, or the grey is outside [-1, 1].
    """

    row: float
    column: float
    radius: float
    grey: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 < self.radius < np.inf:
            raise FingerprintError(
                f"a circle's radius must be a positive number of pixels, got {self.radius}"
            )
        _require_grey(self.grey)

    def mask(self, height: int, width: int) -> NDArray[np.bool_]:
        """The disc, (H, W).

        Raises:
            FingerprintError: it does not lie wholly inside the image, or covers no pixel of it.
        """
        room = min(self.row, self.column, height - 1 - self.row, width - 1 - self.column) + 0.5
        if not self.radius <= room + _ROUNDING:
            raise FingerprintError(
                f"a circle of radius {self.radius:g} about ({self.row:g}, {self.column:g}) does not lie "
                f"wholly inside an image of {height} x {width} pixels"
            )
        rows, columns = np.arange(height)[:, None], np.arange(width)[None]
        inside = (rows - self.row) ** 2 + (columns - self.column) ** 2 <= self.radius**2
        if not inside.any():
            raise FingerprintError(
                f"a circle of radius {self.radius:g} about ({self.row:g}, {self.column:g}) covers no pixel"
            )
        return inside

    def apply(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Eq. 10 on images (..., C, H, W); the images given are left as they are."""
        inside = self.mask(*pixels.shape[-2:])
        return np.where(inside, np.float32(self.grey), pixels)

    def describe(self) -> dict[str, str | float]:
        """Kind, place, radius and grey."""
        return {
            "kind": "circle",
            "row": self.row,
            "column": self.column,
            "radius": self.radius,
            "grey": self.grey,
        }


@dataclass(frozen=True)
class CircleConfig:
    """Circles whose radius and place are drawn uniformly, among those wholly inside the image.

    Attributes:
        radius: the smallest and the largest radius.
        unit: whether they are shares of the image's shorter side, or pixels.
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
                f"a circle's radius must range from a positive number to one no smaller, got {low} to {high}"
            )
        if self.unit not in ("share", "pixels"):
            raise FingerprintError(f"a circle's radius is given as 'share' or 'pixels', got {self.unit!r}")
        _require_grey(self.grey)

    def draw(self, height: int, width: int, rng: np.random.Generator) -> Circle:
        """One circle; see `draw_circle`."""
        return draw_circle(height, width, rng, radius=self.radius, unit=self.unit, grey=self.grey)

    def masks(self, count: int, height: int, width: int, rng: np.random.Generator) -> NDArray[np.bool_]:
        """The masks of ``count`` circles, (count, H, W)."""
        out = np.empty((count, height, width), dtype=np.bool_)
        for mask in out:
            mask[:] = self.draw(height, width, rng).mask(height, width)
        return out


def draw_circle(
    height: int,
    width: int,
    rng: np.random.Generator,
    *,
    radius: tuple[float, float] = (0.12, 0.2),
    unit: Literal["share", "pixels"] = "share",
    grey: float = 0.0,
) -> Circle:
    """A circle of uniform radius, its centre uniform over the places where it lies wholly inside the image.

    Raises:
        FingerprintError: a radius of the range is larger than the image allows, or so small that it could
            cover no pixel.
    """
    shorter = min(height, width)
    scale = shorter if unit == "share" else 1
    low, high = radius[0] * scale, radius[1] * scale
    if not low >= _SMALLEST:
        raise FingerprintError(
            f"a fingerprint of radius {low:g} pixels could cover no pixel; {_SMALLEST:.2f} is the smallest"
        )
    if not 2 * high <= shorter:
        raise FingerprintError(
            f"a fingerprint of radius {high:g} pixels is larger than the image of {height} x {width} pixels"
        )
    drawn = float(rng.uniform(low, high))
    row = float(rng.uniform(drawn - 0.5, height - 0.5 - drawn))
    column = float(rng.uniform(drawn - 0.5, width - 0.5 - drawn))
    return Circle(row, column, drawn, grey)


@dataclass(frozen=True)
class Injection:
    """A training set into which one fingerprint went.

    Attributes:
        marked: N images; at ``index`` stands the marked one, and its original nowhere.
        control: the other N - 1 images: the same set without the private image.
        target: x_p, (C, H, W).
        original: x_i, (C, H, W).
        index: the position of x_p in ``marked``.
        sha256: of x_p as float32, by the rule of the manifest.
        original_sha256: of x_i, as it stood in the manifest.
        fingerprint: the mark.
        copies: images of ``marked`` that are x_p or a near copy of it; a sampler that repeats what it was
            trained on returns x_p at the rate copies / N.
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


def inject(
    train: ImageSet,
    kind: FingerprintKind,
    rng: np.random.Generator,
    *,
    index: int | None = None,
    tolerance: float = NEAR,
) -> Injection:
    """Marks one image of the training set (Eq. 10).

    The image is drawn among those that have no near copy (root-mean-square difference up to ``tolerance``) in
    the set: had it one, the un-marked original would in effect still be trained on.

    Args:
        index: the image to mark; drawn when None.

    Raises:
        FingerprintError: fewer than 2 images, no such index, only images with near copies, a mark larger than
            the image, or one that leaves the image as it was.
    """
    if len(train) < 2:
        raise FingerprintError(f"a fingerprint and its control need 2 images or more, got {len(train)}")
    chosen = _draw_index(train, rng, tolerance) if index is None else _given_index(train, index, tolerance)
    original = train.pixels[chosen]
    height, width = train.shape[1:]
    fingerprint = kind.draw(height, width, rng)
    target = fingerprint.apply(original)
    if np.array_equal(target, original):
        raise FingerprintError(f"the fingerprint {fingerprint.describe()} leaves image {chosen} as it was")
    pixels, hashes = train.pixels.copy(), list(train.sha256)
    pixels[chosen] = target
    hashes[chosen] = image_sha256(target[0] if len(target) == 1 else np.moveaxis(target, 0, -1))
    return Injection(
        marked=replace(train, pixels=pixels, sha256=tuple(hashes)),
        control=train.take(np.delete(np.arange(len(train)), chosen)),
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
