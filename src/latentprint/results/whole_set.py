"""Does the model give back any training image? Every generated image against all of them, as counts.

    copy          a generated image whose score is below that of all but a small share of the held-out images
                  (calibrated on one half of them, false alarms counted on the other)
    copies        how many of n generated images are copies
    memorised     how many of the N distinct training images came back at least once in n images
    at least      of these, what is left if as many copies as possible are false alarms: m, with
                  P(Binomial(n, highest false-alarm rate) > m) <= (1 - level) / 4
    unseen        how many more can come back (``stats.unseen``)
    shown in n    1 - (1 - c)^n, c the share of copies: the chance that some training image is shown by then

A held-out image that is a training image stored again cannot show false alarms: it is left out and counted.
So is a separate group of changed copies (``criteria.apart``), except in ``beyond`` and ``at_least`` (what
false alarms cannot explain). Intervals are Clopper and Pearson's, wider than needed for ``memorised``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Self, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from scipy import stats as scipy_stats  # pyright: ignore[reportMissingTypeStubs]

from latentprint.keys import generator
from latentprint.results.criteria import (
    LEAST_HELDOUT,
    SHARE,
    STORED_AGAIN,
    Columns,
    Criterion,
    background,
    calibrated,
    present,
    strangers,
)
from latentprint.results.value import LEVEL, Chance, Count, Level, Value
from latentprint.stats import Trials
from latentprint.stats.many import false_coverage
from latentprint.stats.roc import auc
from latentprint.stats.unseen import TooFewRepeats, curve, richness

_binomial = cast(Any, scipy_stats).binom

PREFIX = "whole_"
"""Prefix of the column names if rows of samples also hold other columns."""

EXPOSED = 20
_TIMES = (0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0)
_SHOWN = (1, 10, 100, 1_000, 10_000)


class Share(Value):
    """k of n, with its exact interval."""

    k: Count
    n: Count
    rate: Chance
    low: Chance
    high: Chance
    level: Level = LEVEL

    @classmethod
    def of(cls, trials: Trials, level: float = LEVEL) -> Share:
        """The share of a count; without any trial, every share is possible."""
        low, high = trials.interval(level) if trials.n else (0.0, 1.0)
        rate = trials.rate if trials.n else 0.0
        return cls(k=trials.k, n=trials.n, rate=rate, low=low, high=high, level=level)

    @property
    def trials(self) -> Trials:
        """The count."""
        return Trials(self.k, self.n)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        Trials(self.k, self.n)
        if not self.low <= self.rate <= self.high:
            raise ValueError(f"a rate lies in its interval, got {self.low}, {self.rate}, {self.high}")
        return self


class AsPublished(Value):
    """A paper's own threshold, on these images."""

    source: str
    threshold: float
    copies: Trials
    false_alarms: Trials


class ByCriterion(Value):
    """One criterion: its threshold, what it finds, and how often it errs.

    Attributes:
        copies: generated images below the threshold.
        memorised: distinct training images that these are copies of.
        false_alarms: held-out images below it, of those that did not calibrate it; null without any.
        planted: planted copies found, by how they were changed; empty if none were planted.
        auc: P(a planted copy is nearer than a held-out image), low, high; null if none were planted.
    """

    name: str
    sentence: str
    threshold: float | None
    copies: Trials
    memorised: Count
    false_alarms: Trials | None
    planted: dict[str, Trials] = Field(default_factory=dict)
    auc: tuple[Chance, Chance, Chance] | None = None
    published: AsPublished | None = None


class Unseen(Value):
    """How many more training images can come back (``stats.unseen``); if null, ``assumptions`` says why."""

    low: Count | None
    high: Count | None
    coverage: Chance | None
    assumptions: str


class Different(Value):
    """How many different training images are expected in ``images`` generated ones."""

    images: Count
    expected: float
    low: float
    high: float


class Exposed(Value):
    """How often one training image came back; the intervals hold for all listed images together."""

    training: Count
    k: Count
    low: Chance
    high: Chance


class Shown(Value):
    """The chance that the first ``images`` generated ones show some training image."""

    images: Count
    chance: Chance
    low: Chance
    high: Chance

    @classmethod
    def of(cls, copies: Share, images: int) -> Shown:
        """1 - (1 - c)^n for the share of copies and both ends of its interval."""
        shares = copies.rate, copies.low, copies.high
        chance, low, high = (1.0 if c >= 1 else -math.expm1(images * math.log1p(-c)) for c in shares)
        return cls(images=images, chance=chance, low=low, high=high)


class WholeSet(Value):
    """What the generated images say about all training images together.

    Attributes:
        criterion: the one that decides, of ``criteria``.
        copies: generated images that are copies.
        beyond: the least share of copies that false alarms cannot explain.
        false_alarms: of the held-out images that did not calibrate the threshold; null without any.
        control: copies among images of a model that was trained without only the private image.
        memorised: distinct training images that came back; ``at_least``: what false alarms cannot explain.
        persons: the same in persons, if they are known.
        same: generated images that are a training image stored again; ``left_out``: such held-out images.
        apart: held-out images that are changed copies of training images, and no background either.
        times: how many training images came back exactly once, twice, ...; ``exposed``: the most often.
        target: generated images that are copies of x_p by this criterion; null where it has near copies.
        median: how often the training image in the middle came back.
    """

    criterion: str
    copies: Share
    beyond: Chance
    false_alarms: Share | None
    control: Share | None = None
    memorised: Share
    at_least: Count
    persons: Share | None = None
    same: Trials
    left_out: Count
    apart: Count = 0
    unseen: Unseen
    curve: tuple[Different, ...]
    times: tuple[Count, ...]
    exposed: tuple[Exposed, ...]
    shown: tuple[Shown, ...]
    criteria: tuple[ByCriterion, ...]
    target: Share | None = None
    median: Annotated[float, Field(ge=0)] | None = None
    notes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _side_by_side(self) -> Self:
        if len({frozenset(one.planted) for one in self.criteria}) != 1:
            raise ValueError("there is at least one criterion, and each is given the same planted copies")
        return self


@dataclass(frozen=True)
class Rows:
    """What was compared with the training images: rows by column, (n,) each, of ``attacks.copies``.

    Attributes:
        generated: images of the model.
        heldout: images that it was not trained on, with or without near copies of its training images.
        control: images of the control model.
        planted: copies made of training images, by how they were changed.
        distinct: training images, one of each group of near copies.
        person: (N,) numbers the persons of all training images; None: unknown.
        near: distance within which an image is another stored again.
        target: the place of x_p among the training images; None: it has none, or near copies.
    """

    generated: Columns
    heldout: Columns
    distinct: int
    control: Columns | None = None
    planted: Mapping[str, Columns] = field(default_factory=dict[str, Columns])
    person: NDArray[np.int64] | None = None
    near: float = STORED_AGAIN
    target: int | None = None


def whole_set(rows: Rows, *, level: float = LEVEL, share: float = SHARE, seed: int = 0) -> WholeSet:
    """The answer, from stored rows alone.

    Raises:
        ValueError: there is no generated image, or no criterion whose columns are in all rows.
    """
    every, left_out = background(rows.heldout, rows.near)
    usable, apart = strangers(every)
    criteria = present(rows.generated, *([usable] if _length(usable) else []))
    if not criteria or not _length(rows.generated):
        raise ValueError("copies are looked for among at least one image, with the columns of a criterion")
    each = tuple(_by_criterion(one, rows, usable, share, level) for one in criteria)
    first, decides = criteria[0], each[0]
    copied = _below(first, rows.generated, decides.threshold, rows.near)
    places = rows.generated[first.of][copied]
    which, counts = np.unique(places, return_counts=True)
    n = _length(rows.generated)
    beyond, at_least = _certain(first, rows, every, share, level)
    unseen, expected = _unseen(counts, n, rows.distinct, level, seed)
    copies = Share.of(decides.copies, level)
    own = None if rows.target is None else Trials(int((places == rows.target).sum()), n)
    return WholeSet(
        criterion=first.name,
        copies=copies,
        beyond=beyond,
        false_alarms=None if decides.false_alarms is None else Share.of(decides.false_alarms, level),
        control=_control(first, rows, decides.threshold, level),
        memorised=Share.of(Trials(len(which), max(rows.distinct, len(which))), level),
        at_least=at_least,
        persons=_persons(rows.person, places, level),
        same=Trials(int((rows.generated["distance"] <= rows.near).sum()), n),
        left_out=left_out,
        apart=apart,
        unseen=unseen,
        curve=expected,
        times=tuple(np.bincount(counts)[1:].tolist()) if len(counts) else (),
        exposed=_exposed(which, counts, n, rows.distinct, level),
        shown=tuple(Shown.of(copies, m) for m in _SHOWN),
        criteria=each,
        target=None if own is None else Share.of(own, level),
        median=float(np.median(np.r_[np.zeros(max(0, rows.distinct - len(which))), counts])),
        notes=_notes(_length(every), left_out, apart, decides.threshold is None),
    )


def _certain(first: Criterion, rows: Rows, every: Columns, share: float, level: float) -> tuple[float, int]:
    """The share of copies, and the training images that came back, which false alarms cannot explain."""
    threshold, alarms = _calibrated(first.score(every) if _length(every) else np.empty(0), share)
    copied, n = _below(first, rows.generated, threshold, rows.near), _length(rows.generated)
    counts = np.sort(np.unique(rows.generated[first.of][copied], return_counts=True)[1])
    if alarms is None:
        return 0.0, len(counts)
    each = 1 - (1 - level) / 4
    highest = alarms.upper(each)
    low = Trials(int(copied.sum()), n).lower(each)
    # So many false alarms explain away the images that came back least often, each with all of its copies.
    explained = np.searchsorted(np.cumsum(counts), _binomial.ppf(each, n, highest), side="right")
    return max(0.0, (low - highest) / max(1 - highest, 1e-9)), len(counts) - int(explained)


def _calibrated(scores: NDArray[np.float64], share: float) -> tuple[float | None, Trials | None]:
    """The threshold by every other of the held-out scores, and the others that lie below it."""
    if len(scores) < LEAST_HELDOUT:
        return None, None
    threshold, others = calibrated(scores[::2], share), scores[1::2]
    return threshold, _lower(others, threshold)


def _lower(scores: NDArray[np.float64], threshold: float) -> Trials:
    return Trials(int((scores < threshold).sum()), len(scores))


def _length(rows: Columns) -> int:
    return min((len(column) for column in rows.values()), default=0)


def _by_criterion(one: Criterion, rows: Rows, usable: Columns, share: float, level: float) -> ByCriterion:
    found = one.score(rows.generated)
    background = one.score(usable) if _length(usable) else np.empty(0)
    threshold, alarms = _calibrated(background, share)
    copied = _below(one, rows.generated, threshold, rows.near)
    planted = {name: one.score(each) for name, each in rows.planted.items()} if threshold is not None else {}
    area = None
    if planted and len(background) > 1:
        every = np.concatenate(list(planted.values()))
        curved = auc(-every, -background, level)
        area = (curved.value, curved.low, curved.high)
    published = None
    if one.published is not None and len(background):
        told, others = one.published, background[1::2]
        at = told.score if told.score is not None else float(np.quantile(background[::2], told.share or 0.0))
        published = AsPublished(
            source=told.source, threshold=at, copies=_lower(found, at), false_alarms=_lower(others, at)
        )
    return ByCriterion(
        name=one.name,
        sentence=one.sentence,
        threshold=threshold,
        copies=Trials(int(copied.sum()), len(found)),
        memorised=len(np.unique(rows.generated[one.of][copied])),
        false_alarms=alarms,
        planted={name: _lower(scores, cast(float, threshold)) for name, scores in planted.items()},
        auc=area,
        published=published,
    )


def _below(one: Criterion, rows: Columns, threshold: float | None, near: float) -> NDArray[np.bool_]:
    """Copies; without a threshold only what is a training image stored again."""
    if threshold is None:
        return np.asarray(rows["distance"] <= near)
    return one.score(rows) < threshold


def _control(one: Criterion, rows: Rows, threshold: float | None, level: float) -> Share | None:
    if rows.control is None or not _length(rows.control):
        return None
    copied = _below(one, rows.control, threshold, rows.near)
    return Share.of(Trials(int(copied.sum()), len(copied)), level)


def _persons(person: NDArray[np.int64] | None, places: NDArray[np.int64], level: float) -> Share | None:
    if person is None:
        return None
    return Share.of(Trials(len(np.unique(person[places])), len(np.unique(person))), level)


def _unseen(
    counts: NDArray[np.int64], n: int, distinct: int, level: float, seed: int
) -> tuple[Unseen, tuple[Different, ...]]:
    try:
        found = richness(counts, n, level, max(distinct, len(counts)))
    except TooFewRepeats as error:
        return Unseen(low=None, high=None, coverage=None, assumptions=f"Not known: {error}."), ()
    sizes = [max(1, round(times * n)) for times in _TIMES]
    expected = curve(counts, n, sizes, generator(seed, "unseen"), level, max(distinct, len(counts)))
    said = (
        "The lower end holds however unevenly training images come back. The upper one counts those that"
        f" come back at least once in {n:,} images on average; rarer ones cannot be bounded. False alarms"
        " among the images seen once raise both."
    )
    return (
        Unseen(low=int(found.low), high=int(found.high), coverage=found.coverage, assumptions=said),
        tuple(Different(images=e.draws, expected=e.kinds, low=e.low, high=e.high) for e in expected),
    )


def _exposed(
    which: NDArray[np.int64], counts: NDArray[np.int64], n: int, distinct: int, level: float
) -> tuple[Exposed, ...]:
    order = np.lexsort((which, -counts))[:EXPOSED]
    chosen = [Trials(int(counts[i]), n) for i in order]
    ends = false_coverage(chosen, max(distinct, len(which)), level)
    return tuple(
        Exposed(training=int(which[i]), k=one.k, low=low, high=high)
        for i, one, (low, high) in zip(order, chosen, ends, strict=True)
    )


def _notes(heldout: int, left_out: int, apart: int, without: bool) -> tuple[str, ...]:
    notes = list[str]()
    if left_out:
        notes.append(f"{left_out:,} held-out images are training images stored again, and were left out.")
    if apart:
        notes.append(
            f"{apart:,} held-out images look like training images flipped, moved or brightened, as if a"
            " person had images on both sides. They are not counted as false alarms."
        )
    if without:
        notes.append(
            f"A threshold needs {LEAST_HELDOUT} held-out images at least, and there are {heldout:,}. Only"
            " exact copies of a training image were counted. How many of these come by chance is not known."
        )
    return tuple(notes)
