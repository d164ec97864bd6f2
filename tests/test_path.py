"""The path estimator on models whose q is exact for the sampler's own steps."""

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats as scipy_stats
from torch import Tensor

from latentprint.audit.context import Context, Where
from latentprint.audit.estimates import estimates
from latentprint.audit.stages import Audited
from latentprint.config import AuditConfig, RareSettings, SamplerSettings
from latentprint.denoiser import IdentityCodec
from latentprint.known import Gaussian, Memorised, Mixture
from latentprint.rate import ESTIMATORS
from latentprint.rate.estimator import anew, silent
from latentprint.rate.guides import Conditioned, Toward
from latentprint.rate.led import Led, Proposals, transitions
from latentprint.rate.levels import Inside
from latentprint.rate.path import ENOUGH_REPLICATES, REPLICATES, PathConfig, _rounds, _Run, guides, path
from latentprint.rate.pushforward import SamplerPushforward
from latentprint.rate.weights import Offered, offered
from latentprint.results.counted import Estimate
from latentprint.sampler.sampler import Sampler
from latentprint.sampler.state import Step
from latentprint.sampler.steps import (
    Ancestral,
    DPMSolverPP2M,
    EulerMaruyama,
    PredictorCorrector,
    ReverseDiffusion,
    SDEDPMSolverPP2M,
)
from latentprint.schedule import EDM, VP, Schedule, SubVP
from latentprint.settings import plain
from latentprint.store import Run
from latentprint.streams import Streams

QUICK = PathConfig(relative=0.1, most=6000, pilot=16, second=120)


def images(n: int, side: int = 2, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.rand(n, 1, side, side, generator=g, dtype=torch.float64) * 2 - 1


def within(centre: Tensor, radius: float) -> Inside:
    return lambda x: (x - centre).flatten(1).norm(dim=1) < radius


@dataclass(frozen=True)
class Line:
    """A Gaussian sampler in closed form: every pixel ends as N(mean, gain^2), by its own steps."""

    mean: Tensor
    gain: float


def closed(model: Gaussian, sampler: Sampler) -> Line:
    """Mean and variance of each pixel, exactly: (x, D') is a Gaussian that each step maps linearly.

    x_{k+1} = (keep + pull A_k) x_k + back D' + pull c_k + std e, and D' becomes A_k x_k + c_k.
    """
    steps = transitions(sampler, model.schedule)
    assert not isinstance(steps, str)
    shape = (1, *model.mean.shape)
    mean, before = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
    covariance = np.diag([model.schedule.prior_std**2, 0.0])

    def line(t: Tensor) -> tuple[Tensor, float]:
        at_zero = model(torch.zeros(shape, dtype=torch.float64), t.reshape(1))
        slope = model(torch.ones(shape, dtype=torch.float64), t.reshape(1)) - at_zero
        return at_zero, float(slope.flatten()[0])

    for step in steps:
        offset, slope = line(step.t)
        denoised = slope * mean + offset
        mean, before = step.keep * mean + step.pull * denoised + step.back * before, denoised
        matrix = np.array([[step.keep + step.pull * slope, step.back], [slope, 0.0]])
        covariance = matrix @ covariance @ matrix.T + np.diag([step.std**2, 0.0])
    variance = float(covariance[0, 0])
    offset, slope = line(torch.tensor(model.schedule.end, dtype=torch.float64))
    return Line((slope * mean + offset)[0], math.sqrt(slope**2 * variance))


@pytest.mark.parametrize("step", [Ancestral(), EulerMaruyama(), ReverseDiffusion(), SDEDPMSolverPP2M()])
@pytest.mark.parametrize("schedule", [VP(), EDM(sigma_min=0.02)])
def test_a_gaussian_is_exact_at_every_number_of_steps(step: Step, schedule: Schedule):
    mean = images(1)[0]
    model = Gaussian(mean, torch.tensor(0.3, dtype=torch.float64), schedule)
    sampler = Sampler(step, 12, "log-snr")
    law = closed(model, sampler)
    target = law.mean + 2 * law.gain
    radius = 1.5 * law.gain
    off = float(((target - law.mean) ** 2).sum()) / law.gain**2
    q = float(scipy_stats.ncx2.cdf(radius**2 / law.gain**2, 4, off))
    assert 1e-4 < q < 0.05
    found = path(model, sampler, target, within(target, radius), seed=3, level=0.999, config=QUICK)
    assert found.reliable, found.diagnostic
    assert found.holds(q), (found.low, q, found.high)
    assert found.rate == pytest.approx(q, rel=0.35)
    assert found.sampler == sampler.describe()


@pytest.mark.parametrize(
    ("copies", "sampler"),
    [(1, Sampler(Ancestral(), 96)), (3, Sampler(Ancestral(), 96)), (1, Sampler(SDEDPMSolverPP2M(), 24))],
)
def test_a_set_learnt_by_heart_gives_each_image_back_by_its_copies(copies: int, sampler: Sampler):
    some = images(60, 4)
    model = Memorised(some, SubVP(), copies=[copies, *[1] * 59])
    found = path(
        model, sampler, some[0], within(some[0], 0.3), seed=0, others=some[1:], level=0.999, config=QUICK
    )
    assert found.reliable, found.diagnostic
    assert found.rate == pytest.approx(model.q(0), rel=0.3)
    # so many steps have a q of their own, some percent from the formula's, and the interval is narrower
    push, g = SamplerPushforward(model, sampler, (1, 4, 4)), torch.Generator().manual_seed(5)
    z = torch.randn(20_000, push.latent, generator=g, dtype=torch.float64)
    hits = int(within(some[0], 0.3)(push(z)).sum())
    low, high = scipy_stats.binomtest(hits, 20_000).proportion_ci(0.999)
    assert found.low is not None
    assert found.high is not None
    assert found.low < high
    assert found.high > low


def test_what_a_network_turns_to_late_is_still_counted():
    """A mixture whose kernels are wide: its denoiser goes on moving where the guides hold still."""
    some = images(8, 3)
    model = Mixture(some, 0.25, VP())
    sampler = Sampler(Ancestral(), 24)
    inside = within(some[2], 0.45)
    push = SamplerPushforward(model, sampler, tuple(some.shape[1:]))
    g = torch.Generator().manual_seed(0)
    hits = sum(
        int(inside(push(torch.randn(20_000, push.latent, generator=g).double())).sum()) for _ in range(5)
    )
    others = torch.cat([some[:2], some[3:]])
    found = path(model, sampler, some[2], inside, seed=0, others=others, level=0.999, config=QUICK)
    low, high = scipy_stats.binomtest(hits, 100_000).proportion_ci(0.999)
    assert found.reliable, found.diagnostic
    assert found.low is not None
    assert found.high is not None
    assert found.low < high
    assert found.high > low


@pytest.mark.parametrize("end", [0.05, 0.3])
def test_a_grid_that_ends_early_is_denoised_where_it_ends(end: float):
    """The grid of a scheduler with few steps ends far above the schedule's end; counting denoises there."""
    some = images(5, 3)
    model = Mixture(some, 0.3, VP())
    at = tuple(torch.linspace(1.0, end, 15, dtype=torch.float64).tolist())
    sampler = Sampler(Ancestral(), len(at) - 1, at=at, of="DDPMScheduler")
    inside = within(some[0], 0.45)
    push, g = SamplerPushforward(model, sampler, (1, 3, 3)), torch.Generator().manual_seed(0)
    n = 40_000
    hits = int(inside(push(torch.randn(n, push.latent, generator=g, dtype=torch.float64))).sum())
    low, high = scipy_stats.binomtest(hits, n).proportion_ci(0.999)
    found = path(model, sampler, some[0], inside, seed=1, others=some[1:], level=0.999, config=QUICK)
    assert found.reliable, found.diagnostic
    assert found.low is not None and found.high is not None
    assert found.low < high and found.high > low
    assert 0.1 < n * float(found.rate or 0) / hits < 10


def test_a_step_that_clips_is_declined_whatever_it_clips_to():
    @dataclass(frozen=True)
    class Bounded(Ancestral):
        """A step that clips and does not say so: up to its bound it is linear."""

        bound: float = 30.0

        def __call__(self, denoiser: Any, state: Any, s: Any, noise: Any, /) -> Any:
            return replace(Ancestral(), clip=self.bound)(denoiser, state, s, noise)

    some = images(9)
    for step in (Ancestral(clip=1.0), Ancestral(clip=1e6), Bounded()):
        sampler = Sampler(step, 6)
        found = path(Memorised(some, VP()), sampler, some[0], within(some[0], 0.3), seed=0, others=some[1:])
        assert not found.reliable and found.network_evaluations == 0
        assert "linear in" in found.diagnostic and "splitting can answer" in found.diagnostic


def led(model: Memorised, batch: int = 7) -> tuple[Led, Proposals]:
    sampler = Sampler(Ancestral(), 6)
    steps = transitions(sampler, model.schedule)
    assert not isinstance(steps, str)
    some = model.images
    paths = Led(
        model,
        sampler,
        some[0],
        lambda x: torch.ones(len(x), dtype=torch.bool),
        IdentityCodec(),
        steps,
        [Toward(some[0]), Conditioned(some, 0, 0.3)],
        Streams(0),
        batch,
    )
    half = torch.tensor([0.5, 1, 1.2, 0.3, 0, 0], dtype=torch.float64)
    proposals = Proposals.own(6).with_(0, half, "a").with_(1, half, "b").with_(1, half / 2, "c")
    return paths, proposals


def test_densities_are_those_of_the_paths_that_are_drawn():
    paths, proposals = led(Memorised(images(5), VP()), 4000)
    ids = torch.arange(4000)
    for place in range(len(proposals)):
        # E_Q[R/Q] = 1 for any two laws Q and R; close ones, so that the average is seen to settle
        ratios = paths.walk(proposals, torch.full((4000,), place), ids, f"test.{place}").log_ratio(proposals)
        assert len(ratios) == 4000
        assert bool((ratios[:, 0] == 0).all())
        between = (ratios - ratios[:, place, None]).exp()
        error = between.std(0) / math.sqrt(4000)
        settled = error < 0.1
        assert int(settled.sum()) >= 2  # itself, and another
        assert bool(((between.mean(0) - 1).abs() <= 5 * error)[settled].all())


def test_a_path_depends_on_its_own_id_alone():
    model = Memorised(images(5), VP())
    which, ids = torch.tensor([0, 1, 2, 3, 3, 1]), torch.arange(6)
    paths, proposals = led(model)
    single, _ = led(model, batch=1)
    whole = paths.walk(proposals, which, ids, "test").log_ratio(proposals)
    flipped = single.walk(proposals, which.flip(0), ids.flip(0), "test").log_ratio(proposals)
    assert torch.allclose(whole, flipped.flip(0), rtol=1e-9, atol=1e-9)


def test_a_certain_event_is_one():
    model = Memorised(images(1), VP())
    found = path(model, Sampler(Ancestral(), 12), model.images[0], lambda x: x.flatten(1)[:, 0] < 9, seed=0)
    assert found.reliable, found.diagnostic
    assert found.rate == pytest.approx(1.0, abs=0.02)
    assert found.holds(1.0)


def test_an_interrupted_estimate_goes_on_to_the_same_result():
    some = images(20, 3)
    model = Memorised(some, SubVP())
    sampler = Sampler(Ancestral(), 48)
    store = dict[str, dict[str, object]]()
    made = list[str]()

    class Killed(Exception):
        pass

    def kept(name: str, make):
        if name not in store:
            if len(made) == 2:
                raise Killed
            made.append(name)
            store[name] = make()
        return store[name]

    def run(kept):
        config = replace(QUICK, relative=0.05)
        return path(
            model, sampler, some[0], within(some[0], 0.3), seed=5, others=some[1:], config=config, kept=kept
        )

    with pytest.raises(Killed):
        run(kept)
    made.clear()
    straight = run(lambda _, make: make())
    made.clear()
    for _ in range(20):
        try:
            resumed = run(kept)
            break
        except Killed:
            made.clear()
    assert (resumed.rate, resumed.low, resumed.network_evaluations) == (
        straight.rate,
        straight.low,
        straight.network_evaluations,
    )


def test_where_many_paths_are_needed_more_are_learnt_from():
    some, parts = images(20, 3), list[str]()
    model, config = Memorised(some, SubVP()), PathConfig(relative=0.025, most=40_000, plain=100)

    def kept(name: str, make):
        parts.append(name)
        return make()

    found = path(
        model,
        Sampler(Ancestral(), 48),
        some[0],
        within(some[0], 0.3),
        seed=2,
        others=some[1:],
        level=0.999,
        config=config,
        kept=kept,
    )
    assert found.reliable and found.holds(1 / 20), found.diagnostic
    assert parts[:2] == ["plain", "round.0"]
    more = [int(name.removeprefix("plain.")) for name in parts if name.startswith("plain.")]
    assert more and all(b >= 2 * a for a, b in pairwise([100, *more]))
    rounds = sum(name.startswith("round.") for name in parts)
    assert (
        found.details["paths"] == 100 + sum(more) + found.details["replicates"] * found.details["particles"]
    )
    assert found.details["replicates"] == rounds * REPLICATES


@pytest.mark.parametrize(("share", "sigma"), [(0.5, 0.6), (0.1, 0.8)])
def test_stopping_when_the_error_looks_small_keeps_mean_and_coverage(share: float, sigma: float) -> None:
    """Replicates that hit with a known share and then weigh a log-normal number: their mean is known."""
    q, config = share * 1e-4 * math.exp(sigma**2 / 2), PathConfig(relative=0.2, most=50_000)
    covered, ratios = 0, list[float]()
    for seed in range(300):
        noise = np.random.default_rng(seed)

        def one(number: int, noise: np.random.Generator = noise) -> dict[str, Any]:
            hit = np.flatnonzero(noise.random(REPLICATES) < share)
            return {
                "hits": hit.tolist(),
                "logs": (math.log(1e-4) + sigma * noise.standard_normal(len(hit))).tolist(),
            }

        run = _Run(config, 0.95, seed, silent, anew)
        _, summary = _rounds(run, one, np.arange(REPLICATES), config.particles, ENOUGH_REPLICATES)
        found = offered(summary.log_mean, summary.error, summary.freedom, 0.95)
        assert summary.distrusted() is None and isinstance(found, Offered) and summary.error <= 0.2
        covered += found.low <= q <= found.high
        ratios.append(found.rate / q)
    assert covered >= 300 * 0.95 - 3 * math.sqrt(300 * 0.95 * 0.05)
    assert abs(np.mean(ratios) - 1) < 0.05


def test_samplers_that_cannot_be_led_are_declined_at_no_cost():
    some = images(5)
    model = Memorised(some, VP())
    for step in (DPMSolverPP2M(), PredictorCorrector()):
        found = path(model, Sampler(step, 8), some[0], within(some[0], 0.3), seed=0)
        assert (found.reliable, found.network_evaluations) == (False, 0)
        assert "splitting can answer" in found.diagnostic


def test_a_region_that_no_path_reaches_is_an_answer_and_no_number():
    some = images(5)
    model = Memorised(some, VP())
    found = path(model, Sampler(Ancestral(), 8), some[0], lambda x: x[:, 0, 0, 0] > 9, seed=0, config=QUICK)
    assert (found.reliable, found.rate) == (False, None)
    assert found.network_evaluations == found.details["paths"] * 9


def test_a_region_that_the_guides_do_not_lead_to_gets_no_wrong_number():
    some = images(40, 3)
    sampler, elsewhere = Sampler(Ancestral(), 24), within(some[1], 0.3)  # every lead is to another image
    push = SamplerPushforward(Memorised(some, SubVP()), sampler, tuple(some.shape[1:]))
    z = torch.randn(8000, push.latent, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    low, high = scipy_stats.binomtest(int(elsewhere(push(z)).sum()), 8000).proportion_ci(0.999)
    model = push.denoiser
    found = path(model, sampler, some[0], elsewhere, seed=1, others=some[1:], level=0.999, config=QUICK)
    assert found.rate is None or (found.low < high and found.high > low)


def test_copies_of_the_image_do_not_push_away_from_it():
    some = images(6)
    found = guides(some[0], torch.cat([some[1:], some[:1]]))
    assert found[0].name == "toward 0"
    conditioned = found[1]
    assert isinstance(conditioned, Conditioned)
    assert len(conditioned.images) == 6
    x = np.random.default_rng(0).standard_normal((3, 1, 2, 2))
    model = Memorised(some, VP())
    t = torch.tensor(0.3, dtype=torch.float64)
    alpha, sigma = float(model.schedule.alpha(t)), float(model.schedule.sigma(t))
    noisy = torch.as_tensor(x) * sigma
    # for a set learnt by heart what is added to D leaves x_p
    assert torch.allclose(conditioned(noisy, model(noisy, t), alpha, sigma), some[0].expand(3, 1, 2, 2))


def test_a_latent_model_is_led_in_its_own_space():
    """Images are four times the latents: the region of images is another of latents, and q the same."""

    class Four:
        def encode(self, images: Tensor) -> Tensor:
            return images / 4

        def decode(self, latents: Tensor) -> Tensor:
            return latents * 4

    some = images(30, 3)
    codec, sampler = Four(), Sampler(Ancestral(), 48)
    found = path(
        Memorised(codec.encode(some), VP()),
        sampler,
        codec.encode(some[0]),
        within(some[0], 0.3),
        seed=0,
        others=codec.encode(some[1:]),
        level=0.999,
        config=QUICK,
        codec=codec,
    )
    assert found.reliable, found.diagnostic
    assert found.holds(1 / 30), (found.low, found.high)


def test_every_estimator_of_the_table_has_its_switch_in_the_settings():
    switches = RareSettings()
    assert all(getattr(switches, row.name) is False for row in ESTIMATORS)
    assert "path" in {row.name for row in ESTIMATORS}


def test_an_audit_leads_its_sampler_says_so_and_goes_on_where_it_was_killed(tmp_path: Path):
    some = images(30, 3).float()
    target, others = some[0].numpy(), some[1:].numpy()
    inside = within(some[0], 0.3)

    class Near:
        threshold = 0.5

        def __call__(self, x: Tensor) -> Tensor:
            return inside(x).float()

    config = AuditConfig(rare=RareSettings(path=True), sampler=SamplerSettings(steps=24))
    told = list[tuple[int, int]]()

    def audit(folder: str, die_after: int) -> Estimate:
        def say(stage: str, done: int, total: int, unit: str) -> None:
            told.append((done, total))
            if len(told) > die_after:
                raise KeyboardInterrupt

        with Run.open(tmp_path / folder, plain(config)) as run:
            context = Context(config, run, Where(batch=64, say=say))
            detectors: Any = SimpleNamespace(presence=None, identity=Near())
            estimates(context, Audited(Memorised(some, SubVP()), detectors, target), others)
            return Estimate(**run.stage("path").payload["estimate"])

    straight = audit("straight", 10**6)
    assert straight.reliable
    assert straight.sampler.model_dump()["steps"] == 24
    assert told[-1][0] == told[-1][1] > 0
    told.clear()
    with pytest.raises(KeyboardInterrupt):
        audit("killed", 0)
    told.clear()
    resumed = audit("killed", 10**6)
    assert (resumed.rate, resumed.low, resumed.high) == (straight.rate, straight.low, straight.high)
    assert resumed.network_evaluations == straight.network_evaluations
