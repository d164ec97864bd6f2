"""Training and held-out images as one pool, and the rows that say which of them came back.

`latentprint.stats.returned` draws the conclusions from the rows, without torch or images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from latentprint.attacks.nearest import TEN, nearest
from latentprint.data.images import Pixels, Selection
from latentprint.data.near import near_duplicates, usual_difference
from latentprint.stats.returned import HELDOUT, MIXED, TRAIN

MOST_GROUPED = 30_000
"""Images up to which near copies are looked for in a pool; more would take minutes."""

_NEAR = 8
"""As in `data.near`: images within an eighth of the usual difference are copies of each other."""


@dataclass(frozen=True, eq=False)
class Pool:
    """One image of each group of near copies, among training and held-out images.

    Attributes:
        images: (p, *shape) in [-1, 1].
        whose: (p,) TRAIN, HELDOUT or MIXED (`stats.returned`).
        unit: (p,) a number for each person, or for each image if persons are not known.
        target: the place of x_p.
        place: for each given image, training images first, the place of the image itself or of its near copy.
    """

    images: Pixels
    whose: NDArray[np.int64]
    unit: NDArray[np.int64]
    target: int
    place: NDArray[np.int64]

    @staticmethod
    def of(
        train: Pixels,
        heldout: Pixels,
        target: int,
        mixed: Sequence[int] = (),
        persons: Sequence[str] | None = None,
    ) -> Pool:
        """The pool of training images (n, *shape), with x_p at ``target``, and of held-out images.

        x_p represents its own group. ``mixed`` are training images whose copies among the held-out ones have
        been left out already (`data.Split`). ``persons`` says whom each image shows, training images first.
        """
        images = Selection.of(train, heldout)
        whose = np.repeat([TRAIN, HELDOUT], [len(train), len(heldout)])
        whose[[i for i in mixed if i != target]] = MIXED
        kept, stands = np.ones(len(images), np.bool_), np.arange(len(images))
        near = usual_difference(images) / _NEAR
        for group in near_duplicates(images, near) if len(images) <= MOST_GROUPED else ():
            members = np.array(group)
            first = target if target in group else members[0]
            kept[members[members != first]] = False
            stands[members] = first
            if len(set(whose[members].tolist())) > 1 and target not in group:
                whose[first] = MIXED
        unit = np.arange(len(images))
        if persons is not None:
            unit = np.unique(persons, return_inverse=True)[1].astype(np.int64)
            for side in (
                TRAIN,
                HELDOUT,
            ):  # if a person has images or copies on both sides, none of them is a trial
                both = np.isin(unit, unit[whose == side]) & np.isin(unit, unit[whose != side])
                whose[both & (unit != unit[target])] = MIXED
        place = (np.cumsum(kept) - 1)[stands]
        return Pool(images.take(kept), whose[kept], unit[kept], int(place[target]), place)

    @cached_property
    def rows(self) -> Mapping[str, NDArray[Any]]:
        """Of each image against the others: ``nearest``, ``distance`` and ``ten``; and its ``unit``; (p,)."""
        return {**_rows(self.images, self.images, same=True), "unit": self.unit}

    def held_against(self, images: Pixels | Tensor) -> Mapping[str, NDArray[Any]]:
        """The same of other images (n, *shape) against the pool, (n,) each."""
        return _rows(images, self.images, same=False)


def _rows(images: Pixels | Tensor, pool: Pixels, *, same: bool) -> Mapping[str, NDArray[Any]]:
    found = nearest(images, pool, min(TEN, len(pool) - same), same=same)
    distance = found.distance.cpu().numpy()
    return {
        "nearest": found.index[:, 0].cpu().numpy(),
        "distance": distance[:, 0],
        "ten": distance.mean(1),
    }
