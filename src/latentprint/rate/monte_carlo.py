"""q by counting: n independent samples, k of them in Omega_p, ``q ~ k / n`` (paper, §5.3, Tables 1 and 2).

If n was fixed beforehand, the interval is Clopper and Pearson's. (An audit that may stop early because of its
counts has another interval, ``stats.sequential``.) Every count comes with ``missable``: the rate that this
many samples could have missed.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from latentprint.contracts import Probe
from latentprint.rate.result import Rate
from latentprint.stats import Trials, binomial_test_less, missable, samples_to_exclude


@dataclass(frozen=True)
class Tally:
    """What was counted so far.

    Attributes:
        trials: samples in Omega_p.
        columns: sums of the outcome's yes/no columns, e.g. ``presence`` and ``identity``.
        network_evaluations: cost so far.
    """

    trials: Trials
    columns: Mapping[str, int]
    network_evaluations: int


def tally(probe: Probe, start: float, samples: int, *, batch: int = 512, first: int = 0) -> Iterator[Tally]:
    """The running tally of ids ``first .. first + samples - 1``, from noise level ``start``, in batches.

    Raises:
        ValueError: samples or batch is not positive.
    """
    if samples < 1 or batch < 1:
        raise ValueError(f"samples and batch must be at least 1, got {samples} and {batch}")
    trials, columns, cost = Trials(0, 0), dict[str, int](), 0
    for begin in range(first, first + samples, batch):
        ids = np.arange(begin, min(begin + batch, first + samples), dtype=np.int64)
        outcome = probe(np.full(len(ids), start, dtype=np.float64), ids)
        trials += Trials(int(np.count_nonzero(outcome.hit)), len(ids))
        cost += int(outcome.evaluations.sum())
        for name, values in outcome.columns.items():
            if values.dtype == np.bool_:
                columns[name] = columns.get(name, 0) + int(np.count_nonzero(values))
        yield Tally(trials, dict(columns), cost)


def monte_carlo(
    probe: Probe,
    start: float,
    samples: int,
    *,
    sampler: Mapping[str, object],
    level: float = 0.95,
    expected: float | None = None,
    batch: int = 512,
    first: int = 0,
    progress: Callable[[Tally], None] | None = None,
) -> Rate:
    """q from ``samples`` samples, a number fixed beforehand.

    Args:
        probe: returns trajectories by noise level and id; ``start`` is the schedule's own start T.
        expected: q under the paper's H0, copies / N. It adds a p-value, or says that n is too small for one.
        first: the first id, so that a run can be continued with fresh ids and the counts added.

    Raises:
        ValueError: samples or batch is not positive, or expected is not a probability.
    """
    last: Tally | None = None
    for last in tally(probe, start, samples, batch=batch, first=first):
        if progress is not None:
            progress(last)
    assert last is not None  # tally refuses zero samples
    return rate_of(last, sampler=sampler, level=level, expected=expected)


def rate_of(
    counted: Tally, *, sampler: Mapping[str, object], level: float = 0.95, expected: float | None = None
) -> Rate:
    """The result of a finished count with n fixed beforehand, here or elsewhere.

    Raises:
        ValueError: nothing was counted, or ``expected`` is not a probability.
    """
    trials = counted.trials
    if trials.n == 0:
        raise ValueError("a Monte Carlo rate needs at least one sample, got none")
    low, high = trials.interval(level)
    details: dict[str, object] = {"samples": trials.n, "hits": trials.k}
    details |= {"missable": missable(trials.k, trials.n, level)}
    details |= {f"{name}_hits": count for name, count in counted.columns.items()}
    if expected is not None:
        details |= {"expected": expected, "p_value": binomial_test_less(trials.k, trials.n, expected)}
    return Rate(
        method="monte_carlo",
        rate=trials.rate,
        low=low,
        high=high,
        level=level,
        reliable=True,
        diagnostic=_sentence(trials, level, expected),
        network_evaluations=counted.network_evaluations,
        sampler=sampler,
        trials=trials,
        details=details,
    )


def _sentence(trials: Trials, level: float, expected: float | None) -> str:
    said = f"{trials.k} of {trials.n} samples lie in the private region"
    if trials.k == 0:
        said += f"; a rate of up to {missable(0, trials.n, level):.3g} could have been missed"
    if expected is not None and 0 < expected < 1:
        enough = samples_to_exclude(expected, level)
        if trials.n < enough:
            said += (
                f"; {trials.n} samples are too few to tell {expected:.3g} from zero, {enough} would be enough"
            )
    return said


def brute_force_samples(q: float, relative: float = 0.2) -> float:
    """Samples that plain counting needs for a relative standard error: ``(1 - q) / (q relative^2)``.

    Raises:
        ValueError: q is not strictly between 0 and 1, or the error is not above 0 and finite.
    """
    if not 0 < q < 1 or not relative > 0 or math.isinf(relative):
        raise ValueError(f"need 0 < q < 1 and a positive relative error, got {q} and {relative}")
    return (1 - q) / (q * relative**2)
