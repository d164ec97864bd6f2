"""Marks that are drawn: cross, box, text, lead and patch, each a frozen `Fingerprint`.

Source: see `latentprint.marks`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from latentprint.fingerprint import FingerprintError, place, size
from latentprint.marks.natural import Mask, Pixels, box, lengths

# fmt: off
GLYPHS: dict[str, str] = {
    "A": "25755", "B": "65656", "C": "34443", "D": "65556", "E": "74647", "F": "74644",
    "G": "34553", "H": "55755", "I": "72227", "J": "11152", "K": "55655", "L": "44447",
    "M": "57755", "N": "65555", "O": "25552", "P": "65644", "Q": "25563", "R": "65655",
    "S": "34216", "T": "72222", "U": "55557", "V": "55552", "W": "55775", "X": "55255",
    "Y": "55222", "Z": "71247", "0": "75557", "1": "26227", "2": "61247", "3": "61216",
    "4": "55711", "5": "74616", "6": "34652", "7": "71222", "8": "25252", "9": "25316",
    "-": "00700", ".": "00002", "/": "11244", " ": "00000",
}
# fmt: on
"""Each letter as five rows from the top, each row as the number whose three bits are its pixels."""


def _painted(mask: Mask, grey: float, pixels: Pixels) -> Pixels:
    """Eq. 10 on images (..., C, *sides); the given images are not changed."""
    return np.where(mask, np.float32(grey), pixels)


def _require_grey(grey: float) -> None:
    if not -1.0 <= grey <= 1.0:
        raise FingerprintError(f"a mark's grey must lie in [-1, 1], got {grey}")


@dataclass(frozen=True)
class Cross:
    """A bar of constant grey along each axis through one pixel, of ``2 reach + 1`` by ``2 half + 1`` pixels.

    Raises:
        FingerprintError: a number is negative, the bars are wider than long, or the grey is outside [-1, 1].
    """

    centre: tuple[int, ...]
    reach: int
    half: int = 0
    grey: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.half < self.reach:
            raise FingerprintError(f"a cross needs bars longer than wide, got {self.reach} and {self.half}")
        _require_grey(self.grey)

    def mask(self, *sides: int) -> Mask:
        """The cross.

        Raises:
            FingerprintError: it does not lie wholly inside the image.
        """
        if not all(self.reach <= at < side - self.reach for at, side in zip(self.centre, sides, strict=True)):
            raise FingerprintError(f"the cross {self.describe()} leaves an image of {size(sides)} pixels")
        apart = [abs(at - c) for at, c in zip(np.ogrid[*map(slice, sides)], self.centre, strict=True)]
        out = np.zeros(sides, dtype=np.bool_)
        for along in range(len(sides)):
            bar = np.ones(sides, dtype=np.bool_)
            for axis, away in enumerate(apart):
                bar &= away <= (self.reach if axis == along else self.half)
            out |= bar
        return out

    def apply(self, pixels: Pixels) -> Pixels:
        """Marked copies of images (..., C, *sides)."""
        return _painted(self.mask(*pixels.shape[-len(self.centre) :]), self.grey, pixels)

    def describe(self) -> dict[str, str | float]:
        """Kind, place, size and grey."""
        return {
            "kind": "cross",
            **place(self.centre),
            "reach": self.reach,
            "half": self.half,
            "grey": self.grey,
        }


@dataclass(frozen=True)
class Box:
    """A rectangle of constant grey, in volumes a cuboid.

    Attributes:
        corner: its first pixel.
        extent: in pixels along each axis.
        grey: in [-1, 1].

    Raises:
        FingerprintError: the grey is outside [-1, 1].
    """

    corner: tuple[int, ...]
    extent: tuple[int, ...]
    grey: float = 1.0

    def __post_init__(self) -> None:
        _require_grey(self.grey)

    def mask(self, *sides: int) -> Mask:
        """The box.

        Raises:
            FingerprintError: it is empty or does not lie wholly inside the image.
        """
        return box(self.corner, self.extent, sides)

    def apply(self, pixels: Pixels) -> Pixels:
        """Marked copies of images (..., C, *sides)."""
        return _painted(self.mask(*pixels.shape[-len(self.corner) :]), self.grey, pixels)

    def describe(self) -> dict[str, str | float]:
        """Kind, place, size and grey."""
        return {"kind": "box", **place(self.corner), **lengths(self.extent), "grey": self.grey}


@dataclass(frozen=True)
class Text:
    """Capital letters, digits and ``- . /``, each pixel of a letter a square of ``scale`` pixels.

    In a volume they are in every slice, like a name that was burnt into a series.

    Attributes:
        text: what is written.
        row, column: its upper left pixel.
        scale: pixels per pixel of the letters.
        grey: of the letters, in [-1, 1].

    Raises:
        FingerprintError: no text, a letter that is not in GLYPHS, a scale below 1, or a grey outside [-1, 1].
    """

    text: str
    row: int = 0
    column: int = 0
    scale: int = 1
    grey: float = 1.0

    def __post_init__(self) -> None:
        if not self.text.strip() or set(self.text) - set(GLYPHS):
            raise FingerprintError(f"a text is made of {''.join(GLYPHS)!r}, got {self.text[:40]!r}")
        if self.scale < 1:
            raise FingerprintError(f"a text's scale must be 1 or more, got {self.scale}")
        _require_grey(self.grey)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels: letters of 5 x 3 with one column between them."""
        return 5 * self.scale, (4 * len(self.text) - 1) * self.scale

    def mask(self, *sides: int) -> Mask:
        """The letters.

        Raises:
            FingerprintError: they do not lie wholly inside the image.
        """
        (high, wide), (height, width) = self.size, sides[-2:]
        if not (0 <= self.row <= height - high and 0 <= self.column <= width - wide):
            raise FingerprintError(
                f"the text {self.text!r} of {high} x {wide} pixels at ({self.row}, {self.column}) leaves an "
                f"image of {height} x {width} pixels"
            )
        bits = np.zeros((5, 4 * len(self.text)), dtype=np.bool_)
        for i, letter in enumerate(self.text):
            rows = np.array([int(digit) for digit in GLYPHS[letter]])
            bits[:, 4 * i : 4 * i + 3] = rows[:, None] & np.array([4, 2, 1])
        out = np.zeros((height, width), dtype=np.bool_)
        large = bits[:, :-1].repeat(self.scale, 0).repeat(self.scale, 1)
        out[self.row : self.row + high, self.column : self.column + wide] = large
        return np.broadcast_to(out, sides)

    def apply(self, pixels: Pixels) -> Pixels:
        """Marked copies of images (..., C, *sides)."""
        return _painted(self.mask(*pixels.shape[-2:]), self.grey, pixels)

    def describe(self) -> dict[str, str | float]:
        """Kind, text, place, scale and grey."""
        place = {"row": self.row, "column": self.column, "scale": self.scale}
        return {"kind": "text", "text": self.text, **place, "grey": self.grey}


_SEGMENTS = 48  # of the curve; their corners are far below a pixel


@dataclass(frozen=True)
class Lead:
    """A cubic Bezier curve of constant grey: pixels whose centres are within half its width.

    In a volume it is a bent rod.

    Attributes:
        points: the four control points, (row, column) or (slice, row, column) each; the curve goes from the
            first to the last.
        width: in pixels.
        grey: in [-1, 1].

    Raises:
        FingerprintError: the width is below 1, a point is not finite, or the grey is outside [-1, 1].
    """

    points: tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...], tuple[float, ...]]
    width: float = 1.5
    grey: float = 1.0

    def __post_init__(self) -> None:
        if not 1.0 <= self.width < np.inf or not np.isfinite(np.asarray(self.points)).all():
            raise FingerprintError(f"a lead needs finite points and a width of 1 or more, got {self}")
        _require_grey(self.grey)

    def mask(self, *sides: int) -> Mask:
        """The line.

        Raises:
            FingerprintError: a control point lies outside the image.
        """
        points = np.asarray(self.points, dtype=np.float64)
        if not ((points >= 0).all() and (points <= np.asarray(sides) - 1).all()):
            raise FingerprintError(
                f"a lead's points must lie in the image of {size(sides)}, got {points.tolist()}"
            )
        s = np.linspace(0.0, 1.0, _SEGMENTS + 1)[:, None]
        weights = np.concatenate([(1 - s) ** 3, 3 * s * (1 - s) ** 2, 3 * s**2 * (1 - s), s**3], axis=1)
        curve = weights @ points
        at = np.stack(np.meshgrid(*map(np.arange, sides), indexing="ij"), -1)
        distance2 = np.full(sides, np.inf)
        for begin, step in zip(curve[:-1], np.diff(curve, axis=0), strict=True):  # one by one, to save memory
            length2 = max(float(step @ step), float(np.finfo(np.float64).tiny))
            share = np.clip((at - begin) @ step / length2, 0.0, 1.0)
            np.minimum(distance2, ((at - begin - share[..., None] * step) ** 2).sum(-1), out=distance2)
        return distance2 <= (self.width / 2) ** 2

    def apply(self, pixels: Pixels) -> Pixels:
        """Marked copies of images (..., C, *sides)."""
        return _painted(self.mask(*pixels.shape[-len(self.points[0]) :]), self.grey, pixels)

    def describe(self) -> dict[str, str | float]:
        """Kind, width, grey and the two ends."""
        ends = place(self.points[0]) | place(self.points[-1], "last_")
        return {"kind": "lead", **ends, "width": self.width, "grey": self.grey}


@dataclass(frozen=True, eq=False)
class Patch:
    """A piece of another image: x (1 - a) + a y in a rectangle, in volumes a cuboid.

    Attributes:
        content: y, (C, *extent) in [-1, 1].
        corner: its first pixel.
        opacity: a, in (0, 1].

    Raises:
        FingerprintError: no pixels, values outside [-1, 1], or an opacity outside (0, 1].
    """

    content: Pixels
    corner: tuple[int, ...]
    opacity: float = 1.0

    def __post_init__(self) -> None:
        fits = self.content.ndim == 1 + len(self.corner) and 0 not in self.content.shape
        if not fits or not np.abs(self.content).max() <= 1:
            raise FingerprintError(
                f"a patch needs pixels (C, h, w) in [-1, 1], got an array of shape {self.content.shape}"
            )
        if not 0.0 < self.opacity <= 1.0:
            raise FingerprintError(f"a patch's opacity must lie in (0, 1], got {self.opacity}")

    def mask(self, *sides: int) -> Mask:
        """The rectangle.

        Raises:
            FingerprintError: it does not lie wholly inside the image.
        """
        return box(self.corner, self.content.shape[1:], sides)

    def apply(self, pixels: Pixels) -> Pixels:
        """Marked copies of images (..., C, *sides).

        Raises:
            FingerprintError: the images have a different number of channels than the patch.
        """
        channels, *sides = pixels.shape[-self.content.ndim :]
        inside = self.mask(*sides)
        if channels != len(self.content):
            raise FingerprintError(
                f"a patch of {len(self.content)} channels cannot be put into images of {channels}"
            )
        full = np.zeros((len(self.content), *inside.shape), dtype=np.float32)
        full[:, inside] = self.content.reshape(len(self.content), -1)
        share = np.float32(self.opacity) * inside.astype(np.float32)
        return np.asarray(pixels * (1 - share) + full * share, dtype=np.float32)

    def describe(self) -> dict[str, str | float]:
        """Kind, place, size and opacity. The content is left out, because it is a piece of somebody's
        image."""
        extent = lengths(self.content.shape[1:])
        return {"kind": "patch", **place(self.corner), **extent, "opacity": self.opacity}
