"""Many marked images of one training: how typical is the private one, and how large is epsilon at least.

Every image was marked, searched and counted alike, whether the coin had it trained on or not. Those that are
out show what chance does. The private image is compared with those that stand in the training set as often
as it does. Epsilon's bound rests on the images that stand there once, if they are in: copies of one image
are several examples, which a private training protects less. Three scores guess the coins (loss, t', count);
the bound is the best of theirs, each at a level at which all hold together (Bonferroni).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from latentprint.results.notes import Drawn
from latentprint.results.stored import Stored
from latentprint.results.value import LEVEL, Chance, Count, Sha256, Spread, Value
from latentprint.search import TPrime, scan
from latentprint.search.settings import CanarySettings
from latentprint.stats import Trials
from latentprint.stats.epsilon import LEAST_CANARIES, epsilon_bound

ScoreName = Literal["loss", "t_prime", "count"]


class MarkedImage(Value):
    """One of the marked images.

    Attributes:
        member: whether the coin had it trained on.
        copies: how often it stands in the training set, if so.
        t_prime: the largest noise level from which it came back; null: from none.
        hits: samples that show it, with the interval of their share.
        loss: mean squared error of the noise that the model finds in it.
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
    """All images that stand in the training set so often; ``copies`` 0: those that the coin left out.

    Attributes:
        came_back: images that at least one sample shows.
        t_prime: over the images, 0 where one never came back.
        rate: share of the samples that show one, over the images.
    """

    copies: Count
    images: Count
    came_back: Count
    t_prime: Spread
    rate: Spread


class OwnImage(Value):
    """The private image, judged by the recogniser of all.

    Attributes:
        as_often: images that stand in the training set as often as it does.
        below: of these, how many have a t' below its own, or as many fewer samples where t' are equal.
        agreed: samples on which c_id and this recogniser say the same of it.
    """

    t_prime: float | None
    hits: Count
    as_often: Count
    below: Count
    agreed: Trials


class Bound(Value):
    """What one score tells of epsilon, by the canaries of one tier; see ``stats.epsilon``."""

    score: ScoreName
    copies: Annotated[int, Field(ge=1)]
    canaries: Count
    low: Annotated[float, Field(ge=0)]
    guesses: Count
    right: Count


class Epsilon(Value):
    """The training is not (e, delta)-private for any e below ``low``, at ``level``.

    Attributes:
        canaries: how many coins it rests on.
        most: what as many canaries would have shown, had every coin been guessed.
        bounds: of each score and tier. Those of several copies are of that many examples together.
    """

    low: Annotated[float, Field(ge=0)]
    delta: Chance
    level: float
    canaries: Count
    most: Annotated[float, Field(ge=0)]
    bounds: tuple[Bound, ...]


class Canaries(Value):
    """What the marked images show together.

    Attributes:
        fingerprints: K; twice as many images were marked.
        samples: how many were looked through.
    """

    fingerprints: Count
    samples: Count
    images: tuple[MarkedImage, ...]
    tiers: tuple[Tier, ...]
    private: OwnImage
    sentence: str
    network_evaluations: Count


def canaries(stored: Stored, errors: Trials, often: int) -> tuple[Canaries, Epsilon | None] | None:
    """What rows say of the marked images; None where there are none. No epsilon from too few of them.

    Args:
        errors: false positives of the recogniser of all of them.
        often: how often the private image stands in the training set.
    """
    noted = stored.note("canaries.search", "drawn", Drawn)
    if noted is None:
        return None
    settings = stored.setting(CanarySettings, "canaries")
    m, rows, samples = len(noted.sha256), stored.rows("canaries"), stored.rows("samples.model")
    plan = settings.plan(noted.horizon, errors)
    found = dict(scan(stored.probe("canaries.search"), plan, range(m + 1)))
    shown = samples["canary"]
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
