"""q(p), Eq. 6, as a value: counted, and estimated where counting sees nothing. Each belongs to one named
sampler."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from latentprint.results.searched import Sampler
from latentprint.results.value import Chance, Count, Level, Note, Value
from latentprint.stats import Trials, running_interval, stretched


class Corrected(Value):
    """What the detectors' own errors leave of an interval; ``note`` says what was assumed."""

    rate: Chance | None
    low: Chance
    high: Chance
    level: Level
    note: str


class Looks(Value):
    """The sample sizes at which the count was looked at, and the counts there."""

    samples: tuple[int, ...]
    hits: tuple[int, ...]

    @property
    def counts(self) -> tuple[Trials, ...]:
        """The counts at each look."""
        return tuple(Trials(k, n) for n, k in zip(self.samples, self.hits, strict=True))


class Stopping(Value):
    """A count that may stop early: is q below ``until``? Its interval holds at any stopping time."""

    until: Chance
    most: Count
    answer: Literal["below", "above"] | None
    stopped: str
    looks: Looks


class Counted(Value):
    """n samples of one sampler, and how many the detectors recognised (paper section 5.3).

    Attributes:
        expected: E = n copies / N (Eq. 11).
        p_value: of H0: q = copies / N against less.
        missable: the largest rate that still gives so few hits with probability 1 - level.
    """

    sampler: Sampler
    samples: Count
    presence_hits: Count | None
    identity_hits: Count
    hits: Count
    rate: Chance
    low: Chance
    high: Chance
    level: Level
    expected: Annotated[float, Field(ge=0)]
    p_value: Chance
    missable: Chance
    corrected: Corrected | None = None
    stopping: Stopping | None = None
    network_evaluations: Count

    @model_validator(mode="after")
    def _possible(self) -> Self:
        for hits in (self.hits, self.identity_hits, self.presence_hits or 0):
            Trials(hits, self.samples)
        return self

    @property
    def trials(self) -> Trials:
        """Joint detections among the samples."""
        return Trials(self.hits, self.samples)

    def at(self, level: float) -> tuple[float, float]:
        """The interval of the rate at another level; which one it is depends on how sampling stopped."""
        if self.stopping is None:
            return self.trials.interval(level)
        return running_interval(self.stopping.looks.counts, level, self.stopping.until)


class Estimate(Value):
    """q by an estimator that sees what counting cannot; without a number if its diagnostic failed.

    Attributes:
        sampler: whose q it is. Only an estimate of the audited sampler decides anything.
        diagnostic: a sentence, even if the estimate is reliable.
        freedom, trials: how the interval widens to another level.
        details: what the method measured along the way.
    """

    sampler: Sampler
    rate: Chance | None
    low: Chance | None
    high: Chance | None
    level: Level
    reliable: bool
    diagnostic: str
    network_evaluations: Count
    corrected: Corrected | None = None
    freedom: Annotated[float, Field(ge=1)] | None = None
    trials: Trials | None = None
    details: dict[str, object] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        ends = (self.low, self.rate, self.high)
        if self.reliable and not (None not in ends and list(ends) == sorted(ends)):  # type: ignore[type-var]
            raise ValueError(f"a reliable estimate lies inside its interval, got {ends}")
        if not self.reliable and ends != (None, None, None):
            raise ValueError("an estimate that is not reliable offers no number")
        return self

    def at(self, level: float) -> tuple[float, float] | None:
        """The interval at another level; None if it has none, or it is unknown how it widens.

        Counts have Clopper and Pearson's; other intervals are widened on the logarithm by the quotient of the
        two quantiles of Student's t.
        """
        if self.rate is None or self.low is None or self.high is None:
            return None
        if self.trials is not None:
            return self.trials.interval(level)
        if self.freedom is None:
            return None
        return stretched(self.rate, (self.low, self.high), self.freedom, self.level, level)


ESTIMATE = "estimate"
"""The key under which every estimator's stage notes what it found."""


def estimate_of(estimator: str) -> Note[Estimate]:
    """What the stage of that estimator notes."""
    return Note(estimator, ESTIMATE, Estimate)


class Combined(Value):
    """The estimates of the audited sampler together (``stats.choice``).

    Attributes:
        answer: the estimate that answers, by its key; null if two contradict each other.
        low, high: its interval at ``level``, widened so that all hold together.
        agree: whether no two contradict each other.
    """

    answer: str | None
    agree: bool
    low: Chance
    high: Chance
    level: Level
    sentence: str


class Q(Value, extra="allow"):
    """q(p), Eq. 6: counted, and estimated by every estimator that ran, each under its own name."""

    __pydantic_extra__: dict[str, Estimate | None] = Field(init=False)  # pyright: ignore[reportIncompatibleVariableOverride]
    monte_carlo: Counted
    control: Counted | None = None
    combined: Combined | None = None

    @property
    def estimates(self) -> dict[str, Estimate]:
        """The estimates by name, in the order of the table of estimators."""
        return {name: one for name, one in self.__pydantic_extra__.items() if one is not None}

    def of_the_audited(self) -> dict[str, Estimate]:
        """The reliable estimates of the sampler that was counted. Only these decide."""
        found = self.estimates.items()
        return {name: one for name, one in found if one.reliable and one.sampler == self.monte_carlo.sampler}
