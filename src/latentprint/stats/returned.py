"""Which images came back: training images against held-out ones, both treated alike.

The pool is all training images and all held-out ones, one of each group of near copies. Every generated image
g and every pool image z is compared with the pool:

    y(g)   the nearest image of the pool;   d its distance;   r = d / mean distance to the nearest ten
    s      max( d / median d, r / median r ),   medians over the pool; 1 is what real images are to each other
    g is a copy of y(g)   if s(g) < fence
    fence  the smaller of  Q1 - 1.5 (Q3 - Q1)  (Tukey's) and the one-percent quantile of s over the pool

Nothing here depends on which pool images were trained on. If the model is independent of that choice, and the
choice was random, then with a of the N training images and b of the m held-out ones copied at least once

    whole set   a is hypergeometric: (a + b) draws from N + m images, of which N were trained on
    target      the counts of copies of x_p and of the m held-out images are exchangeable:
                p = (1 + #{held-out images with as many copies as x_p, or more}) / (m + 1)

Both are exact whatever the model does, even if it repeats a few images of its own or makes blurred ones. The
trials are images and not samples: a thousand copies of one image are one image that came back.

The trials are units: an image, or a person with all their images if persons are known. A unit came back if
any of its images did. A unit with images or copies on both sides belongs to neither, and is no trial.

Sources: Fisher 1935 (the exact test); Tukey 1977 (the fence); Carlini et al. 2023 (ratio to the nearest ten).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy import stats as scipy_stats  # pyright: ignore[reportMissingTypeStubs]

from latentprint.stats.counts import Trials

_hypergeom = cast(Any, scipy_stats).hypergeom
Columns = Mapping[str, NDArray[Any]]

TRAIN, HELDOUT, MIXED = 0, 1, 2
"""The side of an image of the pool; MIXED: of a group with members on both sides."""

LEAST = 20
"""Fewest images of a pool from which quartiles are taken."""


@dataclass(frozen=True)
class Returned:
    """How many different images came back (see the module).

    Attributes:
        copies: generated images that are copies of an image of the pool, of all.
        train, heldout: units that came back at least once, of those trained on and of those held out.
        target: copies of x_p, or of any image of its person.
        mock: held-out units with as many copies as that or more, of all that took its place.
        request: which request for images these are of, from 1. Later ones were made after a look.
    """

    copies: Trials
    train: Trials
    heldout: Trials
    target: int
    mock: Trials
    request: int = 1

    @property
    def whole_set_p(self) -> float:
        """p-value of "which images were trained on makes no difference", against more of them came back."""
        return whole_set_p(self.train, self.heldout)

    @property
    def target_p(self) -> float:
        """The same for x_p: its rank among held-out images as a p-value; 1 if it never came back."""
        return (1 + self.mock.k) / (1 + self.mock.n) if self.target else 1.0


def whole_set_p(train: Trials, heldout: Trials) -> float:
    """``P(X >= k)`` for the training images among all that came back, X hypergeometric."""
    came = train.k + heldout.k
    return float(_hypergeom.sf(train.k - 1, train.n + heldout.n, train.n, came)) if train.k else 1.0


def returned(samples: Columns, pool: Columns, whose: NDArray[np.int64], target: int) -> Returned:
    """Which images the samples give back.

    Args:
        samples: of each generated image against the pool: ``nearest`` (its place), ``distance``, ``ten``
            (mean distance to the nearest ten).
        pool: the same for each pool image against the others; ``unit`` (p,) if units are persons.
        whose: (p,) TRAIN, HELDOUT or MIXED, the same for all images of a unit.
        target: the place of x_p in the pool.

    Raises:
        ValueError: fewer than LEAST pool images, or x_p is not a training image.
    """
    if len(whose) < LEAST:
        raise ValueError(f"a pool needs {LEAST} different images or more, got {len(whose)}")
    if whose[target] != TRAIN:
        raise ValueError("x_p is not among the training images of the pool")
    copied = is_copy(samples, pool)
    _, first, unit = np.unique(
        pool.get("unit", np.arange(len(whose))), return_index=True, return_inverse=True
    )
    count = np.bincount(unit[samples["nearest"][copied]], minlength=len(first))
    train, held = (count[whose[first] == side] for side in (TRAIN, HELDOUT))
    own = int(count[unit[target]])
    return Returned(
        Trials(int(copied.sum()), len(copied)),
        Trials(int((train > 0).sum()), len(train)),
        Trials(int((held > 0).sum()), len(held)),
        own,
        Trials(int((held >= own).sum()), len(held)),
    )


def is_copy(samples: Columns, pool: Columns) -> NDArray[np.bool_]:
    """Which of the samples are copies, (n,): see the module."""
    middle = float(np.median(pool["distance"])), float(np.median(_relative(pool)))
    own = _score(pool, *middle)
    first, third = np.quantile(own, [0.25, 0.75])
    fence = min(first - 1.5 * (third - first), np.quantile(own, 0.01))
    return _score(samples, *middle) < fence


def _relative(rows: Columns) -> NDArray[np.float64]:
    """Distance as a share of the mean to the nearest ten; 1 if that mean is 0, so that nothing can be
    told."""
    ten = np.asarray(rows["ten"], np.float64)
    return np.divide(rows["distance"], ten, out=np.ones_like(ten), where=ten > 0)


def _score(rows: Columns, distance: float, relative: float) -> NDArray[np.float64]:
    apart = np.asarray(rows["distance"], np.float64)
    return np.maximum(apart / distance if distance > 0 else np.inf, _relative(rows) / relative)


def images_to_call(train: int, heldout: int, alpha: float) -> int | None:
    """The fewest training images that must come back, and no held-out one, for ``whole_set_p`` <= alpha.

    None: even all of them would not be enough.
    """
    ks = np.arange(1, train + 1)
    p = _hypergeom.sf(ks - 1, train + heldout, train, ks)
    enough = np.flatnonzero(p <= alpha)
    return int(ks[enough[0]]) if len(enough) else None


def samples_to_return(images: int, of: int, power: float = 0.9) -> int | None:
    """Samples after which a model that repeats ``of`` images equally often has shown ``images`` of them.

    With probability ``power``, by the normal law of the number of occupied cells (Johnson and Kotz 1977);
    None if every single image would be needed, which no number of samples guarantees.
    """
    if images > of:
        return None
    low, high = images, max(images, math.ceil(of * (math.log(of) + 4)) + 1)
    if _surely_shown(high, of, power) < images:
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if _surely_shown(middle, of, power) >= images else (middle + 1, high)
    return low


def _surely_shown(samples: int, of: int, power: float) -> float:
    """The number of different images among n samples that is exceeded with probability ``power``."""
    one, two = (1 - 1 / of) ** samples, (1 - 2 / of) ** samples if of > 1 else 0.0
    mean = of * (1 - one)
    variance = max(0.0, of * one + of * (of - 1) * two - (of * one) ** 2)
    # Rounded up at the very top, where the law is no longer normal but all are very likely shown.
    found = mean - float(cast(Any, scipy_stats).norm.ppf(power)) * math.sqrt(variance)
    return of if mean > of - (1 - power) else found
