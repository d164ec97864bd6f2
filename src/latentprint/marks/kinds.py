"""Families of marks from which one is drawn, each a frozen `FingerprintKind` with its settings.

Lengths are shares of the image's shorter side, so that one setting serves every size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from latentprint.fingerprint import FingerprintError, FingerprintKind
from latentprint.marks.drawn import Cross, Lead, Patch, Text
from latentprint.marks.natural import Mask, Pixels, Rng


def _require_share(name: str, share: tuple[float, float]) -> None:
    if not 0.0 < share[0] <= share[1] <= 1.0:
        raise FingerprintError(f"a mark's {name} must range within (0, 1], got {share[0]} to {share[1]}")


def _drawn_side(share: tuple[float, float], height: int, width: int, rng: Rng) -> float:
    """A length in pixels, uniform over a range of shares of the shorter side."""
    return float(rng.uniform(*share)) * min(height, width)


def _masks(kind: FingerprintKind, count: int, height: int, width: int, rng: Rng) -> Mask:
    """The masks of ``count`` marks of a kind, (count, H, W)."""
    out = np.empty((count, height, width), dtype=np.bool_)
    for mask in out:
        mask[:] = kind.draw(height, width, rng).mask(height, width)
    return out


def _place(size: int, side: int, rng: Rng, what: str) -> int:
    """Where something of ``size`` pixels begins along a side, uniform over where it fits."""
    if size > side:
        raise FingerprintError(f"a {what} of {size} pixels does not fit a side of {side}")
    return int(rng.integers(side - size + 1))


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

    def draw(self, height: int, width: int, rng: Rng) -> Cross:
        """One cross.

        Raises:
            FingerprintError: the image is too small for it.
        """
        reach = max(1, round(_drawn_side(self.reach, height, width, rng)))
        row = reach + _place(2 * reach + 1, height, rng, "cross")
        column = reach + _place(2 * reach + 1, width, rng, "cross")
        return Cross(row, column, reach, min(reach - 1, round(self.width * reach / 2)), self.grey)

    def masks(self, count: int, height: int, width: int, rng: Rng) -> Mask:
        """The masks of ``count`` crosses, (count, H, W)."""
        return _masks(self, count, height, width, rng)


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

    def draw(self, height: int, width: int, rng: Rng) -> Text:
        """One text.

        Raises:
            FingerprintError: the image is too small for it.
        """
        text = self.text
        if text is None:
            text = "".join(chr(65 + int(i)) for i in rng.integers(0, 26, self.letters))
        high, wide = Text(text, 0, 0, self.scale, self.grey).size
        return Text(
            text, _place(high, height, rng, "text"), _place(wide, width, rng, "text"), self.scale, self.grey
        )

    def masks(self, count: int, height: int, width: int, rng: Rng) -> Mask:
        """The masks of ``count`` texts, (count, H, W)."""
        return _masks(self, count, height, width, rng)


@dataclass(frozen=True)
class LeadConfig:
    """Leads that come in at the upper edge and end anywhere, bent by two control points; all places uniform.

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

    def draw(self, height: int, width: int, rng: Rng) -> Lead:
        """One lead."""
        line = max(1.0, _drawn_side(self.width, height, width, rng))
        inner = [(float(rng.uniform(0, height - 1)), float(rng.uniform(0, width - 1))) for _ in range(3)]
        first = (0.0, float(rng.uniform(0, width - 1)))
        return Lead((first, inner[0], inner[1], inner[2]), line, self.grey)

    def masks(self, count: int, height: int, width: int, rng: Rng) -> Mask:
        """The masks of ``count`` leads, (count, H, W)."""
        return _masks(self, count, height, width, rng)


@dataclass(frozen=True, eq=False)
class PatchConfig:
    """Square pieces cut from images of another set at uniform places, put down at uniform places.

    Attributes:
        sources: (n, C, H, W) in [-1, 1]: images that are not of the training set.
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
        if self.sources.ndim != 4 or 0 in self.sources.shape:
            raise FingerprintError(f"patches are cut from images (n, C, H, W), got {self.sources.shape}")
        if not 0.0 < self.opacity <= 1.0:
            raise FingerprintError(f"a patch's opacity must lie in (0, 1], got {self.opacity}")

    def draw(self, height: int, width: int, rng: Rng) -> Patch:
        """One patch.

        Raises:
            FingerprintError: the sources are smaller than the patch.
        """
        side = max(1, round(_drawn_side(self.size, height, width, rng)))
        source = self.sources[int(rng.integers(len(self.sources)))]
        top = _place(side, source.shape[1], rng, "patch")
        left = _place(side, source.shape[2], rng, "patch")
        content = source[:, top : top + side, left : left + side].copy()
        row, column = _place(side, height, rng, "patch"), _place(side, width, rng, "patch")
        return Patch(content, row, column, self.opacity)

    def masks(self, count: int, height: int, width: int, rng: Rng) -> Mask:
        """The masks of ``count`` patches, (count, H, W)."""
        return _masks(self, count, height, width, rng)
