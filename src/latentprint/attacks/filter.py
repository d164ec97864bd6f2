"""A filter that keeps back generated images that are copies of training images.

    kept back   score(g) < threshold          the first criterion of ``results.criteria``
    threshold   the score that only a small share of half of the held-out images is below

The other half of the held-out images shows how many images it keeps back wrongly, and copies planted in every
change of ``attacks.planted`` show how many it misses. A model that gives back training images at the rate q
gives them back at about q x (share missed) behind the filter: less often, but not never.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from latentprint.attacks.whole_set import Reference
from latentprint.data import DataError, Split
from latentprint.data.images import Pixels, Selection
from latentprint.results.criteria import CRITERIA, LEAST_HELDOUT, SHARE, background, calibrated, strangers
from latentprint.stats import Trials

PLANTED = 100
"""Most training images of which copies are planted, in every change."""


@dataclass(frozen=True)
class Filter:
    """A calibrated filter; ``Filter.of`` makes it.

    Attributes:
        reference: the training images.
        threshold: the score below which an image is kept back.
        share: of held-out images that the threshold was set to let through.
        rejected: of the held-out images that did not set it, those kept back; each of them by mistake.
        missed: planted copies that it does not keep back, by how they were changed.
        unseen: whether no model was trained on the held-out images; if one may have been, they were compared
            with the others alone.
    """

    reference: Reference
    threshold: float
    share: float
    rejected: Trials
    missed: Mapping[str, Trials]
    unseen: bool = True

    @staticmethod
    def of(
        reference: Reference,
        heldout: Pixels,
        *,
        share: float = SHARE,
        seed: int = 0,
        planted: int = PLANTED,
    ) -> Filter:
        """The filter for models trained on ``reference``, calibrated by held-out images (m, C, *size).

        Copies of up to ``planted`` training images are made in every change, to count how many it misses.
        """
        if not 0 < share < 1:
            raise DataError(f"the share that a filter may keep back by mistake lies in (0, 1), got {share}")
        found = {name: CRITERIA[0].score(rows) for name, rows in reference.planted(seed, planted).items()}
        scores = CRITERIA[0].score(strangers(background(reference.columns(heldout))[0])[0])
        if len(scores) < LEAST_HELDOUT:
            raise DataError(
                f"a filter is calibrated by {LEAST_HELDOUT} held-out images or more that are not copies of"
                f" training images, got {len(scores)}"
            )
        threshold, others = calibrated(scores[::2], share), scores[1::2]
        return Filter(
            reference,
            threshold,
            share,
            Trials(int((others < threshold).sum()), len(others)),
            {name: Trials(int((one >= threshold).sum()), len(one)) for name, one in found.items()},
        )

    @property
    def criterion(self) -> str:
        """Its name in ``results.criteria``."""
        return CRITERIA[0].name

    @property
    def all_missed(self) -> Trials:
        """Planted copies that pass, of all changes together."""
        return Trials(sum(one.k for one in self.missed.values()), sum(one.n for one in self.missed.values()))

    def copies(self, images: Pixels | Tensor) -> NDArray[np.bool_]:
        """Which of the images (n, C, *size) in [-1, 1] are to be kept back, (n,)."""
        ours = tuple(self.reference.pixels.shape[1:])
        if tuple(images.shape[1:]) != ours:
            raise DataError(
                f"the images to filter must be {ours} like those trained on, got {tuple(images.shape[1:])}"
            )
        return _scores(self.reference, images) < self.threshold

    def told(self, images: int, kept_back: int) -> tuple[str, ...]:
        """What it did to so many images, and what it cannot do, in sentences."""
        missed, wrong = self.all_missed, self.rejected
        low, high = missed.interval(0.95)
        others = "that no model was trained on" if self.unseen else "that were set aside to count mistakes"
        return (
            f"Kept back {kept_back:,} of {images:,} images as copies of training images; the others pass.",
            f"Of {missed.n:,} copies made on purpose {missed.k:,} pass ({low:.1%} to {high:.1%}): so much"
            " of what the model gives back still comes through, and the model itself still holds the images.",
            f"Of {wrong.n:,} images {others}, {wrong.k:,} were kept back by mistake.",
        )


def filter_for(split: Split, *, whole: bool, share: float = SHARE, seed: int = 0) -> Filter:
    """The filter for models trained on ``split.train`` or, if ``whole``, on all images of a drawn split."""
    person = None
    if split.train.identities is not None:
        person = np.unique(split.train.identities, return_inverse=True)[1].astype(np.int64)
    heldout = np.asarray(split.heldout.pixels)
    found = Filter.of(Reference(split.train.pixels, person), heldout, share=share, seed=seed)
    if not (whole and split.drawn):
        return found
    # These were held out by us and not by the trainer: they set the threshold against the others, and are
    # searched too.
    return replace(found, reference=Reference(Selection.of(split.train.pixels, heldout)), unseen=False)


def _scores(reference: Reference, images: Pixels | Tensor) -> NDArray[np.float64]:
    rows: Mapping[str, NDArray[Any]] = reference.columns(images)
    return CRITERIA[0].score(rows)
