"""q by importance sampling on the probability-flow ODE: the bridge estimator.

Let h_t(x) be 1 if the ODE from x at t lands in Omega and 0 if not, r_t = N(alpha_t x_p, sigma_t^2 I) the law
from which Alg. 1 starts, and p_t the sampler's own marginal (`paths`). Then for every t

    q = E_{x ~ p_t}[h_t(x)] = E_{x ~ r_t}[p_t(x) / r_t(x) h_t(x)]

No single t is enough: at a small t the weights degenerate, at a large t nothing hits. Several times t_k are
used together, and each trajectory is weighted by the mixture of all of them (balance heuristic, Veach and
Guibas 1995):

    w = h / sum_k c_k r_k(x_k) / p_k(x_k),    x_k the trajectory's point at t_k,    c_k the share started
    from t_k, a fixed number, so that differences between the t_k are no error (Owen and Zhou 2000)

A first pilot finds the times between which trajectories stop coming back. A second pilot starts from a few of
them. It sets the shares c of these times, and of all integration steps between them, to those of least
variance, and finds how short the steps must be. Fresh trajectories then give the estimate, until it is as
precise as asked. q is that of the converged ODE with a last denoising, and of no other sampler.

It was a part of latentprint until it had declined on both trained networks that it was tried on. It stays as
what `probability.py` and `probability_trained.py` compare the estimators with.

Sources: E. Veach, L. Guibas, SIGGRAPH 1995; Song et al. 2021, Eq. 39; Vehtari et al. 2024 (Pareto k).
"""

import math
from dataclasses import asdict, dataclass

import numpy as np
import torch
from paths import Flow, Nodes, Paths, walk
from torch import Tensor

from latentprint.contracts import InputError
from latentprint.denoiser import Codec, Denoiser, IdentityCodec, NotFiniteError
from latentprint.likelihood import Divergence, Exact, Hutchinson
from latentprint.rate.estimator import Progress, silent
from latentprint.rate.levels import Inside
from latentprint.rate.result import Rate, unreliable
from latentprint.rate.shares import allot, least_variance_shares
from latentprint.rate.weights import Floats, Offered, Weighted, offered, weighted
from latentprint.streams import Streams

ENOUGH = 120
"""Effective samples below which sampling continues, however small the error looks. An error estimated from
few weights is often too small, and stopping at it would favour runs that underestimate it.
"""

SPREAD = 0.3
"""Share of the trajectories that is spread evenly over all times, whatever the pilot found best."""

FINEST = 4
"""Most parts that a step is cut into."""

COARSEST = 0.1
"""Bias of log p, in nats, above which no number is offered."""


@dataclass(frozen=True)
class BridgeConfig:
    """Precision and effort.

    Attributes:
        relative: relative standard error asked for.
        most: trajectories that may be spent on the estimate.
        proposals: how many times t_k the second pilot starts from.
        candidates: the first pilot's times.
        tries: trajectories of the first pilot from each of its times.
        pilot: trajectories per proposal of the second pilot. together: trajectories per round of the
            estimate.
        tolerance: of the adaptive integration down to the image (Dormand and Prince).
        longest: longest step in log(sigma / alpha) of the integration with divergence, below the highest
            proposal.
        checked: pilot trajectories that are integrated again in half the steps. The change estimates the bias
            of the step length; above a tenth of ``relative`` the steps are cut.
        noisiest: largest standard error of log p, in nats, that is still corrected for.
        batch: trajectories at a time. It changes no result.
    """

    relative: float = 0.1
    most: int = 6000
    proposals: int = 5
    candidates: int = 10
    tries: int = 8
    pilot: int = 12
    together: int = 120
    tolerance: float = 1e-5
    longest: float = 0.3
    checked: int = 5
    noisiest: float = 0.5
    batch: int = 1024

    def __post_init__(self) -> None:
        whole = (self.proposals, self.tries, self.pilot, self.batch, self.checked)
        if min(whole) < 1 or self.candidates < 2 or self.together < self.proposals or self.most < 2:
            raise ValueError(
                "the bridge needs proposals, tries, pilot, checks and rounds of at least 1 trajectory each"
            )
        if not (0 < self.relative < 1 and 0 < self.tolerance < 1 and self.longest > 0 and self.noisiest > 0):
            raise ValueError(f"the bridge needs a relative error and tolerance in (0, 1), got {self}")


@dataclass
class _Run:
    flow: Flow
    config: BridgeConfig
    progress: Progress
    cost: int = 0
    next_id: int = 0

    def ids(self, n: int) -> Tensor:
        ids = torch.arange(self.next_id, self.next_id + n)
        self.next_id += n
        return ids


def bridge(
    denoiser: Denoiser,
    target: Tensor,
    inside: Inside,
    *,
    seed: int,
    level: float = 0.95,
    config: BridgeConfig | None = None,
    divergence: Divergence | None = None,
    codec: Codec | None = None,
    data_range: tuple[float, float] | None = (-1.0, 1.0),
    progress: Progress = silent,
) -> Rate:
    """q of the probability-flow ODE of ``denoiser`` for the region around ``target``.

    Args:
        target: x_p in the model's own space, (C, H, W); its type is the type of the computation.
        inside: decoded images (n, C, H, W) -> (n,) bool, membership in Omega.
        divergence: by default exact for images of at most 1,024 numbers, and 32 orthogonal probes above.
        data_range: the range of x_p; None for models that work elsewhere (on latents, or not on images).

    An x_p outside its own Omega, as a lossy codec may leave it, is no error: trajectories around it can still
    land inside. If none does, or the model's likelihood is not finite, the answer is "not reliable because"
    with that reason.

    Raises:
        InputError: x_p is not finite or outside its range.
        ValueError: the denoiser's answer has the wrong shape or type, or no gradient.
    """
    settings = config or BridgeConfig()
    _check_target(target, data_range)
    streams = Streams(seed)
    chosen = divergence or _default_divergence(target.numel(), streams)
    flow = Flow(
        denoiser,
        target.detach(),
        inside,
        codec or IdentityCodec(),
        chosen,
        streams,
        settings.tolerance,
        settings.longest,
        settings.batch,
    )
    run = _Run(flow, settings, progress)
    sampler: dict[str, object] = {
        "step": "probability-flow",
        "tolerance": settings.tolerance,
        "denoise": True,
        "stochastic": False,
    }
    details: dict[str, object] = {"config": asdict(settings), "divergence": type(chosen).__name__}
    try:
        found = _estimate(run, level, details)
    except NotFiniteError as error:
        found = f"{error}; splitting and counting need no likelihood and would be enough"
    if isinstance(found, str):
        return unreliable(
            "bridge", found, level=level, network_evaluations=run.cost, sampler=sampler, details=details
        )
    numbers, freedom, sentence = found
    return Rate(
        method="bridge",
        rate=numbers.rate,
        low=numbers.low,
        high=numbers.high,
        level=level,
        reliable=True,
        diagnostic=sentence,
        network_evaluations=run.cost,
        sampler=sampler,
        details=details,
        freedom=freedom,
    )


def _check_target(target: Tensor, data_range: tuple[float, float] | None) -> None:
    if target.ndim < 1 or not target.is_floating_point() or not bool(target.isfinite().all()):
        raise InputError(f"the target must be finite floats, got {target.dtype}, {tuple(target.shape)}")
    low, high = float(target.min()), float(target.max())
    if data_range is not None and (low < data_range[0] - 1e-6 or high > data_range[1] + 1e-6):
        raise InputError(
            f"the target must lie in the data range {list(data_range)}, got {low:.3g} to {high:.3g}"
        )


def _estranged(flow: Flow) -> str:
    """The end of a sentence for the case that x_p, as the model's space holds it, is not in its own Omega."""
    with torch.no_grad():
        kept = bool(flow.inside(flow.codec.decode(flow.target[None]))[0])
    if kept:
        return ""
    lossy = "" if isinstance(flow.codec, IdentityCodec) else ", once encoded and decoded,"
    return f"; the image itself{lossy} lies outside of the region, so the region is not around it"


def _default_divergence(dims: int, streams: Streams) -> Divergence:
    if dims <= 1024:
        # d + together evaluations: at most a sixteenth more than d
        return Exact(together=max(1, min(round(math.sqrt(dims)), dims // 16)))
    return Hutchinson(32, streams, "bridge.divergence")


def _estimate(run: _Run, level: float, details: dict[str, object]) -> tuple[Offered, float, str] | str:
    """The estimate, its degrees of freedom and a sentence; without an estimate, only the reason as a
    sentence."""
    proposals = _proposal_times(run)
    if proposals is None:
        return (
            "no trajectory that started around the image came back to the region, at any noise level: "
            f"nothing seems able to hit it{_estranged(run.flow)}"
        )
    nodes = Nodes.of(run.flow, proposals)
    k = len(proposals)
    pilot = [_Pilot.of(run, nodes, anchor) for anchor in nodes.anchors]
    ratios = torch.cat([p.paths.log_ratio for p in pilot])
    details |= {"proposals": [round(t, 6) for t in proposals]}
    if not len(ratios):
        tried = k * run.config.pilot
        return f"none of {tried} pilot trajectories came back to the region{_estranged(run.flow)}"
    pilots = even(ratios.shape[1], 1.0, nodes.anchors)
    shares = least_variance_shares(ratios, pilots, even(ratios.shape[1], SPREAD))
    counts = allot(shares, run.config.together)
    finer, bias = _steps(run, proposals, nodes, pilot)
    details |= {"steps_cut_in": finer, "integration_bias": bias}
    if bias is None:
        return (
            f"no trajectory of the pilot came back when walked in half the steps{_estranged(run.flow)}: "
            "what the steps do to log p cannot be measured"
        )
    if abs(bias) > COARSEST:
        return (
            f"the flow is too rough: cut in {finer}, the steps still change log p by {abs(bias):.2f} nats, "
            f"{COARSEST} at most; steps shorter than {run.config.longest / finer:g} would be enough"
        )
    nodes = Nodes.of(run.flow, proposals, finer)
    times = [float(nodes.times[node]) for node in nodes.at]
    details |= {
        "shares": [[round(t, 6), round(c / sum(counts), 4)] for t, c in zip(times, counts, strict=True)]
    }
    logs, noise, summary = _rounds(run, nodes, counts)
    share = np.exp(logs[np.isfinite(logs)] - logs.max())
    error_of_log = math.sqrt(float((share * noise**2).sum() / share.sum())) if len(noise) else 0.0
    details |= {
        "trajectories": len(logs),
        "effective": summary.effective,
        "pareto_k": summary.pareto_k,
        "noise_in_exponent": error_of_log,
    }
    why = _fails(summary, error_of_log, run.config.noisiest)
    if why is not None:
        return why
    # the remaining bias counts as one more error of its size
    numbers = offered(summary.log_mean, math.hypot(summary.error, bias), summary.freedom, level)
    if isinstance(numbers, str):
        return numbers
    shape = summary.pareto_k if summary.pareto_k is not None else math.nan
    said = (
        f"{len(logs)} trajectories from {k} noise levels, effective sample size {summary.effective:.0f}, "
        f"Pareto k {shape:.2f}"
    )
    if error_of_log > 0:
        said += f"; noise of {error_of_log:.2f} nats in the exponent was corrected for"
    return numbers, max(summary.freedom, 1.0), said


@dataclass(frozen=True)
class _Pilot:
    """Pilot trajectories of one anchor, and their ids."""

    anchor: int
    ids: Tensor
    paths: Paths

    @classmethod
    def of(cls, run: _Run, nodes: Nodes, anchor: int) -> "_Pilot":
        ids = run.ids(run.config.pilot)
        return cls(anchor, ids, _walked(run, nodes, anchor, ids, "bridge.pilot"))


def _walked(run: _Run, nodes: Nodes, k: int, ids: Tensor, purpose: str) -> Paths:
    paths = walk(run.flow, nodes, k, ids, purpose)
    run.cost += paths.evaluations
    return paths


def _steps(run: _Run, proposals: list[float], nodes: Nodes, pilot: list[_Pilot]) -> tuple[int, float | None]:
    """(into how many parts each step is cut, the remaining bias of log w in nats; None: not measured).

    The heaviest trajectories of the pilot, which carry the estimate, are integrated again in half the steps.
    The integration is of fourth order, so the change is 15/16 of the error, and m times as many steps leave 1
    / m^4.
    """
    own, halved, changes = list(nodes.anchors), Nodes.of(run.flow, proposals, 2), list[float]()
    weights = [-torch.logsumexp(p.paths.log_ratio[:, own], 1) for p in pilot]
    chosen = torch.cat(weights).topk(min(run.config.checked, sum(map(len, weights)))).values.min()
    for p, weight in zip(pilot, weights, strict=True):
        heavy = p.ids[p.paths.hit][weight >= chosen]
        if not len(heavy):
            continue
        again = _walked(run, halved, p.anchor, heavy, "bridge.pilot")
        # at the edge of Omega, rounding by other batch-mates can decide; only trajectories that came back are
        # compared
        before = weight[weight >= chosen][again.hit]
        changes += (before + torch.logsumexp(again.log_ratio[:, own], 1)).tolist()
    if not changes:
        return 1, None
    bias, allowed = sum(changes) / len(changes) * 16 / 15, run.config.relative / 10
    finer = min(FINEST, max(1, math.ceil((abs(bias) / allowed) ** 0.25)))
    return finer, bias / finer**4


def _fails(summary: Weighted, noise: float, noisiest: float) -> str | None:
    if not noise <= noisiest:
        return (
            f"the divergence is too noisy: log p has a standard error of {noise:.2f} nats, {noisiest} at "
            "most; more probes or an exact divergence would be enough"
        )
    return summary.distrusted()


def _proposal_times(run: _Run) -> list[float] | None:
    """Falling times that reach from where nothing comes back to where (nearly) everything does."""
    c, schedule = run.config, run.flow.denoiser.schedule
    top, bottom = float(schedule.ratio(schedule.start).log()), float(schedule.ratio(schedule.end).log())
    logs = torch.linspace(top, bottom, c.candidates, dtype=torch.float64)
    times = schedule.time(logs.exp()).tolist()
    times[0], times[-1] = schedule.start, schedule.end
    shares: list[float] = []
    for t in reversed(times):  # upwards, until nothing comes back twice in a row
        hit, cost = run.flow.land(run.flow.start(t, run.ids(c.tries), "bridge.candidates"), t)
        run.cost += cost
        shares.append(float(hit.double().mean()))
        if len(shares) > 2 and max(shares) > 0 and shares[-1] == shares[-2] == 0:
            break
    best = max(shares)
    if best == 0:
        return None
    back = max(i for i, share in enumerate(shares) if share >= min(0.95, best))
    last = max(i for i, share in enumerate(shares) if share > 0)
    over = min(last + 1, len(times) - 1)
    rising = logs.flip(0)
    span = torch.linspace(float(rising[over]), float(rising[back]), c.proposals, dtype=torch.float64)
    if over == back:
        span = span[:1]
    chosen = schedule.time(span.exp()).tolist()
    # exactly the two ends, without the rounding of the logarithm
    if over == len(times) - 1:
        chosen[0] = schedule.start
    if back == 0 and len(chosen) > 1:
        chosen[-1] = schedule.end
    return chosen


def _rounds(run: _Run, nodes: Nodes, counts: list[int]) -> tuple[Floats, Floats, Weighted]:
    """Fresh trajectories until the asked precision: log weights (n,), noise of the hits, their summary.

    After a round the number of trajectories still needed is computed, and they are drawn before the next
    look. Stopping at the first look that is good enough would favour runs that underestimate q and its error.
    """
    fractions = torch.tensor(counts, dtype=torch.float64) / sum(counts)
    one_round = np.repeat(np.arange(len(counts)), counts)
    logs, noise = list[Floats](), list[Floats]()
    rounds, wanted, most = 0, 1, max(1, run.config.most // sum(counts))
    while True:
        for k, count in enumerate(counts):
            paths = _walked(run, nodes, k, run.ids(count), "bridge.estimate")
            logs.append(_log_weights(paths, fractions))
            noise.append(paths.noise.numpy())
        rounds += 1
        if rounds < min(wanted, most):
            continue
        together = np.concatenate(logs)
        summary = weighted(together, np.tile(one_round, rounds))
        run.progress(len(together), min(wanted, most) * sum(counts))
        settled = _shortfall(summary, run.config) <= 1 and summary.distrusted() is None
        if settled or rounds >= most:
            return together, np.concatenate(noise), summary
        wanted = max(rounds + 1, math.ceil(rounds * min(_shortfall(summary, run.config), most)))


def _shortfall(summary: Weighted, config: BridgeConfig) -> float:
    """The factor by which there are too few trajectories; 1 or less if there are enough."""
    if summary.effective == 0:
        return math.inf
    return max((summary.error / config.relative) ** 2, ENOUGH / summary.effective)


def _log_weights(paths: Paths, fractions: Tensor) -> Floats:
    """(n,) log w, -inf for misses. Noise of variance s^2 adds exp(s^2 / 2) on average, which is
    subtracted."""
    logs = torch.full((len(paths.hit),), -math.inf, dtype=torch.float64)
    # one probe has an infinite standard error: nothing is subtracted, and _fails refuses it
    noise = torch.where(paths.noise.isfinite(), paths.noise, 0.0) ** 2 / 2
    logs[paths.hit] = -torch.logsumexp(paths.log_ratio + fractions.log(), dim=1) - noise
    return logs.numpy().astype(np.float64)


def even(k: int, share: float, among: tuple[int, ...] | None = None) -> Tensor:
    """``share`` spread evenly over all K proposals, or over those of ``among``: (K,) float64."""
    chosen = torch.arange(k) if among is None else torch.tensor(among)
    return torch.zeros(k, dtype=torch.float64).index_fill(0, chosen, share / len(chosen))
