"""t' as a value: what was asked, what came back, and what it means compared with images never trained on.

A t' carries its ``Question``. A t' of one recogniser, number of tries or sampler is never compared with the
law of another.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from latentprint.results.value import Chance, Count, Level, Note, Sha256, Value, require_counts
from latentprint.stats import Trials

Recogniser = Literal["c_p and c_id", "c_id", "embedding"]


class Incomparable(ValueError):
    """Two numbers were to be compared that answer different questions."""


class Sampler(Value, extra="allow"):
    """Whose q or t' a number is: a sampler with its steps. Two are equal only if all that is known of both is
    equal.

    Further keys (a guidance scale, a tolerance) are part of the identity.
    """

    step: str
    steps: int | None = None
    spacing: str | None = None
    denoise: bool | None = None
    stochastic: bool | None = None

    @property
    def coarse(self) -> bool:
        """Whether it is known to leave noise in its images that hides copies (docs/method.md)."""
        return self.step == "ancestral" and self.steps is not None and self.steps < 96

    @property
    def words(self) -> str:
        """The sampler in words: "ancestral, 24 steps, karras"."""
        scale = (self.model_extra or {}).get("guidance")
        known = [self.step, None if self.steps is None else f"{self.steps:,} steps", self.spacing]
        known.append(None if scale is None else f"guidance {scale:g}")
        return ", ".join(one for one in known if one is not None)


SAMPLES = Note("samples.model", "sampler", Sampler)
CONTROL_SAMPLES = Note("samples.control", "sampler", Sampler)


class Question(Value):
    """The question that a t' answers: by which recogniser, with how many tries per noise level, by which
    sampler."""

    recogniser: Recogniser
    tries: Annotated[int, Field(ge=1)]
    sampler: Sampler


def require_alike(one: Question, other: Question) -> None:
    """Check that two t' answer the same question.

    Raises:
        Incomparable: they do not.
    """
    if one != other:
        raise Incomparable(f"a t' of {one} cannot be compared with one of {other}")


class Band(Value):
    """Simultaneous intervals of P(return | t) at every level of a grid."""

    low: tuple[float, ...]
    high: tuple[float, ...]
    level: Level


class Falling(Value):
    """The test that P(return | t) falls with t; ``p_value`` null: fewer than two levels to compare."""

    p_value: Chance | None
    sentence: str


class Curve(Value):
    """Hits at every noise level that was asked, and t', the largest level with a hit; null: no level had one.

    Attributes:
        question: decides what may be compared with it.
        grid: noise levels t, rising; ``hits`` and ``trials`` at each.
        levels: how many the whole grid has, if not all of it was asked.
    """

    question: Question
    value: float | None
    grid: tuple[float, ...]
    hits: tuple[int, ...]
    trials: tuple[int, ...]
    levels: int
    network_evaluations: Count

    @model_validator(mode="after")
    def _counts(self) -> Self:
        require_counts(self.grid, self.hits, self.trials)
        return self

    @property
    def counts(self) -> tuple[Trials, ...]:
        """Hits among tries at each level."""
        return tuple(Trials(k, n) for k, n in zip(self.hits, self.trials, strict=True))

    @property
    def tries(self) -> int:
        """M of Alg. 1."""
        return self.question.tries


class OwnTPrime(Value):
    """x_p's t', measured as the held-out images' was."""

    value: float | None
    tries: int
    hits: tuple[int, ...]


class Baseline(Value):
    """The law of t' over held-out images, and x_p's own t' by the same measurement.

    Attributes:
        question: of the target and of all held-out images alike.
        values: t' of each held-out image; null: it never came back.
        target: x_p's answer to the same question. It is not ``t_prime.value``, which another recogniser gave.
        excess: the target's t' over the held-out median; null if either never came back.
        p_value: rank p-value of the target's t' (``search.null_law``).
    """

    question: Question
    asked: Count
    images: Count
    grid: tuple[float, ...]
    hits: tuple[int, ...]
    trials: tuple[int, ...]
    values: tuple[float | None, ...]
    median: float | None
    target: OwnTPrime
    excess: float | None
    p_value: Chance
    smallest_p: Chance
    sentence: str
    network_evaluations: Count

    @model_validator(mode="after")
    def _counts(self) -> Self:
        require_counts(self.grid, self.hits, self.trials)
        require_counts(self.grid, self.target.hits, [self.target.tries] * len(self.target.hits))
        return self


class Search(Curve):
    """t' of x_p (Alg. 1): the curve, what follows from it, its baseline and its control.

    Attributes:
        low, high, statement: the interval of t'_p, the largest t from which a share ``threshold`` comes back.
        certain: the largest t whose hits cannot all be false alarms; null: there is none.
        presence_hits, identity_hits: of each detector alone.
    """

    low: float | None
    high: float | None
    statement: str
    sentence: str
    certain: float | None
    method: str
    threshold: Chance
    presence_hits: tuple[int, ...] | None
    identity_hits: tuple[int, ...]
    band: Band
    falling: Falling
    baseline: Baseline | None = None
    control: Curve | None = None

    @model_validator(mode="after")
    def _alike(self) -> Self:
        for hits in (self.presence_hits, self.identity_hits):
            require_counts(self.grid, self.hits if hits is None else hits, self.trials)
        if not len(self.band.low) == len(self.band.high) == len(self.grid):
            raise ValueError(
                f"the band has {len(self.band.low)} lower and {len(self.band.high)} upper ends at"
                f" {len(self.grid)} noise levels"
            )
        if self.control is not None:
            require_alike(self.question, self.control.question)
        return self


class Closest(Value):
    """The nearest image that came back from t or above, and its errors to x_p."""

    t: float
    mse: float
    mae: float


class Checkpoint(Value):
    """The search after ``step`` training steps; ``if_falling``: the interval if P(return | t) falls."""

    step: Count
    weights_sha256: Sha256
    value: float | None
    low: float | None
    high: float | None
    if_falling: tuple[float | None, float | None]
    certain: float | None
    hits: tuple[int, ...]
    p_value: Chance | None
    closest: Closest | None
    network_evaluations: Count


class Checkpoints(Value):
    """The search over training, and the first step from which x_p came back more often than from
    ``against``."""

    tries: int
    grid: tuple[float, ...]
    threshold: Chance
    level: Level
    closest_from: float
    against: Literal["control", "first checkpoint"]
    onset: int | None
    sentence: str
    steps: tuple[Checkpoint, ...]

    @model_validator(mode="after")
    def _counts(self) -> Self:
        for one in self.steps:
            require_counts(self.grid, one.hits, [self.tries] * len(one.hits))
        return self


class ProfileRow(Value):
    """One training image: its t', and its rank among the held-out images of the profile's own null law."""

    target: Count
    sha256: Sha256
    value: float | None
    hits: Count
    p_value: Chance
    exceeds_null: bool
    discovered: bool


class ProfileNull(Value):
    """t' of the profile's own held-out images: as they are, and under a mark if x_p carries one."""

    asked: Count
    images: Count
    values: tuple[float | None, ...]
    marked: tuple[float | None, ...] | None = None


class Profile(Value):
    """t' of many training images, highest first, each against the profile's own null law."""

    question: Question
    grid: tuple[float, ...]
    null: ProfileNull
    rows: tuple[ProfileRow, ...]
    false_discovery_rate: Chance
    exceeding: Count
    discovered: Count
    sentence: str
    network_evaluations: Count
