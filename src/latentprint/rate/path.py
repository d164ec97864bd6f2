"""q by importance sampling of the sampler's own path: the path estimator.

A stochastic sampler of Gaussian steps walks x_{k+1} ~ N(a_k x_k + b_k D(x_k), v_k I) from x_0 ~ N(0, s^2 I).
(A multistep one adds c_k D(x_{k-1}) to the mean, which is known on the way too and changes nothing below.)
A proposal starts where Alg. 1 does, at N(alpha_T x_p, sigma_T^2 I). At each step it replaces D by a guide g
(``guides``) to the extent of a factor f_k. With e_k = (x_{k+1} - a_k x_k - b_k D) / sqrt(v_k) and
u_k = b_k (g - D) / sqrt(v_k)

    log dQ/dP = log r_T/p_T (x_0) + sum_k (f_k e_k . u_k - f_k^2 |u_k|^2 / 2)

is known for every guide and all factors along every path, without further evaluations of the network. All
proposals are therefore weighted together (balance heuristic, Veach and Guibas 1995). The sampler's own law is
among them, which bounds the weights:

    w = 1(x_n in Omega) / sum_i c_i dQ_i/dP,    c_i the share of paths drawn from proposal i

The estimate is unbiased for the q that counting counts, of the audit's sampler with its steps. It needs no
likelihood and no gradient. If the other training images are known and the sampler reaches enough of them,
what leads to x_p is learnt from all of them, and paths are selected on the way (``twisted``). Otherwise some
proposals are full guides (f = 1) that hand over to D after j steps, abruptly or gradually. Others have an f
fitted to a pilot, of least cross-entropy to the law of paths that end in Omega:

    f_k = E[e_k . u_k | Omega] / E[|u_k|^2 | Omega]

Pilots (``pilot``) set the shares to those of least variance (``shares``); fresh paths give the estimate.

Sources: Veach and Guibas, SIGGRAPH 1995; A. Owen, Y. Zhou, JASA 95 (2000) (fixed shares); Girsanov's formula
for Gaussian steps; R. Rubinstein, Eur. J. Oper. Res. 99 (1997) (cross-entropy); Vehtari
et al. 2024 (Pareto k).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latentprint.denoiser import Codec, Denoiser, IdentityCodec, NotFiniteError
from latentprint.rate.estimator import Kept, Part, Progress, anew, silent
from latentprint.rate.guides import Conditioned, Guide, Toward
from latentprint.rate.led import Led, transitions
from latentprint.rate.levels import Inside
from latentprint.rate.pilot import handed_over, named, piloted
from latentprint.rate.result import Rate, unreliable
from latentprint.rate.shares import allot
from latentprint.rate.twisted import LEARNABLE, Bank, Learnt, learn, learnable, replicates
from latentprint.rate.weights import BELIEVED, Floats, Offered, Weighted, offered, weighted
from latentprint.sampler.sampler import Sampler
from latentprint.streams import Streams

ENOUGH = 120
"""Effective samples below which sampling continues, however small the error looks."""

HOPELESS = 10
"""Effective samples that the pilot must promise for all paths together: a third of those that are
believed."""

NEAREST = 2000
"""Most images that a guide knows; the nearest to x_p decide where a path must turn."""

ENOUGH_REPLICATES = 32
"""Effective replicates below which sampling continues; a replicate's weight is an average already."""

REPLICATES = 16
"""Replicates per round."""

FEWEST = 8
"""Fewest images to learn from."""

INVESTED = 8
"""For so many paths that are still needed one plain path is learnt from, if that is twice as many as before.
On the proving ground four times as many halved the variance of a replicate where q is near 1e-5.
"""

LOOK = 4
"""Factor by which the paths grow between two looks at most, so that a hopeless estimate is seen early."""


@dataclass(frozen=True)
class PathConfig:
    """Precision and effort.

    Attributes:
        relative: relative standard error asked for. most: paths that may be spent on the estimate.
        pilot: paths from each of the first proposals. second: paths of each further pilot.
        plain: paths of the sampler itself to learn from, if the training images are known; more of them if
            the first round asks for many paths.
        particles: paths of a replicate, fewer if ``most`` is small. Small replicates suffice for an interval
            sooner; below 16 their tails were heavy where images have many pixels (docs/probability.md).
        together: paths per round if there are no replicates.
        batch: paths at a time. It changes no result.

    Raises:
        ValueError: a number is outside its range.
    """

    relative: float = 0.1
    most: int = 20_000
    pilot: int = 24
    second: int = 160
    plain: int = 512
    particles: int = 16
    together: int = 240
    batch: int = 1024

    def __post_init__(self) -> None:
        if (
            not 0 < self.relative < 1
            or min(self.most, self.pilot, self.second, self.plain, self.particles, self.batch) < 1
        ):
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
            path must turn to x_p. Without them the estimate is still unbiased, but costs more.
        kept: keeps each round, so that an interrupted estimate continues.
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
        found, details = _estimate(run, led, bank_of(target.detach(), others))
    except NotFiniteError as error:
        found, details = str(error), dict[str, object]()
    return run.answer(sampler, found, details, run.paths * per_path)


def guides(target: Tensor, others: Tensor | None) -> list[Guide]:
    """The guides that are tried: straight to x_p, and by what tells x_p from the other images.

    Kernels are points, or half as wide as the distance (rms) to the nearest other image.
    """
    found: list[Guide] = [Toward(target)]
    near = _apart(target, others)
    if near is None:
        return found
    images = torch.cat([target[None], near])
    nearest = float((near[0] - target).double().norm()) / math.sqrt(target.numel())
    return [*found, *(Conditioned(images, 0, share * nearest) for share in (0.0, 0.5))]


def bank_of(target: Tensor, others: Tensor | None) -> Bank | None:
    """The images that paths may end at, if any except x_p is known."""
    near = _apart(target, others)
    return None if near is None else Bank.around(target, near)


def _apart(target: Tensor, others: Tensor | None) -> Tensor | None:
    """The other images, nearest first, without copies of x_p, which count as x_p."""
    if others is None or not len(others):
        return None
    apart = (others - target).flatten(1).double().norm(dim=1) / math.sqrt(target.numel())
    scale = float(target.double().std(correction=0)) or 1.0
    near = apart.argsort()[: min(NEAREST, len(apart))]
    near = near[apart[near] > 1e-3 * scale]
    return others[near] if len(near) else None


@dataclass
class _Run:
    config: PathConfig
    level: float
    seed: int
    progress: Progress
    kept: Kept
    paths: int = 0

    def say(self, plain: int) -> Callable[[int], object]:
        """Tells how many of so many plain paths are done."""
        return lambda done: self.progress(done, plain)

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
    """Numbers, the degrees of freedom of their interval, and a sentence about them."""

    numbers: Offered
    freedom: float
    sentence: str


def _estimate(run: _Run, led: Led, bank: Bank | None) -> tuple[Offer | str, dict[str, object]]:
    """Learnt from all images together if the sampler gives enough of them back; otherwise by pilots."""
    if bank is None or len(bank) < FEWEST:
        return _weighted(run, led)
    taught = run.kept("plain", lambda: learn(led, bank, run.config.plain, run.say(run.config.plain)))
    run.paths += run.config.plain
    if taught["hits"] < LEARNABLE:
        return _weighted(run, led)
    return _twisted(run, led, bank, Learnt.of(taught))


def _twisted(run: _Run, led: Led, bank: Bank, learnt: Learnt) -> tuple[Offer | str, dict[str, object]]:
    """Replicates of particles, each of them unbiased whatever was learnt (``twisted``)."""
    # Few paths are better spent on replicates than on particles: the interval comes from the replicates'
    # spread.
    size, particles = (
        REPLICATES,
        max(1, min(run.config.particles, run.config.most // (2 * ENOUGH_REPLICATES))),
    )
    taught = run.config.plain

    def one(number: int) -> Part:
        ids = torch.arange(number * size, (number + 1) * size)
        return _part(replicates(led, bank, learnt, ids, particles))

    def look(needed: float) -> None:
        nonlocal learnt, taught
        plain = min(int(needed / INVESTED), learnable(len(led.steps)))
        if plain >= 2 * taught:
            taught = plain
            learnt = Learnt.of(run.kept(f"plain.{plain}", lambda: learn(led, bank, plain, run.say(plain))))
            run.paths += plain

    logs, summary = _rounds(run, one, np.arange(size), particles, ENOUGH_REPLICATES, look)
    details: dict[str, object] = {"learnt_from": learnt.hits, "replicates": len(logs), "particles": particles}
    details |= _diagnostics(summary)
    said = (
        f"{len(logs)} replicates of {particles} paths, led and selected as {learnt.hits} paths teach "
        "that came to some training image"
    )
    return _judged(run, summary, said), details


def _weighted(run: _Run, led: Led) -> tuple[Offer | str, dict[str, object]]:
    """Single paths from proposals that pilots chose, weighted by the balance heuristic."""
    pilot = run.kept("pilot", lambda: piloted(led, run.config.pilot, run.config.second))
    run.paths += pilot["paths"]
    if pilot["worth"] == 0:
        return f"none of {pilot['paths']} paths that were led to the image ended in the region", {}
    shares = torch.tensor(pilot["shares"], dtype=torch.float64)
    proposals = handed_over(len(led.guides), len(led.steps))
    for guide, factors in pilot["fitted"]:
        proposals = proposals.with_(guide, torch.tensor(factors, dtype=torch.float64), named(led, guide))
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
    given = torch.tensor(allot(shares, run.config.together))
    fractions = (given / given.sum()).double().log()
    which = torch.arange(len(proposals)).repeat_interleave(given)

    def one(number: int) -> Part:
        ids = torch.arange(number * len(which), (number + 1) * len(which))
        walks = led.walk(proposals, which, ids, "path.estimate")
        logs = torch.full((len(which),), -math.inf, dtype=torch.float64)
        logs[walks.hit] = -torch.logsumexp(walks.log_ratio(proposals) + fractions, dim=1)
        return _part(logs)

    logs, summary = _rounds(run, one, which.numpy(), 1, ENOUGH)
    hits = int(np.isfinite(logs).sum())
    said = f"{len(logs):,} paths led to the image, worth {summary.effective:.0f} samples that hit"
    return _judged(run, summary, said), details | {"hits": hits} | _diagnostics(summary)


def _diagnostics(summary: Weighted) -> dict[str, object]:
    return {
        "effective": summary.effective,
        "pareto_k": summary.pareto_k,
        "largest_weight": summary.largest,
    }


def _judged(run: _Run, summary: Weighted, said: str) -> Offer | str:
    """The numbers if the weights can be believed, or why they cannot."""
    if (why := summary.distrusted()) is not None:
        return why
    numbers = offered(summary.log_mean, summary.error, summary.freedom, run.level)
    if isinstance(numbers, str):
        return numbers
    shape = summary.pareto_k if summary.pareto_k is not None else math.nan
    return Offer(numbers, max(summary.freedom, 1.0), f"{said}, Pareto k {shape:.2f}")


def _part(logs: Tensor) -> Part:
    """A round as plain values: which logarithms are finite, and those."""
    finite = logs.isfinite()
    return {"hits": finite.nonzero()[:, 0].tolist(), "logs": logs[finite].tolist()}


def _rounds(
    run: _Run,
    one: Callable[[int], Part],
    which: NDArray[np.int64],
    paths: int,
    enough: int,
    look: Callable[[float], object] = lambda needed: None,
) -> tuple[Floats, Weighted]:
    """Fresh rounds until the asked precision: log weights (n,), -inf for misses, and their summary.

    Each weight is of so many ``paths``, from the proposals ``which``. After a round the number still needed
    is computed, and drawn before the next look. Stopping at the first look that is good enough would favour
    runs that underestimate q and its error. ``look`` is told how many more paths will be needed.
    """
    size = len(which)
    logs, wanted, most = list[Floats](), 1, max(1, run.config.most // (size * paths))
    while True:
        run.progress(len(logs) * size * paths, wanted * size * paths)
        drawn = run.kept(f"round.{len(logs)}", partial(one, len(logs)))
        together = np.full(size, -np.inf)
        together[drawn["hits"]] = drawn["logs"]
        logs.append(together)
        run.paths += size * paths
        if len(logs) < min(wanted, most):
            continue
        every = np.concatenate(logs)
        summary = weighted(every, np.tile(which, len(logs)) if paths == 1 else None)
        short = _shortfall(summary, run.config, enough)
        settled = short <= 1 and summary.distrusted() is None
        # Few weights look better than they are, so a shortfall by their own account is a real one. A first
        # round without a hit says too little.
        hopeless = summary.effective * most / len(logs) < BELIEVED and len(logs) > 1
        if settled or hopeless or len(logs) >= most:
            run.progress(len(every) * paths, len(every) * paths)
            return every, summary
        look((min(short * len(logs), most) - len(logs)) * size * paths)
        wanted = min(most, max(len(logs) + 1, math.ceil(len(logs) * min(short, LOOK))))


def _shortfall(summary: Weighted, config: PathConfig, enough: int) -> float:
    """The factor by which there are too few weights; 1 or less if there are enough."""
    if summary.effective == 0:
        return math.inf
    return max((summary.error / config.relative) ** 2, enough / summary.effective)
