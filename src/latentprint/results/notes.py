"""What stages note in run.json in addition to their rows: facts that no row holds.

The stage writes the value and ``assemble`` reads it, both through the classes here.
"""

from __future__ import annotations

from latentprint.results.searched import Sampler
from latentprint.results.value import Count, Sha256, Value


class Searched(Value):
    """Of a search: whose it is, and where its schedule starts."""

    sampler: Sampler
    horizon: float


class Compared(Searched):
    """Of the baseline: which numbers of the rows are x_p and the held-out images."""

    target: Count
    heldout: tuple[Count, ...]


class Ranked(Searched):
    """Of the profile: the targets with their hashes, and the numbers of the held-out images.

    ``unmarked``: as they are. ``marked``: under a mark, if x_p is among the targets and carries one.
    """

    targets: tuple[Count, ...]
    sha256: tuple[Sha256, ...]
    private: Count
    unmarked: tuple[Count, ...]
    marked: tuple[Count, ...] | None


class Snapshots(Value):
    """Of the search over training: the checkpoints, and the purpose under which the rows of each are
    stored."""

    steps: tuple[Count, ...]
    weights_sha256: tuple[Sha256, ...]
    purposes: tuple[str, ...]
    control: str | None


class Further(Value):
    """Further samplers that were asked: the name under which their rows are stored."""

    names: tuple[str, ...]


class Scored(Value):
    """Of the membership scores: why there are none, if the schedule lacks the noise ratios that they need."""

    note: str | None


class Probes(Value):
    """Of the likelihood: Hutchinson probes; null: the exact divergence."""

    probes: int | None


class NotDone(Value):
    """What an audit cannot do, in sentences."""

    sentences: tuple[str, ...]


class Pooled(Value):
    """Of the pool of real images: the place of x_p in it."""

    target: Count


class WholeNote(Value):
    """Of the comparison with all training images: how copies were changed; whether persons are known."""

    changes: tuple[str, ...]
    persons: bool


class Drawn(Value):
    """Of the canaries: K, the hash of each of the 2 K marked images, and where the schedule starts."""

    fingerprints: Count
    sha256: tuple[Sha256, ...]
    horizon: float
