"""Which of several estimates of one rate is the answer, and with which interval.

All estimates are of the same rate and the same sampler. With m of them:

1. Each interval is taken at level 1 - (1 - level) / m (Bonferroni), so that all hold together. 2. If two
intervals have no rate in common, at least one is wrong, and there is no answer. 3. Otherwise the narrowest is
the answer: the one whose ends have the smallest quotient.

Because all intervals hold together, looking at them before choosing needs no further correction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, cast

from scipy import stats  # pyright: ignore[reportMissingTypeStubs]

from latentprint.stats.counts import check_level


def stretched(
    rate: float, ends: tuple[float, float], freedom: float, level: float, wanted: float
) -> tuple[float, float]:
    """An interval at ``level`` around ``rate``, converted to the level ``wanted``.

    It is widened on the logarithm by the quotient of the two quantiles of Student's t with ``freedom``
    degrees.
    """
    low, high = ends
    if rate == 0:
        return 0.0, high
    student = cast(Any, stats).t
    ratio = float(student.ppf((1 + wanted) / 2, freedom) / student.ppf((1 + level) / 2, freedom))
    return rate * (low / rate) ** ratio, min(1.0, rate * (high / rate) ** ratio)


@dataclass(frozen=True)
class Claim:
    """An estimate: its name in a sentence, its rate, and its interval by confidence level."""

    name: str
    rate: float
    interval: Callable[[float], tuple[float, float]]


@dataclass(frozen=True)
class Choice:
    """The estimates together.

    Attributes:
        answer: position of the estimate that is the answer; None if two contradict each other.
        low, high: its interval, at ``level`` for all estimates together; 0 and 1 if there is no answer.
        sentence: what they say together, and by which rule.
    """

    answer: int | None
    low: float
    high: float
    level: float
    sentence: str

    @property
    def agree(self) -> bool:
        """Whether no two contradict each other."""
        return self.answer is not None


def choose(claims: Sequence[Claim], level: float = 0.95) -> Choice:
    """One answer from estimates of the same rate, by the rule above.

    Raises:
        ValueError: no estimate.
    """
    check_level(level)
    if not claims:
        raise ValueError("there is nothing to choose from: at least one estimate is needed")
    m = len(claims)
    ends = [one.interval(1 - (1 - level) / m) for one in claims]
    said = [
        f"{one.name} {one.rate:.3g} [{low:.3g}, {high:.3g}]"
        for one, (low, high) in zip(claims, ends, strict=True)
    ]
    for i, j in combinations(range(m), 2):
        if ends[i][1] < ends[j][0] or ends[j][1] < ends[i][0]:
            both = f"{said[i]} and {said[j]}"
            sentence = f"Estimates of the same rate contradict each other, so none is offered: {both}."
            return Choice(None, 0.0, 1.0, level, sentence)
    best = min(range(m), key=lambda i: _width(*ends[i]))
    if m == 1:
        return Choice(0, *ends[0], level, f"One estimate is usable: {said[0]}.")
    sentence = (
        f"{m} estimates of this sampler's rate agree; the narrowest answers, {said[best]}, with its interval "
        f"widened so that all {m} hold together at {level:.0%}."
    )
    return Choice(best, *ends[best], level, sentence)


def _width(low: float, high: float) -> float:
    return high / low if low > 0 else math.inf
