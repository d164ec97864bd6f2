"""What t' means: the same search for images that the model never saw, and many targets compared with their
law.

From small t every image comes back, even one that the model was never trained on, so t' has no natural zero.
Its zero is the law of t' over held-out images v_1 .. v_n, treated like the target in every way (same
fingerprint law, same kind of detector, same grid and tries). If the model knows x_p no better than them, all
n + 1 values are exchangeable and

    p = (1 + #{i : t'(v_i) >= t'(x_p)}) / (n + 1)

is a p-value. It is exact up to ties, which only raise it. "Never" lies below every t.

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
from latentprint.stats import empirical_p

CHUNK = 16
"""Default number of targets whose trajectories share one request."""


@dataclass(frozen=True)
class NullLaw:
    """t' of held-out images; None for an image of which no try came back.

    Raises:
        ValueError: there is no image.
    """

    values: tuple[float | None, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("the null law of t' needs at least one held-out image, got none")

    @property
    def median(self) -> float | None:
        """The upper median; None if it is "never"."""
        return sorted(self.values, key=_order)[len(self.values) // 2]

    @property
    def smallest_p(self) -> float:
        """The p-value of a t' above all held-out ones: 1 / (n + 1)."""
        return 1 / (len(self.values) + 1)

    def p_value(self, value: float | None) -> float:
        """Rank p-value of a target's t' (see the module)."""
        return empirical_p(_order(value), [_order(one) for one in self.values])

    def exceeds(self, value: float | None) -> bool:
        """Whether ``value`` lies above every held-out image's t'."""
        return all(_order(value) > _order(one) for one in self.values)

    def excess(self, value: float | None) -> float | None:
        """t' divided by the null's median; None if either is "never", which has no distance to a t."""
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
        return " ".join([text, *self.shows_nothing()])

    def shows_nothing(self, level: float = 0.95) -> tuple[str, ...]:
        """Why no t' could stand out at this level, in a sentence; None if one could."""
        enough = math.ceil(1 / (1 - level) - 1e-9) - 1
        if len(self.values) >= enough:
            return ()
        return (
            f"With {len(self.values)} such images p cannot fall below {self.smallest_p:.2g}, so that nothing"
            f" can be shown; hold out {enough} or more.",
        )

    def _excess_words(self, value: float | None) -> str:
        excess = self.excess(value)
        if excess is not None:
            return f"{excess:+.4g} against their median"
        return "their median is never" if self.median is None else f"their median is {self.median:.4g}"


def _order(value: float | None) -> float:
    """A sort key: "never" lies below every t."""
    return -math.inf if value is None else value


def null_law(held_out: Iterable[TPrime]) -> NullLaw:
    """The law, over held-out images, of the largest t whose hits cannot all be false alarms.

    That is `TPrime.certain`, here and of the target. In theory the largest t with any hit would do as well,
    since any statistic ranks exchangeably. But one false match among levels x tries trajectories can raise it
    to any height, in the null as in the target, and the two could hardly be told apart.

    Raises:
        ValueError: there is no search, or they did not ask the same question in the same way.
    """
    searches = list(held_out)
    if len({_question(one) for one in searches}) > 1:
        raise ValueError("images must be searched alike: same grid, tries, threshold and method")
    return NullLaw(tuple(one.certain for one in searches))


@dataclass(frozen=True)
class Against:
    """A target's t' and the law of t' over held-out images, all answers to one question.

    Attributes:
        value: the target's. None lies below the lowest level asked: nothing was shown, which clears nothing.
        law: of the held-out images.
    """

    value: float | None
    law: NullLaw

    @classmethod
    def of(cls, target: TPrime, held_out: Iterable[TPrime]) -> Against:
        """The comparison of a search with those of held-out images.

        Raises:
            ValueError: there are none, or one asked another question, the target included.
        """
        searches = list(held_out)
        if searches:
            null_law([target, *searches])  # holds the target to their question
        return cls(target.certain, null_law(searches))

    @property
    def excess(self) -> float | None:
        """t' over the held-out median; None where either is "never"."""
        return self.law.excess(self.value)

    @property
    def p_value(self) -> float:
        """Rank p-value of the target's t' (see the module)."""
        return self.law.p_value(self.value)

    @property
    def sentence(self) -> str:
        """The comparison in words."""
        return self.law.sentence(self.value)


def _question(one: TPrime) -> tuple[str, tuple[float, ...], int, float]:
    """What must agree for two t' to be comparable. Detectors, and so their rates, may differ between
    images."""
    return one.method, one.plan.grid, one.plan.tries, one.plan.threshold


def scan(
    probe: Probe, plan: Plan, targets: Iterable[int], *, chunk: int = CHUNK
) -> Iterator[tuple[int, TPrime]]:
    """Exhaustive search for each target, ``chunk`` of them in one staggered request.

    ``probe`` reads from an id which image it belongs to (``plan.target_of``). Memory holds one chunk,
    whatever the number of targets.

    Raises:
        ValueError: ``chunk`` is below 1; a target is negative or occurs twice within a chunk; the probe
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
