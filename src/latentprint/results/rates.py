"""Stored rows of samples -> q: the count, the control's count, and the estimates."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np

from latentprint.results.counted import ESTIMATE, Combined, Corrected, Counted, Estimate, Q, estimate_of
from latentprint.results.model import Detectors
from latentprint.results.searched import CONTROL_SAMPLES, SAMPLES, Sampler
from latentprint.results.stopping import SampleSettings, Until, errors
from latentprint.results.stored import Stored
from latentprint.results.value import LEVEL, Note
from latentprint.stats import (
    Claim,
    CorrectedRate,
    Trials,
    binomial_test_less,
    choose,
    corrected_interval,
    missable,
    running_p_value,
)


def q(stored: Stored, detectors: Detectors, expected: float) -> Q:
    """Everything known about q; ``expected`` is copies / N."""
    stored.needed(SAMPLES)
    control = counted(stored, CONTROL_SAMPLES, detectors, expected)
    alarms = None if control is None else control.trials
    monte_carlo = counted(stored, SAMPLES, detectors, expected, alarms, decides=True)
    assert monte_carlo is not None
    estimated = [name for name, note in stored.notes.items() if ESTIMATE in note]
    found = {name: estimate(stored, name, detectors, monte_carlo.sampler, alarms) for name in estimated}
    return Q(monte_carlo=monte_carlo, control=control, combined=combined(monte_carlo, found), **found)


def counted(
    stored: Stored,
    note: Note[Sampler],
    detectors: Detectors,
    expected: float,
    control: Trials | None = None,
    *,
    decides: bool = False,
) -> Counted | None:
    """Counts of §5.3, their exact interval, the test of H0: q = copies / N, and what could have been missed.

    Args:
        control: joint detections of the control, which are false alarms of this sampler.
        decides: whether it is the audit's own count, the only one that may stop early. The number of any may
            have been raised.
    """
    sampler = stored.note(note)
    if sampler is None:
        return None
    outcome = stored.outcome(note.name)
    trials = Trials(int(np.count_nonzero(outcome.hit)), len(outcome.hit))
    until = Until.of(stored.setting(SampleSettings, "samples"), detectors) if decides else None
    if until is None:
        until = Until.of_raised(stored.before(SampleSettings, "samples"), trials.n, detectors, expected)
    looked = () if until is None else until.counts(outcome.hit)

    def interval(level: float) -> tuple[float, float]:
        return trials.interval(level) if until is None else until.interval(looked, level)

    low, high = interval(LEVEL)
    # Without a hit the number of looks is a constant, so the bound for a fixed n holds.
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


def _corrected(found: CorrectedRate) -> Corrected:
    return Corrected(rate=found.rate, low=found.low, high=found.high, level=found.level, note=found.note)


def estimate(
    stored: Stored, name: str, detectors: Detectors, audited: Sampler, control: Trials | None
) -> Estimate | None:
    """An estimate as its stage noted it, with what the detectors' errors leave of it.

    The control counts false alarms of its own sampler only.
    """
    found = stored.note(estimate_of(name))
    if found is None or found.rate is None or found.at(LEVEL) is None:
        return found
    alarms = control if found.sampler == audited else None
    ends = partial(_ends, found)
    through = corrected_interval(found.rate, ends, errors(detectors), control=alarms, level=LEVEL)
    return found.model_copy(update={"corrected": _corrected(through)})


def combined(count: Counted, estimates: Mapping[str, Estimate | None]) -> Combined | None:
    """The count and the estimates of the same sampler, by the rule of ``stats.choice``; None without any."""
    ran = {name: one for name, one in estimates.items() if one is not None}
    if not ran:
        return None
    claims = [Claim("counting", count.rate, count.at)]
    names = ["monte_carlo"]
    aside = list[str]()
    for name, one in ran.items():
        if one.sampler != count.sampler:
            aside.append(f"The {name} estimate is of another sampler ({one.sampler.words}).")
        elif one.rate is None:
            aside.append(f"The {name} estimator declined.")
        elif one.at(LEVEL) is None:
            aside.append(f"How the interval of the {name} estimate widens is not known, so it stands alone.")
        else:
            names.append(name)
            claims.append(Claim(name, one.rate, partial(_ends, one)))
    found = choose(claims, LEVEL)
    return Combined(
        answer=None if found.answer is None else names[found.answer],
        agree=found.agree,
        low=found.low,
        high=found.high,
        level=found.level,
        sentence=" ".join([found.sentence, *aside]),
    )


def _ends(found: Estimate, level: float) -> tuple[float, float]:
    """The interval at a level; the whole of [0, 1] if it is unknown how it widens."""
    return found.at(level) or (0.0, 1.0)
