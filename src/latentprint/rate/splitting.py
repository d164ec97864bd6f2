"""q by multilevel splitting in the sampler's own noise: any sampler, any model, no likelihood, no gradient.

The sampler is a deterministic map of Gaussian noise, so q = P(z in Omega) for z ~ N(0, I) (``levels``). The
estimate is made in stages, and each of them can be the last:

    pilot    independent samples. If some of them hit, q is counted with fresh samples (Clopper-Pearson).
    levels   subset simulation in eight replicates: a first q, fixed levels, and particles in Omega.
    tilt     importance sampling from a Gaussian fitted to those particles: an average of i.i.d. weights.
             Given up on after a thousand weights if they promise no answer.
    more     rounds of eight fresh replicates along the fixed levels, each unbiased, as many as their spread
             asks for: q is their mean.
    count    if the score does not lead to Omega but the pilot saw it: q is counted after all.

The mean of n replicates has the relative error sqrt(v / n), where v is their relative variance; of log-normal
ones v = exp(s^2) - 1, with s the spread of their logarithms. The larger of the two decides how many there
are, and below how many no number is offered.

Every stage has diagnostics (Pareto k, effective samples, uncovered particles, the spread of replicates, the
pilot's own count). If no stage passes its own, no number is offered. Every stage is a part
that an interrupted estimate keeps. Sources: Au and Beck 2001; Cotter et al. 2013; Papaioannou et al. 2015;
Vehtari et al. 2024.
"""

import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from latentprint import keys
from latentprint.rate.estimator import Kept, Progress, anew, silent
from latentprint.rate.levels import (
    Inside,
    Landscape,
    Population,
    Pushforward,
    Rung,
    Score,
    climb,
    descend,
    first_population,
    held,
    rungs,
)
from latentprint.rate.result import Rate, unreliable
from latentprint.rate.tilt import tilted
from latentprint.rate.weights import Offered, offered, weighted
from latentprint.stats import Trials

LEAST_REPLICATES = 24
"""Fewest replicates whose mean is believed: of fewer log-normal ones the interval is too short."""

WIDEST = 0.25
"""Relative error of the mean of all replicates above which it is not believed. The largest carry it then, and
its error is not known either: with 0.25 nominal 95 % intervals of log-normal replicates hold in 92 to 94 %.
"""

ENOUGH_HITS = 8
"""Hits of the pilot at which counting is the cheaper way."""

COUNTED_TOGETHER = 4096
"""Samples of a part of the count, whatever the batch."""


@dataclass(frozen=True)
class SplittingConfig:
    """Precision and effort. The defaults are the ones measured in docs/probability.md
    (benchmarks/probability.py).

    Attributes:
        relative: relative standard error asked for.
        most: samples that may be spent in all.
        particles, replicates: of a round.
        share: share that each level keeps. chain: states per chain. acceptance: rate that the step is steered
            to.
        levels: most levels; with share 0.1, q below 1e-40 is given up on.
        batch: samples per call of the sampler. It changes no result.
        memory: bytes of noise that may be held at once. If a round needs more, nothing is started.
    """

    relative: float = 0.15
    most: int = 300_000
    particles: int = 250
    replicates: int = 8
    share: float = 0.1
    chain: int = 10
    acceptance: float = 0.44
    levels: int = 40
    batch: int = 4096
    memory: int = 4 * 2**30

    def __post_init__(self) -> None:
        if not (0 < self.relative < 1 and 0 < self.share < 0.5 and 0 < self.acceptance < 1):
            raise ValueError(
                f"need relative in (0, 1), share in (0, 0.5), acceptance in (0, 1), got {self.relative}, "
                f"{self.share}, {self.acceptance}"
            )
        whole = (self.replicates, self.chain, self.levels, self.batch)
        if self.replicates < 4 or min(whole) < 1 or self.particles * self.share < 2:
            raise ValueError(
                f"need at least 4 replicates and 2 survivors per level, got {self.replicates} replicates and "
                f"{self.particles} particles with share {self.share}"
            )


@dataclass(frozen=True)
class _Round:
    """What a round of replicates found.

    Attributes:
        log_q: the logarithm of each replicate's product of factors, so far where it did not arrive.
        arrived: whether the last factor, the share of Omega itself, is included.
        stalled: whether all samples of a replicate shared one score.
        ladder: each level's (bound, step), where most replicates had one.
        levels: how many there were, for the replicate that had most.
        ancestors: first particles that the last population of a replicate descends from, mean.
        hits: first particles in Omega, of all replicates together.
        samples: spent.
    """

    log_q: list[float]
    arrived: list[bool]
    stalled: list[bool]
    ladder: list[tuple[float, float]]
    levels: int
    ancestors: float
    hits: int
    samples: int


@dataclass(frozen=True)
class _Estimate:
    numbers: Offered
    stage: str
    sentence: str
    trials: Trials | None = None
    freedom: float | None = None


@dataclass
class _Work:
    """What the stages share: the sampler, what was spent, and what was learnt so far."""

    push: Pushforward
    score: Score
    inside: Inside
    config: SplittingConfig
    level: float
    seed: int
    device: torch.device
    progress: Progress
    kept: Kept
    spent: int = 0
    failures: list[str] = field(default_factory=list[str])
    notes: dict[str, Any] = field(default_factory=dict[str, Any])

    def land(self) -> Landscape:
        return Landscape(self.push, self.score, self.inside, self.device, self.config.batch)

    def generator(self, part: str) -> torch.Generator:
        """Every part has noise of its own, so that it does not depend on what was made before it."""
        return torch.Generator().manual_seed(keys.key(self.seed, f"splitting.{part}") >> 1)

    def say(self, land: Landscape) -> None:
        """Samples spent so far, and the most that may be."""
        spent = self.spent + land.samples
        self.progress(spent, max(self.config.most, spent))

    def left(self) -> int:
        return self.config.most - self.spent


def splitting(
    push: Pushforward,
    score: Score,
    inside: Inside,
    *,
    sampler: Mapping[str, object],
    seed: int,
    level: float = 0.95,
    config: SplittingConfig | None = None,
    device: torch.device | str = "cpu",
    progress: Progress = silent,
    kept: Kept = anew,
) -> Rate:
    """q of the sampler ``push``, by splitting in its noise.

    Args:
        score: images (n, ...) -> (n,), finite, falling towards Omega: a distance to x_p, a detector's logit.
        inside: images -> (n,) bool, membership in Omega. It need not agree with the score.
        sampler: description of the sampler and its step count; part of the result.
        device: where ``push`` works. Noise is drawn on the CPU, so that the result does not depend on it.
        kept: keeps each part, so that an interrupted estimate continues.

    Raises:
        ValueError: a score that is not finite, answers of the wrong shape, or a sampler without noise.
    """
    settings = config or SplittingConfig()
    if push.latent < 1:
        raise ValueError(f"splitting moves in the sampler's noise, and this one has {push.latent} numbers")
    particles = settings.replicates * settings.particles
    if settings.most < 2 * particles:
        raise ValueError(
            f"{settings.most} samples are too few to split: {2 * particles} would be enough to begin"
        )
    needed = held(push.latent, particles, settings.chain)
    if needed > settings.memory:
        return unreliable(
            "splitting",
            f"{particles:,} particles of {push.latent:,} numbers of noise take {needed / 2**30:.1f} GiB, and"
            f" {settings.memory / 2**30:.1f} GiB are allowed; a sampler of fewer steps would be enough",
            level=level,
            network_evaluations=0,
            sampler=sampler,
        )
    work = _Work(push, score, inside, settings, level, seed, torch.device(device), progress, kept)
    found = _stages(work)
    cost = work.spent * push.evaluations
    facts = work.notes | {"samples": work.spent, "config": asdict(settings)}
    if found is None:
        why = "; ".join(work.failures)
        return unreliable(
            "splitting", why, level=level, network_evaluations=cost, sampler=sampler, details=facts
        )
    return Rate(
        method="splitting",
        rate=found.numbers.rate,
        low=found.numbers.low,
        high=found.numbers.high,
        level=level,
        reliable=True,
        diagnostic=found.sentence,
        network_evaluations=cost,
        sampler=sampler,
        trials=found.trials,
        details=facts | {"stage": found.stage},
        freedom=found.freedom,
    )


def _stages(work: _Work) -> _Estimate | None:
    c = work.config
    part = work.kept("first", partial(_first, work))
    first, tilt = _Round(**part["round"]), part["tilt"]
    pilot = Trials(first.hits, c.replicates * c.particles)
    work.spent += part["samples"]
    work.notes |= {"pilot_hits": pilot.k, "pilot_samples": pilot.n}
    if pilot.k >= ENOUGH_HITS:
        return _count(work, pilot)
    if any(first.arrived):
        work.notes |= {
            "levels": first.levels,
            "ancestors": first.ancestors,
            "replicate_log_q": [round(x, 4) for x in _arrived(first)],
        }
        found = _tilted(work, tilt) or _replicated(work, first)
        if found is not None and not _contradicts(work, pilot, found):
            return found
    else:
        work.failures.append(_never_reached(work, first))
    return _count(work, pilot) if pilot.k else None


def _first(work: _Work) -> dict[str, object]:
    """The first round, and the tilt that its particles give."""
    land, tilt = work.land(), None
    found, grown = _climbed(work, land)
    if sum(found.arrived) >= 2:
        groups = [grown.z[r][grown.scores[r] == -math.inf] for r in range(len(grown.z)) if found.arrived[r]]
        levels = weighted(np.array(_arrived(found)))
        target, g = work.config.relative, work.generator("tilt")
        tilt = tilted(land, groups, levels, target, work.left(), work.level, g, partial(work.say, land))
    return {"round": asdict(found), "tilt": tilt, "samples": land.samples}


def _climbed(work: _Work, land: Landscape) -> tuple[_Round, Population]:
    """The first round, from fresh noise up to Omega; if it hits often enough it stays where it is."""
    c, g = work.config, work.generator("first")
    last = begun = first_population(land, c.replicates, c.particles, g)
    hits, walked = int((begun.scores == -math.inf).sum()), list[Population]()
    if hits < ENOUGH_HITS:
        for last in climb(land, begun, share=c.share, chain=c.chain, target=c.acceptance, most=c.levels, g=g):
            walked.append(replace(last, z=last.z[:0]))
            work.say(land)
            if work.left() - land.samples < last.scores.numel():
                break
    found = _Round(
        log_q=last.log_q.tolist(),
        arrived=last.done.tolist(),
        stalled=last.stalled.tolist(),
        ladder=[(rung.bound, rung.step) for rung in rungs(walked)],
        levels=last.level,
        ancestors=sum(len(row.unique()) for row in last.ancestors) / len(last.ancestors),
        hits=hits,
        samples=land.samples,
    )
    return found, last


def _never_reached(work: _Work, found: _Round) -> str:
    if all(found.stalled):
        return "all samples share one score, so no level leads towards the region"
    deepest = min(found.log_q) / math.log(10)
    if work.left() < work.config.replicates * work.config.particles:
        return (
            f"the {work.config.most:,} samples allowed were spent after {found.levels} levels, "
            f"at a probability of 1e{deepest:.0f}; more of them would be enough where anything hits"
        )
    return (
        f"no sample reached the region in {found.levels} levels, down to a probability of 1e{deepest:.0f}: "
        "nothing seems able to hit it, or the score does not lead to it"
    )


def _count(work: _Work, pilot: Trials) -> _Estimate | None:
    """Plain counting with fresh samples. The pilot fixes how many, hence Clopper-Pearson holds."""
    n = math.ceil(1 / (pilot.rate * work.config.relative**2))
    if n > work.left():
        work.failures.append(f"counting would need about {n} samples and {max(work.left(), 0)} are left")
        return None

    def some(begin: int, size: int) -> dict[str, object]:
        land = work.land()
        z = torch.randn(size, work.push.latent, generator=work.generator(f"count.{begin}"))  # noqa: TID251
        hits = int((land(z) == -math.inf).sum())
        work.say(land)
        return {"hits": hits}

    k = 0
    for begin in range(0, n, COUNTED_TOGETHER):
        size = min(n - begin, COUNTED_TOGETHER)
        k += work.kept(f"count.{begin}", partial(some, begin, size))["hits"]
        work.spent += size
    trials = Trials(k, n)
    said = f"counted: {k} of {n} fresh samples in the region"
    return _Estimate(Offered(trials.rate, *trials.interval(work.level)), "count", said, trials)


def _tilted(work: _Work, tilt: Mapping[str, Any] | None) -> _Estimate | None:
    if tilt is None:
        return None
    work.notes |= tilt["notes"]
    if tilt["failed"] is not None:
        work.failures.append(tilt["failed"])
        return None
    return _Estimate(Offered(**tilt["numbers"]), "tilt", tilt["said"], freedom=tilt["freedom"])


def _replicated(work: _Work, first: _Round) -> _Estimate | None:
    """Fresh replicates along the first round's levels, until their mean is as precise as asked."""
    c, ladder = work.config, [Rung(*rung) for rung in first.ladder]
    begun, logs = _arrived(first), list[float]()

    def one(number: int) -> dict[str, object]:
        land, g = work.land(), work.generator(f"round.{number}")
        fresh = last = first_population(land, c.replicates, c.particles, g)
        for last in descend(land, fresh, ladder, chain=c.chain, g=g):  # noqa: B007 (the last one is wanted)
            work.say(land)
        finite = [log if math.isfinite(log) else None for log in last.log_q.tolist()]
        return {"log_q": finite, "samples": land.samples}

    price = c.replicates * c.particles * (1 + len(ladder))
    while len(logs) < _wanted(logs or begun, c.relative):
        least = _wanted(logs or begun, max(c.relative, WIDEST))
        affordable = len(logs) + work.left() // price * c.replicates
        if affordable < least:
            work.failures.append(
                f"{least:,} replicates of {c.particles} particles would be enough, and samples"
                f" are left for {affordable:,} of them"
            )
            return None
        if affordable == len(logs):
            break
        number = len(logs) // c.replicates
        part = work.kept(f"round.{number}", partial(one, number))
        logs += [-math.inf if log is None else log for log in part["log_q"]]
        work.spent += part["samples"]
    summary = weighted(np.array(logs))
    work.notes |= {"replicates": summary.n, "effective_replicates": summary.effective}
    numbers = offered(summary.log_mean, summary.error, summary.freedom, work.level)
    if isinstance(numbers, str):
        work.failures.append(numbers)
        return None
    said = (
        f"{summary.n} replicates of {c.particles} particles along fixed levels, worth"
        f" {summary.effective:.0f} equal ones"
    )
    return _Estimate(numbers, "levels", said, freedom=summary.freedom)


def _arrived(found: _Round) -> list[float]:
    return [log for log, there in zip(found.log_q, found.arrived, strict=True) if there]


def _wanted(logs: list[float], relative: float) -> int:
    """Replicates whose mean has this relative error, by the spread of these; LEAST_REPLICATES at least."""
    there = [log for log in logs if math.isfinite(log)]
    if len(there) < 2:
        return sys.maxsize
    spread = min(float(np.std(there, ddof=1)), 5.0)  # beyond 5 no number is affordable
    summary = weighted(np.array(logs))
    variance = max(math.expm1(spread**2), summary.n * summary.error**2)
    return max(LEAST_REPLICATES, math.ceil(variance / relative**2))


def _contradicts(work: _Work, pilot: Trials, found: _Estimate) -> bool:
    low, high = pilot.interval(0.999)
    if found.numbers.high < low or found.numbers.low > high:
        work.failures.append(
            f"the {found.stage} stage gave {found.numbers.rate:.2g} but {pilot.k} of {pilot.n} "
            "independent samples hit"
        )
        return True
    return False
