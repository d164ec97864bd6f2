"""A fingerprint of one's own: a frame around the image."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from latentprint.data import ImageSet
from latentprint.fingerprint import FingerprintError, Injection, inject
from latentprint.streams import Streams


# --8<-- [start:mark]
@dataclass(frozen=True)
class Frame:
    """A frame of constant grey, ``width`` pixels wide, along the four sides; in volumes of each slice.

    Raises:
        FingerprintError: the width is no positive number of pixels.
    """

    width: int
    grey: float = 0.0

    def __post_init__(self) -> None:
        if self.width < 1:
            raise FingerprintError(f"a frame is at least 1 pixel wide, got {self.width}")

    def mask(self, *sides: int) -> NDArray[np.bool_]:
        """L of Eq. 10: (H, W) or (D, H, W), True where the mark replaces the image."""
        if 2 * self.width >= min(sides[-2:]):
            raise FingerprintError(f"a frame of {self.width} leaves nothing of {sides} pixels")
        inside = np.ones(sides, dtype=np.bool_)
        inside[..., self.width : -self.width, self.width : -self.width] = False
        return inside

    def apply(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Eq. 10 on images (..., C, H, W) or volumes (..., C, D, H, W): x (1 - L) + grey L."""
        return np.where(self.mask(*pixels.shape[-2:]), np.float32(self.grey), pixels)

    def describe(self) -> dict[str, str | float]:
        """What ``results.json`` says of it."""
        return {"kind": "frame", "width": self.width, "grey": self.grey}


# --8<-- [end:mark]
# --8<-- [start:kind]
@dataclass(frozen=True)
class FrameConfig:
    """Frames of ``width`` pixels whose grey is drawn uniformly."""

    width: int = 1
    grey: tuple[float, float] = (-0.5, 0.5)

    def draw(self, sides: tuple[int, ...], rng: np.random.Generator) -> Frame:
        """One frame."""
        return Frame(self.width, float(rng.uniform(*self.grey)))


# --8<-- [end:kind]
# --8<-- [start:use]
def with_a_frame(train: ImageSet, seed: int) -> Injection:
    """One of the images in a frame, the others as they are; the image and its frame follow from the seed."""
    return inject(train, FrameConfig(), Streams(seed).generator("fingerprint"))


# --8<-- [end:use]
