"""What stages note in run.json in addition to their rows: facts that no row holds.

Each value is followed by the stages that note it. A stage finishes with ``NOTE.of(value)`` and ``assemble``
reads ``stored.note(NOTE)``, so the two cannot differ in a name, a key or a class.
"""

from __future__ import annotations

from latentprint.results.searched import Sampler
from latentprint.results.value import Count, Note, Sha256, Stage, Value


class Searched(Value):
    """Of a search: its sampler, and where its schedule starts."""

    sampler: Sampler
    horizon: float


SEARCH = Note("search.model", "search", Searched)
CONTROL_SEARCH = Note("search.control", "search", Searched)
CHECKPOINT_SEARCH = Note("search", "search", Searched)
"""Of one checkpoint, ``at`` its label."""


class Compared(Searched):
    """Of the baseline: which numbers of the rows are x_p and the held-out images."""

    target: Count
    heldout: tuple[Count, ...]


BASELINE = Note("baseline", "compared", Compared)


class Ranked(Searched):
    """Of the profile: the targets with their hashes, and the numbers of the held-out images.

    ``unmarked``: as they are. ``marked``: under a mark, if x_p is among the targets and carries one.
    """

    targets: tuple[Count, ...]
    sha256: tuple[Sha256, ...]
    private: Count
    unmarked: tuple[Count, ...]
    marked: tuple[Count, ...] | None


PROFILE = Note("profile", "ranked", Ranked)


class Snapshots(Value):
    """Of the search over training: the checkpoints, and the purpose under which the rows of each are
    stored."""

    steps: tuple[Count, ...]
    weights_sha256: tuple[Sha256, ...]
    purposes: tuple[str, ...]
    control: str | None


CHECKPOINTS = Note("checkpoints", "snapshots", Snapshots)


class Further(Value):
    """Further samplers that were asked: the name under which their rows are stored."""

    names: tuple[str, ...]


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
    horizon: float


CANARY_SEARCH = Note("canaries.search", "drawn", Drawn)
CANARIES = Stage("canaries")
AGREEMENT = Stage("agreement")
SIGNS = Stage("signs")
