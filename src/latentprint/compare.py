"""Is this recipe safer than that one, or is the difference noise? Rates of several runs, each against the
first.

For runs a (the reference) and b with k_a of n_a and k_b of n_b hits:

    difference   d = q_b - q_a, interval by combining the two exact intervals (l, u) of the rates:
                 d - sqrt((p_b - l_b)^2 + (u_a - p_a)^2)  to  d + sqrt((u_b - p_b)^2 + (p_a - l_a)^2)
    ratio        rho = q_b / q_a; given the sum, k_b ~ Binomial(k_a + k_b, n_b rho / (n_a + n_b rho)) for rare
                 hits, so the Clopper-Pearson interval of that share gives an interval of rho
    test         Fisher's exact test, two-sided, of "the rates are equal"

With m runs the m - 1 comparisons hold together: each at level 1 - (1 - level) / (m - 1) (Bonferroni).

Sources: G. Zou, A. Donner, Statist. Med. 27 (2008) for the difference ("square and add", Newcombe 1998, here
with Clopper-Pearson limits); Przyborowski, Wilenski, Biometrika 31 (1940) for the ratio; Fisher 1935.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any, cast

from scipy import stats as scipy_stats  # pyright: ignore[reportMissingTypeStubs]

from latentprint.contracts import InputError
from latentprint.results import Results
from latentprint.stats import Trials
from latentprint.words import chance, one_in


@dataclass(frozen=True)
class Line:
    """One run in the table. ``low`` and ``high``: exact interval of the rate at ``level``.

    ``copies`` is the share of generated images that are copies of any training image, ``epsilon`` the lower
    bound by canaries; None if they were not measured.
    """

    name: str
    images: int
    samples: int
    hits: int
    rate: float
    low: float
    high: float
    level: float
    times_expected: float
    missable: float
    t_prime: float | None
    copies: float | None
    epsilon: float | None
    state: str


@dataclass(frozen=True)
class Difference:
    """A run against the reference.

    Attributes:
        low, high: interval of the difference of the rates, ``rate - reference rate``.
        ratio_low, ratio_high: interval of their ratio; ``ratio_high`` is None if nothing bounds it.
        p_value: of "the rates are equal", adjusted for the number of comparisons (times m - 1, at most 1).
        level: confidence with which all comparisons hold together.
        sentence: the answer in words.
    """

    name: str
    reference: str
    difference: float
    low: float
    high: float
    ratio: float | None
    ratio_low: float
    ratio_high: float | None
    p_value: float
    level: float
    sentence: str


@dataclass(frozen=True)
class Comparison:
    """Runs side by side; ``cautions`` say where they are not comparable."""

    lines: tuple[Line, ...]
    differences: tuple[Difference, ...]
    cautions: tuple[str, ...]

    def to_dict(self) -> dict[str, object]:
        """Plain values, for ``--json`` and for the page."""
        return {
            "schema": "latentprint/comparison/1",
            "runs": [asdict(line) for line in self.lines],
            "differences": [asdict(difference) for difference in self.differences],
            "cautions": list(self.cautions),
        }


def difference_interval(first: Trials, second: Trials, level: float = 0.95) -> tuple[float, float]:
    """Interval of ``q_second - q_first`` (see the module)."""
    (l1, u1), (l2, u2) = first.interval(level), second.interval(level)
    p1, p2 = first.rate, second.rate
    d = p2 - p1
    return d - math.hypot(p2 - l2, u1 - p1), d + math.hypot(u2 - p2, p1 - l1)


def ratio_interval(first: Trials, second: Trials, level: float = 0.95) -> tuple[float, float | None]:
    """Interval of ``q_second / q_first`` for rare hits; (0, None) if neither run had one."""
    total = first.k + second.k
    if total == 0:
        return 0.0, None
    low, high = Trials(second.k, total).interval(level)
    scale = first.n / second.n
    return scale * low / (1 - low), None if high == 1 else scale * high / (1 - high)


def equality_p(first: Trials, second: Trials) -> float:
    """p-value of "the two rates are equal", two-sided: all tables no likelier than the one seen (Fisher)."""
    table = [[first.k, first.n - first.k], [second.k, second.n - second.k]]
    return float(cast(Any, scipy_stats).fisher_exact(table).pvalue)


def compare(runs: Mapping[str, Results], level: float = 0.95) -> Comparison:
    """Compare results by name; the first is the reference.

    Raises:
        InputError: fewer than two runs, or a run without samples.
    """
    if len(runs) < 2:
        raise InputError(f"a comparison needs at least two runs, got {len(runs)}")
    reference, *others = (_line(name, results, level) for name, results in runs.items())
    each = 1 - (1 - level) / len(others)
    differences = tuple(_difference(reference, one, level, each, len(others)) for one in others)
    return Comparison((reference, *others), differences, tuple(_cautions([*runs.values()])))


def _line(name: str, results: Results, level: float) -> Line:
    hits = results.q.monte_carlo.trials
    if hits.n == 0:
        raise InputError(f"{name} holds no generated images, so it has no rate to compare")
    low, high = hits.interval(level)
    return Line(
        name=name,
        images=results.data.images,
        samples=hits.n,
        hits=hits.k,
        rate=hits.rate,
        low=low,
        high=high,
        level=level,
        times_expected=hits.rate / results.expected_rate,
        missable=hits.upper(level),
        t_prime=None if results.t_prime is None else results.t_prime.value,
        copies=None if results.whole_set is None else results.whole_set.copies.rate,
        epsilon=None if results.epsilon is None else results.epsilon.low,
        state=results.verdict.state,
    )


def _difference(first: Line, second: Line, level: float, each: float, number: int) -> Difference:
    one, two = Trials(first.hits, first.samples), Trials(second.hits, second.samples)
    low, high = difference_interval(one, two, each)
    ratio_low, ratio_high = ratio_interval(one, two, each)
    p_value = min(1.0, number * equality_p(one, two))
    return Difference(
        name=second.name,
        reference=first.name,
        difference=two.rate - one.rate,
        low=low,
        high=high,
        ratio=two.rate / one.rate if one.k else None,
        ratio_low=ratio_low,
        ratio_high=ratio_high,
        p_value=p_value,
        level=level,
        sentence=_sentence(first, second, ratio_low, ratio_high, p_value, level),
    )


def _sentence(first: Line, second: Line, low: float, high: float | None, p_value: float, level: float) -> str:
    rates = f"{_rate(second)} against {_rate(first)}"
    if p_value > 1 - level:
        return (
            f"{second.name} cannot be told from {first.name} ({rates}): the difference may be noise:"
            f" one this large has a chance of {chance(p_value)}."
        )
    if second.rate < first.rate:
        bounded = high is not None and high < 1
        how = f"at least {1 / (high or 1):.3g} times more rarely than" if bounded else "more rarely than"
    else:
        how = f"at least {low:.3g} times as often as" if low > 1 else "more often than"
    return (
        f"{second.name} gives the image back {how} {first.name} ({rates}); were they alike, the"
        f" chance of this would be {chance(p_value)}."
    )


def _rate(line: Line) -> str:
    return one_in(line.rate) if line.hits else f"none in {line.samples:,}"


LIKE: tuple[tuple[str, Callable[[Results], object]], ...] = (
    ("the private image", lambda r: r.target.sha256),
    ("the training images", lambda r: r.data.sha256),
    ("the way of generating", lambda r: r.q.monte_carlo.sampler),
    ("the recognisers' networks", lambda r: [one.backbone for one in r.detectors.fitted]),
    ("how t' was asked", lambda r: None if r.t_prime is None else r.t_prime.question),
    ("how many marked images were put in", lambda r: r.canaries and r.canaries.fingerprints),
    ("when to stop sampling", lambda r: r.q.monte_carlo.stopping is None),
)
"""What runs must share, so that a difference between them is due to the recipe."""


def _cautions(runs: Sequence[Results]) -> list[str]:
    """Differences between the runs that are not due to the recipe."""
    told = [
        f"The runs differ in {what}, so a difference may be due to that."
        for what, of in LIKE
        if any(of(one) != of(runs[0]) for one in runs)
    ]
    if _sighted_unlike(runs):
        told.append(
            "The recognisers do not notice the private image equally often, so a run with fewer hits may only"
            " have overlooked more."
        )
    told.append(
        "Each run is one training. Another seed of the same recipe gives other numbers; to compare recipes,"
        " train each with several seeds."
    )
    if any(one.q.monte_carlo.stopping is not None for one in runs):
        told.append(
            "Sampling stopped early or went on because of the counts, but the intervals here are for a fixed"
            " number of samples: they are too narrow."
        )
    return told


def _sighted_unlike(runs: Sequence[Results]) -> bool:
    """Whether a recogniser of one run notices more than the same one of another, at 5 % over all pairs."""
    pairs = [
        (one.tpr, other.tpr)
        for first, second in combinations([run.detectors for run in runs], 2)
        for one, other in ((first.presence, second.presence), (first.identity, second.identity))
        if one is not None and other is not None and one.tpr.n and other.tpr.n
    ]
    return any(equality_p(*pair) <= 0.05 / len(pairs) for pair in pairs)


__all__: Sequence[str] = [
    "Comparison",
    "Difference",
    "Line",
    "compare",
    "difference_interval",
    "ratio_interval",
]
