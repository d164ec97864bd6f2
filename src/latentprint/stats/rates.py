"""How often a recogniser is right and wrong, and on which images that was counted.

A bound on false alarms holds only for independent trials that the fit knows nothing of. So the count that
decides, ``DetectorRates.fpr``, is

    n    units of which no part of the fit (weights, early stopping, threshold) saw any image
    k    units on which the recogniser fired at least once, in any form in which their images were shown

A unit is an image with its near copies, or a person with all their images: the units are draws of the
population of units, and "fires at all" is one Bernoulli trial for each, whatever the number of images and
forms. The chance that one image of a random unit sets it off is no larger, so that the bound errs to the safe
side. Counts on images that the fit knew stand in ``kinds``; they inform and never decide.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from latentprint.stats.counts import Trials

Unit = Literal["image", "person", "pair"]
"""Pairs of images share images: their counts are no independent trials, and decide nothing."""


@dataclass(frozen=True)
class DetectorRates:
    """Errors on images and fingerprints that the fit never saw (see the module).

    Attributes:
        tpr: how many perturbed copies of what it should recognise set it off.
        fpr: false alarms, one trial for each unit.
        kinds: counts for information, by what they are of, e.g. ``"trained on"``.
        recogniser: whose they are, e.g. ``"identity (small)"``.
        unit: what one trial of ``fpr`` is.

    Raises:
        ValueError: no such unit.
    """

    tpr: Trials
    fpr: Trials
    kinds: Mapping[str, Trials]
    recogniser: str
    unit: Unit = "image"

    def __post_init__(self) -> None:
        if self.unit not in get_args(Unit):
            raise ValueError(f"a trial is of one of {', '.join(get_args(Unit))}; got {self.unit!r}")


def false_alarms(fired: NDArray[np.bool_], unit: NDArray[np.int64]) -> Trials:
    """One trial a unit: ``fired`` (n,) of images in any form, ``unit`` (n,) says whose each is.

    Raises:
        ValueError: other lengths.
    """
    if fired.shape != unit.shape:
        raise ValueError(f"each answer belongs to a unit, got {len(fired)} answers and {len(unit)} units")
    return Trials(len(np.unique(unit[fired])), len(np.unique(unit)))
