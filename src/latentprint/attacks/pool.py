"""Training and held-out images as one pool, and the rows that say which of them came back.

What is concluded from the rows is `latentprint.stats.returned`, which needs no torch and no image.
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
from latentprint.data.near import near_duplicates, usual_difference
from latentprint.stats.returned import HELDOUT, MIXED, TRAIN

Pixels = NDArray[np.float32]

MOST_GROUPED = 30_000
"""Images up to which near copies are looked for in a pool: beyond, it takes minutes."""

_NEAR = 8
"""As in `data.near`: images within an eighth of the usual difference are copies of each other."""


@dataclass(frozen=True, eq=False)
class Pool:
    """One image of each group of near copies, trained on or held out.

    Attributes:
        images: (p, *shape) in [-1, 1].
        whose: (p,) TRAIN, HELDOUT or MIXED (`stats.returned`).
        unit: (p,) a number for each person, or for each image where persons are not known.
        target: the place of x_p.
        place: of each image that was given, those trained on first, where it or the one it is near stands.
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
        """The pool of the images trained on (n, *shape), x_p at ``target`` among them, and of those held out.

        x_p stands for its own group. ``mixed`` are training images whose copies among the held-out ones have
        been left out already (`data.Split`). ``persons`` says whom each image shows, those trained on first.
        """
        images = np.concatenate([train, heldout])
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
            ):  # of persons on both sides, or with copies there, no image is a trial
                both = np.isin(unit, unit[whose == side]) & np.isin(unit, unit[whose != side])
                whose[both & (unit != unit[target])] = MIXED
        place = (np.cumsum(kept) - 1)[stands]
        return Pool(images[kept], whose[kept], unit[kept], int(place[target]), place)

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
