"""The input of an audit: training images, images that the model never sees, and what must be said about both
before anything runs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from latentprint.data.images import DataError, ImageSet
from latentprint.data.near import Overlap, overlap

NARROW = 0.6
"""Images that use less than this share of the mapped range were probably stored in another one."""


@dataclass(frozen=True)
class RangeInUse:
    """Which stored values occur among the training images.

    Attributes:
        low, high: the least and the largest.
        of: the range that became [-1, 1].
        said: whether the user stated that range, or the source documents it.
    """

    low: float
    high: float
    of: tuple[float, float]
    said: bool

    @property
    def share(self) -> float:
        """The share of the range that is in use."""
        return (self.high - self.low) / (self.of[1] - self.of[0])

    @property
    def narrow(self) -> bool:
        """Whether so little is in use, without a stated range, that the range is probably another."""
        return not self.said and self.share < NARROW

    def __str__(self) -> str:
        """One sentence with the setting that fixes it; "" if nothing is odd."""
        if not self.narrow:
            return ""
        (low, high), (least, most) = self.of, self._likely()
        return (
            f"the training images use {self.share:.0%} of the range of their type (values from {self.low:g}"
            f" to {self.high:g}, of {low:g} to {high:g}). A model that was trained on stretched values saw"
            f" other images than these: --stored-range {least:g},{most:g} stretches them, --stored-range"
            f" {low:g},{high:g} confirms the values as they are (data.stored_range in a settings file)"
        )

    def require(self) -> None:
        """Refuse images on which a model that others trained would be misjudged."""
        if self.narrow:
            raise DataError(str(self))

    def _likely(self) -> tuple[float, float]:
        """The range that the values were probably stored in: [0, 1], or so many whole bits from 0."""
        if self.of[0] < 0:
            return (0.0, 1.0) if self.low >= 0 else (self.low, self.high)
        return 0.0, float(2 ** int(self.high).bit_length() - 1)


@dataclass(frozen=True)
class Split:
    """Training images, and images of the same source that no model may see before it is judged by them.

    Attributes:
        train: the training images.
        heldout: the held-out images of which the training set has no copy (``Split.of``).
        name: what they are, in publishable words.
        overlap: the held-out images that were left out for that; None if nobody looked.
        used: which stored values occur; None if a window mapped them (DICOM).
        classes: the names of the classes, by number if they are 0, 1, 2, ...
        label: the class that is audited; None: any.
        notes: what else a reader must know about how the images were read, in sentences.
        drawn: the source has no split, so the seed drew the held-out images from all.
    """

    train: ImageSet
    heldout: ImageSet
    name: str
    overlap: Overlap | None = None
    used: RangeInUse | None = None
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    label: int | None = None
    drawn: bool = False

    @classmethod
    def of(
        cls,
        train: ImageSet,
        heldout: ImageSet,
        name: str,
        *,
        mapped: tuple[float, float] | None = None,
        said: bool = True,
        classes: tuple[str, ...] = (),
        notes: tuple[str, ...] = (),
        drawn: bool = False,
    ) -> Split:
        """The split with copies of training images left out of ``heldout``.

        Args:
            mapped: the stored values that became -1 and 1; None: there is not one range for all.
            said: whether somebody stated them.

        Raises:
            DataError: every held-out image is such a copy, or the two differ in shape.
        """
        if train.shape != heldout.shape:
            raise DataError(
                f"{name}: training and held-out images must be alike, got {train.shape} and {heldout.shape}"
            )
        pixels = np.asarray(train.pixels)
        found = overlap(pixels, np.asarray(heldout.pixels))
        if len(found.clean) == 0:
            raise DataError(
                f"{name}: each of the {len(heldout)} held-out images is a copy or near copy of a training "
                "image; hold out images that no model was trained on"
            )
        clean = heldout if not found.pairs else heldout.take(found.clean)
        used = None if mapped is None else _used(pixels, mapped, said)
        return cls(train, clean, name, found, used, classes, notes, drawn=drawn)

    @property
    def remarks(self) -> tuple[str, ...]:
        """Everything that a reader must know before these images are audited, in sentences."""
        found = (str(one) for one in (self.overlap, self.used) if one is not None)
        return (*(text for text in found if text), *self.notes)

    def under(self, label: int | None) -> Split:
        """The same for an audit of a model that is asked for one class; None: any class.

        Raises:
            DataError: it is unknown which images are of that class, or none is.
        """
        if label is None:
            return self
        if self.train.labels is None:
            raise DataError(
                f"the model is audited under label {label}, but nothing says which images are of that class:"
                " an .npz may hold train_labels, a folder one subfolder for each class, or name a CSV of file"
                " names and classes with --labels"
            )
        if label not in self.train.labels:
            known = ", ".join(map(str, sorted(set(self.train.labels))))
            raise DataError(f"no training image is of class {label}; the classes are {known[:200]}")
        return replace(self, label=label)

    @property
    def named_classes(self) -> str:
        """The numbers of the classes and their names, as ImageFolder gives them: "0 = benign, ..."."""
        return ", ".join(f"{i} = {name}" for i, name in enumerate(self.classes[:20]))

    @property
    def peers(self) -> NDArray[np.int64]:
        """Rising positions of the training images of the audited class, or of all if it is any."""
        if self.label is None:
            return np.arange(len(self.train))
        return np.flatnonzero(np.asarray(self.train.labels) == self.label)

    def require_peer(self, target: int) -> None:
        """Check that a training image has the class under which a model is audited.

        Raises:
            DataError: it has another class.
        """
        if 0 <= target < len(self.train) and target not in self.peers:
            own = (self.train.labels or ())[target]
            raise DataError(
                f"training image {target} is of class {own}, and a model that is asked for class {self.label}"
                f" does not give it back: audit it under --label {own}, or name one of class {self.label}, as"
                f" {self.peers[0]}"
            )


def _used(pixels: NDArray[np.float32], mapped: tuple[float, float], said: bool) -> RangeInUse:
    low, high = mapped

    def stored(value: float) -> float:
        return round((value + 1.0) / 2.0 * (high - low) + low, 4)

    return RangeInUse(stored(float(pixels.min())), stored(float(pixels.max())), mapped, said)
