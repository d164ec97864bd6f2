"""Splitting on maps whose q is a formula: balls, half-spaces, two modes, a coin hidden in the noise."""

import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy import stats as scipy_stats
from torch import Tensor

from latentprint import rate
from latentprint.known import Mixture
from latentprint.rate import levels, tilt, weights
from latentprint.rate.pushforward import SamplerPushforward
from latentprint.rate.splitting import SplittingConfig, splitting
from latentprint.sampler.adaptive import RungeKutta
from latentprint.sampler.loop import reverse
from latentprint.sampler.sampler import Sampler
from latentprint.sampler.steps import Ancestral, Heun
from latentprint.schedule import VP
from latentprint.stats import Trials

SAMPLER = {"step": "identity", "steps": 1}


@dataclass(frozen=True)
class Identity:
    """The sampler that returns its noise: whatever is known of N(0, I) is known of it."""

    latent: int
    evaluations: int = 1

    def __call__(self, z: Tensor) -> Tensor:
        return z


def ball(centre: Tensor, radius: float) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    def score(x: Tensor) -> Tensor:
        return (x - centre).norm(dim=1)

    return score, lambda x: score(x) < radius


def ball_radius(centre: Tensor, q: float) -> float:
    """P(|z - c| < r) is the noncentral chi-square CDF with d degrees and noncentrality |c|^2 at r^2."""
    return math.sqrt(scipy_stats.ncx2.ppf(q, len(centre), float((centre**2).sum())))


@pytest.mark.parametrize("q", [3e-4, 1e-6, 1e-9])
@pytest.mark.parametrize("latent", [6, 64])
def test_ball_in_closed_form(q: float, latent: int):
    centre = torch.full((latent,), 3 / math.sqrt(latent))
    score, inside = ball(centre, ball_radius(centre, q))
    found = splitting(Identity(latent, 3), score, inside, sampler=SAMPLER, seed=4, level=0.999)
    assert found.reliable, found.diagnostic
    assert found.holds(q)
    assert found.rate == pytest.approx(q, rel=0.7)
    assert found.network_evaluations == 3 * found.details["samples"]
    assert found.network_evaluations < 3 * rate.brute_force_samples(q) / 2
    assert found.sampler == SAMPLER


def test_half_space_whose_score_is_unbounded():
    found = splitting(
        Identity(20), lambda x: -x[:, 3], lambda x: x[:, 3] > 5.5, sampler=SAMPLER, seed=0, level=0.999
    )
    assert found.reliable, found.diagnostic
    assert found.holds(float(scipy_stats.norm.sf(5.5)))


def test_omega_is_not_a_level_of_the_score():
    # Omega needs z0 large and z1 positive, the score knows of z0 only, and prefers z1 < 0
    found = splitting(
        Identity(10),
        lambda x: -x[:, 0] + 0.3 * x[:, 1],
        lambda x: (x[:, 0] > 3.7) & (x[:, 1] > 0),
        sampler=SAMPLER,
        seed=1,
        level=0.999,
    )
    assert found.reliable, found.diagnostic
    assert found.holds(float(scipy_stats.norm.sf(3.7)) / 2)


def test_two_modes_of_unequal_size_are_both_counted():
    q = 1 - (1 - float(scipy_stats.norm.sf(4.3))) * (1 - float(scipy_stats.norm.sf(4.5)))
    found = splitting(
        Identity(12),
        lambda x: torch.minimum(4.3 - x[:, 0], 4.5 - x[:, 1]),
        lambda x: (x[:, 0] > 4.3) | (x[:, 1] > 4.5),
        sampler=SAMPLER,
        seed=2,
        level=0.999,
    )
    assert found.holds(q) if found.reliable else "not reliable because" in found.diagnostic


def test_frequent_events_are_counted_with_exact_intervals():
    score, inside = ball(torch.zeros(3), ball_radius(torch.zeros(3), 0.3))
    found = splitting(Identity(3), score, inside, sampler=SAMPLER, seed=0, level=0.999)
    assert found.details["stage"] == "count"
    assert found.trials is not None
    assert (found.low, found.high) == found.trials.interval(0.999)
    assert found.holds(0.3)


def test_a_leak_that_the_score_does_not_lead_to_is_counted_or_declined_never_invented():
    leak = float(scipy_stats.norm.isf(1e-3))
    held = 0
    for seed in range(6):
        found = splitting(
            Identity(16),
            lambda x: torch.where(x[:, 0] > leak, torch.zeros(len(x)), 1 + x[:, 1:].norm(dim=1)),
            lambda x: x[:, 0] > leak,
            sampler=SAMPLER,
            seed=seed,
            level=0.999,
        )
        if found.reliable:
            assert found.holds(1e-3), (found.low, found.rate, found.high, found.details)
            held += 1
    assert held >= 4


def test_what_cannot_be_hit_is_said_and_no_number_is_given():
    def nowhere(x: Tensor) -> Tensor:
        return torch.zeros(len(x), dtype=torch.bool)

    config = SplittingConfig(particles=100, levels=12)
    far = splitting(Identity(4), lambda x: x.norm(dim=1), nowhere, sampler=SAMPLER, seed=0, config=config)
    assert (far.reliable, far.rate, far.low, far.high) == (False, None, None, None)
    assert "no sample reached the region" in far.diagnostic
    flat = splitting(
        Identity(4), lambda x: torch.ones(len(x)), nowhere, sampler=SAMPLER, seed=0, config=config
    )
    assert "share one score" in flat.diagnostic
    assert flat.network_evaluations > 0


def test_same_seed_same_result_whatever_the_batch():
    centre = torch.full((6,), 1.0)
    score, inside = ball(centre, ball_radius(centre, 1e-5))

    def run(seed: int, batch: int) -> rate.Rate:
        config = SplittingConfig(particles=60, batch=batch)
        return splitting(Identity(6), score, inside, sampler=SAMPLER, seed=seed, config=config)

    one, other = run(1, 7), run(1, 4096)
    assert (one.rate, one.low, one.high) == (other.rate, other.low, other.high)
    assert run(2, 4096).rate != other.rate


def test_moves_leave_the_gaussian_unchanged_and_levels_restrict_it():
    g = torch.Generator().manual_seed(0)
    land = levels.Landscape(
        Identity(2),
        lambda x: x[:, 0],
        lambda x: torch.zeros(len(x), dtype=torch.bool),
        torch.device("cpu"),
    )
    first = levels.first_population(land, 4, 4000, g)
    walk = list(levels.climb(land, first, share=0.25, chain=10, target=0.44, most=2, g=g))
    level = walk[0].scores.max().item()
    assert level == pytest.approx(scipy_stats.norm.ppf(0.25), abs=0.05)
    # in A_1 the first coordinate is a normal cut off above the level, the second untouched
    cut = scipy_stats.truncnorm(-np.inf, level)
    z = walk[0].z[:, ::1].flatten(0, 1).double().numpy()
    assert z[:, 0].mean() == pytest.approx(cut.mean(), abs=0.03)
    assert z[:, 0].std() == pytest.approx(cut.std(), rel=0.05)
    assert z[:, 1].mean() == pytest.approx(0, abs=0.06)
    assert z[:, 1].std() == pytest.approx(1, rel=0.04)
    assert walk[0].log_q.tolist() == pytest.approx([math.log(0.25)] * 4)
    assert 0.3 < walk[1].acceptance < 0.6


def test_ties_count_everyone_at_the_level():
    g = torch.Generator().manual_seed(0)
    land = levels.Landscape(
        Identity(1),
        lambda x: (x[:, 0] > 0).double(),
        lambda x: torch.zeros(len(x), dtype=torch.bool),
        torch.device("cpu"),
    )
    first = levels.first_population(land, 4, 1000, g)
    low = (first.scores == 0).double().mean(1)
    one = next(levels.climb(land, first, share=0.1, chain=10, target=0.44, most=5, g=g))
    assert one.log_q.exp().tolist() == pytest.approx(low.tolist())


def test_coverage_over_many_cases_and_cost():
    held = reliable = 0
    cases = 60
    for seed in range(cases):
        q = 10 ** -(1 + 8 * seed / cases)
        latent = (5, 24)[seed % 2]
        centre = torch.randn(latent, generator=torch.Generator().manual_seed(seed)) / math.sqrt(latent) * 2
        score, inside = ball(centre, ball_radius(centre, q))
        found = splitting(Identity(latent), score, inside, sampler=SAMPLER, seed=seed)
        reliable += found.reliable
        held += found.holds(q)
    assert reliable >= 0.8 * cases
    assert Trials(held, reliable).upper(0.999) >= 0.95
    assert held / reliable >= 0.85


def test_more_noise_than_may_be_held_is_refused_with_the_number_before_anything_is_drawn():
    def never(z: Tensor) -> Tensor:
        raise AssertionError("nothing may be drawn")

    found = splitting(Identity(784 * 1001), never, never, sampler=SAMPLER, seed=0)
    assert (found.reliable, found.network_evaluations) == (False, 0)
    # 2,000 particles, twice and 4 / 10 of them, of 784,784 numbers of 4 bytes
    assert f"{2000 * 2.4 * 784_784 * 4 / 2**30:.1f} GiB, and 4.0 GiB are allowed" in found.diagnostic


def test_replicates_along_fixed_levels_are_unbiased():
    centre, replicates = torch.full((5,), 1.2), 400
    radius = ball_radius(centre, 1e-4)
    score, inside = ball(centre, radius)
    g = torch.Generator().manual_seed(0)
    land = levels.Landscape(Identity(5), score, inside, torch.device("cpu"))
    first = levels.first_population(land, replicates, 50, g)
    ladder = [levels.Rung(ball_radius(centre, q), 0.5) for q in (0.1, 0.01, 0.001)]
    *_, last = levels.descend(land, first, ladder, chain=10, g=g)
    assert bool(last.done.all())
    found = last.log_q.exp()  # some may have died out, and are 0
    error = float(found.std()) / math.sqrt(replicates)
    assert float(found.mean()) == pytest.approx(1e-4, abs=3 * error)
    assert error < 0.2e-4


def without(*_: object) -> None:
    """A tilt that is not believed."""


def test_where_no_tilt_is_believed_the_replicates_answer(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys.modules["latentprint.rate.splitting"], "_tilted", without)
    held, cases = 0, 12
    for seed in range(cases):
        q = 10 ** -(3.4 + seed / cases)
        centre = torch.randn(6, generator=torch.Generator().manual_seed(seed))
        score, inside = ball(centre, ball_radius(centre, q))
        config = SplittingConfig(relative=0.25, particles=100)
        found = splitting(Identity(6), score, inside, sampler=SAMPLER, seed=seed, config=config)
        assert found.reliable, found.diagnostic
        assert found.details["stage"] == "levels"
        assert found.details["replicates"] >= 24
        held += found.holds(q)
    assert held >= cases - 2  # of 12 at 95 %, three or more miss in 2 of 100


class Stopped(Exception):
    pass


@pytest.mark.parametrize("tilt_works", [True, False])
def test_an_interrupted_estimate_continues_to_the_same_numbers(
    monkeypatch: pytest.MonkeyPatch, tilt_works: bool
):
    if not tilt_works:
        monkeypatch.setattr(sys.modules["latentprint.rate.splitting"], "_tilted", without)
    centre = torch.full((6,), 1.0)
    score, inside = ball(centre, ball_radius(centre, 3e-4))
    parts, seen = dict[str, str](), list[int]()

    def asked(most_new: int) -> rate.Rate:
        new = 0

        def kept(name: str, make: Callable[[], dict[str, object]]) -> dict[str, object]:
            nonlocal new
            if name not in parts:
                if new == most_new:
                    raise Stopped
                new += 1
                parts[name] = json.dumps(make(), allow_nan=False)
            return json.loads(parts[name])

        def heard(done: int, total: int) -> None:
            seen.append(done)
            assert done <= total

        config = SplittingConfig(relative=0.25, particles=60, most=40_000)
        return splitting(
            Identity(6), score, inside, sampler=SAMPLER, seed=3, config=config, kept=kept, progress=heard
        )

    for _ in range(40):
        try:
            pieces = asked(1)
            break
        except Stopped:
            continue
    else:
        raise AssertionError("it never ended")
    assert seen == sorted(seen)  # what is kept is not spent again
    parts.clear()
    whole = asked(100)
    assert pieces == whole
    assert len(parts) == 1 if tilt_works else len(parts) > 3


def test_bad_input_is_refused_with_a_sentence():
    def never(x: Tensor) -> Tensor:
        return torch.zeros(len(x), dtype=torch.bool)

    with pytest.raises(ValueError, match="finite"):
        splitting(Identity(2), lambda x: x[:, 0] / 0, never, sampler=SAMPLER, seed=0)
    with pytest.raises(ValueError, match="one number and one bool"):
        splitting(Identity(2), lambda x: x, never, sampler=SAMPLER, seed=0)
    with pytest.raises(ValueError, match="would be enough to begin"):
        splitting(
            Identity(2), lambda x: x[:, 0], never, sampler=SAMPLER, seed=0, config=SplittingConfig(most=10)
        )
    with pytest.raises(ValueError, match="0 numbers"):
        splitting(Identity(0), lambda x: x[:, 0], never, sampler=SAMPLER, seed=0)
    with pytest.raises(ValueError, match="replicates"):
        SplittingConfig(replicates=2)


def test_tilt_finds_the_centre_of_a_ball_and_its_weights_are_unbiased():
    g = torch.Generator().manual_seed(0)
    centre = torch.zeros(30)
    centre[0] = 3.0
    proposal = tilt.Tilt(centre.double(), (0.8, 0.9), "hand")
    z = proposal.draw(200_000, g)
    # the density integrates to one: E_g[phi/g] = 1 over a set that g covers
    near = (z - centre).norm(dim=1) < 4.0
    mean = float((proposal.log_ratio(z).exp() * near).mean())
    assert mean == pytest.approx(scipy_stats.ncx2.cdf(16.0, 30, 9.0), rel=0.05)
    sample = torch.randn(6000, 30, generator=g)
    score = (sample - centre).norm(dim=1).double()
    groups = list((centre * 0.8 + 0.3 * torch.randn(80, 30, generator=g)).split(20))
    fitted = tilt.fit_tilt(groups, [(sample[:3000], score[:3000]), (sample[3000:], score[3000:])])
    assert fitted.mean / fitted.mean.norm() @ (centre.double() / 3) > 0.99
    with pytest.raises(ValueError, match="at least 2 replicates"):
        tilt.fit_tilt(groups[:1], [])


def test_particles_out_of_reach_are_seen():
    near, far = torch.zeros(50, 4), torch.full((50, 4), 5.0)
    proposal = tilt.Tilt(torch.zeros(4, dtype=torch.float64), (0.5,), "hand")
    drawn = proposal.log_ratio(proposal.draw(2000, torch.Generator().manual_seed(0))).numpy()
    assert tilt.uncovered(proposal, [near, far], drawn) == 0.5
    assert tilt.uncovered(proposal, [near], drawn) == 0.0


def test_effective_sample_size_and_interval_by_hand():
    few = weights.weighted(np.log(np.array([1.0, 1.0, 2.0])))
    assert math.exp(few.log_mean) == pytest.approx(4 / 3)
    assert few.effective == pytest.approx(16 / 6)
    assert few.error == pytest.approx(np.std([1, 1, 2], ddof=1) / math.sqrt(3) / (4 / 3))
    # centred squares 1/9, 1/9, 4/9: variance 2/9, fourth moment 18/243, kurtosis 3/2
    assert few.freedom == pytest.approx(2.0)  # 2 n / (kurtosis - 1) = 12, cut at n - 1
    tailed = weights.weighted(np.log(np.array([1.0] * 99 + [101.0])))
    shares = np.array([1.0] * 99 + [101.0]) - 2.0
    kurtosis = (shares**4).mean() / (shares**2).mean() ** 2
    assert tailed.freedom == pytest.approx(200 / (kurtosis - 1))
    assert tailed.largest == pytest.approx(101 / 200)
    scaled = weights.weighted(np.log(np.array([1.0, 1.0, 2.0])) - 800)
    assert scaled.effective == pytest.approx(few.effective)
    found = weights.offered(math.log(1e-6), 0.1, 1e9, 0.95)
    assert isinstance(found, weights.Offered)
    assert found.low * found.high == pytest.approx(1e-12)
    assert found.high / 1e-6 == pytest.approx(math.exp(0.1 * 1.959964), rel=1e-5)
    assert weights.weighted(np.array([-np.inf, -np.inf])).log_mean == -math.inf
    with pytest.raises(ValueError, match="finite"):
        weights.weighted(np.array([0.0, np.nan]))


@pytest.mark.parametrize("log_weight", [800.0, -900.0])
def test_weights_beyond_what_exp_holds_are_declined_and_not_a_number(log_weight: float):
    drawn = weights.weighted(np.full(100, log_weight) + np.linspace(-0.1, 0.1, 100))
    assert drawn.log_mean == pytest.approx(log_weight, abs=0.01)
    assert drawn.effective == pytest.approx(100, rel=0.01)
    said = weights.offered(drawn.log_mean, drawn.error, drawn.freedom, 0.95)
    assert isinstance(said, str)
    assert "10^3.5e+02" in said if log_weight > 0 else "10^-391" in said


def test_an_interval_around_one_is_cut_there_and_one_above_it_declined():
    found = weights.offered(0.05, 0.1, 1e9, 0.95)
    assert isinstance(found, weights.Offered)
    assert (found.rate, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(math.exp(0.05 - 0.1 * scipy_stats.norm.ppf(0.975)))
    assert "above 1" in str(weights.offered(0.3, 0.1, 1e9, 0.95))


def test_what_differs_between_proposals_of_fixed_numbers_is_no_error():
    one, two = [1.0, 3.0] * 5, [10.0, 10.0, 16.0] * 4
    drawn = weights.weighted(np.log(np.array(one + two)), np.array([0] * 10 + [1] * 12))
    variances = np.var(one, ddof=1), np.var(two, ddof=1)
    error = math.sqrt(10 * variances[0] + 12 * variances[1]) / 22
    mean = math.exp(drawn.log_mean)
    assert mean == pytest.approx((20 + 144) / 22)
    assert drawn.error * mean == pytest.approx(error)
    # kurtosis 1 of the first: 9 degrees; 3/2 of the second (its skew): 2 * 12 / 0.5 = 48, cut at 11
    parts = 10 * variances[0], 12 * variances[1]
    assert drawn.freedom == pytest.approx(sum(parts) ** 2 / (parts[0] ** 2 / 9 + parts[1] ** 2 / 11))
    # three of seven draws are too few for a variance of their own: joined with the next, or the last before
    few = np.log(np.array([1.0, 2.0, 4.0, *one, 5.0]))
    joined = weights.weighted(few, np.array([0] * 3 + [1] * 10 + [2]))
    assert joined.error == pytest.approx(weights.weighted(few).error)
    assert weights.weighted(np.zeros(20), np.repeat([0, 1], 10)).error == 0
    with pytest.raises(ValueError, match="as many proposals"):
        weights.weighted(np.zeros(3), np.zeros(2, dtype=np.int64))


def test_error_by_proposals_is_the_spread_over_repeats():
    rng = np.random.default_rng(0)
    proposals = np.repeat([0, 1, 2], [60, 30, 10])
    draws = np.exp(rng.normal([[0.0] * 60 + [1.0] * 30 + [3.0] * 10] * 4000, 0.3))
    found = [weights.weighted(np.log(row), proposals) for row in draws[:400]]
    errors = [row.error * math.exp(row.log_mean) for row in found]
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(draws.mean(1).std(), rel=0.06)
    assert weights.weighted(np.log(draws[0])).error * math.exp(found[0].log_mean) > 2 * errors[0]


def test_few_heavy_weights_are_distrusted_and_many_light_ones_are_not():
    u = (np.arange(2000) + 0.5) / 2000
    assert "Pareto" in str(weights.weighted(-0.85 * np.log(u)).distrusted())
    assert "30 are needed" in str(weights.weighted(-1.3 * np.log(u)).distrusted())
    assert weights.weighted(-0.2 * np.log(u)).distrusted() is None
    assert "30 are needed" in str(weights.weighted(np.zeros(20)).distrusted())
    # nearly all equal, with a heavy shape among differences that carry nothing
    light = weights.weighted(np.log1p(0.002 / u))
    assert light.pareto_k is not None
    assert light.pareto_k > weights.LARGEST_K
    assert light.distrusted() is None


@pytest.mark.parametrize("k", [0.2, 0.5, 1.0])
def test_pareto_k_of_pareto_weights(k: float):
    u = np.random.default_rng(0).uniform(size=40_000)
    found = weights.pareto_k(-k * np.log(u))
    assert found == pytest.approx(k, abs=0.12)
    assert weights.pareto_k(np.zeros(10)) is None
    assert weights.pareto_k(np.zeros(100)) == -math.inf


def mixture(images: int, width: float) -> Mixture:
    g = torch.Generator().manual_seed(3)
    return Mixture(torch.randn(images, 1, 4, 4, generator=g) * 0.7, width, VP())


def near(x: Tensor, centre: Tensor) -> Tensor:
    return (x - centre).flatten(1).norm(dim=1)


def test_the_noise_of_a_stochastic_sampler_is_its_path():
    model = mixture(5, 0.2)
    sampler = Sampler(Ancestral(), 7)
    push = SamplerPushforward(model, sampler, (1, 4, 4))
    assert push.latent == 16 * 8
    assert push.evaluations == 8
    z = torch.randn(3, push.latent, generator=torch.Generator().manual_seed(0))
    assert torch.equal(push(z)[1:2], push(z[1:2]))
    changed = z.clone()
    changed[:, -1] += 1.0  # the last increment moves the last state, and with it the image
    assert (push(changed) - push(z)).abs().max() > 1e-4
    # one trajectory by hand, with the loop's own noise
    x, parts = z[:, :16].reshape(3, 1, 4, 4), z.reshape(3, 8, 1, 4, 4)
    for state in reverse(
        model, x, sampler.grid(model.schedule), Ancestral(), lambda c: lambda _: parts[:, c]
    ):
        x = state.x
    expected = model(x, torch.tensor(model.schedule.end, dtype=torch.float64))
    assert torch.allclose(push(z), expected, atol=1e-5)
    with pytest.raises(ValueError, match="noise has shape"):
        push(z[:, :-1])
    with pytest.raises(ValueError, match="adaptive"):
        SamplerPushforward(model, Sampler(RungeKutta(), 4), (1, 4, 4))


def ball_of(model: Mixture, index: int, q: float) -> float:
    low, high = 0.1, 4.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if model.q(model.images[index], middle) < q else (low, middle)
    return high


def split_model(model: Mixture, sampler: Sampler, radius: float) -> tuple[SamplerPushforward, rate.Rate]:
    push = SamplerPushforward(model, sampler, (1, 4, 4))
    found = splitting(
        push,
        lambda x: near(x, model.images[2]),
        lambda x: near(x, model.images[2]) < radius,
        sampler=sampler.describe(),
        seed=0,
        level=0.999,
    )
    return push, found


def test_a_mixture_model_end_to_end():
    model = mixture(6, 0.25)
    _, found = split_model(model, Sampler(Heun(), 60), ball_of(model, 2, 1e-5))
    assert found.reliable, found.diagnostic
    assert found.rate == pytest.approx(1e-5, rel=0.6)
    assert found.sampler["steps"] == 60


def test_a_stochastic_sampler_agrees_with_counting_its_own_samples():
    model = mixture(6, 0.25)
    radius = ball_of(model, 2, 2e-4)
    push, found = split_model(model, Sampler(Ancestral(), 15), radius)
    assert found.reliable, found.diagnostic
    assert found.low is not None
    assert found.high is not None
    g = torch.Generator().manual_seed(9)
    z = torch.randn(40_000, push.latent, generator=g)
    counted = Trials(int((near(push(z), model.images[2]) < radius).sum()), len(z))
    low, high = counted.interval(0.999)
    assert found.low < high
    assert found.high > low
