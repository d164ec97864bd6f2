"""How often a recogniser is right and wrong, and on which images that was counted.

A bound on false alarms holds only for independent trials that the fit has not seen. So the count that
decides, ``DetectorRates.fpr``, is

    n    units of which no part of the fit (weights, early stopping, threshold) saw any image
    k    units on which the recogniser fired at least once, in any form in which their images were shown

A unit is an image with its near copies, or a person with all their images. The units are draws from the
population of units, and "fires at all" is one Bernoulli trial for each, whatever the number of images and
forms. The chance that a single image of a random unit makes it fire is no larger, so the bound errs on the
safe side. Counts on images that the fit knew are in ``kinds``; they inform and never decide.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from latentprint.stats.counts import Trials

Unit = Literal["image", "person", "pair"]
"""Pairs of images share images, so their counts are not independent trials and decide nothing."""


@dataclass(frozen=True)
class DetectorRates:
    """Errors on images and fingerprints that the fit never saw (see the module).

    Attributes:
        tpr: the number of perturbed copies of its target on which it fired.
        fpr: false alarms, one trial per unit.
        kinds: further counts for information, by kind of image, e.g. ``"trained on"``.
        recogniser: its name, e.g. ``"identity (small)"``.
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
    """One trial per unit: ``fired`` (n,) of images in any form, ``unit`` (n,) says to which unit each
    belongs.

    Raises:
        ValueError: unequal lengths.
    """
    if fired.shape != unit.shape:
        raise ValueError(f"each answer belongs to a unit, got {len(fired)} answers and {len(unit)} units")
    return Trials(len(np.unique(unit[fired])), len(np.unique(unit)))
