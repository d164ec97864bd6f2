"""A first look at generated images: do some of them contain copies of any training image?

No recogniser is fitted and nothing is written. Up to MOST of the images, drawn by the seed, are compared with
all training images. The result says what such a look could have missed (``power``).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from scipy import stats as scipy_stats  # pyright: ignore[reportMissingTypeStubs]

from latentprint import words
from latentprint.attacks.whole_set import Copies
from latentprint.audit.context import Where
from latentprint.audit.samples import comparable
from latentprint.audit.whole_set import persons
from latentprint.config import AuditConfig
from latentprint.report.copies import told
from latentprint.results.value import LEVEL
from latentprint.results.whole_set import WholeSet
from latentprint.stats import Trials
from latentprint.streams import Streams

MOST = 2000
"""Images compared, at most."""

CHANGED_LEAST = ("plain", "flipped", "shifted", "noisy")
"""Planted copies that measure the power."""

_binomial = cast(Any, scipy_stats).binom


@dataclass(frozen=True)
class Quick:
    """What the look found.

    Attributes:
        found: the answer for the images compared.
        given: how many images there were.
        power: the least share of copies that would have been told from false alarms with a probability of
            95 %; None: no share would.
        seconds: how long the comparison took.
    """

    found: WholeSet
    given: int
    power: float | None
    seconds: float

    @property
    def sentences(self) -> tuple[str, ...]:
        """The answer, what could have been missed, and how long it took."""
        n = self.found.copies.n
        if self.power is None:
            missed = (
                "No share of copies would have been told from false alarms: more generated or more held-out"
                " images are needed."
            )
        else:
            rare = words.one_in(self.power)
            missed = (
                f"If fewer than {rare} generated images are copies, they may have been missed."
                " More frequent ones would have been found 19 times in 20."
            )
        took = f"{n:,} of {self.given:,} generated images were compared, in {self.seconds:.1f} s."
        return *told(self.found), *self.found.notes, missed, took

    def plain(self) -> dict[str, object]:
        """Plain values for ``--json``."""
        return {
            "whole_set": self.found.plain(),
            "given": self.given,
            "power": self.power,
            "seconds": self.seconds,
        }


def quick_look(config: AuditConfig, samples: Path | str, where: Where) -> Quick:
    """Compare generated images with the training images that the settings name.

    Raises:
        InputError: either of them cannot be read, their shapes differ, or too few training images are
            distinct.
    """
    given, split = comparable(config, samples, where)
    chosen = np.sort(Streams(config.seed).generator("quick").permutation(len(given))[:MOST])
    began = time.perf_counter()
    copies = Copies(
        split.train.pixels,
        split.heldout.pixels[:MOST],
        person=persons(split.train),
        seed=config.seed,
        device=where.place,
    )
    copies.update(given.pixels[chosen])
    found = copies.compute()
    return Quick(found, len(given), power(found), time.perf_counter() - began)


def power(found: WholeSet, level: float = LEVEL) -> float | None:
    """The least share r of copies with  P( Binomial(n, r d + a) >= k ) >= level.

    d is the share found of the planted copies that were changed least, a the upper bound of the false-alarm
    rate, and k the least number of copies whose interval lies above a. None: there is no such r.
    """
    decides, alarms, n = found.criteria[0], found.false_alarms, found.copies.n
    known = [decides.planted[name].rate for name in CHANGED_LEAST if name in decides.planted]
    if alarms is None or not known or not min(known):
        return None
    each = 1 - (1 - level) / 4
    highest = alarms.trials.upper(each)
    enough = next((k for k in range(1, n + 1) if Trials(k, n).lower(each) > highest), None)
    if enough is None:
        return None

    def seen(share: float) -> float:
        return float(_binomial.sf(enough - 1, n, min(1.0, share * min(known) + alarms.rate)))

    low, high = 0.0, 1.0
    if seen(high) < level:
        return None
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (low, middle) if seen(middle) >= level else (middle, high)
    return high
