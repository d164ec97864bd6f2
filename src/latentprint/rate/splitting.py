"""q by multilevel splitting in the sampler's own noise: any sampler, any model, no likelihood, no gradient.

The sampler is a deterministic map of Gaussian noise, so q = P(z in Omega) for z ~ N(0, I) (``levels``). The
estimate is made in stages, and each of them can be the last:

    pilot    independent samples. If some of them hit, q is counted with fresh samples (Clopper-Pearson).
    levels   subset simulation in replicates: a first q and particles in Omega.
    tilt     importance sampling from a Gaussian fitted to those particles: an average of i.i.d. weights.
    more     if the tilt fails: replicates large enough for the asked precision; interval from their spread.
    count    if the score does not lead to Omega but the pilot saw it: q is counted after all.

Every stage has diagnostics (Pareto k, effective samples, uncovered particles, lost ancestors, replicates that
stall or disagree, the pilot's own count). If no stage passes its own, no number is offered. Sources: Au and
Beck 2001; Cotter et al. 2013; Papaioannou et al. 2015; Vehtari et al. 2024.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentprint import keys
from latentprint.rate.estimator import Progress, silent
from latentprint.rate.levels import (
    Inside,
    Landscape,
    Population,
    Pushforward,
    Score,
    climb,
    first_population,
    held,
)
from latentprint.rate.result import Rate, unreliable
from latentprint.rate.tilt import Tilt, fit_tilt, log_weights, uncovered
from latentprint.rate.weights import Floats, Offered, Weighted, offered, weighted
from latentprint.stats import Trials

LARGEST_SPREAD = 1.0
"""Standard deviation of the logarithms of replicates above which their mean is not believed. It falls with
the root of the number of particles, so it is known beforehand if no affordable number would be enough.
"""


@dataclass(frozen=True)
class SplittingConfig:
    """Precision and effort. The defaults are the ones measured in docs/probability.md
    (benchmarks/probability.py).

    Attributes:
        relative: relative standard error asked for.
        most: samples that may be spent in all.
        particles, replicates: of the first levels. The replicates after a failed tilt are sized by what it
            found.
        share: share that each level keeps. chain: states per chain. acceptance: rate that the step is steered
            to.
        levels: most levels; with share 0.1, q below 1e-40 is given up on.
        batch: samples per call of the sampler. It changes no result.
        memory: bytes of noise that may be held at once. If the first levels need more, nothing is started.
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


@dataclass
class _Work:
    """What the stages share: the landscape, the generator, and what was learnt so far."""

    land: Landscape
    config: SplittingConfig
    level: float
    g: torch.Generator
    progress: Progress
    pilot: Trials
    failures: tuple[str, ...] = ()
    notes: tuple[tuple[str, Any], ...] = ()

    def failed(self, why: str) -> None:
        self.failures += (why,)

    def say(self) -> None:
        """Samples spent so far, and the most that may be."""
        self.progress(self.land.samples, max(self.config.most, self.land.samples))

    def note(self, **facts: Any) -> None:
        self.notes += tuple(facts.items())

    def left(self) -> int:
        return self.config.most - self.land.samples


@dataclass(frozen=True)
class _Estimate:
    numbers: Offered
    stage: str
    sentence: str
    trials: Trials | None = None
    freedom: float | None = None


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
) -> Rate:
    """q of the sampler ``push``, by splitting in its noise.

    Args:
        score: images (n, ...) -> (n,), finite, falling towards Omega: a distance to x_p, a detector's logit.
        inside: images -> (n,) bool, membership in Omega. It need not agree with the score.
        sampler: description of the sampler and its step count; part of the result.
        device: where ``push`` works. Noise is drawn on the CPU, so that the result does not depend on it.

    Raises:
        ValueError: a score that is not finite, answers of the wrong shape, or a sampler without noise.
    """
    settings = config or SplittingConfig()
    if push.latent < 1:
        raise ValueError(
            f"splitting moves in the sampler's noise; this sampler has {push.latent} numbers of it"
        )
    if settings.most < 2 * settings.replicates * settings.particles:
        raise ValueError(
            f"{settings.most} samples are too few to split; at least "
            f"{2 * settings.replicates * settings.particles} would be enough to begin"
        )
    g = torch.Generator().manual_seed(keys.key(seed, "splitting") >> 1)
    needed = held(push.latent, settings.replicates * settings.particles, settings.chain)
    if needed > settings.memory:
        return unreliable(
            "splitting",
            f"{settings.replicates * settings.particles:,} particles of {push.latent:,} numbers of noise "
            f"take {needed / 2**30:.1f} GiB, and {settings.memory / 2**30:.1f} GiB are allowed; a sampler of "
            "fewer steps would be enough",
            level=level,
            network_evaluations=0,
            sampler=sampler,
        )
    land = Landscape(push, score, inside, torch.device(device), settings.batch)
    work = _Work(land, settings, level, g, progress, Trials(0, 0))
    found = _stages(work)
    cost = land.samples * push.evaluations
    details = dict(work.notes) | {"samples": land.samples, "config": asdict(settings)}
    if found is None:
        why = "; ".join(work.failures)
        return unreliable(
            "splitting", why, level=level, network_evaluations=cost, sampler=sampler, details=details
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
        details=details | {"stage": found.stage},
        freedom=found.freedom,
    )


def _stages(work: _Work) -> _Estimate | None:
    c = work.config
    first = first_population(work.land, c.replicates, c.particles, work.g)
    hits = int((first.scores == -math.inf).sum())
    work.pilot = Trials(hits, first.scores.numel())
    work.note(pilot_hits=hits, pilot_samples=work.pilot.n)
    if hits >= 8:
        return _count(work)
    grown = _climb(work, first)
    if bool(grown.done.any()):
        work.note(
            levels=grown.level,
            acceptance=grown.acceptance,
            step=grown.step,
            ancestors=_ancestors(grown),
            replicate_log_q=[round(x, 4) for x in grown.log_q[grown.done].tolist()],
        )
        found = _tilted(work, grown) or _replicated(work, grown)
        if found is not None and not _contradicts_pilot(work, found):
            return found
    else:
        work.failed(_never_reached(work, grown))
    return _count(work) if work.pilot.k else None


def _climb(work: _Work, first: Population) -> Population:
    c, last = work.config, first
    for last in climb(
        work.land, first, share=c.share, chain=c.chain, target=c.acceptance, most=c.levels, g=work.g
    ):
        work.say()
        if work.left() < last.scores.numel():
            break
    return last


def _never_reached(work: _Work, grown: Population) -> str:
    if bool(grown.stalled.all()):
        return "all samples share one score, so no level leads towards the region"
    deepest = float(grown.log_q.min()) / math.log(10)
    if work.left() < grown.scores.numel():
        return (
            f"the {work.config.most:,} samples allowed were spent after {grown.level} levels, "
            f"at a probability of 1e{deepest:.0f}; more of them would be enough where anything hits"
        )
    return (
        f"no sample reached the region in {grown.level} levels, down to a probability of 1e{deepest:.0f}: "
        "nothing seems able to hit it, or the score does not lead to it"
    )


def _ancestors(p: Population) -> float:
    """Mean over replicates of the distinct first particles that the last population descends from."""
    return sum(len(row.unique()) for row in p.ancestors) / len(p.ancestors)


def _count(work: _Work) -> _Estimate | None:
    """Plain counting with fresh samples. The pilot fixes how many, hence Clopper-Pearson holds."""
    guess = work.pilot.rate
    n = math.ceil(1 / (guess * work.config.relative**2))
    if n > work.left():
        work.failed(f"counting would need about {n} samples and {max(work.left(), 0)} are left")
        return None
    k, done = 0, 0
    while done < n:
        size = min(n - done, work.config.batch)
        z = torch.randn(size, work.land.push.latent, generator=work.g)  # noqa: TID251
        k += int((work.land(z) == -math.inf).sum())
        work.say()
        done += size
    trials = Trials(k, n)
    low, high = trials.interval(work.level)
    said = f"counted: {k} of {n} fresh samples in the region"
    return _Estimate(Offered(trials.rate, low, high), "count", said, trials)


def _groups(p: Population) -> list[Tensor]:
    return [p.z[r][p.scores[r] == -math.inf] for r in range(len(p.z)) if bool(p.done[r])]


def _tilted(work: _Work, grown: Population) -> _Estimate | None:
    groups = _groups(grown)
    if len(groups) < max(2, len(grown.done) // 2):
        work.failed(f"only {len(groups)} of {len(grown.done)} replicates reached the region")
        return None
    tilt = fit_tilt(groups, work.land.remembered)
    drawn, summary = _draw(work, tilt)
    outside = uncovered(tilt, groups, drawn) if summary.log_mean > -math.inf else 1.0
    work.note(
        tilt=tilt.fitted_by,
        effective=summary.effective,
        pareto_k=summary.pareto_k,
        uncovered=outside,
        tilt_samples=summary.n,
    )
    why = _tilt_fails(work, grown, summary, outside)
    if why is not None:
        work.failed(why)
        return None
    found = offered(summary.log_mean, summary.error, summary.freedom, work.level)
    if isinstance(found, str):
        work.failed(found)
        return None
    high = min(1.0, found.high / (1 - outside))  # a part that may be out of reach is missing from the mean
    said = (
        f"importance sampling around the particles: effective sample size {summary.effective:.0f} of "
        f"{summary.n}, Pareto k {summary.pareto_k:.2f}, {outside:.1%} of the particles out of its reach"
    )
    return _Estimate(replace(found, high=high), "tilt", said, freedom=max(summary.freedom, 1.0))


def _draw(work: _Work, tilt: Tilt) -> tuple[Floats, Weighted]:
    """Rounds until the asked precision, or until it is clear that it is out of reach."""
    target = work.config.relative
    drawn = log_weights(work.land, tilt, min(1000, max(work.left(), 2)), work.g)
    while True:
        summary = weighted(drawn)
        needed = summary.n * (summary.error / target) ** 2 if summary.log_mean > -math.inf else math.inf
        hopeless = summary.n >= 2000 and (needed > 20_000 or summary.effective < 5)
        settled = summary.error <= target and summary.effective >= 50
        if settled or hopeless or work.left() < 1000 or summary.n >= 30_000:
            return drawn, summary
        work.say()
        drawn = np.concatenate([drawn, log_weights(work.land, tilt, 1000, work.g)])


def _tilt_fails(work: _Work, grown: Population, summary: Weighted, outside: float) -> str | None:
    if (why := summary.distrusted()) is not None:
        return f"of the tilt {why}"
    if outside > 0.1:
        return f"{outside:.0%} of the particles in the region lie out of the tilt's reach"
    logs = grown.log_q[grown.done].numpy()
    centre, error = _log_mean(logs)
    gap = summary.log_mean - centre
    if abs(gap) > 3 * math.hypot(error, summary.error) + math.log(2):
        return f"the tilt and the levels disagree by a factor of {math.exp(abs(gap)):.1f}"
    return None


def _log_mean(logs: Floats) -> tuple[float, float]:
    """Logarithm of the mean of exp(logs), and its relative error over replicates."""
    top = float(logs.max())
    values = np.exp(logs - top)
    mean = float(values.mean())
    error = float(values.std(ddof=1)) / (mean * math.sqrt(len(values))) if len(values) > 1 else math.inf
    return top + math.log(mean), error


def _replicated(work: _Work, grown: Population) -> _Estimate | None:
    """Fresh replicates, sized by the spread of the first ones; the interval comes from the fresh ones."""
    c, replicates = work.config, 2 * work.config.replicates
    first = grown.log_q[grown.done].numpy()
    if len(first) < len(grown.done) // 2:
        work.failed(f"only {len(first)} of {len(grown.done)} replicates reached the region")
        return None
    spread = float(first.std(ddof=1)) if len(first) > 1 else math.inf
    per_particle = work.land.samples / work.pilot.n
    wanted = c.particles * max(4.0, (spread / (c.relative * math.sqrt(replicates))) ** 2)
    affordable = work.left() / (1.2 * per_particle * replicates)
    room = c.memory / held(work.land.push.latent, replicates, c.chain)
    particles = int(min(wanted, affordable, room))
    if particles < 2 * c.particles:
        work.failed(
            f"larger replicates need {2 * c.particles} particles each; for {max(0, int(affordable))} "
            f"samples are left, for {int(room)} there is room in {c.memory / 2**30:.1f} GiB"
        )
        return None
    if not spread * math.sqrt(c.particles / particles) <= LARGEST_SPREAD:
        work.failed(
            f"the logarithms of the first replicates spread by {spread:.2f}, too far for those that "
            f"{max(work.left(), 0):,} more samples allow"
        )
        return None
    work.land.remembered.clear()
    more = _climb(work, first_population(work.land, replicates, particles, work.g))
    logs = more.log_q[more.done].numpy()
    if len(logs) < replicates:
        work.failed(f"only {len(logs)} of {replicates} replicates reached the region")
        return None
    centre, error = _log_mean(logs)
    deviation = float(logs.std(ddof=1))
    ancestors = _ancestors(more)
    work.note(replicates=replicates, particles=particles, spread=deviation, last_ancestors=ancestors)
    if deviation > LARGEST_SPREAD:
        work.failed(
            f"replicates disagree: their logarithms spread by {deviation:.2f}, {LARGEST_SPREAD:g} is the most"
        )
        return None
    if ancestors < 3:
        work.failed(f"a replicate descends from {ancestors:.1f} of its first particles, 3 are needed")
        return None
    found = offered(centre, error, replicates - 1, work.level)
    if isinstance(found, str):
        work.failed(found)
        return None
    said = f"{replicates} replicates of {particles} particles, their logarithms spread by {deviation:.2f}"
    return _Estimate(found, "levels", said, freedom=replicates - 1)


def _contradicts_pilot(work: _Work, found: _Estimate) -> bool:
    low, high = work.pilot.interval(0.999)
    if found.numbers.high < low or found.numbers.low > high:
        work.failed(
            f"the {found.stage} stage gave {found.numbers.rate:.2g} but {work.pilot.k} of {work.pilot.n} "
            "independent samples hit"
        )
        return True
    return False
