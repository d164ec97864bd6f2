"""Stored rows of searches -> t' of x_p, its null law, the profile, and t' over training.

The search itself runs again over the rows (``search``), so every method gives the same bounds as when the
trajectories were drawn.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentprint.results.model import Detectors
from latentprint.results.notes import BASELINE, CHECKPOINTS, PROFILE, SEARCH, Ranked, Searched
from latentprint.results.searched import (
    Band,
    Baseline,
    Checkpoint,
    Checkpoints,
    Closest,
    Curve,
    Falling,
    OwnTPrime,
    Profile,
    ProfileNull,
    ProfileRow,
    Question,
    Recogniser,
    Sampler,
    Search,
)
from latentprint.results.stored import Rows, Stored
from latentprint.results.value import Note
from latentprint.search import (
    Against,
    BaselineSettings,
    NullLaw,
    Plan,
    ProfileSettings,
    SearchSettings,
    TPrime,
    null_law,
    scan,
)
from latentprint.search.onset import CheckpointSearch, onset
from latentprint.stats import Trials, false_discovery


def search(stored: Stored, note: Note[Searched], detectors: Detectors) -> Search | None:
    """t' of x_p from the rows of a search; None if the stage did not run."""
    noted = stored.note(note)
    if noted is None:
        return None
    found = _again(stored, note.name, noted, detectors)
    rows, curve = stored.rows(note.name), _curve(found, noted.sampler, detectors.recogniser)
    return Search(
        **dict(curve),
        low=found.interval.low,
        high=found.interval.high,
        statement=found.interval.sentence,
        sentence=found.sentence,
        certain=found.certain,
        method=found.method,
        threshold=found.plan.threshold,
        presence_hits=None if detectors.presence is None else _per_level(rows, "presence_hit", curve.grid),
        identity_hits=_per_level(rows, "identity_hit", curve.grid),
        band=Band(
            low=tuple(low for (low, _), one in zip(found.band, found.trials, strict=True) if one.n),
            high=tuple(high for (_, high), one in zip(found.band, found.trials, strict=True) if one.n),
            level=found.plan.level,
        ),
        falling=Falling(p_value=found.falling.p_value, sentence=found.falling.sentence),
    )


def curve(stored: Stored, note: Note[Searched], detectors: Detectors) -> Curve | None:
    """The control's curve; None if there is no control."""
    noted = stored.note(note)
    if noted is None:
        return None
    return _curve(_again(stored, note.name, noted, detectors), noted.sampler, detectors.recogniser)


def false_positives(detectors: Detectors) -> Trials:
    """False-positive counts of the weaker detector. Outside Omega_p one of the two signs is missing, so the
    pair errs no more often.
    """
    return max((one.fpr for one in detectors.fitted), key=lambda one: (one.upper(0.95), one.n))


def _again(
    stored: Stored,
    purpose: str,
    noted: Searched,
    detectors: Detectors,
    settings: SearchSettings | None = None,
) -> TPrime:
    settings = settings or stored.setting(SearchSettings, "search")
    plan = settings.plan(noted.horizon, false_positives(detectors))
    return settings.search(stored.probe(purpose), plan, stored.seed)


def _curve(found: TPrime, sampler: Sampler, recogniser: Recogniser) -> Curve:
    asked = [i for i, one in enumerate(found.trials) if one.n]
    most = max((found.trials[i].n for i in asked), default=found.plan.tries)
    tries = found.plan.tries if found.method == "exhaustive" else most
    return Curve(
        question=Question(recogniser=recogniser, tries=tries, sampler=sampler),
        value=found.value,
        grid=tuple(found.plan.grid[i] for i in asked),
        hits=tuple(found.trials[i].k for i in asked),
        trials=tuple(found.trials[i].n for i in asked),
        levels=len(found.plan.grid),
        network_evaluations=found.network_evaluations,
    )


def _per_level(rows: Rows, column: str, grid: Sequence[float]) -> tuple[int, ...]:
    return tuple(int(np.count_nonzero(rows[column][rows["t"] == t])) for t in grid)


def baseline(stored: Stored, embedding: Trials) -> Baseline | None:
    """The null law over held-out images and x_p's own t', all by the embedding; None if it did not run.

    Args:
        embedding: its counts of false positives.
    """
    noted, settings = (
        stored.note(BASELINE),
        stored.setting(BaselineSettings, "baseline"),
    )
    if noted is None:
        return None
    plan = settings.plan(noted.horizon, embedding)
    found = dict(scan(stored.probe(BASELINE.name), plan, [*noted.heldout, noted.target]))
    own, null = found.pop(noted.target), list(found.values())
    against, levels = Against.of(own, null), range(len(plan.grid))
    return Baseline(
        question=Question(recogniser="embedding", tries=plan.tries, sampler=noted.sampler),
        asked=settings.images,
        images=len(null),
        grid=plan.grid,
        hits=tuple(sum(one.trials[i].k for one in null) for i in levels),
        trials=tuple(sum(one.trials[i].n for one in null) for i in levels),
        values=against.law.values,
        median=against.law.median,
        target=OwnTPrime(value=against.value, tries=plan.tries, hits=tuple(one.k for one in own.trials)),
        excess=against.excess,
        p_value=against.p_value,
        smallest_p=against.law.smallest_p,
        sentence=against.sentence,
        network_evaluations=sum(one.network_evaluations for one in (own, *null)),
    )


def profile(stored: Stored, embedding: Trials) -> Profile | None:
    """t' of the training images asked for, ranked; each compared with the null law of the profile's own
    images."""
    noted, settings = stored.note(PROFILE), stored.setting(ProfileSettings, "profile")
    if noted is None:
        return None
    plan = settings.plan(noted.horizon, embedding)
    everything = [*dict.fromkeys([*noted.targets, *noted.unmarked, *(noted.marked or ())])]
    found = dict(scan(stored.probe(PROFILE.name), plan, everything))
    law = null_law(found[n] for n in noted.unmarked)
    special = law if noted.marked is None else null_law(found[n] for n in noted.marked)
    laws = {n: special if n == noted.private else law for n in noted.targets}
    rows = _ranked(noted, found, laws, settings.false_discovery_rate)
    above, named = sum(row.exceeds_null for row in rows), sum(row.discovered for row in rows)
    return Profile(
        question=Question(recogniser="embedding", tries=plan.tries, sampler=noted.sampler),
        grid=plan.grid,
        null=ProfileNull(
            asked=settings.null,
            images=len(noted.unmarked),
            values=law.values,
            marked=None if noted.marked is None else special.values,
        ),
        rows=rows,
        false_discovery_rate=settings.false_discovery_rate,
        exceeding=above,
        discovered=named,
        sentence=_profile_sentence(len(rows), above, named, law, settings.false_discovery_rate),
        network_evaluations=sum(one.network_evaluations for one in found.values()),
    )


def _ranked(
    noted: Ranked, found: Mapping[int, TPrime], laws: Mapping[int, NullLaw], rate: float
) -> tuple[ProfileRow, ...]:
    """One row per target, highest t' first, equal ones by hits, then by number; each against its own law."""
    p_values = [laws[n].p_value(found[n].certain) for n in noted.targets]
    stands = false_discovery(p_values, 1 - rate)
    rows = [
        ProfileRow(
            target=n,
            sha256=sha256,
            value=found[n].certain,
            hits=sum(one.k for one in found[n].trials),
            p_value=p,
            exceeds_null=laws[n].exceeds(found[n].certain),
            discovered=bool(stand),
        )
        for n, sha256, p, stand in zip(noted.targets, noted.sha256, p_values, stands, strict=True)
    ]
    return tuple(sorted(rows, key=lambda r: (r.value is None, -(r.value or 0.0), -r.hits, r.target)))


def _profile_sentence(count: int, above: int, named: int, law: NullLaw, rate: float) -> str:
    null = len(law.values)
    text = (
        f"{above} of {count} images have a t' above that of all {null} images never trained on; {named} "
        f"stand at a false-discovery rate of {rate:.2g}."
    )
    # Benjamini-Hochberg names at most k images if k of them have the smallest possible p.
    needed = math.ceil(count * law.smallest_p / rate - 1e-9)
    if not named and needed > 1:
        text += (
            f" With {null} held-out images at least {needed} targets must exceed them all before any can be "
            "named; more held-out images lower that number."
        )
    return text


def checkpoints(stored: Stored, detectors: Detectors) -> Checkpoints | None:
    """t' of x_p at each checkpoint, and when it began to come back; None if no checkpoints were kept."""
    noted = stored.note(CHECKPOINTS)
    if noted is None:
        return None
    settings = exhaustive(stored.setting(SearchSettings, "search"))
    looks = list[CheckpointSearch]()
    for step, purpose in zip(noted.steps, noted.purposes, strict=True):
        searched = stored.needed(replace(SEARCH, name=purpose))
        found = _again(stored, purpose, searched, detectors, settings)
        looks.append(CheckpointSearch(step, found, stored.rows(purpose)))
    began = onset(looks, None if noted.control is None else stored.rows(noted.control))
    plan = looks[-1].found.plan
    steps = [
        _checkpoint(look, digest, p, plan)
        for look, digest, p in zip(looks, noted.weights_sha256, began.p_values, strict=True)
    ]
    return Checkpoints(
        tries=plan.tries,
        grid=plan.grid,
        threshold=plan.threshold,
        level=plan.level,
        closest_from=plan.horizon / 2,
        against=began.against,
        onset=began.step,
        sentence=began.sentence,
        steps=tuple(steps),
    )


def exhaustive(settings: SearchSettings) -> SearchSettings:
    """The same question, asked at every level, by which checkpoints are compared."""
    return SearchSettings(levels=settings.levels, tries=settings.tries, threshold=settings.threshold)


def _checkpoint(look: CheckpointSearch, weights_sha256: str, p: float | None, plan: Plan) -> Checkpoint:
    found = look.found
    return Checkpoint(
        step=look.step,
        weights_sha256=weights_sha256,
        value=found.value,
        low=found.interval.low,
        high=found.interval.high,
        if_falling=(found.interval_if_falling.low, found.interval_if_falling.high),
        certain=found.certain,
        hits=tuple(one.k for one in found.trials),
        p_value=p,
        closest=closest(look.rows, plan.horizon / 2),
        network_evaluations=found.network_evaluations,
    )


def closest(rows: Mapping[str, NDArray[Any]], t: float) -> Closest | None:
    """Errors to x_p of the image nearest to it (by MSE) among those from ``t`` up; None without any."""
    above = np.flatnonzero(rows["t"] >= t)
    if not len(above):
        return None
    best = above[np.argmin(rows["mse"][above])]
    return Closest(**{name: float(rows[name][best]) for name in ("t", "mse", "mae")})
