"""Stored rows of samples -> q: the count, the control's, and the estimates beside them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import combinations

import numpy as np

from latentprint.results.counted import Combined, Corrected, Counted, Estimate, Q
from latentprint.results.model import Detectors
from latentprint.results.searched import Sampler
from latentprint.results.stopping import Until, errors
from latentprint.results.stored import Stored
from latentprint.results.value import LEVEL
from latentprint.stats import (
    CorrectedRate,
    Trials,
    binomial_test_less,
    corrected_interval,
    missable,
    running_p_value,
)


def q(stored: Stored, detectors: Detectors, expected: float) -> Q:
    """All that is known of q; ``expected`` is copies / N."""
    control = counted(stored, "samples.control", detectors, expected)
    alarms = None if control is None else control.trials
    monte_carlo = counted(stored, "samples.model", detectors, expected, alarms, decides=True)
    assert monte_carlo is not None
    estimated = [name for name, note in stored.notes.items() if "estimate" in note]
    found = {name: estimate(stored, name, detectors, monte_carlo.sampler, alarms) for name in estimated}
    return Q(monte_carlo=monte_carlo, control=control, combined=combined(monte_carlo, found), **found)


def counted(
    stored: Stored,
    purpose: str,
    detectors: Detectors,
    expected: float,
    control: Trials | None = None,
    *,
    decides: bool = False,
) -> Counted | None:
    """Counts of §5.3, their exact interval, the test of H0: q = copies / N, and what may be missed.

    Args:
        control: joint detections of the control, which are false alarms of this sampler.
        decides: whether it is the audit's own count, the only one that may stop on sight.
    """
    sampler = stored.note(purpose, "sampler", Sampler)
    if sampler is None:
        return None
    outcome = stored.outcome(purpose)
    trials = Trials(int(np.count_nonzero(outcome.hit)), len(outcome.hit))
    until = _until(stored, detectors) if decides else None
    looked = () if until is None else until.counts(outcome.hit)

    def interval(level: float) -> tuple[float, float]:
        return trials.interval(level) if until is None else until.interval(looked, level)

    low, high = interval(LEVEL)
    # Without a hit the number of looks was a constant, so that the bound for a fixed n holds.
    stopped_on_hits = until is not None and trials.k > 0
    return Counted(
        sampler=sampler,
        samples=trials.n,
        presence_hits=(
            None if detectors.presence is None else int(np.count_nonzero(outcome.columns["presence_hit"]))
        ),
        identity_hits=int(np.count_nonzero(outcome.columns["identity_hit"])),
        hits=trials.k,
        rate=trials.rate,
        low=low,
        high=high,
        level=LEVEL,
        expected=trials.n * expected,
        p_value=(
            binomial_test_less(trials.k, trials.n, expected)
            if until is None
            else running_p_value(looked, expected, until.threshold)
        ),
        missable=high if stopped_on_hits else missable(trials.k, trials.n, LEVEL),
        corrected=(
            _corrected(
                corrected_interval(trials.rate, interval, errors(detectors), control=control, level=LEVEL)
            )
            if decides
            else None
        ),
        stopping=None if until is None else until.stopping(outcome.hit),
        network_evaluations=int(outcome.evaluations.sum()),
    )


def _until(stored: Stored, detectors: Detectors) -> Until | None:
    asked = stored.settings.get("samples", {})
    return Until.of(asked.get("until"), asked.get("count", 0), detectors)


def _corrected(found: CorrectedRate) -> Corrected:
    return Corrected(rate=found.rate, low=found.low, high=found.high, level=found.level, note=found.note)


def estimate(
    stored: Stored, name: str, detectors: Detectors, audited: Sampler, control: Trials | None
) -> Estimate | None:
    """An estimate as its stage noted it, with what the detectors' errors leave of it.

    The control counts false alarms of its own sampler, and of no other.
    """
    found = stored.note(name, "estimate", Estimate)
    if found is None or not found.reliable or found.rate is None or found.at(LEVEL) is None:
        return found

    def interval(level: float) -> tuple[float, float]:
        ends = found.at(level)
        assert ends is not None  # asked above
        return ends

    alarms = control if found.sampler == audited else None
    through = corrected_interval(found.rate, interval, errors(detectors), control=alarms, level=LEVEL)
    return found.model_copy(update={"corrected": _corrected(through)})


def combined(count: Counted, estimates: Mapping[str, Estimate | None]) -> Combined | None:
    """The count and the estimates together; None where nothing was estimated beside the count.

    Only estimates of the audited sampler are about the q that was counted. Where two of these have disjoint
    intervals at least one is wrong, and none is offered. Otherwise the narrowest is.
    """
    ran = {name: one for name, one in estimates.items() if one is not None}
    if not ran:
        return None
    usable: dict[str, tuple[float, float, float]] = {"monte_carlo": (count.rate, count.low, count.high)}
    for name, one in ran.items():
        if one.sampler == count.sampler and one.rate is not None:
            assert one.low is not None and one.high is not None
            usable[name] = (one.rate, one.low, one.high)
    for first, second in combinations(usable, 2):
        if usable[first][2] < usable[second][1] or usable[second][2] < usable[first][1]:
            said = f"{_said(first, usable[first])} and {_said(second, usable[second])}"
            sentence = f"Estimates of the same rate contradict each other, so none is offered: {said}."
            return Combined(answer=None, agree=False, sentence=sentence)
    answer = min(usable, key=lambda name: _width(usable[name]))
    told = (
        f"{len(usable)} estimates of this sampler's rate agree"
        if len(usable) > 1
        else "One estimate is usable"
    )
    others = [f"{name} is of another sampler" for name, one in ran.items() if one.sampler != count.sampler]
    others += [
        f"{name} declined" for name, one in ran.items() if not one.reliable and one.sampler == count.sampler
    ]
    rest = f" ({'; '.join(others)})" if others else ""
    sentence = f"{told}{rest}; the narrowest is {_said(answer, usable[answer])}."
    return Combined(answer=answer, agree=True, sentence=sentence)


def _width(ends: tuple[float, float, float]) -> float:
    return ends[2] / ends[1] if ends[1] > 0 else math.inf


def _said(name: str, ends: tuple[float, float, float]) -> str:
    rate, low, high = ends
    return f"{NAMES.get(name, name)} {rate:.3g} [{low:.3g}, {high:.3g}]"


NAMES = {"monte_carlo": "counting"}
"""How an estimate is called where its key says it badly."""
