"""What a design can show, before anything is run: how many samples and held-out images an answer needs.

All numbers are for a model that repeats every training image equally often, and for a recogniser without
errors: what cannot be shown of such a model cannot be shown of any other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, cast

from scipy import stats as scipy_stats  # pyright: ignore[reportMissingTypeStubs]

from latentprint.stats import Trials, samples_to_exclude
from latentprint.stats.returned import LEAST, images_to_call, samples_to_return

Name = Literal["target", "whole set", "control"]

ALPHA: dict[Name, float] = {"target": 0.5, "whole set": 0.25, "control": 0.125}
"""Each test's share of 1 - level (`judge.rule`). A rank needs the largest share, because its p is at least 1
/ (m + 1). The eighth that is left is for those who ask for more images after a look."""

AT_ANY_LOOK = 0.0625
"""The control's share, where its test must hold whenever counting ends."""

_MOST = 10**9


@dataclass(frozen=True)
class Design:
    """The numbers that are chosen before an audit.

    Attributes:
        train, heldout: different images, near copies and persons counted once.
        copies: of x_p among the training images.
        samples: to be drawn from the model.
        control: to be drawn from the control; 0: there is none.
    """

    train: int
    heldout: int
    copies: int
    samples: int
    control: int = 0
    level: float = 0.95
    share: float = 1.0

    @property
    def expected(self) -> float:
        """copies / N."""
        return min(1.0, self.copies / self.train)

    @property
    def can_clear(self) -> bool:
        """Whether no hit at all would mean "not found"."""
        needed = samples_for_not_found(min(1.0, self.share * self.expected), 1.0, self.level)
        return needed is not None and self.samples >= needed

    @property
    def can_call(self) -> tuple[Name, ...]:
        """The tests that would very likely say "reproduces" for a model that repeats its images."""
        found: list[Name] = []
        compared = self.train + self.heldout >= LEAST
        ranked = compared and self.heldout >= self._to_rank
        if ranked and self.samples >= self._to_show_target:
            found.append("target")
        whole = samples_to_call_whole_set(self.train, self.heldout, self.level)
        if whole is not None and self.samples >= whole and compared:
            found.append("whole set")
        if self.control and self._by_control():
            found.append("control")
        return tuple(found)

    @property
    def _to_rank(self) -> int:
        """Held-out images with which the rank of x_p can reject."""
        return heldout_to_rank(ALPHA["target"] * (1 - self.level))

    @property
    def _to_show_target(self) -> int:
        """Samples among which x_p very likely occurs."""
        return samples_to_exclude(self.expected, 0.9) if self.expected < 1 else 1

    def _by_control(self) -> bool:
        """Whether the hits that the model very likely gives are too many for a control that gives none."""
        hits = int(cast(Any, scipy_stats).binom.ppf(0.1, self.samples, self.expected))
        if not hits:
            return False
        whole = self.samples + self.control
        p = cast(Any, scipy_stats).hypergeom.sf(hits - 1, whole, hits, self.samples)
        return float(p) <= ALPHA["control"] * (1 - self.level)

    @property
    def sentences(self) -> tuple[str, ...]:
        """What the design cannot show, and what would be enough; empty if both answers are possible."""
        out: list[str] = []
        if not self.can_call:
            ways = self._ways()
            out.append(
                f"With {self.heldout:,} held-out images and {self.samples:,} samples not even a model that"
                f" repeats all of its {self.train:,} images could be said to do so"
                + (f"; enough would be {' or '.join(ways)}." if ways else ".")
            )
        if not self.can_clear:
            needed = samples_for_not_found(min(1.0, self.share * self.expected), 1.0, self.level)
            out.append(
                f'{self.samples:,} samples are too few for "not found"'
                + ("." if needed is None else f"; {needed:,} without a hit would be enough.")
            )
        return tuple(out)

    def _ways(self) -> list[str]:
        ways: list[str] = []
        whole = samples_to_call_whole_set(self.train, self.heldout, self.level)
        if whole is not None and whole > self.samples:
            ways.append(f"{whole:,} samples")
        rank, shown = self._to_rank, self._to_show_target
        if self.heldout < rank or self.samples < shown:
            more = max(self.samples, shown)
            ways.append(f"{max(rank, self.heldout):,} held-out images and {more:,} samples")
        return ways


def heldout_to_rank(alpha: float = ALPHA["target"] * 0.05) -> int:
    """Fewest held-out images m with which the rank of x_p among them can reject: 1 / (m + 1) <= alpha."""
    return math.ceil(1 / alpha - 1 - 1e-9)


def samples_to_call_whole_set(train: int, heldout: int, level: float = 0.95) -> int | None:
    """Samples after which the whole set says "reproduces" for a model that repeats its images; None:
    never."""
    images = images_to_call(train, heldout, ALPHA["whole set"] * (1 - level))
    return None if images is None else samples_to_return(images, train)


def samples_for_not_found(limit: float, sensitivity: float, level: float = 0.95) -> int | None:
    """Samples that exclude a rate of ``limit`` if none is recognised; None if it cannot be excluded."""
    rate = limit * sensitivity
    if not 0 < rate < 1:
        return None
    n = samples_to_exclude(rate, level)
    return n if Trials(0, n).upper(level) < rate else n + 1


def heldout_to_settle(hits: Trials, level: float = 0.95, kept_apart: float = 0.5) -> int | None:
    """Held-out images that would show, if c_id fired on none of them, that so many hits are no false alarms.

    False alarms are counted on the share ``kept_apart`` of them (`detector.fit.UNSEEN`). None if there is no
    hit, or more than a billion images would be needed.
    """
    binom = cast(Any, scipy_stats).binom

    def settled(unseen: int) -> bool:
        return float(binom.sf(hits.k - 1, hits.n, Trials(0, unseen).upper(level))) <= 1 - level

    if not hits.k:
        return None
    low, high = 1, 1
    while not settled(high):
        low, high = high, 2 * high
        if high > _MOST:
            return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if settled(middle) else (middle + 1, high)
    return math.ceil(low / kept_apart)
