"""What an audit is given: images that a model trains on, images that it never sees, and what must be said of
both.
"""

from __future__ import annotations

from dataclasses import dataclass

from latentprint.data.images import DataError, ImageSet
from latentprint.data.near import Overlap, overlap


@dataclass(frozen=True)
class Split:
    """Images to train on, and images of the same source that no model may see before it is judged by them.

    Attributes:
        train: what is trained on.
        heldout: of the images held out, those of which the training set holds no copy (``Split.of``).
        name: what they are, in words that may be published.
        overlap: the held-out images that were left out for that; None where nobody looked.
    """

    train: ImageSet
    heldout: ImageSet
    name: str
    overlap: Overlap | None = None

    @classmethod
    def of(cls, train: ImageSet, heldout: ImageSet, name: str) -> Split:
        """The split with copies of training images left out of ``heldout``.

        Raises:
            DataError: every held-out image is such a copy, or the two differ in shape.
        """
        if train.shape != heldout.shape:
            raise DataError(
                f"{name}: training and held-out images must be alike, got {train.shape} and {heldout.shape}"
            )
        found = overlap(train.pixels, heldout.pixels)
        if len(found.clean) == 0:
            raise DataError(
                f"{name}: each of the {len(heldout)} held-out images is a copy or near copy of a training "
                "image; hold out images that no model was trained on"
            )
        clean = heldout if not found.pairs else heldout.take(found.clean)
        return cls(train, clean, name, found)
