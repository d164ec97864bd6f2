"""When to stop sampling, and what a count that stopped on sight may say.

With ``samples.until = X`` sampling stops as soon as it is decided whether the image comes back more often
than X: after each look (``stats.looks``), where with an anytime-valid interval [a, b] of the rate of joint
detections (Robbins 1970; Howard et al. 2021)

    below    b through the detectors' misses < X    (``stats.corrected_interval``)
    above    a > X    more samples change nothing: what is left open is the detectors' false alarms

The looks and all that follows from them are a function of the stored rows, so that a run killed at any moment
stops where a straight run does, and whoever has the rows can check it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from latentprint.audit.results import monte_carlo_entry
from latentprint.audit.stages import UNIT, Detectors
from latentprint.config import SampleSettings
from latentprint.contracts import Outcome
from latentprint.stats import (
    CorrectedRate,
    Trials,
    corrected_interval,
    looks,
    running_interval,
    running_p_value,
    samples_to_decide,
)

LEVEL = 0.95


def corrected(
    rate: float,
    interval: Callable[[float], tuple[float, float]],
    detectors: Detectors,
    control: Trials | None,
) -> dict[str, Any]:
    """The entry ``corrected`` of an estimate of q: what the detectors' own errors leave of its interval."""
    found = corrected_interval(rate, interval, errors(detectors), control=control, level=LEVEL)
    return entry(found)


def errors(detectors: Detectors) -> list[tuple[Trials, Trials]]:
    """(tpr, fpr) of c_p, where there is one, and of c_id."""
    fitted = [one for one in (detectors.presence, detectors.identity) if one is not None]
    return [(one.rates.tpr, one.rates.fpr) for one in fitted]


def entry(found: CorrectedRate) -> dict[str, Any]:
    """Plain values for results."""
    return {
        "rate": found.rate,
        "low": found.low,
        "high": found.high,
        "level": found.level,
        "note": found.note,
    }


@dataclass(frozen=True)
class Question:
    """Is q below ``threshold``? ``most`` samples may be drawn to answer it."""

    threshold: float
    most: int
    detectors: tuple[tuple[Trials, Trials], ...]

    @classmethod
    def of(cls, settings: SampleSettings, detectors: Detectors) -> Question | None:
        """The question of the settings; None where the number of samples is fixed."""
        if settings.until is None:
            return None
        return cls(settings.until, settings.count, tuple(errors(detectors)))

    def sizes(self) -> list[int]:
        """The numbers of samples at which one looks."""
        return looks(self.most, UNIT)

    def counts(self, outcome: Outcome) -> tuple[Trials, ...]:
        """What each look saw: the looks within the samples that were drawn, in the order of their ids."""
        n = len(outcome.hit)
        return tuple(
            Trials(int(np.count_nonzero(outcome.hit[:size])), size) for size in self.sizes() if size <= n
        )

    def interval(self, counts: Sequence[Trials], level: float = LEVEL) -> tuple[float, float]:
        """Anytime-valid interval of the rate of joint detections."""
        return running_interval(counts, level, self.threshold)

    def answer(self, counts: Sequence[Trials]) -> str | None:
        """ "below", "above", or None while it is open."""
        if self.interval(counts)[0] > self.threshold:
            return "above"
        through = corrected_interval(
            counts[-1].rate, lambda level: self.interval(counts, level), self.detectors, level=LEVEL
        )
        return "below" if through.high < self.threshold else None

    def answered(self, outcome: Outcome) -> bool:
        """Whether the samples so far are enough."""
        return self.answer(self.counts(outcome)) is not None

    def entry(self, outcome: Outcome, expected: float) -> dict[str, Any]:
        """What of ``q.monte_carlo`` differs from a count of fixed size, and the looks that it rests on."""
        counts = self.counts(outcome)
        low, high = self.interval(counts)
        n, answer = counts[-1].n, self.answer(counts)
        said = {
            "below": f"the rate is below {self.threshold:g}, the detectors' misses counted",
            "above": f"the detectors fire together more often than {self.threshold:g}",
            None: f"whether the rate is below {self.threshold:g} is still open{self._too_few()}",
        }[answer]
        return {
            "low": low,
            "high": high,
            "p_value": running_p_value(counts, expected, self.threshold),
            "until": self.threshold,
            "most": self.most,
            "answer": answer,
            "stopped": f"after {n:,} of at most {self.most:,} images: {said}",
            "looks": {"samples": [one.n for one in counts], "hits": [one.k for one in counts]},
        } | ({} if counts[-1].k == 0 else {"missable": high})  # without a hit the number of looks was fixed

    def _too_few(self) -> str:
        enough = samples_to_decide(self.threshold, LEVEL)
        return f"; even without any hit at least {enough:,} would be needed" if enough > self.most else ""


def seen(outcome: Outcome) -> Trials:
    """Joint detections among the samples."""
    return Trials(int(np.count_nonzero(outcome.hit)), len(outcome.hit))


def counted_entry(
    outcome: Outcome,
    expected: float,
    sampler: dict[str, Any],
    question: Question | None,
    detectors: Detectors,
    control: Trials | None,
) -> dict[str, Any]:
    """``q.monte_carlo``: the count, its interval as it came about, and the same through the detectors."""
    trials = seen(outcome)
    interval = trials.interval if question is None else _at_looks(question, outcome)
    return (
        monte_carlo_entry(outcome, expected, sampler)
        | ({} if question is None else question.entry(outcome, expected))
        | {"corrected": corrected(trials.rate, interval, detectors, control)}
    )


def _at_looks(question: Question, outcome: Outcome) -> Callable[[float], tuple[float, float]]:
    counts = question.counts(outcome)
    return lambda level: question.interval(counts, level)
