"""Which fingerprint an audit looks for: one of the drawn kinds, one that is there by nature, or none.

    circle, cross, text, lead, patch     drawn and injected into one training image (Eq. 10)
    natural                              what lies in ``region`` of x_p as it stands: nothing is injected
    none                                 x_p as it stands, known by c_id alone

Source: see `latentprint.marks`.
"""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic.dataclasses import dataclass

from latentprint.data.files import read_image
from latentprint.fingerprint import CircleConfig, FingerprintError, FingerprintKind
from latentprint.marks.kinds import CrossConfig, LeadConfig, PatchConfig, TextConfig
from latentprint.marks.natural import Mask, Pixels, box
from latentprint.settings import STRICT

Kind = Literal["circle", "cross", "text", "lead", "patch", "natural", "none"]


@dataclass(frozen=True, config=STRICT)
class PatchSettings:
    """Patches are cut from held-out images: side as shares of the image's shorter side, and opacity."""

    size: tuple[float, float] = (0.25, 0.4)
    opacity: float = 0.8


@dataclass(frozen=True, config=STRICT)
class FingerprintSettings(CircleConfig):
    """The kind of fingerprint, and the settings of each; ``radius``, ``unit``, ``grey`` are the circle's.

    Attributes:
        kind: see the module.
        region: of a natural one: "row,column,height,width" of a box in pixels, or the path of a mask, an
            image of the size of the data whose pixels above half its range are the mark.

    Raises:
        FingerprintError: a natural fingerprint without a region, or a region without one.
    """

    kind: Kind = "circle"
    region: str | None = None
    cross: CrossConfig = field(default_factory=CrossConfig)
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
        """Whether a mark is drawn on a training image; else x_p stays as it is."""
        return self.kind not in ("natural", "none")

    def drawn(self, heldout: Pixels) -> FingerprintKind:
        """The kind that is drawn; circles where none is, as masks for what a recogniser must overlook.

        Args:
            heldout: (n, C, H, W), from which patches are cut.
        """
        kinds: dict[Kind, FingerprintKind] = {"cross": self.cross, "text": self.text, "lead": self.lead}
        if self.kind == "patch":
            return PatchConfig(heldout, self.patch.size, self.patch.opacity)
        return kinds.get(self.kind, CircleConfig(self.radius, self.unit, self.grey))

    def mask(self, height: int, width: int) -> Mask | None:
        """The region of a natural fingerprint, (H, W); None where there is none.

        Raises:
            FingerprintError: the box is no four numbers or leaves the image, the mask has another size, or
                is empty or full.
            DataError: the mask cannot be read.
        """
        if self.region is None:
            return None
        parts = self.region.split(",")
        if len(parts) == 4 and all(part.strip().isdecimal() for part in parts):
            row, column, high, wide = (int(part) for part in parts)
            return box(row, column, high, wide, height, width)
        path = Path(self.region)
        if not path.is_file():
            raise FingerprintError(
                f"a region is row,column,height,width in pixels, or the file of a mask; got {self.region!r}"
            )
        stored = read_image(path, path.name)
        if stored.shape[:2] != (height, width):
            raise FingerprintError(
                f"the mask {path.name!r} is {stored.shape[1]} x {stored.shape[0]}, the images are"
                f" {width} x {height}"
            )
        grey = stored if stored.ndim == 2 else stored.max(axis=2)
        half = np.iinfo(grey.dtype).max / 2 if grey.dtype.kind == "u" else 0.5
        return grey > half
