"""Settings of the searches: x_p's own, and the two that give its t' a meaning.

Every grid is i T / levels, i = 1..levels. Held-out images and the many targets of a profile get only as many
tries as ranking them takes, fewer than a curve for each would.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from latentprint.contracts import InputError, Probe, quoted
from latentprint.keys import generator
from latentprint.search.boundary import TPrime
from latentprint.search.methods import (
    ANCHORS,
    bisection,
    exhaustive,
    reduced_range,
    require_slack,
    sequential,
    subsample,
)
from latentprint.search.plan import Plan, even_grid
from latentprint.settings import STRICT, Any0, Share, Some
from latentprint.stats import Trials

Targets = Literal["all"] | Any0 | Annotated[tuple[Any0, ...], Field(min_length=1)]
"""All training images; a number of them, drawn by the seed; or these ones."""

Method = Literal["exhaustive", "bisection", "sequential", "subsample", "range"]
"""See `latentprint.search.methods`; "range" is its reduced range."""


Levels = Annotated[int, Field(ge=1, le=4096)]
"""How many noise levels a search may ask."""


class TargetError(InputError):
    """Targets that cannot be searched, with the reason in one sentence."""


class SearchError(InputError):
    """A search that cannot answer, with the reason in one sentence."""


@dataclass(frozen=True, config=STRICT)
class SearchSettings:
    """The search for x_p's t': Alg. 1's M ``tries`` at each of ``levels`` noise levels, or fewer of them.

    Attributes:
        levels: how many noise levels t.
        tries: M.
        threshold: p of t'_p, the largest t from which more than a share p comes back.
        method: how they are asked; the other methods ask fewer than "exhaustive", and show less.
        anchors: for "bisection" and "sequential": levels that get M tries whatever the hits, to tell whether
            P(return | t) falls.
        draw: for "subsample": how many levels are drawn by the seed; None: half of them.
        low, high: for "range": the levels searched, as shares of T.
        slack: for "sequential": the factor in p up to which its t' is certain.
        cap: for "sequential": tries at one level at most.

    Raises:
        ValueError: values that the method cannot work with.
    """

    levels: Levels = 20
    tries: Some = 16
    threshold: Share = 0.05
    method: Method = "exhaustive"
    anchors: Levels = ANCHORS
    draw: Levels | None = None
    low: Annotated[float, Field(ge=0, le=1)] = 0.0
    high: Annotated[float, Field(ge=0, le=1)] = 1.0
    slack: Annotated[float, Field(gt=1, lt=1e6)] = 3.0
    cap: Some = 2000

    def __post_init__(self) -> None:
        grid = self.plan(1.0).grid
        if self.anchors < min(2, self.levels):
            raise ValueError(f"anchors must be 2 or more, got {self.anchors}")
        if not 1 <= self.drawn <= self.levels:
            raise ValueError(f"draw must lie between 1 and the {self.levels} levels, got {self.draw}")
        if not any(self.low <= t <= self.high for t in grid):
            raise ValueError(
                f"none of the {self.levels} noise levels lies in [{self.low:g}, {self.high:g}] T"
            )
        if self.method == "sequential":
            require_slack(self.plan(1.0), self.slack)

    @property
    def drawn(self) -> int:
        """How many levels a subsample has."""
        return (self.levels + 1) // 2 if self.draw is None else self.draw

    def plan(self, horizon: float, false_positives: Trials | None = None) -> Plan:
        """The question for the search, on a schedule that ends at ``horizon``."""
        return _question(self.levels, self.tries, horizon, false_positives, self.threshold)

    def require(self, false_positives: Trials) -> None:
        """Check that a detector with these false-positive counts can answer the question.

        Raises:
            SearchError: its errors are too uncertain for the method.
        """
        if self.method == "sequential":
            try:
                require_slack(self.plan(1.0, false_positives), self.slack)
            except ValueError as error:
                raise SearchError(f"the sequential search cannot be used: {error}") from error

    def search(self, probe: Probe, plan: Plan, seed: int) -> TPrime:
        """t' by the chosen method; ``seed`` draws a subsample.

        Raises:
            ValueError: as for the methods.
        """
        if self.method == "bisection":
            return bisection(probe, plan, anchors=self.anchors)
        if self.method == "sequential":
            return sequential(probe, plan, slack=self.slack, cap=self.cap, anchors=self.anchors)
        if self.method == "subsample":
            return subsample(probe, plan, self.drawn, generator(seed, "search.levels"))
        if self.method == "range":
            return reduced_range(probe, plan, self.low * plan.horizon, self.high * plan.horizon)
        return exhaustive(probe, plan)


def _question(
    levels: int, tries: int, horizon: float, false_positives: Trials | None, threshold: float = 0.05
) -> Plan:
    return Plan(even_grid(levels, horizon), tries, horizon, threshold, false_positives=false_positives)


@dataclass(frozen=True, config=STRICT)
class BaselineSettings:
    """The null law of t' over held-out images (see `latentprint.search.null_law`).

    Attributes:
        images: most held-out images; 0 leaves the baseline out. With n of them no p-value is below 1 / (n +
            1).
        levels: how many noise levels t.
        tries: M at each.
    """

    images: Any0 = 20
    levels: Levels = 20
    tries: Some = 4

    def plan(self, horizon: float, false_positives: Trials | None = None) -> Plan:
        """The question for each image, on a schedule that ends at ``horizon``."""
        return _question(self.levels, self.tries, horizon, false_positives)


@dataclass(frozen=True, config=STRICT)
class ProfileSettings:
    """t' of many training images, ranked against held-out ones.

    Attributes:
        targets: see `Targets`; 0 leaves the profile out.
        null: most held-out images to compare them with.
        levels: how many noise levels t.
        tries: M at each.
        false_discovery_rate: of the images that are named, at most this share is wrong on average.
    """

    targets: Targets = 0
    null: Some = 100
    levels: Levels = 20
    tries: Some = 4
    false_discovery_rate: Share = 0.05

    def plan(self, horizon: float, false_positives: Trials | None = None) -> Plan:
        """The question for each image, on a schedule that ends at ``horizon``."""
        return _question(self.levels, self.tries, horizon, false_positives)


@dataclass(frozen=True, config=STRICT)
class CanarySettings:
    """Many marked images in one training (see `latentprint.marks.canaries`).

    Attributes:
        count: K: 2 K images are marked, and a fair coin decides for each whether it is trained on; 0: none
            are marked.
        tiers: how many copies of those that are trained on the training set holds, in turn.
        delta: of the epsilon for which they give a lower bound.
        levels: how many noise levels t each is searched from.
        tries: M at each.
    """

    count: Any0 = 0
    tiers: Annotated[tuple[Some, ...], Field(min_length=1)] = (1, 4, 1, 16)
    delta: Share = 1e-5
    levels: Levels = 20
    tries: Some = 4

    def plan(self, horizon: float, false_positives: Trials | None = None) -> Plan:
        """The question for each image, on a schedule that ends at ``horizon``."""
        return _question(self.levels, self.tries, horizon, false_positives)


def parse_targets(text: str) -> Targets:
    """The value of ``--targets``: "all", a number of images, or places in the training set such as "3,14,15".

    A single place ends with a comma: "7,".

    Raises:
        TargetError: the text is something else.
    """
    said = text.strip()
    if said == "all":
        return "all"
    try:
        numbers = [int(part) for part in said.split(",") if part.strip()]
    except ValueError:
        numbers = []
    if not numbers:
        raise TargetError(
            f"targets are 'all', a number of images, or places such as 3,14,15; got {quoted(text)}"
        )
    return tuple(numbers) if "," in said else numbers[0]
