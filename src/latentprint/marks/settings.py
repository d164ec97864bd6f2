"""The fingerprint that an audit looks for: one of the drawn kinds, one that is there by nature, or none.

    natural        the content of ``region`` in x_p; nothing is injected
    none           x_p as it stands, recognised by c_id alone
    all others     drawn and injected into one training image (Eq. 10)

Source: see `latentprint.marks`.
"""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import Literal, cast, get_args

import numpy as np
from pydantic.dataclasses import dataclass

from latentprint.contracts import quoted
from latentprint.data.images import Pixels
from latentprint.data.load import read_stored
from latentprint.fingerprint import CircleConfig, FingerprintError, FingerprintKind, size
from latentprint.marks.kinds import BoxConfig, CrossConfig, LeadConfig, PatchConfig, TextConfig
from latentprint.marks.natural import Mask, box
from latentprint.settings import STRICT

Kind = Literal["circle", "cross", "box", "text", "lead", "patch", "natural", "none"]
DRAWN = tuple(kind for kind in get_args(Kind) if kind not in ("natural", "none"))
"""The kinds that are drawn and injected."""


def kind_of(text: str) -> Kind:
    """The kind that ``--fingerprint`` names.

    Raises:
        FingerprintError: there is none of that name.
    """
    if text not in (kinds := get_args(Kind)):
        raise FingerprintError(f"--fingerprint {quoted(text)} is none of {', '.join(kinds)}")
    return cast(Kind, text)


@dataclass(frozen=True, config=STRICT)
class PatchSettings:
    """Patches are cut from held-out images: side as shares of the image's shorter side, and opacity."""

    size: tuple[float, float] = (0.25, 0.4)
    opacity: float = 0.8


@dataclass(frozen=True, config=STRICT)
class FingerprintSettings(CircleConfig):
    """The kind of fingerprint, and the settings of each in the field of its name.

    ``radius``, ``unit`` and ``grey`` are the circle's.

    Attributes:
        kind: see the module.
        region: for a natural fingerprint, a box "row,column,height,width" in pixels (in volumes
            "slice,row,column,depth,height,width"), or the path of a mask. A mask has the size of the data;
            its pixels above half its range are the mark.

    Raises:
        FingerprintError: a natural fingerprint without a region, or a region without one.
    """

    kind: Kind = "circle"
    region: str | None = None
    cross: CrossConfig = field(default_factory=CrossConfig)
    box: BoxConfig = field(default_factory=BoxConfig)
    text: TextConfig = field(default_factory=TextConfig)
    lead: LeadConfig = field(default_factory=LeadConfig)
    patch: PatchSettings = field(default_factory=PatchSettings)

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.kind == "natural") != (self.region is not None):
            raise FingerprintError(
                "a natural fingerprint needs the region it lies in, and no other kind has one; got kind"
                f" {self.kind!r} and region {self.region!r}"
            )

    @property
    def injected(self) -> bool:
        """Whether a mark is drawn on a training image; otherwise x_p stays as it is."""
        return self.kind in DRAWN

    def drawn(self, heldout: Pixels) -> FingerprintKind:
        """The kind that is drawn. If none is, circles, as masks for what a recogniser must ignore.

        Args:
            heldout: (n, C, *sides), from which patches are cut.
        """
        if self.kind == "patch":
            return PatchConfig(np.asarray(heldout), self.patch.size, self.patch.opacity)
        if self.kind == "circle" or not self.injected:
            return CircleConfig(self.radius, self.unit, self.grey)
        return cast(FingerprintKind, getattr(self, self.kind))

    def mask(self, *sides: int) -> Mask | None:
        """The region of a natural fingerprint, (*sides); None for other kinds.

        Raises:
            FingerprintError: the box is not two numbers for each axis, or extends beyond the image; the mask
                has another size, or is empty or full.
            DataError: the mask cannot be read.
        """
        if self.region is None:
            return None
        parts = self.region.split(",")
        if all(part.strip().isdecimal() for part in parts) and len(parts) == 2 * len(sides):
            numbers = [int(part) for part in parts]
            return box(numbers[: len(sides)], numbers[len(sides) :], sides)
        path = Path(self.region)
        if not path.is_file():
            axes = (*("slice", "row", "column")[-len(sides) :], *("depth", "height", "width")[-len(sides) :])
            raise FingerprintError(
                f"a region is {','.join(axes)} in pixels, or the file of a mask; got {self.region!r}"
            )
        stored = read_stored(path)
        if stored.shape[: len(sides)] != sides:
            raise FingerprintError(
                f"the mask {path.name!r} is {size(stored.shape[: len(sides)])}, the images are {size(sides)}"
            )
        grey = stored if stored.ndim == len(sides) else stored.max(axis=-1)
        half = np.iinfo(grey.dtype).max / 2 if grey.dtype.kind == "u" else 0.5
        return grey > half
