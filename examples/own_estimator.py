"""An estimator of q of one's own: sample until k images have come back (Haldane 1945)."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import stats

from latentprint.contracts import Ids, Outcome, Probe, Times
from latentprint.rate.estimator import Effort, Estimator, Subject
from latentprint.rate.result import Rate, unreliable
from latentprint.streams import Streams


# --8<-- [start:estimator]
def inverse_count(
    probe: Probe,
    start: float,
    hits: int,
    *,
    most: int,
    sampler: Mapping[str, Any],
    level: float = 0.95,
    batch: int = 512,
) -> Rate:
    """q from the number n of samples that it took to see ``hits`` of them in Omega_p.

    (hits - 1) / (n - 1) is unbiased, and its relative error is about 1 / sqrt(hits) for every q. The interval
    is exact: {N <= n} is {Binomial(n, q) >= hits}.

    Args:
        probe: trajectories by noise level and id; ``start`` is the schedule's own start.
        most: samples after which it gives up.

    Raises:
        ValueError: hits < 2, or most < hits.
    """
    if not 2 <= hits <= most:
        raise ValueError(f"at least 2 hits, and no more than most, are needed, got {hits} and {most}")
    seen, cost = np.zeros(0, dtype=np.bool_), 0
    for first in range(0, most, batch):
        ids = np.arange(first, min(first + batch, most), dtype=np.int64)
        outcome = probe(np.full(len(ids), start), ids)
        seen, cost = np.append(seen, outcome.hit), cost + int(outcome.evaluations.sum())
        if seen.sum() >= hits:
            break
    else:
        because = f"only {seen.sum()} of the {hits} hits had come after all {most} samples"
        return unreliable("inverse", because, level=level, network_evaluations=cost, sampler=sampler)
    n = int(np.flatnonzero(seen)[hits - 1]) + 1
    tail = (1 - level) / 2
    return Rate(
        method="inverse",
        rate=(hits - 1) / (n - 1),
        low=float(stats.beta.ppf(tail, hits, n - hits + 1)),
        high=float(stats.beta.ppf(1 - tail, hits, n - hits)) if n > hits else 1.0,
        level=level,
        reliable=True,
        diagnostic=f"the {hits}th hit was sample {n}",
        network_evaluations=cost,
        sampler=sampler,
        details={"samples": n, "hits": hits},
    )


# --8<-- [end:estimator]


# --8<-- [start:row]
def _inverse(subject: Subject, effort: Effort) -> Rate:
    """``inverse_count`` as the table asks for it: of a sampler as a map of its noise."""
    push, streams = subject.push, Streams(effort.seed)

    def probe(t: Times, ids: Ids) -> Outcome:
        images = push(streams.noise("inverse", ids, 0, (push.latent,)))
        return Outcome(subject.inside(images).numpy(), np.full(len(t), push.evaluations))

    hits = max(2, round(1 / effort.relative**2))
    return inverse_count(probe, 0.0, hits, most=effort.most, sampler=subject.described, level=effort.level)


ROW = Estimator("inverse", _inverse, least=26, fixed_steps=True)
# --8<-- [end:row]
