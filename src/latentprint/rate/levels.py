"""Subset simulation: from all noise, level by level, to the part of it that lands in Omega.

    q = P(z in Omega) = prod_j P(z in A_j | z in A_{j-1}),    z ~ N(0, I)
    A_j = {score(z) <= L_j or z in Omega}

The population of A_j grows from the survivors by chains of preconditioned Crank-Nicolson moves

    z' = sqrt(1 - b^2) z + b xi,    accepted where z' lies in A_j,

which leave N(0, I) restricted to A_j unchanged. All states of all chains are kept (Au and Beck's chains;
called waste-free by Dau and Chopin 2022). Every A_j contains Omega whatever its score, so a poor score costs
precision, never correctness. Replicates share only the step b.

Where the levels are not known, L_j is a quantile of the scores in A_{j-1}, so that each factor is about
``share``, and b follows the joint acceptance rate. Such a quantile comes from the particles it is used on,
and few of those are independent: on 39 balls of known q it was 28 % too large on average. With levels and
steps that were fixed beforehand it is unbiased (the normalising constant of a particle filter).

Sources: S. Au, J. Beck, Prob. Eng. Mech. 16 (2001); S. Cotter, G. Roberts, A. Stuart, D. White, Stat. Sci. 28
(2013); I. Papaioannou et al., Prob. Eng. Mech. 41 (2015) (step from acceptance); H. Dau, N. Chopin, JRSS B 84
(2022).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

Score = Callable[[Tensor], Tensor]
"""Images (n, ...) -> (n,), finite; falls towards Omega."""

Inside = Callable[[Tensor], Tensor]
"""Images (n, ...) -> (n,) bool: in Omega or not."""


class Pushforward(Protocol):
    """A sampler as a deterministic map of its Gaussian noise.

    ``latent`` numbers of noise per sample: x_T for an ODE; x_T and all increments for a stochastic sampler.
    ``evaluations`` is the cost of one sample in network evaluations. Each row depends on its own noise alone.
    """

    @property
    def latent(self) -> int: ...

    @property
    def evaluations(self) -> int: ...

    def __call__(self, z: Tensor, /) -> Tensor:
        """(n, latent) -> images (n, ...)."""
        ...


@dataclass
class Landscape:
    """Scores of noise, in batches, counted and partly remembered.

    The score of z is -inf if z lands in Omega. ``remembered`` keeps (z, score before that) of the latest
    samples, at most ``memory`` numbers, so that evaluations already paid for can be learnt from.
    """

    push: Pushforward
    score: Score
    inside: Inside
    device: torch.device
    batch: int = 4096
    memory: int = 50_000_000
    samples: int = 0
    remembered: list[tuple[Tensor, Tensor]] = field(default_factory=list[tuple[Tensor, Tensor]])

    def __call__(self, z: Tensor) -> Tensor:
        """(n, latent) on the CPU -> (n,) float64 on the CPU."""
        parts = [self._land(part) for part in z.split(self.batch)]
        raw = torch.cat([p[0] for p in parts])
        hit = torch.cat([p[1] for p in parts])
        self.samples += len(z)
        self._remember(z, raw)
        return raw.masked_fill(hit, -math.inf)

    def _land(self, z: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            images = self.push(z.to(self.device))
            raw, hit = self.score(images), self.inside(images)
        n = (len(z),)
        if raw.shape != n or hit.shape != n or hit.dtype != torch.bool:
            raise ValueError(
                f"score and inside must give one number and one bool for each of {n[0]} images, got shapes "
                f"{tuple(raw.shape)} and {tuple(hit.shape)} ({hit.dtype})"
            )
        if not bool(raw.isfinite().all()):
            bad = int((~raw.isfinite()).sum())
            raise ValueError(f"the score must be finite; {bad} of {n[0]} images got NaN or infinity")
        return raw.to("cpu", torch.float64), hit.to("cpu")

    def _remember(self, z: Tensor, raw: Tensor) -> None:
        self.remembered.append((z, raw))
        held = sum(part.numel() for part, _ in self.remembered)
        while held > self.memory and len(self.remembered) > 1:
            held -= self.remembered.pop(0)[0].numel()


@dataclass(frozen=True)
class Population:
    """The state of all replicates after a level.

    Attributes:
        z: (replicates, particles, latent). scores: (replicates, particles), -inf in Omega.
        log_q: (replicates,) log of the product of the factors so far; final if ``done``.
        done: (replicates,) whether the last factor, the share of Omega itself, is included.
        stalled: (replicates,) whether no level below the last could be found.
        ancestors: (replicates, particles) which first particle each descends from.
        bounds: (replicates,) the level L_j; NaN where there was none.
        step, acceptance: of the moves of this level. level: the number of levels so far.
    """

    z: Tensor
    scores: Tensor
    log_q: Tensor
    done: Tensor
    stalled: Tensor
    ancestors: Tensor
    bounds: Tensor
    step: float
    acceptance: float
    level: int


def held(latent: int, particles: int, chain: int) -> int:
    """Bytes of noise that ``climb`` holds at once: a population, the next one, and moves of the chains."""
    return int(4 * latent * particles * (2 + 4 / chain))


def first_population(land: Landscape, replicates: int, particles: int, g: torch.Generator) -> Population:
    """Independent noise, scored."""
    z = torch.randn(replicates, particles, land.push.latent, generator=g)  # noqa: TID251
    none = torch.zeros(replicates, dtype=torch.bool)
    return Population(
        z=z,
        scores=land(z.flatten(0, 1)).reshape(replicates, particles),
        log_q=torch.zeros(replicates, dtype=torch.float64),
        done=none,
        stalled=none,
        ancestors=torch.arange(particles).repeat(replicates, 1),
        bounds=torch.full((replicates,), math.nan, dtype=torch.float64),
        step=0.5,
        acceptance=1.0,
        level=0,
    )


def climb(
    land: Landscape,
    population: Population,
    *,
    share: float,
    chain: int,
    target: float,
    most: int,
    g: torch.Generator,
) -> Iterator[Population]:
    """Level after level until every replicate is done or stalled, or ``most`` levels were made.

    Args:
        share: the share of the population that each level keeps, about. chain: states per chain, the survivor
            included.
        target: the acceptance rate that the step b is steered to.
    """
    while population.level < most:
        population = _finish(population, share)
        if bool((population.done | population.stalled).all()):
            break
        population = _next(land, population, chain=chain, g=g, share=share, target=target)
        yield population
    yield _finish(population, share)


@dataclass(frozen=True)
class Rung:
    """A level that was fixed beforehand, and the step b of its moves."""

    bound: float
    step: float


def rungs(walked: Sequence[Population]) -> tuple[Rung, ...]:
    """Fixed levels from populations that found theirs: the median over replicates, while most had one."""
    found = list[Rung]()
    for one in walked:
        own = one.bounds[one.bounds.isfinite()]
        if 2 * len(own) <= len(one.bounds):
            break
        bound = min(float(own.median()), found[-1].bound if found else math.inf)
        found.append(Rung(bound, one.step))
    return tuple(found)


def descend(
    land: Landscape, population: Population, ladder: Sequence[Rung], *, chain: int, g: torch.Generator
) -> Iterator[Population]:
    """Along fixed levels; in the last population every replicate is done. One that dies out has q = 0."""
    for rung in ladder:
        population = _next(land, population, chain=chain, g=g, rung=rung)
        yield population
    hits = (population.scores == -math.inf).double().mean(1)
    log_q = torch.where(population.done, population.log_q, population.log_q + hits.log())
    yield replace(population, log_q=log_q, done=torch.ones_like(population.done))


def _finish(p: Population, share: float) -> Population:
    """Replicates in which Omega's share reached ``share`` take it as their last factor."""
    hits = (p.scores == -math.inf).double().mean(1)
    now = ~p.done & ~p.stalled & (hits >= share)
    log_q = torch.where(now, p.log_q + hits.clamp(min=1e-300).log(), p.log_q)
    return replace(p, log_q=log_q, done=p.done | now)


def _next(
    land: Landscape,
    p: Population,
    *,
    chain: int,
    g: torch.Generator,
    rung: Rung | None = None,
    share: float = 0.0,
    target: float = 0.0,
) -> Population:
    """One level, fixed or a quantile: survivors, chains."""
    active, particles = (~(p.done | p.stalled)).nonzero()[:, 0], p.scores.shape[1]
    if rung is None:
        bounds = p.scores[active].sort(dim=1).values[:, max(1, int(share * particles)) - 1]
    else:
        bounds = torch.full((len(active),), rung.bound, dtype=torch.float64)
    alive = p.scores[active] <= bounds[:, None]
    survivors = alive.sum(1)
    log_q, stalled, done = p.log_q.clone(), p.stalled.clone(), p.done.clone()
    log_q[active] += (survivors.double() / particles).log()
    # A quantile that keeps everyone (all scores are equal) leads nowhere. A fixed level may keep no one.
    ends = survivors == (particles if rung is None else 0)
    (stalled if rung is None else done)[active[ends]] = True
    active, bounds, alive = (v[~ends] for v in (active, bounds, alive))
    taken = torch.full_like(p.bounds, math.nan).index_put((active,), bounds)
    new = replace(p, log_q=log_q, stalled=stalled, done=done, bounds=taken, level=p.level + 1)
    if not len(active):
        return new
    seeds = -(-particles // chain)
    chosen = torch.stack([_choose(row.nonzero()[:, 0], seeds, g) for row in alive])
    rows = active[:, None].expand_as(chosen)
    start = (p.z[rows, chosen], p.scores[rows, chosen], p.ancestors[rows, chosen])
    new = replace(new, z=p.z.clone(), scores=p.scores.clone(), ancestors=p.ancestors.clone())
    if rung is not None:
        new = replace(new, step=rung.step)
    step, accepted = _walk(land, start, new, active, bounds, chain, None if rung else target, g)
    return replace(new, step=step, acceptance=accepted)


def _choose(alive: Tensor, count: int, g: torch.Generator) -> Tensor:
    """``count`` of the survivors, all equally often up to one."""
    rounds = [alive[torch.randperm(len(alive), generator=g)] for _ in range(-(-count // len(alive)))]  # noqa: TID251
    return torch.cat(rounds)[:count]


def _walk(
    land: Landscape,
    start: tuple[Tensor, Tensor, Tensor],
    into: Population,
    active: Tensor,
    levels: Tensor,
    chain: int,
    target: float | None,
    g: torch.Generator,
) -> tuple[float, float]:
    """Chains of ``chain`` states from each start, written move by move into the active rows of ``into``.

    The step b follows the acceptance rate ``target``; None: it stays.

    Returns the final step b and the mean acceptance rate.
    """
    (z, scores, ancestors), step, rates = start, into.step, list[float]()
    particles, seeds = into.scores.shape[1], scores.shape[1]
    for move in range(chain):
        if move > 0:
            noise = torch.randn(z.shape, generator=g)  # noqa: TID251
            proposal = noise.mul_(step).add_(z, alpha=math.sqrt(1 - step**2))
            proposed = land(proposal.flatten(0, 1)).reshape(scores.shape)
            accept = proposed <= levels[:, None]
            z = torch.where(accept[..., None], proposal, z)
            scores = torch.where(accept, proposed, scores)
            rates.append(float(accept.double().mean()))
            if target is not None:
                # Robbins-Monro on log b: gains of 1/sqrt(move) settle within a level, and can follow the next
                step = min(0.99, max(1e-4, step * math.exp((rates[-1] - target) / math.sqrt(move))))
        first = move * seeds
        size = min(seeds, particles - first)
        into.z[active, first : first + size] = z[:, :size]
        into.scores[active, first : first + size] = scores[:, :size]
        into.ancestors[active, first : first + size] = ancestors[:, :size]
    return step, sum(rates) / len(rates) if rates else 0.0
