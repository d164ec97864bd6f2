"""Trajectories of the probability-flow ODE that start around x_p, and how likely each start was.

Proposal k starts at t_k from r_k = N(alpha_k x_p, sigma_k^2 I), where Alg. 1 starts. The ODE connects all
times. A trajectory that is at x at time t_k has, whatever time it started from, the density

    log r_k(x) - log p_k(x)

under proposal k relative to the model's own law of trajectories, because the flow carries p_k into p_j. log
p_k comes from the integration up to T, where p_T = N(0, prior_std^2 I), and the divergence along the way
(Song et al. 2021, Eq. 39). Only trajectories that end in Omega are integrated with divergence; the others
have weight zero.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from latentprint.denoiser import Codec, Denoiser, NotFiniteError, checked
from latentprint.likelihood import Divergence, FlowState
from latentprint.likelihood.flow import Problem
from latentprint.rate.levels import Inside
from latentprint.sampler.adaptive import RungeKutta
from latentprint.sampler.loop import denoised, reverse
from latentprint.sampler.state import State
from latentprint.schedule import expand
from latentprint.streams import Ids, Streams

GROWTH, WIDEST = 1.2, 5.0
"""Above all proposals the denoiser sees mostly noise, and steps may be longer: each is longer than the one
below it by the first factor, up to the second times ``Flow.longest``.
"""


@dataclass(frozen=True)
class Flow:
    """What every trajectory shares: the model, the image and the region.

    Attributes:
        target: x_p in the model's own space, (*shape). tolerance: of the integration down to the image.
        longest: longest step in log(sigma / alpha) of the integration with divergence (fourth order).
    """

    denoiser: Denoiser
    target: Tensor
    inside: Inside
    codec: Codec
    divergence: Divergence
    streams: Streams
    tolerance: float
    longest: float
    batch: int

    def start(self, t: float, ids: Tensor, purpose: str) -> Tensor:
        """Draws of r_t, (n, *shape)."""
        schedule, shape = self.denoiser.schedule, tuple(self.target.shape)
        noise = self.streams.noise(purpose, ids, 0, shape, device=self.target.device, dtype=self.target.dtype)
        return float(schedule.alpha(t)) * self.target + float(schedule.sigma(t)) * noise

    def land(self, x: Tensor, t: float) -> tuple[Tensor, int]:
        """(n,) bool on the CPU, whether x at t comes back to Omega, and the evaluations of all rows."""
        hits, cost = list[Tensor](), 0
        for part in x.split(self.batch):
            state = State.at(part, torch.tensor(t, dtype=torch.float64))
            with torch.no_grad():
                if t > self.denoiser.schedule.end:
                    times = torch.tensor([t, self.denoiser.schedule.end], dtype=torch.float64)
                    step = RungeKutta(self.tolerance, self.tolerance)
                    for now in reverse(self.denoiser, part, times, step):
                        state = now
                state = denoised(self.denoiser, state)
                hits.append(self.inside(self.codec.decode(state.x)).cpu())
            cost += int(state.evaluations.sum())
        return torch.cat(hits), cost


@dataclass(frozen=True)
class Nodes:
    """A falling grid of times from T. Every node between the outer anchors may serve as a proposal time.

    Attributes:
        times: (n + 1,) from T. at: positions of the proposal times in it. anchors: which of them, (0 .. K -
            1), were asked for. The others are the steps between, whose densities cost nothing more.

    Raises:
        ValueError: proposal times that do not fall strictly, or lie outside the schedule.
    """

    times: Tensor
    at: tuple[int, ...]
    anchors: tuple[int, ...]

    @classmethod
    def of(cls, flow: Flow, proposals: list[float], finer: int = 1) -> "Nodes":
        """The grid for falling proposal times. ``finer`` divides each step; times within a step are not
        proposed."""
        schedule = flow.denoiser.schedule
        anchors = proposals if proposals[0] == schedule.start else [schedule.start, *proposals]
        if any(a <= b for a, b in pairwise(anchors)) or anchors[-1] < schedule.end:
            raise ValueError(f"proposal times must fall strictly within the schedule, got {proposals}")
        parts, at = [torch.tensor([anchors[0]], dtype=torch.float64)], [0]
        for high, low in pairwise(anchors):
            top, bottom = float(schedule.ratio(high).log()), float(schedule.ratio(low).log())
            cut = _growing if high > proposals[0] else _even
            steps = (cut(top - bottom, flow.longest) / finer).repeat_interleave(finer)
            inner = schedule.time((top - steps.cumsum(0)).exp())
            inner[-1] = low
            parts.append(inner)
            at.append(at[-1] + len(steps))
        asked = at[-len(proposals) :]
        may = tuple(range(asked[0], asked[-1] + 1, finer))
        return cls(torch.cat(parts), may, tuple((node - asked[0]) // finer for node in asked))


def _even(span: float, longest: float) -> Tensor:
    n = max(1, math.ceil(span / longest))
    return torch.full((n,), span / n, dtype=torch.float64)


def _growing(span: float, longest: float) -> Tensor:
    """Lengths from the noise down: each 1 / GROWTH of the one before, at most WIDEST times ``longest``."""
    steps = [longest]
    while sum(steps) < span:
        steps.append(min(steps[-1] * GROWTH, longest * WIDEST))
    lengths = torch.tensor(steps[::-1], dtype=torch.float64)
    return lengths * (span / lengths.sum())


@dataclass(frozen=True)
class Paths:
    """n trajectories from one proposal.

    Attributes:
        hit: (n,) bool. evaluations: of all rows together.
        log_ratio: (hits, K) log r_k - log p_k at every node that may be a proposal, for rows that hit;
            float64.
        noise: (hits,) standard error of log p from the probes of the divergence; 0 where it is exact.
    """

    hit: Tensor
    log_ratio: Tensor
    noise: Tensor
    evaluations: int


def walk(flow_of: Flow, nodes: Nodes, k: int, ids: Tensor, purpose: str) -> Paths:
    """Trajectories of proposal k, named by ids: down to the image, then, if they hit, up to T."""
    t = float(nodes.times[nodes.at[k]])
    x = flow_of.start(t, ids, purpose)
    hit, cost = flow_of.land(x, t)
    rows = hit.nonzero()[:, 0]
    parts = [
        _densities(flow_of, nodes, k, x[part.to(x.device)], ids[part])
        for part in rows.split(flow_of.batch)
        if len(part)
    ]
    if not parts:
        empty = torch.zeros(0, dtype=torch.float64)
        return Paths(hit, empty.reshape(0, len(nodes.at)), empty, cost)
    log_ratio = torch.cat([p[0] for p in parts])
    if not bool(log_ratio.isfinite().all()):
        bad = int((~log_ratio.isfinite()).any(1).sum())
        raise NotFiniteError(
            f"the model's likelihood must be finite; {bad} of {len(rows)} trajectories have none"
        )
    return Paths(hit, log_ratio, torch.cat([p[1] for p in parts]), cost + sum(p[2] for p in parts))


def flow(
    denoiser: Denoiser,
    x: Tensor,
    times: Tensor,
    divergence: Divergence,
    *,
    ids: Ids | None = None,
) -> Iterator[FlowState]:
    """Integrate the probability-flow ODE and the log density along a grid of times, upwards or downwards.

    The image takes two steps of RK4 (in lambda = log(sigma / alpha)) between two times. The slope costs one
    evaluation and the divergence many. The divergence is not a part of the ODE but an integral along its
    path, so Simpson's rule is enough for it, at both times and halfway. That is two divergences between two
    times; RK4 for both would take eight.

    Args:
        denoiser: E[x_0 | x_t], differentiable in x.
        x: (B, ...) at times[0].
        times: (n + 1,) or (n + 1, B), rising or falling strictly, within [schedule.end, schedule.start].
        divergence: `Exact` or `Hutchinson`.
        ids: (B,), the names of the rows, for the probes of `Hutchinson`.

    Yields:
        The state after each step.

    Raises:
        ValueError: times that do not rise or fall strictly, or lie outside the schedule; an x, a denoiser or
            a divergence that does not fit (see `Trace` and `latentprint.denoiser.checked`).
    """
    times = torch.as_tensor(times, dtype=torch.float64, device=x.device)
    if times.ndim not in (1, 2) or len(times) < 2 or times.shape[1:] not in ((), x.shape[:1]):
        raise ValueError(
            f"times must have shape (n + 1,) or (n + 1, {len(x)}), n of 1 or more; got {tuple(times.shape)}"
        )
    steps = times.diff(dim=0)
    if not bool((steps > 0).all()) and not bool((steps < 0).all()):
        raise ValueError("times must rise strictly or fall strictly")
    if times.ndim == 1:
        times = times[:, None].expand(-1, len(x))
    problem = Problem(denoiser, divergence, x, ids)
    rows = torch.arange(len(x), device=x.device)
    lam = problem.log_ratio(times)
    y, total = problem.to_y(x, lam[0]), problem.no_change()
    slope, rate = problem.slope(rows, y, lam[0])
    spent = torch.full_like(rows, problem.trace.evaluations)
    for k in range(len(times) - 1):
        h = lam[k + 1] - lam[k]
        rates = [rate]
        for at in (lam[k], lam[k] + h / 2):
            y = _step(problem, y, at, h / 2, slope)
            slope, rate = problem.slope(rows, y, at + h / 2)
            rates.append(rate)
        total = total + h[:, None] / 6 * (rates[0] + 4 * rates[1] + rates[2])
        spent = spent + 6 + 2 * problem.trace.evaluations
        yield problem.state(y, total, lam[0], lam[k + 1], times[k + 1], spent)


def _slope_of_image(problem: Problem, y: Tensor, lam: Tensor) -> Tensor:
    """dy/dlambda alone, for one evaluation."""
    ratio = lam.exp()
    t, n2 = problem.schedule.time(ratio), 1 + ratio * ratio
    with torch.no_grad():
        denoised = checked(problem.trace.denoiser, y * expand(problem.schedule.alpha(t) * n2.sqrt(), y), t)
    return y / expand(n2, y) - denoised / expand(n2.sqrt(), y)


def _step(problem: Problem, y: Tensor, lam: Tensor, h: Tensor, slope: Tensor) -> Tensor:
    """y at lambda + h by RK4 (Kutta 1901) from its slope at lambda, for three evaluations."""
    wide = expand(h, y)
    second = _slope_of_image(problem, y + wide / 2 * slope, lam + h / 2)
    third = _slope_of_image(problem, y + wide / 2 * second, lam + h / 2)
    fourth = _slope_of_image(problem, y + wide * third, lam + h)
    return y + wide / 6 * (slope + 2 * second + 2 * third + fourth)


def _densities(f: Flow, nodes: Nodes, k: int, x: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, int]:
    """(log r - log p at all nodes that may be proposals (n, K), standard error (n,), evaluations)."""
    own, n = nodes.at[k], len(x)
    log_r = {own: _log_r(f, x, float(nodes.times[own]))}
    change = {own: torch.zeros(n, dtype=torch.float64)}
    top, noise, cost = x, torch.zeros(n, dtype=torch.float64), 0
    for path in (range(own, -1, -1), range(own, len(nodes.times))):
        if len(path) < 2:
            continue
        spent = 0
        states = flow(f.denoiser, x, nodes.times[list(path)], f.divergence, ids=ids)
        for node, state in zip(path[1:], states, strict=True):
            if node in nodes.at or node == 0:
                log_r[node] = _log_r(f, state.x, float(nodes.times[node]))
                change[node] = state.log_density_change.cpu()
            if node == 0:
                top, noise = state.x, state.standard_error.cpu()
            spent = int(state.evaluations.sum())
        cost += spent
    std = f.denoiser.schedule.prior_std
    at_top = _log_normal(top, 0.0, std)
    log_p = {node: at_top - change[0] + change[node] for node in change}
    ratios = torch.stack([log_r[node] - log_p[node] for node in nodes.at], dim=1)
    return ratios, noise, cost


def _log_r(f: Flow, x: Tensor, t: float) -> Tensor:
    schedule = f.denoiser.schedule
    alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
    return _log_normal(x, alpha * f.target.double(), sigma)


def _log_normal(x: Tensor, mean: Tensor | float, std: float) -> Tensor:
    """log N(x; mean, std^2 I): (n, *shape) -> (n,) float64 on the CPU."""
    square = ((x.double() - mean) / std).flatten(1).square().sum(1)
    dims = math.prod(x.shape[1:])
    return (-0.5 * square - dims * (math.log(std) + 0.5 * math.log(2 * math.pi))).cpu()
