"""What stages note in run.json in addition to their rows: facts that no row holds.

Each value is followed by the stages that note it. A stage finishes with ``NOTE.of(value)`` and ``assemble``
reads ``stored.note(NOTE)``, so the two cannot differ in a name, a key or a class.
"""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from latentprint.results.searched import Sampler
from latentprint.results.value import Count, Note, Sha256, Stage, Time, Value
from latentprint.search.plan import TARGETS

Number = Annotated[int, Field(ge=0, lt=TARGETS)]
"""Of an image in the ids of a search."""

Purpose = Annotated[str, Field(pattern=r"^[a-z0-9_][a-z0-9._-]{0,99}$")]
"""The name under which rows stand."""


class Searched(Value):
    """Of a search: its sampler, and where its schedule starts."""

    sampler: Sampler
    horizon: Time


SEARCH = Note("search.model", "search", Searched)
CONTROL_SEARCH = Note("search.control", "search", Searched)
CHECKPOINT_SEARCH = Note("search", "search", Searched)
"""Of one checkpoint, ``at`` its label."""


class Compared(Searched):
    """Of the baseline: which numbers of the rows are x_p and the held-out images."""

    target: Number
    heldout: Annotated[tuple[Number, ...], Field(min_length=1)]


BASELINE = Note("baseline", "compared", Compared)


class Ranked(Searched):
    """Of the profile: the targets with their hashes, and the numbers of the held-out images.

    ``unmarked``: as they are. ``marked``: under a mark, if x_p is among the targets and carries one.
    """

    targets: tuple[Number, ...]
    sha256: tuple[Sha256, ...]
    private: Number
    unmarked: Annotated[tuple[Number, ...], Field(min_length=1)]
    marked: Annotated[tuple[Number, ...], Field(min_length=1)] | None

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        if not len(self.targets) == len(self.sha256) == len(set(self.targets)):
            raise ValueError("each target comes once, with its hash")
        return self


PROFILE = Note("profile", "ranked", Ranked)


class Snapshots(Value):
    """Of the search over training: the checkpoints, and the purpose under which the rows of each are
    stored."""

    steps: Annotated[tuple[Count, ...], Field(min_length=1)]
    weights_sha256: tuple[Sha256, ...]
    purposes: tuple[Purpose, ...]
    control: Purpose | None

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        if not len(self.steps) == len(self.weights_sha256) == len(self.purposes):
            raise ValueError("each checkpoint has a step, a hash and a purpose")
        if list(self.steps) != sorted(set(self.steps)):
            raise ValueError("the steps of checkpoints rise, each once")
        return self


CHECKPOINTS = Note("checkpoints", "snapshots", Snapshots)


class Further(Value):
    """Further samplers that were asked: the name under which their rows are stored."""

    names: tuple[Purpose, ...]


SAMPLERS = Note("samplers", "further", Further)


class Scored(Value):
    """Of the membership scores: why there are none, if the schedule lacks the noise ratios that they need."""

    note: str | None


MEMBERSHIP = Note("membership", "scored", Scored)


class Probes(Value):
    """Of the likelihood: Hutchinson probes; null: the exact divergence."""

    probes: int | None


LIKELIHOOD = Note("likelihood", "probes", Probes)


class NotDone(Value):
    """What an audit cannot do, in sentences."""

    sentences: tuple[str, ...]


NOT_DONE = Note("model", "not_done", NotDone)


class Pooled(Value):
    """Of the pool of real images: the place of x_p in it."""

    target: Count


POOL = Note("pool", "pooled", Pooled)


class WholeNote(Value):
    """Of the comparison with all training images: how copies were changed; whether persons are known."""

    changes: tuple[str, ...]
    persons: bool


WHOLE = Note("whole", "compared", WholeNote)


class Drawn(Value):
    """Of the canaries: K, the hash of each of the 2 K marked images, and where the schedule starts."""

    fingerprints: Count
    sha256: tuple[Sha256, ...]
    horizon: Time


CANARY_SEARCH = Note("canaries.search", "drawn", Drawn)
CANARIES = Stage("canaries")
AGREEMENT = Stage("agreement")
SIGNS = Stage("signs")
