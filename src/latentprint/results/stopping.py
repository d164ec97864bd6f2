"""When to stop sampling, and what can be concluded from a count that stopped early.

With ``samples.until = X`` sampling stops as soon as it is decided whether the image comes back more often
than X. This is asked at each look (``stats.looks``), with an anytime-valid interval [a, b] of the rate of
joint detections (Robbins 1970; Howard et al. 2021):

    below    b through the detectors' misses < X    (``stats.corrected_interval``)
    above    a > X    more samples change nothing: only the detectors' false alarms are left open

A number of samples that was raised after the results of the first ones had been seen is such a count too:
its looks are at the numbers that were asked for, and X is the average rate c/N.

The looks and all that follows from them are a function of the stored rows. A run that was killed therefore
stops where an uninterrupted one does, and whoever has the rows can check it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic.dataclasses import dataclass as validated

from latentprint.contracts import Hits
from latentprint.results.counted import Looks, Stopping
from latentprint.results.model import Detectors
from latentprint.results.value import LEVEL
from latentprint.settings import STRICT, Share, Some
from latentprint.stats import Trials, corrected_interval, looks, running_interval, samples_to_decide

FIRST_LOOK = 512
"""Samples before the first look; a unit of sampling, so that looks fall between two writes."""


@validated(frozen=True, config=STRICT)
class SampleSettings:
    """How many images are sampled from the model, and from the control (None: as many).

    Attributes:
        until: stop as soon as it is decided whether q is below this rate; ``count`` is then the maximum.
    """

    count: Some = 2000
    control: Some | None = None
    until: Share | None = None


@dataclass(frozen=True)
class Until:
    """Is q below ``threshold``? Asked at each of the rising ``sizes``, the last of which is the most.

    Attributes:
        raised: whether the number was fixed, and raised after a look.
    """

    threshold: float
    sizes: tuple[int, ...]
    detectors: tuple[tuple[Trials, Trials], ...]
    raised: bool = False

    @classmethod
    def of(cls, asked: SampleSettings, detectors: Detectors) -> Until | None:
        """The question of the settings; None where the number of samples is fixed."""
        if asked.until is None:
            return None
        return cls(asked.until, tuple(looks(asked.count, FIRST_LOOK)), errors(detectors))

    @classmethod
    def of_raised(
        cls, before: Sequence[SampleSettings], n: int, detectors: Detectors, average: float
    ) -> Until | None:
        """Of ``n`` samples whose number was fixed, and raised after results of fewer had been seen; None
        where it was not. ``average`` is c/N."""
        sizes = sorted({one.count for one in before if one.count < n})
        return cls(min(average, 0.5), (*sizes, n), errors(detectors), raised=True) if sizes else None

    @property
    def most(self) -> int:
        """The number of samples that may be drawn."""
        return self.sizes[-1]

    def counts(self, hit: Hits) -> tuple[Trials, ...]:
        """What each look saw, from the samples (n,) that were drawn, in the order of their ids."""
        sizes = [size for size in self.sizes if size <= len(hit)]
        return tuple(Trials(int(np.count_nonzero(hit[:size])), size) for size in sizes)

    def interval(self, counts: Sequence[Trials], level: float = LEVEL) -> tuple[float, float]:
        """Anytime-valid interval of the rate of joint detections."""
        return running_interval(counts, level, self.threshold)

    def answer(self, counts: Sequence[Trials]) -> Literal["below", "above"] | None:
        """The answer; None while it is open."""
        if self.interval(counts)[0] > self.threshold:
            return "above"
        through = corrected_interval(
            counts[-1].rate, lambda level: self.interval(counts, level), self.detectors, level=LEVEL
        )
        return "below" if through.high < self.threshold else None

    def stopping(self, hit: Hits) -> Stopping:
        """The question, its answer and the looks that it rests on."""
        counts = self.counts(hit)
        answer = self.answer(counts)
        if answer == "below":
            said = f"the rate is below {self.threshold:g}, the detectors' misses counted"
        elif answer == "above":
            said = f"the detectors fire together more often than {self.threshold:g}"
        else:
            said = f"whether the rate is below {self.threshold:g} is still open{self._too_few()}"
        drawn = f"after {counts[-1].n:,} of at most {self.most:,} images"
        if self.raised:
            seen = " and ".join(f"{one:,}" for one in self.sizes[:-1])
            drawn = f"after {self.most:,} images, a number raised when {seen} had been looked at"
        return Stopping(
            until=self.threshold,
            most=self.most,
            answer=answer,
            stopped=f"{drawn}: {said}",
            looks=Looks(samples=tuple(one.n for one in counts), hits=tuple(one.k for one in counts)),
        )

    def _too_few(self) -> str:
        enough = samples_to_decide(self.threshold, LEVEL)
        return f"; even without any hit at least {enough:,} would be needed" if enough > self.most else ""


def errors(detectors: Detectors) -> tuple[tuple[Trials, Trials], ...]:
    """(tpr, fpr) of c_p, if there is one, and of c_id."""
    return tuple((one.tpr, one.fpr) for one in detectors.fitted)
