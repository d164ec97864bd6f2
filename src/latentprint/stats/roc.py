"""The worth of a score that should be higher on members than on held-out images.

    AUC = P(a member scores higher than a held-out image) + P(equal) / 2

and the members found at a threshold that lets few held-out images through.

Sources: DeLong, DeLong, Clarke-Pearson 1988 (AUC); Carlini et al. 2022 for judging by the true positives at
few false ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy import stats as scipy_stats  # pyright: ignore[reportMissingTypeStubs]

from latentprint.stats.counts import Trials, check_level

Scores = Mapping[str, NDArray[np.float64]]
"""Name of a score -> one value per image; a higher value means more likely a member."""

_normal = cast(Any, scipy_stats).norm


@dataclass(frozen=True)
class Auc:
    """P(a member scores higher than an image held out), ties counted half.

    Attributes:
        value: the estimate, in [0, 1].
        low, high: two-sided interval at ``level``.
        method: "DeLong", or "paired Clopper-Pearson" if the two sets do not overlap at all.
    """

    value: float
    low: float
    high: float
    level: float
    method: str


@dataclass(frozen=True)
class AtFalsePositives:
    """Members found when the threshold lets at most a share of the held-out images through.

    Attributes:
        wanted: that share.
        threshold: members score above it.
        tpr: members above the threshold, as counts.
        fpr: held-out images above it, as counts.
        resolved: whether there are enough held-out images (1 / wanted or more) for the share to mean
            anything.
    """

    wanted: float
    threshold: float
    tpr: Trials
    fpr: Trials
    resolved: bool


@dataclass(frozen=True)
class Separation:
    """One score on members and on images held out."""

    name: str
    auc: Auc
    at: tuple[AtFalsePositives, ...]


def separation(
    members: Scores,
    heldout: Scores,
    *,
    level: float = 0.95,
    false_positives: Sequence[float] = (0.01, 0.001),
) -> tuple[Separation, ...]:
    """How well each score tells members from images held out.

    Raises:
        ValueError: the two have different scores or none, fewer than 2 images, or values that are not finite.
    """
    if set(members) != set(heldout):
        raise ValueError(f"both need the same scores, got {sorted(members)} and {sorted(heldout)}")
    found = list[Separation]()
    for name in members:
        m, h = _sorted(members[name], name), _sorted(heldout[name], name)
        at = tuple(true_positives(m, h, share) for share in false_positives)
        found.append(Separation(name, auc(m, h, level), at))
    return tuple(found)


def auc(members: NDArray[np.float64], heldout: NDArray[np.float64], level: float = 0.95) -> Auc:
    """The area under the ROC curve with its interval.

    DeLong's variance comes from the placements: for each member the share of held-out images below it, for
    each held-out image the share of members above it. The interval is formed on the logit scale, so that it
    stays in (0, 1). The variance is 0 if the sets do not overlap. Then min(m, n) disjoint pairs of one member
    and one held-out image are independent trials of exactly this probability, all hits (or none), and their
    Clopper-Pearson interval holds whatever the distributions.

    Raises:
        ValueError: fewer than 2 images on a side, values that are not finite, or a level outside (0, 1).
    """
    check_level(level)
    m, h = _sorted(members, "members"), _sorted(heldout, "held-out images")
    below = (np.searchsorted(h, m, "left") + np.searchsorted(h, m, "right")) / 2 / len(h)
    above = 1 - (np.searchsorted(m, h, "left") + np.searchsorted(m, h, "right")) / 2 / len(m)
    value = float(below.mean())
    variance = float(below.var(ddof=1) / len(m) + above.var(ddof=1) / len(h))
    if variance == 0 or not 0 < value < 1:
        pairs = min(len(m), len(h))
        low, high = Trials(round(value * pairs), pairs).interval(level)
        return Auc(value, low, high, level, "paired Clopper-Pearson")
    logit, spread = math.log(value / (1 - value)), math.sqrt(variance) / (value * (1 - value))
    reach = float(_normal.ppf((1 + level) / 2)) * spread
    low, high = (1 / (1 + math.exp(-min(max(x, -700.0), 700.0))) for x in (logit - reach, logit + reach))
    return Auc(value, low, high, level, "DeLong")


def true_positives(
    members: NDArray[np.float64], heldout: NDArray[np.float64], wanted: float
) -> AtFalsePositives:
    """Members above the lowest threshold that lets no more than floor(wanted n) of n held-out images through.

    Raises:
        ValueError: fewer than 2 images on a side, values that are not finite, or a share outside [0, 1).
    """
    if not 0 <= wanted < 1:
        raise ValueError(f"a share of false positives lies in [0, 1), got {wanted}")
    m, h = _sorted(members, "members"), _sorted(heldout, "held-out images")
    threshold = float(h[len(h) - 1 - math.floor(wanted * len(h) + 1e-9)])
    return AtFalsePositives(
        wanted,
        threshold,
        Trials(int((m > threshold).sum()), len(m)),
        Trials(int((h > threshold).sum()), len(h)),
        wanted * len(h) >= 1 - 1e-9,
    )


def rank_p_value(score: float, heldout: NDArray[np.float64]) -> float:
    """P(an image that was not trained on scores this high): (1 + held-out images at or above) / (1 + n).

    Exact if x_p would be exchangeable with the held-out images were it not a member.

    Raises:
        ValueError: fewer than 2 images, or values that are not finite.
    """
    h = _sorted(heldout, "held-out images")
    if not math.isfinite(score):
        raise ValueError(f"a score must be finite, got {score}")
    return float((1 + (h >= score).sum()) / (1 + len(h)))


def _sorted(values: NDArray[np.float64], name: str) -> NDArray[np.float64]:
    out = np.sort(np.asarray(values, dtype=np.float64))
    if out.ndim != 1 or len(out) < 2 or not np.isfinite(out).all():
        raise ValueError(f"the scores of {name} must be 2 or more finite numbers, got shape {out.shape}")
    return out
