"""q by importance sampling of the sampler's own path: the path estimator.

A stochastic sampler of Gaussian steps walks x_{k+1} ~ N(a_k x_k + b_k D(x_k), v_k I) from x_0 ~ N(0, s^2 I).
A proposal starts where Alg. 1 does, at N(alpha_T x_p, sigma_T^2 I), and lets a guide g (``guides``) stand in
D's place by a factor f_k at each step. With e_k = (x_{k+1} - a_k x_k - b_k D) / sqrt(v_k) and
u_k = b_k (g - D) / sqrt(v_k)

    log dQ/dP = log r_T/p_T (x_0) + sum_k (f_k e_k . u_k - f_k^2 |u_k|^2 / 2)

is known for every guide and all factors along every path, at no further evaluation of the network. So all
proposals are weighted together (balance heuristic, Veach and Guibas 1995), the sampler's own law among them,
which bounds the weights:

    w = 1(x_n in Omega) / sum_i c_i dQ_i/dP,    c_i the share of paths drawn from proposal i

Unbiased for the very q that counting counts, of the audit's sampler with its steps; it needs no likelihood
and no gradient. Proposals are full guides (f = 1) that hand over to D after j steps, at once or by and by,
and those whose f is fitted to a pilot: of least cross-entropy to the law of paths that end in Omega,

    f_k = E[e_k . u_k | Omega] / E[|u_k|^2 | Omega]

Pilots set the shares to those of least variance (``shares``); fresh paths give the estimate.

Sources: Veach and Guibas, SIGGRAPH 1995; A. Owen, Y. Zhou, JASA 95 (2000) (fixed shares); Girsanov's formula
for Gaussian steps; R. Rubinstein, Eur. J. Oper. Res. 99 (1997) (cross-entropy); Vehtari
et al. 2024 (Pareto k).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentprint.denoiser import Codec, Denoiser, IdentityCodec, NotFiniteError
from latentprint.rate.estimator import Kept, Progress, anew, silent
from latentprint.rate.guides import Conditioned, Guide, Toward
from latentprint.rate.led import Led, Proposals, Walks, transitions
from latentprint.rate.levels import Inside
from latentprint.rate.result import Rate, unreliable
from latentprint.rate.shares import allot, least_variance_shares
from latentprint.rate.weights import BELIEVED, Floats, Offered, Weighted, offered, weighted
from latentprint.sampler.sampler import Sampler
from latentprint.streams import Streams

ITSELF = 0.05
"""Share of paths from the sampler's own law: no weight is above its inverse."""

SPREAD = 0.15
"""Share of paths from the pilot's proposals alike, whatever the pilot found best."""

ENOUGH = 120
"""Effective samples below which drawing goes on, however small the error looks."""

HOPELESS = 10
"""Samples that all paths together must promise to be worth after the pilot: a third of what is believed."""

NEAREST = 2000
"""Most images that a guide knows; the nearest to x_p say where a path must turn."""

LOOK = 4
"""By how much the paths grow between two looks at most: what cannot succeed is seen before all are spent."""

HANDOVERS = 24
"""Most numbers of led steps that are tried."""

HALF = 0.5
"""A weaker lead, beside the whole: a network that turns to x_p late and by itself was never led strongly."""

FADE = 1 / 6
"""Share of all steps over which a guide that leaves by and by does so."""

FIRM = 4.0
"""How firmly a fitted factor holds to its first guess: as if so much |u|^2 had been seen there."""


@dataclass(frozen=True)
class PathConfig:
    """How hard to try.

    Attributes:
        relative: relative standard error asked for. most: paths that may be spent on the estimate.
        pilot: paths from each of the first proposals. second: paths of each further pilot.
        together: paths per round of the estimate.
        batch: paths at a time. It changes no result.

    Raises:
        ValueError: a number is outside its range.
    """

    relative: float = 0.1
    most: int = 20_000
    pilot: int = 24
    second: int = 160
    together: int = 240
    batch: int = 1024

    def __post_init__(self) -> None:
        if not 0 < self.relative < 1 or min(self.most, self.pilot, self.second, self.batch) < 1:
            raise ValueError(f"the path estimator needs an error in (0, 1) and paths to spend, got {self}")
        if self.together < 40:
            raise ValueError(f"a round of the path estimator holds at least 40 paths, got {self.together}")


def path(
    denoiser: Denoiser,
    sampler: Sampler,
    target: Tensor,
    inside: Inside,
    *,
    seed: int,
    others: Tensor | None = None,
    level: float = 0.95,
    config: PathConfig | None = None,
    codec: Codec | None = None,
    progress: Progress = silent,
    kept: Kept = anew,
) -> Rate:
    """q of ``sampler`` over ``denoiser`` for the region around ``target``.

    Args:
        target: x_p in the model's own space, (*shape); its type is the type of the computation.
        inside: decoded images (n, ...) -> (n,) bool, membership in Omega.
        others: further images that the model may have learnt, (N, *shape), like ``target``. They say where a
            path must turn to x_p; without them the estimate is as unbiased and costs more.
        kept: keeps each round, so that an interrupted estimate goes on.
    """
    run = _Run(config or PathConfig(), level, seed, progress, kept)
    steps = transitions(sampler, denoiser.schedule)
    if isinstance(steps, str):
        return run.answer(sampler, steps, {}, 0)
    led = Led(
        denoiser,
        sampler,
        target.detach(),
        inside,
        codec or IdentityCodec(),
        steps,
        guides(target.detach(), others),
        Streams(seed),
        run.config.batch,
    )
    per_path = sampler.evaluations(denoiser.schedule)
    assert per_path is not None  # its steps are single Gaussians
    try:
        found, details = _estimate(run, led)
    except NotFiniteError as error:
        found, details = str(error), dict[str, object]()
    return run.answer(sampler, found, details, run.paths * per_path)


def guides(target: Tensor, others: Tensor | None) -> list[Guide]:
    """The guides that are tried: straight to x_p, and by what tells it from the other images.

    Kernels are points, or half as wide as the nearest other image is far (rms).
    """
    found: list[Guide] = [Toward(target)]
    if others is None or not len(others):
        return found
    apart = (others - target).flatten(1).double().norm(dim=1) / math.sqrt(target.numel())
    scale = float(target.double().std(correction=0)) or 1.0
    near = apart.argsort()[: min(NEAREST, len(apart))]
    near = near[apart[near] > 1e-3 * scale]  # a copy of x_p is x_p
    if not len(near):
        return found
    images = torch.cat([target[None], others[near]])
    nearest = float(apart[near].min())
    return [*found, *(Conditioned(images, 0, share * nearest) for share in (0.0, 0.5))]


@dataclass
class _Run:
    config: PathConfig
    level: float
    seed: int
    progress: Progress
    kept: Kept
    paths: int = 0

    def answer(self, sampler: Sampler, found: Offer | str, details: dict[str, object], cost: int) -> Rate:
        """The estimate, or why there is none."""
        details = {"config": asdict(self.config), **details, "paths": self.paths}
        if isinstance(found, str):
            return unreliable(
                "path",
                found,
                level=self.level,
                network_evaluations=cost,
                sampler=sampler.describe(),
                details=details,
            )
        return Rate(
            method="path",
            rate=found.numbers.rate,
            low=found.numbers.low,
            high=found.numbers.high,
            level=self.level,
            reliable=True,
            diagnostic=found.sentence,
            network_evaluations=cost,
            sampler=sampler.describe(),
            details=details,
            freedom=found.freedom,
        )


@dataclass(frozen=True)
class Offer:
    """Numbers, the degrees of freedom of their interval, and what is said of them."""

    numbers: Offered
    freedom: float
    sentence: str


def _estimate(run: _Run, led: Led) -> tuple[Offer | str, dict[str, object]]:
    pilot = run.kept("pilot", lambda: _pilot(run, led))
    run.paths = pilot["paths"]
    if pilot["worth"] == 0:
        return f"none of {run.paths} paths that were led to the image ended in the region", {}
    shares = torch.tensor(pilot["shares"], dtype=torch.float64)
    proposals = handed_over(len(led.guides), len(led.steps))
    for guide, factors in pilot["fitted"]:
        proposals = proposals.with_(guide, torch.tensor(factors, dtype=torch.float64), _fitted(led, guide))
    best = shares.topk(min(4, len(shares))).indices.tolist()
    details: dict[str, object] = {
        "pilot": pilot["paths"],
        "shares": [[proposals.names[k], round(float(shares[k]), 3)] for k in best],
    }
    if pilot["worth"] * run.config.most < HOPELESS:
        return (
            f"led paths are worth {pilot['worth']:.2g} samples each, so that the {run.config.most:,} allowed "
            "would not be worth 30; what leads them to the image is not what leads this model there",
            details,
        )
    logs, summary = _rounds(run, led, proposals, allot(shares, run.config.together))
    details |= {
        "effective": summary.effective,
        "pareto_k": summary.pareto_k,
        "largest_weight": summary.largest,
        "hits": int(np.isfinite(logs).sum()),
    }
    if (why := summary.distrusted()) is not None:
        return why, details
    numbers = offered(summary.log_mean, summary.error, summary.freedom, run.level)
    if isinstance(numbers, str):
        return numbers, details
    shape = summary.pareto_k if summary.pareto_k is not None else math.nan
    said = (
        f"{len(logs):,} paths led to the image, worth {summary.effective:.0f} samples that hit, "
        f"Pareto k {shape:.2f}"
    )
    return Offer(numbers, max(summary.freedom, 1.0), said), details


def handed_over(guides: int, steps: int) -> Proposals:
    """The sampler's own law, and every guide until each of some handovers, left at once or by and by."""
    handovers = sorted({-(-steps * i // HANDOVERS) for i in range(1, HANDOVERS + 1)})
    k, found = torch.arange(steps, dtype=torch.float64), Proposals.own(steps)
    for guide in range(guides):
        for j in handovers:
            found = found.with_(guide, (k < j).double(), f"guide {guide} for {j} steps")
            found = found.with_(guide, HALF * (k < j), f"guide {guide} at half for {j} steps")
            if j < steps:
                faded = ((j - k - 0.5) / max(2.0, FADE * steps) + 0.5).clamp(0, 1)
                found = found.with_(guide, faded, f"guide {guide} for about {j} steps")
    return found


def _fitted(led: Led, guide: int) -> str:
    return f"{led.guides[guide].name}, fitted"


def _anchors(proposals: Proposals, guides: int) -> list[int]:
    """What the first pilot is drawn from: each guide for some numbers of steps."""
    factors, n = proposals.factors, proposals.factors.shape[1]
    led = (factors > 0).sum(1)
    found = list[int]()
    for guide, strength, part in (
        *((0, 1.0, part) for part in (0.4, 0.6, 0.8, 1.0)),
        *((guide, 1.0, part) for guide in range(1, guides) for part in (0.6, 1.0)),
        *((guide, HALF, 0.7) for guide in range(guides)),
    ):
        other = (proposals.guide != guide) | ~((factors == 0) | (factors == strength)).all(1)
        found.append(int((led - part * n).abs().double().masked_fill(other, math.inf).argmin()))
    return list(dict.fromkeys(found))


def _pilot(run: _Run, led: Led) -> dict[str, Any]:
    """Shares of least variance, fitted factors, and what a path so drawn is worth, from three pilots.

    The first is drawn from a few proposals; the others as those before find best, each with one more that is
    fitted to them.
    """
    proposals = handed_over(len(led.guides), len(led.steps))
    anchors = _anchors(proposals, len(led.guides))
    defence = (ITSELF, SPREAD / len(anchors))
    counts = torch.zeros(len(proposals), dtype=torch.int64)
    counts[anchors] = run.config.pilot
    walks, fitted = [_walk(run, led, proposals, counts, "path.pilot", 0)], list[tuple[int, list[float]]]()
    shares = torch.zeros(0, dtype=torch.float64)
    while True:
        together = Walks.joined(walks)
        if not len(together.start):
            return {"paths": run.paths, "worth": 0.0, "shares": [], "fitted": []}
        drawn = counts.double() / counts.sum()
        if len(walks) < 3:
            guide, factors = _fit(together, proposals, drawn)
            fitted.append((guide, factors.tolist()))
            proposals = proposals.with_(guide, factors, _fitted(led, guide))
            counts, drawn = (torch.cat([v, v.new_zeros(1)]) for v in (counts, drawn))
        kept = torch.zeros(len(proposals), dtype=torch.float64)
        kept[0], kept[anchors] = defence[0], defence[1]
        ratios = together.log_ratio(proposals)
        shares = least_variance_shares(ratios, drawn, kept)
        if len(walks) == 3:
            break
        again = torch.tensor(allot(shares, run.config.second))
        walks.append(_walk(run, led, proposals, again, "path.pilot", run.paths))
        counts = counts + again
    by_pilot, by_shares = (-torch.logsumexp(ratios + c.log(), dim=1) for c in (drawn, shares))
    # effective samples of a path: E[w]^2 / E[w^2], under the shares, from draws of the pilot
    worth = 2 * torch.logsumexp(by_pilot, 0) - torch.logsumexp(by_pilot + by_shares, 0) - math.log(run.paths)
    return {"paths": run.paths, "worth": float(worth.exp()), "shares": shares.tolist(), "fitted": fitted}


def _fit(walks: Walks, proposals: Proposals, drawn: Tensor) -> tuple[int, Tensor]:
    """(guide, factors (steps,)) of least cross-entropy, drawn to those of the best proposal so far.

    Few paths carry the averages, so a step's factor leaves the first guess only as far as it was seen.
    """
    none = torch.zeros(len(proposals), dtype=torch.float64)
    ratios = walks.log_ratio(proposals)
    shares = least_variance_shares(ratios, drawn, none)
    best = 1 + int(shares[1:].argmax())
    guide = int(proposals.guide[best])
    weights = torch.softmax(-torch.logsumexp(ratios + drawn.log(), dim=1), 0)
    effective = 1 / float((weights**2).sum())
    seen = effective * (weights @ walks.squares[:, :, guide])
    pulled = effective * (weights @ walks.along[:, :, guide])
    return guide, ((pulled + FIRM * proposals.factors[best]) / (seen + FIRM)).clamp(0, 1.5)


def _walk(run: _Run, led: Led, proposals: Proposals, counts: Tensor, purpose: str, first: int) -> Walks:
    which = torch.arange(len(proposals)).repeat_interleave(counts)
    walks = led.walk(proposals, which, torch.arange(first, first + len(which)), purpose)
    run.paths += len(which)
    return walks


def _rounds(run: _Run, led: Led, proposals: Proposals, counts: list[int]) -> tuple[Floats, Weighted]:
    """Fresh paths until the asked precision: log weights (n,), -inf for misses, and their summary.

    After a round it is computed how many more are wanted, and they are drawn before the next look: to stop at
    the first look that pleases favours runs that underestimate q and its error.
    """
    given = torch.tensor(counts)
    fractions = (given / given.sum()).double().log()
    which = torch.arange(len(proposals)).repeat_interleave(given).numpy()
    logs, wanted, size, most = list[Floats](), 1, len(which), max(1, run.config.most // len(which))

    def one() -> dict[str, object]:
        walks = led.walk(
            proposals,
            torch.as_tensor(which),
            torch.arange(len(logs) * size, (len(logs) + 1) * size),
            "path.estimate",
        )
        found = -torch.logsumexp(walks.log_ratio(proposals) + fractions, dim=1)
        return {"hits": walks.hit.nonzero()[:, 0].tolist(), "logs": found.tolist()}

    while True:
        run.progress(len(logs) * size, wanted * size)
        drawn = run.kept(f"round.{len(logs)}", one)
        together = np.full(size, -np.inf)
        together[drawn["hits"]] = drawn["logs"]
        logs.append(together)
        run.paths += size
        if len(logs) < min(wanted, most):
            continue
        every = np.concatenate(logs)
        summary = weighted(every, np.tile(which, len(logs)))
        short = _shortfall(summary, run.config)
        settled = short <= 1 and summary.distrusted() is None
        # few weights seem worth more than they are, so what falls short by its own account does
        hopeless = summary.effective * most / len(logs) < BELIEVED
        if settled or hopeless or len(logs) >= most:
            run.progress(len(every), len(every))
            return every, summary
        wanted = min(most, max(len(logs) + 1, math.ceil(len(logs) * min(short, LOOK))))


def _shortfall(summary: Weighted, config: PathConfig) -> float:
    """By what factor there are too few paths; 1 or less where there are enough."""
    if summary.effective == 0:
        return math.inf
    return max((summary.error / config.relative) ** 2, ENOUGH / summary.effective)
