"""The answer of every estimator of q: a rate, an interval, its cost, and whether it is reliable.

q(p) is the probability that **a sampler** lands in Omega_p (paper, Eq. 6). It belongs to a sampler with its
step count, so every result names the sampler. If a diagnostic fails, no number is offered: ``rate``, ``low``
and ``high`` are None, and ``diagnostic`` says why.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from latentprint.stats import Trials, stretched


@dataclass(frozen=True)
class Rate:
    """One estimate of q.

    Attributes:
        method: "monte_carlo", or the name of an estimator.
        rate, low, high: estimate and interval at ``level``; None if not reliable.
        reliable: whether all of the method's diagnostics passed.
        diagnostic: one sentence; "not reliable because ..." if it is not.
        network_evaluations: cost of the whole estimate, pilots included, one per image row evaluated.
        sampler: the description of the sampler whose q this is.
        trials: counts, if the method counts.
        details: further numbers of the method, for reports; never a substitute for ``rate``.
        freedom: degrees of freedom of Student's t of the interval on the logarithm; None if it has none.

    Raises:
        ValueError: a reliable rate without numbers, or numbers that are out of order or not finite.
    """

    method: str
    rate: float | None
    low: float | None
    high: float | None
    level: float
    reliable: bool
    diagnostic: str
    network_evaluations: int
    sampler: Mapping[str, object]
    trials: Trials | None = None
    details: Mapping[str, object] = field(default_factory=dict[str, object])
    freedom: float | None = None

    def __post_init__(self) -> None:
        if not self.reliable:
            if (self.rate, self.low, self.high) != (None, None, None):
                raise ValueError(f"an unreliable {self.method} estimate must not offer a number as q")
            return
        if self.rate is None or self.low is None or self.high is None:
            raise ValueError(f"a reliable {self.method} estimate needs a rate and both ends of its interval")
        if not (math.isfinite(self.rate) and 0 <= self.low <= self.rate <= self.high <= 1):
            raise ValueError(
                f"a rate lies in its interval in [0, 1], got {self.low}, {self.rate}, {self.high}"
            )

    def holds(self, truth: float) -> bool:
        """Whether the interval contains ``truth``; False if no interval is offered."""
        return self.low is not None and self.high is not None and self.low <= truth <= self.high

    def at(self, level: float) -> tuple[float, float]:
        """The interval at another confidence level.

        Counts have Clopper and Pearson's. Other intervals are widened on the logarithm by the quotient of the
        two quantiles of Student's t.

        Raises:
            ValueError: there is no interval, or it is unknown how it widens.
        """
        if self.rate is None or self.low is None or self.high is None:
            raise ValueError(f"a {self.method} estimate that is not reliable has no interval")
        if self.trials is not None:
            return self.trials.interval(level)
        if self.freedom is None:
            raise ValueError(f"how the interval of this {self.method} estimate stretches is not known")
        return stretched(self.rate, (self.low, self.high), self.freedom, self.level, level)

    def to_dict(self) -> dict[str, object]:
        """Plain numbers and strings only, as JSON can hold them."""
        entry: dict[str, object] = {
            "sampler": dict(self.sampler),
            "rate": self.rate,
            "low": self.low,
            "high": self.high,
            "level": self.level,
            "reliable": self.reliable,
            "diagnostic": self.diagnostic,
            "network_evaluations": self.network_evaluations,
        }
        return dict(self.details) | entry | ({} if self.freedom is None else {"freedom": self.freedom})


def unreliable(
    method: str,
    because: str,
    *,
    level: float,
    network_evaluations: int,
    sampler: Mapping[str, object],
    details: Mapping[str, object] | None = None,
) -> Rate:
    """The answer where a diagnostic failed: a sentence and the cost, no number."""
    return Rate(
        method=method,
        rate=None,
        low=None,
        high=None,
        level=level,
        reliable=False,
        diagnostic=f"not reliable because {because}",
        network_evaluations=network_evaluations,
        sampler=sampler,
        details=details or {},
    )
