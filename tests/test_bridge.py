"""The benchmarks' bridge estimator on models whose densities and whose q are formulas."""

import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats as scipy_stats
from torch import Tensor

from latentprint.denoiser import IdentityCodec
from latentprint.known import Gaussian, Memorised, Mixture
from latentprint.likelihood import Exact, Hutchinson
from latentprint.rate import weights
from latentprint.rate.levels import Inside
from latentprint.rate.result import Rate
from latentprint.rate.shares import least_variance_shares
from latentprint.schedule import VP
from latentprint.streams import Streams

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from bridge import BridgeConfig, bridge, even
from paths import Flow, Nodes, walk

QUICK = BridgeConfig(relative=0.2, tolerance=1e-4, pilot=8, candidates=8, together=120, longest=0.4)


def images(n: int, side: int = 2, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.rand(n, 1, side, side, generator=g, dtype=torch.float64) * 2 - 1


def within(centre: Tensor, radius: float) -> Inside:
    return lambda x: (x - centre).flatten(1).norm(dim=1) < radius


def ball_of(model: Mixture, centre: Tensor, q: float) -> float:
    low, high = 1e-3, 50.0
    for _ in range(80):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if model.q(centre, middle) < q else (low, middle)
    return high


def check(found: Rate, q: float, rel: float) -> None:
    assert found.reliable, found.diagnostic
    assert found.holds(q), (found.low, q, found.high)
    assert found.rate == pytest.approx(q, rel=rel)


@pytest.mark.parametrize("q", [1e-5, 1e-9])
def test_mixtures_of_rare_and_very_rare_images(q: float):
    model = Mixture(images(8, 3 if q < 1e-8 else 2), 0.2, VP(end=1e-5))
    centre = model.images[2]
    found = bridge(
        model, centre, within(centre, ball_of(model, centre, q)), seed=1, level=0.999, config=QUICK
    )
    check(found, q, 0.6)
    assert found.sampler["step"] == "probability-flow"
    assert found.network_evaluations > found.details["trajectories"] * 20


@pytest.mark.parametrize("copies", [1, 2])
def test_memorised_returns_by_its_copies(copies: int):
    model = Memorised(images(10, 3), VP(), copies=[copies, *[1] * 9])
    found = bridge(model, model.images[0], within(model.images[0], 0.3), seed=0, level=0.999, config=QUICK)
    check(found, copies / (9 + copies), 0.25)


def test_one_gaussian_in_closed_form():
    mean = images(1)[0]
    model = Gaussian(mean, torch.tensor(0.5, dtype=torch.float64), VP(end=1e-5))
    target = (mean + 0.2).clamp(-1, 1)
    radius = 0.35
    off = float(((target - mean) ** 2).sum()) / 0.25
    q = float(scipy_stats.ncx2.cdf(radius**2 / 0.25, 4, off))
    found = bridge(model, target, within(target, radius), seed=0, level=0.999, config=QUICK)
    check(found, q, 0.6)


def a_flow(model: Mixture, divergence: Exact | Hutchinson, longest: float = 0.4) -> Flow:
    return Flow(
        denoiser=model,
        target=model.images[3],
        inside=lambda x: torch.ones(len(x), dtype=torch.bool),
        codec=IdentityCodec(),
        divergence=divergence,
        streams=Streams(0),
        tolerance=1e-5,
        longest=longest,
        batch=16,
    )


@pytest.mark.parametrize("k", [0, 2])
def test_densities_of_a_trajectory_at_every_proposal_time(k: int):
    model = Mixture(images(6), 0.2, VP(end=1e-5))
    flow = a_flow(model, Exact(4), longest=0.2)
    proposals = [0.5, 0.12, 0.03]
    ids = torch.arange(20)
    nodes = Nodes.of(flow, proposals)
    start = nodes.anchors[k]
    paths = walk(flow, nodes, start, ids, "test")
    x = flow.start(proposals[k], ids, "test")
    alpha, sigma = (float(getattr(model.schedule, name)(proposals[k])) for name in ("alpha", "sigma"))
    e = (x - alpha * model.images[3]) / sigma
    log_r = -0.5 * (e**2).flatten(1).sum(1) - 4 * (math.log(sigma) + 0.5 * math.log(2 * math.pi))
    own = log_r - model.log_density(x, torch.tensor(proposals[k], dtype=torch.float64))
    assert (paths.log_ratio[:, start] - own).abs().max() < 0.03
    assert paths.log_ratio.shape == (20, len(nodes.at))
    assert paths.hit.all()
    assert paths.noise.abs().max() == 0


def test_the_first_of_the_nodes_is_the_start_and_proposals_are_among_them():
    model = Mixture(images(4), 0.2, VP())
    nodes = Nodes.of(a_flow(model, Exact()), [0.5, 0.1])
    assert nodes.times[0] == 1.0
    assert [float(nodes.times[nodes.at[i]]) for i in nodes.anchors] == [0.5, 0.1]
    assert nodes.at == tuple(range(nodes.at[0], len(nodes.times)))
    logs = model.schedule.ratio(nodes.times).log()
    gaps = logs[:-1] - logs[1:]
    assert float(gaps[nodes.at[0] :].max()) <= 0.4 + 1e-9  # from the first proposal down
    assert float(gaps.max()) <= 1.0 + 1e-9  # above it, where nothing comes back, up to 2.5 times as long
    with pytest.raises(ValueError, match="fall strictly"):
        Nodes.of(a_flow(model, Exact()), [0.1, 0.5])


def test_shares_are_those_of_least_second_moment():
    g = torch.Generator().manual_seed(0)
    ratios = torch.randn(200, 3, generator=g, dtype=torch.float64) * torch.tensor([0.5, 1.0, 0.4])
    uniform = -torch.logsumexp(ratios[:, [0, 2]] - math.log(2), dim=1)

    def second_moment(shares: list[float]) -> float:
        c = torch.tensor(shares, dtype=torch.float64).clamp(min=1e-12)
        return float((uniform - torch.logsumexp(ratios + c.log(), dim=1)).exp().sum())

    grid = [[i / 40, j / 40, 1 - (i + j) / 40] for i in range(41) for j in range(41 - i)]
    best = min(grid, key=second_moment)
    found = least_variance_shares(ratios, even(3, 1.0, (0, 2)), even(3, 0.3))
    assert ((found - 0.1) / 0.7).tolist() == pytest.approx(best, abs=0.04)


def test_what_nothing_can_hit_and_what_cannot_be_asked():
    model = Mixture(images(4), 0.2, VP())
    target = model.images[0]

    def never(x: Tensor) -> Tensor:
        return torch.zeros(len(x), dtype=torch.bool)

    none = bridge(model, target, never, seed=0)
    assert (none.reliable, none.rate) == (False, None)
    assert "nothing" in none.diagnostic
    assert none.network_evaluations > 0
    with pytest.raises(ValueError, match="data range"):
        bridge(model, target + 2, never, seed=0)
    with pytest.raises(ValueError, match="finite"):
        bridge(model, target / 0, never, seed=0)


def test_longer_steps_above_all_proposals_change_no_density():
    model = Mixture(images(6), 0.2, VP(end=1e-5))
    flow = a_flow(model, Exact(2), longest=0.2)
    ids, proposals = torch.arange(12), [0.3, 0.1]
    nodes = Nodes.of(flow, proposals)
    logs = model.schedule.ratio(nodes.times).log()
    steps, free = logs[:-1] - logs[1:], nodes.times[:-1] > 0.3
    assert float(steps[free].max()) > 0.4
    assert float(steps[~free].max()) <= 0.2 + 1e-9
    for k in nodes.anchors:
        t = float(nodes.times[nodes.at[k]])
        x = flow.start(t, ids, "test")
        alpha, sigma = float(model.schedule.alpha(t)), float(model.schedule.sigma(t))
        e = (x - alpha * model.images[3]) / sigma
        log_r = -0.5 * (e**2).flatten(1).sum(1) - 4 * (math.log(sigma) + 0.5 * math.log(2 * math.pi))
        own = log_r - model.log_density(x, torch.tensor(t, dtype=torch.float64))
        assert (walk(flow, nodes, k, ids, "test").log_ratio[:, k] - own).abs().max() < 0.03


def test_a_model_without_a_finite_likelihood_is_an_answer_and_no_error():
    class Broken(Gaussian):
        def __call__(self, x: Tensor, t: Tensor, /) -> Tensor:
            return super().__call__(x, t) + torch.where(t > 0.9, math.nan, 0.0).max()

    model = Broken(images(1)[0], torch.tensor(0.5, dtype=torch.float64), VP())
    found = bridge(model, model.mean, within(model.mean, 0.5), seed=0)
    assert (found.reliable, found.rate) == (False, None)
    assert "must be finite" in found.diagnostic
    assert "would be enough" in found.diagnostic


@pytest.mark.parametrize("longest", [4.0])
def test_steps_too_long_for_the_densities_are_cut(longest: float):
    model = Memorised(images(10, 3), VP())
    inside = within(model.images[0], 0.3)
    found = bridge(
        model, model.images[0], inside, seed=0, level=0.999, config=replace(QUICK, longest=longest)
    )
    assert found.details["steps_cut_in"] > 1
    assert abs(found.details["integration_bias"]) < 0.02  # a tenth of the relative error asked for
    check(found, 0.1, 0.15)


@pytest.mark.parametrize(("log_weight", "why"), [(0.05, "above 1"), (800.0, "above 1"), (-900.0, "smaller")])
def test_weights_that_mean_no_probability_are_declined(
    log_weight: float, why: str, monkeypatch: pytest.MonkeyPatch
):
    # a one-image model with everything in Omega has q = 1 exactly, and 3 of 60 seeds put its interval above 1
    def drawn(*_: object) -> tuple[weights.Floats, weights.Floats, weights.Weighted]:
        logs = log_weight + np.linspace(-0.01, 0.01, 200)
        return logs, np.zeros(200), weights.weighted(logs)

    monkeypatch.setattr(sys.modules["bridge"], "_rounds", drawn)
    monkeypatch.setattr(sys.modules["bridge"], "_steps", lambda *_: (1, 0.0))
    model = Memorised(images(1, 2), VP())
    quick = replace(QUICK, pilot=2, proposals=2, tries=2, longest=1.0)
    found = bridge(
        model, model.images[0], lambda x: torch.ones(len(x), dtype=torch.bool), seed=0, config=quick
    )
    assert (found.reliable, found.rate) == (False, None)
    assert why in found.diagnostic


def test_steps_that_no_trajectory_survives_are_not_measured_as_zero(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys.modules["bridge"], "_steps", lambda *_: (1, None))
    model = Memorised(images(10, 3), VP())
    found = bridge(model, model.images[0], within(model.images[0], 0.3), seed=0, config=QUICK)
    assert (found.reliable, found.rate) == (False, None)
    assert found.details["integration_bias"] is None
    assert "cannot be measured" in found.diagnostic
