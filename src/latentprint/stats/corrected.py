"""The true rate behind detectors that err.

A detector with true and false positive rates tpr and fpr sees a true rate q as p = q tpr + (1 - q) fpr, so q
= (p - fpr) / (tpr - fpr). All three are known as intervals; the interval of q comes from their least
favourable ends.

Source: W. J. Rogan, B. Gladen, Am. J. Epidemiol. 107 (1978).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from latentprint.stats.counts import Trials


@dataclass(frozen=True)
class CorrectedRate:
    """The true rate behind a detector that errs.

    Attributes:
        rate: Rogan and Gladen's ``(p - fpr) / (tpr - fpr)`` cut to [0, 1]; None if undefined.
        low, high: interval of the true rate, at ``level``, detector uncertainty included.
        note: one sentence on how the detector's errors changed the answer.
    """

    rate: float | None
    low: float
    high: float
    level: float
    note: str


def through_detector(
    seen: tuple[float, float], tpr: tuple[float, float], fpr: tuple[float, float]
) -> tuple[float, float, str]:
    """Interval of the true rate, given intervals of the detector's hit rate and of its two error rates.

    With ``p = q tpr + (1 - q) fpr`` the true rate ``q = (p - fpr) / (tpr - fpr)`` rises with p and falls with
    tpr and with fpr wherever fpr <= p <= tpr, so its extremes are at two corners of the box. If the box
    contradicts that order, the detector's rates on the calibration split do not apply to these images. The
    contradicted rate is then treated as unknown, which only widens the answer.
    """
    (p_low, p_high), (t_low, t_high), (f_low, f_high) = seen, tpr, fpr
    notes: list[str] = []
    if p_high < f_low:
        notes.append("fewer positives than the false-positive rate alone predicts, so that rate was not used")
        f_low = 0.0
    if p_low > t_high:
        notes.append("more positives than the true-positive rate allows, so that rate was not used")
        t_high = 1.0
    low = min(1.0, (p_low - f_high) / (t_high - f_high)) if f_high < min(p_low, t_high) else 0.0
    high = min(1.0, (p_high - f_low) / (t_low - f_low)) if t_low > f_low else 1.0
    if t_low <= f_high:
        notes.append("the calibration split is too small to tell the detector from chance")
    elif low == 0.0 and p_low > 0:
        notes.append("the positives may all be false: the false-positive rate is not known to be smaller")
    return low, high, "; ".join(notes) if notes else "detector errors are carried into the interval"


def corrected_rate(hits: Trials, tpr: Trials, fpr: Trials, level: float = 0.95) -> CorrectedRate:
    """The rate of Omega itself, from detector hits and the detector's own measured error rates.

    Three Clopper-Pearson intervals at ``1 - (1 - level) / 3`` (Bonferroni) and the extremes of Rogan and
    Gladen's formula over their box: conservative, and valid for every n, even if no false positive was seen.
    """
    each = 1 - (1 - level) / 3
    low, high, note = through_detector(hits.interval(each), tpr.interval(each), fpr.interval(each))
    gain = tpr.rate - fpr.rate
    rate = min(1.0, max(0.0, (hits.rate - fpr.rate) / gain)) if gain > 0 else None
    return CorrectedRate(rate, low, high, level, note)


def corrected_rate_of_both(
    hits: Trials, presence: tuple[Trials, Trials], identity: tuple[Trials, Trials], level: float = 0.95
) -> CorrectedRate:
    """``corrected_interval`` of a count, for the conjunction of c_p and c_id (Eq. 6), each (tpr, fpr)."""
    return corrected_interval(hits.rate, hits.interval, (presence, identity), level=level)


def corrected_interval(
    rate: float,
    interval: Callable[[float], tuple[float, float]],
    detectors: Sequence[tuple[Trials, Trials]],
    *,
    control: Trials | None = None,
    level: float = 0.95,
) -> CorrectedRate:
    """The rate of what the m ``detectors`` look for, from how often they fire together, by any estimator.

    Nothing is assumed about how the detectors' errors depend on each other. Together they find at least ``sum
    of tpr - (m - 1)`` of Omega and at most the least tpr (Fréchet). Outside Omega at least one of the signs
    is missing, so they err with at most the largest fpr. A control, the same recipe without the image, counts
    their joint false alarms on generated images; the lower of the two bounds is used. Bonferroni over all
    intervals involved. ``rate`` is corrected for misses only, because the joint rate of false alarms is
    bounded and not known.

    Args:
        interval: of the rate at which they fire, by confidence level.
        detectors: (tpr, fpr) of each, as counts.
        control: joint detections of the control.

    Raises:
        ValueError: no detector.
    """
    if not detectors:
        raise ValueError("a corrected rate needs the error rates of at least one detector, got none")
    m = len(detectors)
    each = 1 - (1 - level) / (1 + 2 * m + (control is not None))
    one_sided = (1 + each) / 2
    found = [tpr.interval(each) for tpr, _ in detectors]
    tpr = (max(0.0, sum(low for low, _ in found) - (m - 1)), min(high for _, high in found))
    alarms = max(fpr.upper(one_sided) for _, fpr in detectors)
    if control is not None:
        alarms = min(alarms, control.upper(one_sided))
    low, high, note = through_detector(interval(each), tpr, (0.0, alarms))
    joint = max(0.0, sum(tpr.rate for tpr, _ in detectors) - (m - 1))
    return CorrectedRate(min(1.0, rate / joint) if joint > 0 else None, low, high, level, note)
