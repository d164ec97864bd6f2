"""Families of marks from which one is drawn, each a frozen `FingerprintKind` with its settings.

Lengths are shares of the image's shortest side, so that one setting serves every size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from latentprint.fingerprint import FingerprintError, Sides
from latentprint.marks.drawn import Box, Cross, Lead, Patch, Text
from latentprint.marks.natural import Pixels, Rng


def _require_share(name: str, share: tuple[float, float]) -> None:
    if not 0.0 < share[0] <= share[1] <= 1.0:
        raise FingerprintError(f"a mark's {name} must range within (0, 1], got {share[0]} to {share[1]}")


def _drawn_side(share: tuple[float, float], sides: Sides, rng: Rng) -> float:
    """A length in pixels, uniform over a range of shares of the shortest side."""
    return float(rng.uniform(*share)) * min(sides)


def _corner(extent: Sequence[int], sides: Sequence[int], rng: Rng, what: str) -> tuple[int, ...]:
    """The first pixel of something of ``extent`` pixels along each axis, uniform over where it fits."""
    for length, side in zip(extent, sides, strict=True):
        if length > side:
            raise FingerprintError(f"a {what} of {length} pixels does not fit a side of {side}")
    return tuple(int(rng.integers(side - length + 1)) for length, side in zip(extent, sides, strict=True))


@dataclass(frozen=True)
class CrossConfig:
    """Crosses whose reach is drawn uniformly, their place uniform where they lie wholly inside the image.

    Attributes:
        reach: smallest and largest length of an arm.
        width: of the bars, as a share of the arm's length.
        grey: in [-1, 1].

    Raises:
        FingerprintError: a share is outside its range, or the grey outside [-1, 1].
    """

    reach: tuple[float, float] = (0.12, 0.2)
    width: float = 0.3
    grey: float = 0.0

    def __post_init__(self) -> None:
        _require_share("reach", self.reach)
        if not 0.0 <= self.width < 1.0 or not -1.0 <= self.grey <= 1.0:
            raise FingerprintError(f"a cross needs a width in [0, 1) and a grey in [-1, 1], got {self}")

    def draw(self, sides: Sides, rng: Rng) -> Cross:
        """One cross.

        Raises:
            FingerprintError: the image is too small for it.
        """
        reach = max(1, round(_drawn_side(self.reach, sides, rng)))
        corner = _corner([2 * reach + 1] * len(sides), sides, rng, "cross")
        half = min(reach - 1, round(self.width * reach / 2))
        return Cross(tuple(reach + at for at in corner), reach, half, self.grey)


@dataclass(frozen=True)
class BoxConfig:
    """Boxes of constant grey whose sides are drawn uniformly each, their place uniform where they fit.

    Attributes:
        size: smallest and largest side.
        grey: in [-1, 1].

    Raises:
        FingerprintError: a share is outside its range, or the grey outside [-1, 1].
    """

    size: tuple[float, float] = (0.2, 0.35)
    grey: float = 1.0

    def __post_init__(self) -> None:
        _require_share("side", self.size)
        if not -1.0 <= self.grey <= 1.0:
            raise FingerprintError(f"a mark's grey must lie in [-1, 1], got {self.grey}")

    def draw(self, sides: Sides, rng: Rng) -> Box:
        """One box."""
        extent = tuple(max(1, round(_drawn_side(self.size, sides, rng))) for _ in sides)
        return Box(_corner(extent, sides, rng, "box"), extent, self.grey)


@dataclass(frozen=True)
class TextConfig:
    """Texts of letters drawn uniformly from A to Z (or a given text), their place uniform inside the image.

    Attributes:
        text: what is written; None draws ``letters`` letters.
        letters: how many.
        scale: pixels per pixel of a letter.
        grey: in [-1, 1].

    Raises:
        FingerprintError: a text, number of letters or scale that cannot be written.
    """

    text: str | None = None
    letters: int = 3
    scale: int = 1
    grey: float = 1.0

    def __post_init__(self) -> None:
        if self.letters < 1:
            raise FingerprintError(f"a text needs 1 letter or more, got {self.letters}")
        Text(self.text if self.text is not None else "A", 0, 0, self.scale, self.grey)

    def draw(self, sides: Sides, rng: Rng) -> Text:
        """One text.

        Raises:
            FingerprintError: the image is too small for it.
        """
        text = self.text
        if text is None:
            text = "".join(chr(65 + int(i)) for i in rng.integers(0, 26, self.letters))
        row, column = _corner(Text(text, 0, 0, self.scale, self.grey).size, sides[-2:], rng, "text")
        return Text(text, row, column, self.scale, self.grey)


@dataclass(frozen=True)
class LeadConfig:
    """Leads that enter at the upper edge and end anywhere, bent by two control points; all places uniform.

    Attributes:
        width: smallest and largest width of the line; never below 1 pixel.
        grey: in [-1, 1].

    Raises:
        FingerprintError: the width is outside (0, 1], or the grey outside [-1, 1].
    """

    width: tuple[float, float] = (0.04, 0.07)
    grey: float = 1.0

    def __post_init__(self) -> None:
        _require_share("width", self.width)
        if not -1.0 <= self.grey <= 1.0:
            raise FingerprintError(f"a mark's grey must lie in [-1, 1], got {self.grey}")

    def draw(self, sides: Sides, rng: Rng) -> Lead:
        """One lead."""
        line = max(1.0, _drawn_side(self.width, sides, rng))

        def anywhere(*most: int) -> tuple[float, ...]:
            return tuple(float(rng.uniform(0, side - 1)) for side in most)

        inner = [anywhere(*sides) for _ in range(3)]
        *slices, column = anywhere(*sides[:-2], sides[-1])
        return Lead(((*slices, 0.0, column), inner[0], inner[1], inner[2]), line, self.grey)


@dataclass(frozen=True, eq=False)
class PatchConfig:
    """Square pieces cut from images of another set at uniform places, and pasted at uniform places.

    Attributes:
        sources: (n, C, *sides) in [-1, 1]: images that are not of the training set.
        size: smallest and largest side.
        opacity: in (0, 1].

    Raises:
        FingerprintError: no images, a side outside (0, 1], or an opacity outside (0, 1].
    """

    sources: Pixels
    size: tuple[float, float] = (0.25, 0.4)
    opacity: float = 0.8

    def __post_init__(self) -> None:
        _require_share("side", self.size)
        if self.sources.ndim < 4 or 0 in self.sources.shape:
            raise FingerprintError(f"patches are cut from images (n, C, H, W), got {self.sources.shape}")
        if not 0.0 < self.opacity <= 1.0:
            raise FingerprintError(f"a patch's opacity must lie in (0, 1], got {self.opacity}")

    def draw(self, sides: Sides, rng: Rng) -> Patch:
        """One patch.

        Raises:
            FingerprintError: the sources are smaller than the patch.
        """
        side = max(1, round(_drawn_side(self.size, sides, rng)))
        source, extent = self.sources[int(rng.integers(len(self.sources)))], [side] * len(sides)
        piece = tuple(slice(at, at + side) for at in _corner(extent, source.shape[1:], rng, "patch"))
        return Patch(source[:, *piece].copy(), _corner(extent, sides, rng, "patch"), self.opacity)
