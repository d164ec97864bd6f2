"""What "copy" may mean: several criteria, each a score of stored rows; smaller is more alike.

A threshold is never a constant of ours. It is the score that all but a small share of the user's own held-out
images exceed, and no model can have copied those (``results.whole_set``). Thresholds from papers are reported
as well, with the false alarms that they give here. A new criterion is a file that makes its columns, and a
row of this table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Columns = Mapping[str, NDArray[Any]]
"""Rows of images by column, (n,) each: what ``attacks`` found for them."""

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Published:
    """The threshold of a paper: a score, or the share of held-out images that it lets through."""

    source: str
    score: float | None = None
    share: float | None = None


@dataclass(frozen=True)
class Criterion:
    """One meaning of "copy".

    Attributes:
        name: also the first column that it needs.
        sentence: what is compared, for the report.
        of: the column with the place of the training image that was copied.
        score: rows -> (n,), smaller is more alike.
        published: see ``Published``.
    """

    name: str
    sentence: str
    of: str
    score: Callable[[Columns], Scores]
    published: Published | None = None


def _share(name: str, of: str) -> Callable[[Columns], Scores]:
    def score(rows: Columns) -> Scores:
        part, whole = np.asarray(rows[name], np.float64), np.asarray(rows[of], np.float64)
        return np.divide(part, whole, out=np.ones_like(part), where=whole > 0)

    return score


def _is(name: str, sign: float = 1.0) -> Callable[[Columns], Scores]:
    return lambda rows: sign * np.asarray(rows[name], np.float64)


CRITERIA = (
    Criterion(
        "aligned",
        "nearest after flips, shifts, changes of size, brightness and blur, against the fifth nearest",
        "aligned_of",
        _is("aligned"),
    ),
    Criterion(
        "patches",
        "the same without the 30 % of pixels that differ most, for images that were partly repainted",
        "patches_of",
        _is("patches"),
    ),
    Criterion(
        "distance",
        "distance, pixel by pixel",
        "nearest",
        _is("distance"),
    ),
    Criterion(
        "second_distance",
        "distance to the nearest against the second nearest",
        "nearest",
        _share("distance", "second_distance"),
        Published("Yoon et al. 2023: below 1/3", score=1 / 3),
    ),
    Criterion(
        "ten",
        "distance to the nearest against the ten nearest",
        "nearest",
        _share("distance", "ten"),
        Published("Carlini et al. 2023: below half of their mean", score=0.5),
    ),
    Criterion(
        "embedding",
        "correlation in an embedding trained on these images",
        "embedding_of",
        _is("embedding", -1.0),
        Published("Dar et al. 2024: what 5 % of held-out images reach, and so 5 % false alarms", share=0.05),
    ),
    Criterion(
        "descriptor",
        "correlation in a copy descriptor of the user's (Pizzi et al. 2022, SSCD)",
        "descriptor_of",
        _is("descriptor", -1.0),
    ),
)
"""The first criterion decides; the others are reported with it."""


def present(*rows: Columns) -> tuple[Criterion, ...]:
    """The criteria whose columns are in all of the rows."""
    return tuple(one for one in CRITERIA if all(one.name in each and one.of in each for each in rows))


SHARE = 0.01
"""Share of held-out images that a calibrated threshold lets through."""

LEAST_HELDOUT = 4
"""Fewest held-out images from which a threshold is calibrated."""

APART = 1e-4
"""Probability that unseen images are taken for changed copies of training images, in a set of held-out
images."""

_LEAST_GROUP, _LEAST_BESIDE = 3, 10

STORED_AGAIN = 0.01
"""Distance (root mean squared, pixels from 0 to 1) within which an image is another one stored again."""


def calibrated(background: NDArray[np.float64], share: float) -> float:
    """The score below which lie no more than floor(share m) of the m scores of held-out images.

    Raises:
        ValueError: no image, or a share outside (0, 1).
    """
    if not len(background) or not 0 < share < 1:
        raise ValueError(f"a threshold needs images and a share in (0, 1), got {len(background)}, {share}")
    return float(np.sort(background)[math.floor(share * len(background) + 1e-9)])


def background(heldout: Columns, near: float = STORED_AGAIN) -> tuple[Columns, int]:
    """Rows of held-out images except training images stored again, and how many of these there are.

    Only the distance decides. What looks like a copy among images that cannot be copies is a false alarm.
    Leaving out images by the same score that decides would leave out the false alarms.
    """
    if not len(heldout.get("distance", ())):
        return heldout, 0
    clear = np.asarray(heldout["distance"]) > near
    return {name: column[clear] for name, column in heldout.items()}, int((~clear).sum())


def apart(scores: Scores, chance: float = APART) -> int:
    """How many of the lowest scores (m,) are apart from the others, by a gap that is unlikely by chance.

    If persons with images on both sides were not named, some held-out images are training images flipped,
    moved or brightened. Their scores form a separate group. Scores of unseen images thin out towards the
    lowest without such a group, even if images are similar. With s_1 <= s_2 <= ... the gaps

        D_i = i log(s_{i+1} / s_i),    P(D_i > x times the mean of the K next) = (1 + x / K)^-K

    if the lower tail is a power law (Renyi 1953), and smaller towards the lowest if the tail is thinner. The
    group is below the least likely gap, if that is less likely than ``chance`` at any of the places tried.
    """
    ordered = np.log(np.maximum(np.sort(scores)[: len(scores) // 2 + 1], 1e-6))
    gaps = np.arange(1, len(ordered)) * np.diff(ordered)
    i = np.arange(_LEAST_GROUP, len(gaps) - _LEAST_BESIDE + 1)
    if not len(i):
        return 0
    following = np.maximum(np.cumsum(gaps[::-1])[::-1][i], 1e-12)
    log_p = -(len(gaps) - i) * np.log1p(gaps[i - 1] / following)
    best = int(log_p.argmin())
    return int(i[best]) if log_p[best] < math.log(chance / len(gaps)) else 0


def strangers(usable: Columns) -> tuple[Columns, int]:
    """The rows of ``background`` except changed copies of training images, and how many of these there are.

    Statements about what false alarms cannot explain use all rows, because a separate group may be unseen
    images after all.
    """
    if CRITERIA[0] not in present(usable):
        return usable, 0
    scores = CRITERIA[0].score(usable)
    count = apart(scores)
    clear = np.ones(len(scores), np.bool_)
    clear[np.argsort(scores, kind="stable")[:count]] = False
    return {name: column[clear] for name, column in usable.items()}, count
