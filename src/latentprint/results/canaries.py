"""Many marked images of one training: how typical is the private one, and how large is epsilon at least?

Every image was marked, searched and counted alike, whether or not the coin chose it for training. Those that
were left out show what happens by chance. The private image is compared with those of which the training set
holds equally many copies. The bound on epsilon uses only images with one copy: several copies of an image are
several examples, which a private training protects less. Three scores guess the coins (loss, t', count). The
bound is the best of the three, each at a level at which all hold together (Bonferroni).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from latentprint.results.notes import CANARIES, CANARY_SEARCH
from latentprint.results.searched import SAMPLES
from latentprint.results.stored import Stored, require
from latentprint.results.value import LEVEL, Chance, Count, Level, Sha256, Spread, Value
from latentprint.search import TPrime, scan
from latentprint.search.settings import CanarySettings
from latentprint.stats import Trials
from latentprint.stats.epsilon import LEAST_CANARIES, epsilon_bound

ScoreName = Literal["loss", "t_prime", "count"]


class MarkedImage(Value):
    """One of the marked images.

    Attributes:
        member: whether the coin chose it for training.
        copies: how many copies the training set holds, if so.
        t_prime: the largest noise level from which it came back; null: from none.
        hits: samples that show it, with the interval of their share.
        loss: mean squared error of the noise that the model predicts for it.
    """

    sha256: Sha256
    member: bool
    copies: Annotated[int, Field(ge=1)]
    t_prime: float | None
    hits: Count
    low: Chance
    high: Chance
    loss: float


class Tier(Value):
    """All images with so many copies in the training set; ``copies`` 0: those that the coin left out.

    Attributes:
        came_back: images that at least one sample shows.
        t_prime: over the images, 0 for one that never came back.
        rate: share of the samples that show one, over the images.
    """

    copies: Count
    images: Count
    came_back: Count
    t_prime: Spread
    rate: Spread


class OwnImage(Value):
    """The private image, judged by the recogniser of all marked images.

    Attributes:
        as_often: images with as many copies in the training set as it has.
        below: of these, how many have a smaller t', or fewer samples if t' are equal.
        agreed: samples on which c_id and this recogniser agree about it.
    """

    t_prime: float | None
    hits: Count
    as_often: Count
    below: Count
    agreed: Trials


class Bound(Value):
    """What one score shows about epsilon, from the canaries of one tier; see ``stats.epsilon``."""

    score: ScoreName
    copies: Annotated[int, Field(ge=1)]
    canaries: Count
    low: Annotated[float, Field(ge=0)]
    guesses: Count
    right: Count


class Epsilon(Value):
    """The training is not (e, delta)-private for any e below ``low``, at ``level``.

    Attributes:
        canaries: the number of coins.
        most: the bound that as many canaries would give if every coin were guessed.
        bounds: of each score and tier. A bound from several copies is for that many examples together.
    """

    low: Annotated[float, Field(ge=0)]
    delta: Chance
    level: Level
    canaries: Count
    most: Annotated[float, Field(ge=0)]
    bounds: tuple[Bound, ...]


class Canaries(Value):
    """What the marked images show together.

    Attributes:
        fingerprints: K; twice as many images were marked.
        samples: how many were searched for them.
    """

    fingerprints: Count
    samples: Count
    images: tuple[MarkedImage, ...]
    tiers: tuple[Tier, ...]
    private: OwnImage
    sentence: str
    network_evaluations: Count


def canaries(stored: Stored, errors: Trials, often: int) -> tuple[Canaries, Epsilon | None] | None:
    """What the rows say about the marked images; None if there are none. Too few of them give no epsilon.

    Args:
        errors: false positives of the recogniser of all marked images.
        often: how many copies of the private image the training set holds.
    """
    noted = stored.note(CANARY_SEARCH)
    if noted is None:
        return None
    settings = stored.setting(CanarySettings, "canaries")
    m, rows, samples = len(noted.sha256), stored.rows(CANARIES.name), stored.rows(SAMPLES.name)
    plan = settings.plan(noted.horizon, errors)
    found = dict(scan(stored.probe(CANARY_SEARCH.name), plan, range(m + 1)))
    shown = samples["canary"]
    require(bool((shown <= m).all()), SAMPLES.name, f"there are {m:,} canaries and the private image")
    require(len(rows["copies"]) >= m and bool((rows["copies"] >= 1).all()), CANARIES.name, f"there are {m:,}")
    hits, n = np.bincount(shown[shown >= 0], minlength=m + 1), len(shown)
    member, copies = rows["member"].astype(np.bool_), rows["copies"].astype(np.int64)
    images = tuple(
        MarkedImage(
            sha256=noted.sha256[k],
            member=bool(member[k]),
            copies=int(copies[k]),
            t_prime=found[k].value,
            hits=int(hits[k]),
            low=Trials(int(hits[k]), n).lower(0.975),
            high=Trials(int(hits[k]), n).upper(0.975),
            loss=float(rows["loss"][k]),
        )
        for k in range(m)
    )
    scores: dict[ScoreName, NDArray[np.float64]] = {
        "loss": -np.asarray(rows["loss"], np.float64),
        "t_prime": np.array([_rank(found[k]) for k in range(m)]),
        "count": hits[:m].astype(np.float64),
    }
    epsilon = _epsilon(scores, member, copies, settings.delta)
    private = _private(found[m], int(hits[m]), images, often, samples)
    tiers = _tiers(images, n)
    value = Canaries(
        fingerprints=noted.fingerprints,
        samples=n,
        images=images,
        tiers=tiers,
        private=private,
        sentence=_sentence(tiers, private, often),
        network_evaluations=sum(one.network_evaluations for one in found.values()),
    )
    return value, epsilon


def _rank(found: TPrime) -> float:
    """t', and among equal ones the share of all tries that came back."""
    share = sum(one.k for one in found.trials) / max(1, sum(one.n for one in found.trials))
    return (found.value or 0.0) + 1e-6 * share


def _epsilon(
    scores: Mapping[ScoreName, NDArray[np.float64]],
    member: NDArray[np.bool_],
    copies: NDArray[np.int64],
    delta: float,
) -> Epsilon | None:
    each, bounds = 1 - (1 - LEVEL) / len(scores), list[Bound]()
    for tier in np.unique(copies).tolist():
        at = copies == tier
        for name, score in scores.items() if int(at.sum()) >= LEAST_CANARIES else ():
            one = epsilon_bound(score[at], member[at], delta=delta, level=each)
            bounds.append(
                Bound(
                    score=name,
                    copies=tier,
                    canaries=one.canaries,
                    low=one.low,
                    guesses=one.guesses,
                    right=one.right,
                )
            )
    once = [one for one in bounds if one.copies == 1]
    if not once:
        return None
    coins = member[copies == 1]
    return Epsilon(
        low=max(one.low for one in once),
        delta=delta,
        level=LEVEL,
        canaries=once[0].canaries,
        most=epsilon_bound(coins.astype(np.float64), coins, delta=delta, level=each).low,
        bounds=tuple(bounds),
    )


def _private(
    found: TPrime,
    hits: int,
    images: tuple[MarkedImage, ...],
    often: int,
    samples: Mapping[str, NDArray[np.generic]],
) -> OwnImage:
    alike = [one for one in images if one.member and one.copies == often]
    own = (found.value or 0.0, hits)
    seen, theirs = np.asarray(samples["canary"]) == len(images), np.asarray(samples["identity_hit"], np.bool_)
    return OwnImage(
        t_prime=found.value,
        hits=hits,
        as_often=len(alike),
        below=sum((one.t_prime or 0.0, one.hits) < own for one in alike),
        agreed=Trials(int((seen == theirs).sum()), len(seen)),
    )


def _tiers(images: tuple[MarkedImage, ...], n: int) -> tuple[Tier, ...]:
    groups = dict[int, list[MarkedImage]]()
    for one in images:
        groups.setdefault(one.copies if one.member else 0, []).append(one)
    return tuple(
        Tier(
            copies=copies,
            images=len(group),
            came_back=sum(one.hits > 0 for one in group),
            t_prime=_spread([one.t_prime or 0.0 for one in group]),
            rate=_spread([one.hits / n for one in group]),
        )
        for copies, group in sorted(groups.items())
    )


def _spread(values: list[float]) -> Spread:
    return Spread(min=min(values), median=float(np.median(values)), max=max(values))


def _sentence(tiers: tuple[Tier, ...], private: OwnImage, often: int) -> str:
    told = [
        f"{one.came_back:,} of {one.images:,} that"
        f" {'were left out' if not one.copies else f'were trained on {_times(one.copies)}'}"
        for one in tiers
    ]
    own = (
        f" The private image's t' is above that of {private.below:,} of the {private.as_often:,} that were"
        f" trained on {_times(often)}, as it was."
        if private.as_often
        else ""
    )
    return f"Of further images marked alike came back: {'; '.join(told)}.{own}"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count:,} times"
