"""What t' means: the same search for images that the model never saw, and many targets against that law.

At small t every image comes back, also one never trained on, so t' has no zero of its own. Its zero is the
law of t' over held-out images v_1 .. v_n, treated like the target in every way (same fingerprint law, same
kind of detector, same grid and tries). If the model knows x_p no better than them, all n + 1 values are
exchangeable and

    p = (1 + #{i : t'(v_i) >= t'(x_p)}) / (n + 1)

is a p-value, exact up to ties, which only raise it. "Never" lies below every t.

The p-values of many targets share one null sample. They are positively dependent in the sense that Benjamini
and Hochberg's step-up needs (Bates et al. 2023, theorem 2), so it controls the false-discovery rate.

Sources: Phipson and Smyth 2010; Benjamini and Hochberg 1995; Bates, Candes, Lei, Romano, Sesia, Ann. Stat. 51
(2023), arXiv 2104.08279.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from latentprint.contracts import Probe
from latentprint.search.boundary import TPrime, conclude
from latentprint.search.plan import Plan, ask
from latentprint.stats import empirical_p, false_discovery

CHUNK = 16
"""Targets whose trajectories share one request, unless told otherwise."""


@dataclass(frozen=True)
class NullLaw:
    """t' of held-out images; None where none of an image's tries came back.

    Raises:
        ValueError: there is no value.
    """

    values: tuple[float | None, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("the null law of t' needs at least one held-out image, got none")

    @property
    def median(self) -> float | None:
        """The upper median; None where it is "never"."""
        return sorted(self.values, key=_order)[len(self.values) // 2]

    @property
    def smallest_p(self) -> float:
        """What a t' above all held-out ones gets: 1 / (n + 1)."""
        return 1 / (len(self.values) + 1)

    def p_value(self, value: float | None) -> float:
        """Rank p-value of a target's t' (see the module)."""
        return empirical_p(_order(value), [_order(one) for one in self.values])

    def exceeds(self, value: float | None) -> bool:
        """Whether ``value`` lies above every held-out image's t'."""
        return all(_order(value) > _order(one) for one in self.values)

    def excess(self, value: float | None) -> float | None:
        """t' over the null's median; None where either is "never", which has no distance to a t."""
        median = self.median
        return None if value is None or median is None else value - median

    def sentence(self, value: float | None) -> str:
        """The comparison in words."""
        count = len(self.values)
        reached = sum(_order(one) >= _order(value) for one in self.values)
        found = "never" if value is None else f"t' = {value:.4g}"
        text = (
            f"{found}; {reached} of {count} images that the model never saw reach as high (p = "
            f"{self.p_value(value):.3g}, {self._excess_words(value)})."
        )
        if self.smallest_p > 0.05:
            text += f" With {count} such images p cannot fall below {self.smallest_p:.2g}; take at least 20."
        return text

    def _excess_words(self, value: float | None) -> str:
        excess = self.excess(value)
        if excess is not None:
            return f"{excess:+.4g} against their median"
        return "their median is never" if self.median is None else f"their median is {self.median:.4g}"


def _order(value: float | None) -> float:
    """A place in the order for comparisons only: never lies below every t."""
    return -math.inf if value is None else value


def null_law(held_out: Iterable[TPrime]) -> NullLaw:
    """The null law from the searches of held-out images.

    Raises:
        ValueError: there is none, or they did not ask the same question in the same way.
    """
    searches = list(held_out)
    if len({_question(one) for one in searches}) > 1:
        raise ValueError("held-out images must be searched alike: same grid, tries, threshold and method")
    return NullLaw(tuple(one.value for one in searches))


def _question(one: TPrime) -> tuple[str, tuple[float, ...], int, float]:
    """What must agree for two t' to be comparable; detectors, and so their rates, are each image's own."""
    return one.method, one.plan.grid, one.plan.tries, one.plan.threshold


def scan(
    probe: Probe, plan: Plan, targets: Iterable[int], *, chunk: int = CHUNK
) -> Iterator[tuple[int, TPrime]]:
    """Exhaustive search for each target, ``chunk`` of them in one staggered request.

    ``probe`` reads from an id which image it belongs to (``plan.target_of``). Memory holds one chunk,
    whatever the number of targets.

    Raises:
        ValueError: ``chunk`` is below 1; a target is negative or comes twice within a chunk; the probe
            answered with another number of hits than it was asked for.
    """
    if chunk < 1:
        raise ValueError(f"a chunk needs at least one target, got {chunk}")
    return _scan(probe, plan, iter(targets), chunk)


def _scan(probe: Probe, plan: Plan, rest: Iterator[int], chunk: int) -> Iterator[tuple[int, TPrime]]:
    every = range(len(plan.grid))
    while together := list(islice(rest, chunk)):
        seen = ask(probe, plan, every, range(plan.tries), together)
        for target in together:
            trials = [seen.trials[target, index] for index in every]
            cost = seen.evaluations[target]
            yield target, conclude(plan, trials, cost, "exhaustive", every)


@dataclass(frozen=True)
class Ranked:
    """One target of a profile.

    Attributes:
        target: its number.
        value: its t'.
        hits: tries that came back, over all levels.
        p_value: of "the model knows it no better than a held-out image".
        exceeds_null: its t' lies above every held-out image's.
        discovered: it stands among the discoveries at the profile's false-discovery rate.
    """

    target: int
    value: float | None
    hits: int
    p_value: float
    exceeds_null: bool
    discovered: bool


@dataclass(frozen=True)
class Profile:
    """Anonymity of many images under one model.

    Attributes:
        ranked: highest t' first; equal ones by hits, then by number.
        null: what they were compared with.
        false_discovery_rate: among the discovered, on average at most this share is falsely there.
        network_evaluations: over all targets.
    """

    ranked: tuple[Ranked, ...]
    null: NullLaw
    false_discovery_rate: float
    network_evaluations: int

    @property
    def exceeding(self) -> int:
        """How many targets lie above every held-out image."""
        return sum(one.exceeds_null for one in self.ranked)

    @property
    def discovered(self) -> int:
        """How many targets stand at the false-discovery rate."""
        return sum(one.discovered for one in self.ranked)

    @property
    def needed(self) -> int:
        """How many targets must exceed the whole null before any can be discovered: p >= 1/(n + 1)."""
        return math.ceil(len(self.ranked) * self.null.smallest_p / self.false_discovery_rate)

    @property
    def sentence(self) -> str:
        """The finding in words."""
        count, null = len(self.ranked), len(self.null.values)
        text = (
            f"{self.exceeding} of {count} images have a t' above that of all {null} images never trained on; "
            f"{self.discovered} stand at a false-discovery rate of {self.false_discovery_rate:.2g}."
        )
        if not self.discovered and self.needed > 1:
            text += (
                f" With {null} held-out images at least {self.needed} targets must exceed them all before "
                "any can be named; more held-out images lower that number."
            )
        return text


def profile(
    probe: Probe,
    plan: Plan,
    targets: Iterable[int],
    null: NullLaw,
    *,
    false_discovery_rate: float = 0.05,
    chunk: int = CHUNK,
) -> Profile:
    """Search every target, rank them by t' and correct for their number.

    Only a target's t' and its number of hits are kept once it is searched.

    Raises:
        ValueError: no target, or one twice; a false-discovery rate outside (0, 1); as for ``scan``.
    """
    if not 0 < false_discovery_rate < 1:
        raise ValueError(f"a false-discovery rate lies strictly between 0 and 1, got {false_discovery_rate}")
    kept: dict[int, tuple[float | None, int]] = {}
    cost = 0
    for target, found in scan(probe, plan, targets, chunk=chunk):
        if target in kept:
            raise ValueError(f"each target may be searched once, got {target} twice")
        kept[target] = found.value, sum(one.k for one in found.trials)
        cost += found.network_evaluations
    if not kept:
        raise ValueError("a profile needs at least one target, got none")
    p_values = [null.p_value(value) for value, _ in kept.values()]
    chosen = false_discovery(p_values, 1 - false_discovery_rate)
    rows = [
        Ranked(target, value, hits, p, null.exceeds(value), bool(stands))
        for (target, (value, hits)), p, stands in zip(kept.items(), p_values, chosen, strict=True)
    ]
    rows.sort(key=lambda one: (-_order(one.value), -one.hits, one.target))
    return Profile(tuple(rows), null, false_discovery_rate, cost)
