"""Settings of the two searches that give t' its meaning: held-out images, and many training images.

The grid is i T / levels, i = 1..levels, as in the search for x_p, with as many tries as ranking images takes,
fewer than a curve of each would.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from latentprint.contracts import InputError
from latentprint.search.plan import Plan, even_grid
from latentprint.stats import Trials

Targets = Literal["all"] | int | tuple[int, ...]
"""All training images, so many of them drawn by the seed, or these."""


class TargetError(InputError):
    """Targets that cannot be searched, for the reason given in one sentence."""


@dataclass(frozen=True)
class BaselineSettings:
    """The null law of t' over held-out images (see `latentprint.search.baseline`).

    Attributes:
        images: held-out images at most; 0 leaves the baseline out. With n of them no p-value lies below
            1 / (n + 1).
        levels: how many noise levels t.
        tries: M at each.

    Raises:
        ValueError: a number is outside its range.
    """

    images: int = 20
    levels: int = 20
    tries: int = 4

    def __post_init__(self) -> None:
        if self.images < 0:
            raise ValueError(f"the baseline's images must be 0 or more, got {self.images}")
        self.plan(1.0)

    def plan(self, horizon: float, false_positives: Trials | None = None) -> Plan:
        """The question for each image, on a schedule that ends at ``horizon``."""
        return Plan(even_grid(self.levels, horizon), self.tries, horizon, false_positives=false_positives)


@dataclass(frozen=True)
class ProfileSettings:
    """t' of many training images, ranked against held-out ones.

    Attributes:
        targets: see `Targets`; 0 leaves the profile out.
        null: held-out images at most that they are compared with.
        levels: how many noise levels t.
        tries: M at each.
        false_discovery_rate: on average at most this share of the images named is named falsely.

    Raises:
        ValueError: a number is outside its range.
    """

    targets: Targets = 0
    null: int = 100
    levels: int = 20
    tries: int = 4
    false_discovery_rate: float = 0.05

    def __post_init__(self) -> None:
        if self.null < 1:
            raise ValueError(f"the profile's null needs at least 1 held-out image, got {self.null}")
        if not 0 < self.false_discovery_rate < 1:
            raise ValueError(
                f"false_discovery_rate lies strictly between 0 and 1, got {self.false_discovery_rate}"
            )
        if isinstance(self.targets, int) and self.targets < 0:
            raise ValueError(f"the number of targets must be 0 or more, got {self.targets}")
        if self.targets == ():
            raise ValueError("a profile needs at least one target, got none")
        self.plan(1.0)

    def plan(self, horizon: float, false_positives: Trials | None = None) -> Plan:
        """The question for each image, on a schedule that ends at ``horizon``."""
        return Plan(even_grid(self.levels, horizon), self.tries, horizon, false_positives=false_positives)


def parse_targets(text: str) -> Targets:
    """What ``--targets`` was given: "all", a number of images, or places in the training set as "3,14,15".

    A single place ends in a comma: "7,".

    Raises:
        TargetError: it is none of these.
    """
    said = text.strip()
    if said == "all":
        return "all"
    try:
        numbers = [int(part) for part in said.split(",") if part.strip()]
    except ValueError:
        numbers = []
    if not numbers:
        raise TargetError(f"targets are 'all', a number of images, or places such as 3,14,15; got {text!r}")
    return tuple(numbers) if "," in said else numbers[0]
