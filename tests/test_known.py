"""The known models held to formulas of their own: brute force, quadrature; then the audit to them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate, special, stats

from latentprint.known import Coin, Gaussian, Leak, Memorised, Mixture, finite, log_ball
from latentprint.sampler import (
    Ancestral,
    DPMSolverPP2M,
    EulerMaruyama,
    Heun,
    PredictorCorrector,
    RungeKutta,
    Sampler,
    reverse,
    trajectories,
)
from latentprint.schedule import EDM, VE, VP, SubVP
from latentprint.stats import Trials
from latentprint.streams import Streams

F64 = torch.float64
SCHEDULES = [VP(), SubVP(), VE(), EDM()]


def kind(value):
    return type(value).__name__


def number(value):
    return torch.tensor(value, dtype=F64)


def normals(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def models(schedule):
    basis, _ = torch.linalg.qr(normals(6, 6, seed=4))
    images, copies = normals(5, 2, 3, seed=5), [1, 2, 1, 4, 2]
    return [
        Gaussian(normals(2, 3, seed=3), torch.linspace(0.2, 1.5, 6, dtype=F64), schedule, basis),
        Mixture(images, 0.3, schedule, copies),
        Memorised(images, schedule, copies),
    ]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=kind)
def test_denoisers_are_the_gradients_of_their_densities(schedule):
    """Tweedie: grad log p_t = (alpha D - x) / sigma^2; the left side by automatic differentiation."""
    t = schedule.time(number([0.2, 1.0, 5.0]))
    for model in models(schedule):
        x = (normals(3, 2, 3, seed=6) * (1 + schedule.ratio(t)[:, None, None])).requires_grad_()
        (gradient,) = torch.autograd.grad(model.log_density(x, t).sum(), x)
        alpha, sigma = schedule.alpha(t)[:, None, None], schedule.sigma(t)[:, None, None]
        torch.testing.assert_close((alpha * model(x, t) - x) / sigma**2, gradient, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=kind)
def test_densities_are_normalised_and_those_of_scipy(schedule):
    t = schedule.time(0.7)
    alpha, sigma = schedule.alpha(t).item(), schedule.sigma(t).item()
    points, shares, h = np.array([-1.0, 0.2, 0.9]), np.array([0.25, 0.5, 0.25]), 0.1
    images = torch.tensor(points)[:, None]
    gaussian = Gaussian(number([0.4]), number(0.6), schedule)
    for model, density in (
        (gaussian, lambda x: stats.norm.pdf(x, alpha * 0.4, math.hypot(alpha * 0.6, sigma))),
        (Memorised(images, schedule, [1, 2, 1]), lambda x: shares @ stats.norm.pdf(x, alpha * points, sigma)),
        (
            Mixture(images, h, schedule, [1, 2, 1]),
            lambda x: shares @ stats.norm.pdf(x, alpha * points, math.hypot(alpha * h, sigma)),
        ),
    ):
        for x in (-3.0, 0.1, 2.5):
            got = model.log_density(number([[x]]), t).item()
            assert got == pytest.approx(math.log(density(x)), rel=1e-10)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=kind)
def test_the_flow_of_the_gaussian_solves_equation_5(schedule):
    """dx/dt = f x - g^2 score / 2, the derivative of the closed-form flow taken automatically."""
    model, start = models(schedule)[0], schedule.time(3.0)
    x = normals(1, 2, 3, seed=7) * 3
    t = schedule.time(0.8).requires_grad_()
    slope = torch.autograd.functional.jacobian(lambda s: model.flow(x, start, s), t)
    now = model.flow(x, start, t).detach()
    t = t.detach()
    gradient = (schedule.alpha(t) * model(now, t) - now) / schedule.sigma(t) ** 2
    expected = schedule.drift(t) * now - schedule.diffusion2(t) * gradient / 2
    torch.testing.assert_close(slope, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(model.flow(now, t, start), x, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("step", [Heun(), DPMSolverPP2M(), RungeKutta(1e-8, 1e-8)], ids=kind)
def test_every_solver_of_the_flow_reaches_the_flow(step):
    """A correlated Gaussian on sub-VP, from r = 5 to 0.05: to 1e-3 in 400 steps, to 1e-7 adaptively."""
    model = models(SubVP())[0]
    t = SubVP().time(torch.linspace(math.log(5), math.log(0.05), 401, dtype=F64).exp())
    x = normals(2, 2, 3, seed=8)
    *_, end = reverse(model, x, t, step)
    near = 1e-7 if isinstance(step, RungeKutta) else 1e-3
    torch.testing.assert_close(end.x, model.flow(x, t[0], t[-1]), rtol=0, atol=near)


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("model", [Memorised, Mixture], ids=kind)
def test_weights_and_denoiser_against_the_sum_written_out(model, dtype):
    """Per row and image, in Python floats, at rows of different times; on images of different weight."""
    schedule, copies, h = SubVP(), [1, 3, 2], 0.2 if model is Mixture else 0.0
    images = normals(3, 4, seed=1)
    known = (
        Mixture(images.to(dtype), h, schedule, copies) if h else Memorised(images.to(dtype), schedule, copies)
    )
    t, x = number([0.01, 0.2, 0.9]), normals(3, 4, seed=2)
    x[0] = images[2] + 0.01
    got, mean = known.weights(x.to(dtype), t), known(x.to(dtype), t)
    assert mean.dtype == dtype
    near = {
        "rtol": 2e-5 if dtype == torch.float32 else 1e-10,
        "atol": 2e-5 if dtype == torch.float32 else 1e-12,
    }
    for row in range(3):
        a, s = schedule.alpha(t[row]).item(), schedule.sigma(t[row]).item()
        v = a * a * h * h + s * s
        logs = [
            math.log(c) - sum((p - a * q) ** 2 for p, q in zip(x[row].tolist(), y, strict=True)) / (2 * v)
            for c, y in zip(copies, images.tolist(), strict=True)
        ]
        top = max(logs)
        terms = [math.exp(v - top) for v in logs]
        weights = [w / sum(terms) for w in terms]
        torch.testing.assert_close(got[row], number(weights), **near)
        # each component's own conditional mean, from its precisions 1/h^2 and alpha^2/sigma^2
        parts = [
            [
                q if h == 0 else (q / h**2 + a * p / s**2) / (1 / h**2 + a * a / s**2)
                for p, q in zip(x[row].tolist(), y, strict=True)
            ]
            for y in images.tolist()
        ]
        expected = [sum(w * y[j] for w, y in zip(weights, parts, strict=True)) for j in range(4)]
        torch.testing.assert_close(mean[row].double(), number(expected), **near)


@pytest.mark.parametrize("schedule", [VP(), SubVP(), VE(), EDM()], ids=kind)
def test_float32_images_are_resolved_down_to_the_end_of_the_schedule(schedule):
    """At the smallest noise an image and a copy that differs in one grey level are told apart."""
    images = (normals(40, 784) * 0.5).clamp(-1, 1)
    images[1] = images[0]
    images[1, 300] += 1 / 255
    model = Memorised(images.float(), schedule)
    t, sigma = number(schedule.end), schedule.sigma(schedule.end).item()
    noise = normals(20, 784, seed=9)
    x = schedule.alpha(t) * images[1] + sigma * noise
    got = model.weights(x, t)[:, :2]
    shift = schedule.alpha(t) * (images.float()[1, 300] - images.float()[0, 300]).double()
    log_odds = (2 * (x[:, 300] - schedule.alpha(t) * images.float()[0, 300]) * shift - shift**2) / (
        2 * sigma**2
    )
    torch.testing.assert_close(got[:, 1], torch.sigmoid(log_odds), rtol=1e-3, atol=1e-6)
    assert bool(model.weights(x.float(), t).isfinite().all())


def test_large_sets_are_taken_in_parts(monkeypatch):
    images, t = normals(30, 4), torch.linspace(0.1, 1.0, 17, dtype=F64)
    x, model = normals(17, 4, seed=2), Mixture(images, 0.1, VP())
    whole = model(x, t), model.weights(x, t), model.log_density(x, t)
    monkeypatch.setattr(finite, "_ENTRIES", 70)  # two rows at a time
    for value, part in zip(whole, (model(x, t), model.weights(x, t), model.log_density(x, t)), strict=True):
        torch.testing.assert_close(part, value, rtol=1e-12, atol=1e-12)


# --- q, exactly ---


@pytest.mark.parametrize(
    ("noncentrality", "x"),
    [(4.0, 2.0), (0.3, 9.0), (400.0, 4.0), (2e3, 10.0), (1e5, 100.0), (1e-3, 1e-9), (5e5, 0.25)],
)
def test_balls_in_one_and_three_dimensions_have_closed_forms(noncentrality, x):
    """d = 1: Phi(b - m) - Phi(-b - m); d = 3: a density in r = |x| to integrate; down to exp(-249500)."""
    b, m = math.sqrt(x), math.sqrt(noncentrality)
    one = special.log_ndtr(b - m) + math.log1p(-math.exp(special.log_ndtr(-b - m) - special.log_ndtr(b - m)))
    assert log_ball(1, noncentrality, x) == pytest.approx(one, rel=1e-9)
    # d = 3: (exp(-(r - m)^2 / 2) - exp(-(r + m)^2 / 2)) r / (m sqrt(2 pi)), scaled by its largest value
    top = -((b - m) ** 2) / 2 if b < m else 0.0

    def scaled(r):
        return (math.exp(-((r - m) ** 2) / 2 - top) - math.exp(-((r + m) ** 2) / 2 - top)) * r / m

    inside = integrate.quad(scaled, 0, b, points=[max(0.0, b - 20 / max(m, 1.0))], epsabs=0, epsrel=1e-11)[0]
    three = math.log(inside) + top - 0.5 * math.log(2 * math.pi)
    assert log_ball(3, noncentrality, x) == pytest.approx(three, rel=1e-8)


def test_balls_where_scipy_reaches():
    for dims, n, x in (
        (64, 100.0, 60.0),
        (784, 1000.0, 1200.0),
        (10, 0.0, 3.0),
        (784, 300.0, 1500.0),
        (2, 50.0, 30.0),
    ):
        assert log_ball(dims, n, x) == pytest.approx(
            math.log(stats.ncx2.cdf(x, dims, n)), rel=1e-9, abs=1e-12
        )
    assert log_ball(5, 3.0, 0.0) == -math.inf
    for wrong in ((0, 1.0, 1.0), (2, -1.0, 1.0), (2, 1.0, math.nan), (2, math.inf, 1.0)):
        with pytest.raises(ValueError, match="needs dims >= 1"):
            log_ball(*wrong)


@pytest.mark.parametrize("radius", [0.9, 1.3])
def test_q_of_a_mixture_is_the_share_of_its_draws(radius):
    images = normals(30, 4)
    model = Mixture(images, 0.4, SubVP(), copies=list(range(1, 31)))
    draws = model.draw(Streams(2), "draws", range(20_000), 0.0)
    hits = ((draws - images[7]) ** 2).sum(1).sqrt() <= radius
    low, high = Trials(int(hits.sum()), 20_000).interval(0.999)
    assert low < model.q(images[7], radius) < high
    assert high - low < 0.03


def test_q_of_a_mixture_far_below_counting():
    """Two images: the sum of two one-ball terms, written out; 1e-100 and what float64 cannot hold."""
    images = number([[0.0, 0.0], [3.0, 0.0]])
    model = Mixture(images, 0.1, VP(), copies=[3, 1])
    near, far = (math.log(w) + log_ball(2, d**2 / 0.01, 0.04 / 0.01) for w, d in ((0.75, 2.4), (0.25, 0.6)))
    assert model.log_q(number([2.4, 0.0]), 0.2) == pytest.approx(np.logaddexp(near, far), rel=1e-12)
    assert model.log_q(number([9.0, 0.0]), 0.2) < -700
    assert 0 < model.q(number([2.4, 0.0]), 0.2) < 1e-3


def test_q_of_a_memorised_set_counts_copies():
    images = normals(4, 3)[[0, 1, 1, 2, 3]]
    assert Memorised(images, VP()).q(1) == pytest.approx(2 / 5)
    assert Memorised(images, VP(), [1, 5, 1, 1, 2]).q(2) == pytest.approx(6 / 10)
    assert Memorised(images, VP(), number([0.25, 0.125, 0.125, 0.25, 0.25])).q(0) == pytest.approx(0.25)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=kind)
@pytest.mark.parametrize("ratio", [0.3, 1.0, 4.0])
def test_return_of_two_points_by_quadrature(schedule, ratio):
    """Points -1 and 1 with weights 1/4 and 3/4: w_p is a logistic function, its mean an integral."""
    t = schedule.time(ratio).item()
    r = schedule.ratio(t).item()
    model = Memorised(number([[-1.0], [1.0]]), schedule, [1, 3])

    def integrand(e):
        return stats.norm.pdf(e) * special.expit((2 - 2 * r * e) / r**2 - math.log(3))

    # from image -1 at u = -1 + r e the odds of -1 are (1/3) exp(-2 u / r^2)
    truth = integrate.quad(integrand, -12, 12, epsabs=1e-12)[0]
    got = model.return_probability(0, t, Streams(1), 8000)
    assert abs(got.value - truth) < 3.3 * got.standard_error + 1e-9
    assert got.standard_error < 0.01


def test_hits_of_a_mixture_from_a_noised_image_by_quadrature():
    """One dimension: p(x_0 | x_t) integrated over the ball by Bayes' rule, no formula of the model used."""
    schedule, points, h, t = VP(), np.array([-1.0, 0.3]), 0.2, 0.3
    model = Mixture(torch.tensor(points)[:, None], h, schedule, [1, 2])
    alpha, sigma = schedule.alpha(t).item(), schedule.sigma(t).item()
    for x in (-1.5, -0.2, 0.8):

        def joint(y, x=x):
            return (np.array([1, 2]) / 3) @ stats.norm.pdf(y, points, h) * stats.norm.pdf(x, alpha * y, sigma)

        truth = integrate.quad(joint, 0.1, 0.7)[0] / integrate.quad(joint, -4, 4, points=[-1, 0.3])[0]
        got = model.hit_probability(number([[x]]), t, number([0.4]), 0.3).item()
        assert got == pytest.approx(truth, rel=1e-6)
    # r_t integrated over those gives P(return | t)
    grid = torch.linspace(-8, 8, 4001, dtype=F64)
    centre = alpha * 0.4
    density = torch.tensor(stats.norm.pdf((centre + sigma * grid).numpy(), centre, sigma)) * sigma
    truth = (
        density * model.hit_probability((centre + sigma * grid)[:, None], t, number([0.4]), 0.3)
    ).sum() * 0.004
    got = model.return_probability(number([0.4]), 0.3, t, Streams(3), 4000)
    assert abs(got.value - truth.item()) < 3.3 * got.standard_error


@pytest.mark.parametrize("schedule", SCHEDULES, ids=kind)
def test_draws_have_the_law_they_claim(schedule):
    """One-dimensional draws of x_t against the mixture's distribution function (Kolmogorov-Smirnov)."""
    points, h, t = np.array([-1.0, 0.2, 0.9]), 0.1, schedule.time(0.4).item()
    model = Mixture(torch.tensor(points)[:, None], h, schedule, [1, 2, 1])
    alpha, sigma = schedule.alpha(t).item(), schedule.sigma(t).item()
    spread = math.hypot(alpha * h, sigma)
    draws = model.draw(Streams(7), "ks", range(4000), t)[:, 0].numpy()
    cdf = lambda x: np.array([0.25, 0.5, 0.25]) @ stats.norm.cdf((x - alpha * points[:, None]) / spread)  # noqa: E731
    assert stats.kstest(draws, cdf).pvalue > 1e-3
    assert np.array_equal(model.draw(Streams(7), "ks", [17, 5], t)[:, 0].numpy(), draws[[17, 5]])


# --- the whole audit against the model that memorised ---


@pytest.mark.parametrize("schedule", [VP(), SubVP()], ids=kind)
@pytest.mark.parametrize("start", [0.35, 0.45, 1.0])
def test_the_whole_audit_against_the_model_that_memorised(schedule, start):
    """Alg. 1 from t = start, Euler-Maruyama on a grid quadratic in t: returns are E[w_p(x_t)]."""
    images = torch.randn(20, 16, generator=torch.Generator().manual_seed(0))
    model, t, n, streams = Memorised(images, schedule), number(start), 1500, Streams(1)
    noise = streams.noise("probe", range(n), 0, (16,))
    x = schedule.alpha(t).float() * images[5] + schedule.sigma(t).float() * noise
    expected = model.weights(x, t)[:, 5].mean().item()
    grid = torch.linspace(start**0.5, 1e-3**0.5, 300, dtype=F64) ** 2
    grid[0] = start
    *_, end = reverse(
        model,
        x,
        grid,
        EulerMaruyama(),
        lambda column: lambda draw: streams.noise("probe", range(n), column, (16,)),
    )
    hits = ((end.x - images[5]) ** 2).mean(1) < 1e-2
    low, high = Trials(int(hits.sum()), n).interval(0.999)
    assert low < expected < high


@pytest.mark.parametrize(
    "sampler",
    [
        Sampler(Ancestral(), 200, "log-snr"),
        Sampler(PredictorCorrector(0.1), 200, "log-snr"),
        Sampler(EulerMaruyama(), 300, "uniform"),
        Sampler(DPMSolverPP2M(), 40, "karras"),
        Sampler(Heun(), 40, "karras"),
        Sampler(RungeKutta(1e-4, 1e-4), 1),
    ],
    ids=lambda s: s.step.name,
)
def test_sampling_from_the_prior_returns_each_image_by_its_copies(sampler):
    """The staggered pass from T, 1,500 rows: hits of the image with 3 of 12 copies against 1/4.

    Every image that comes back is one of the set, to a mean squared error of 1e-3.
    """
    schedule, n, streams = SubVP(), 1500, Streams(6)
    images = normals(8, 16, seed=11).float()
    model = Memorised(images, schedule, [1, 1, 1, 3, 1, 1, 2, 2])

    def begin(rows):
        return schedule.prior_std * streams.noise("prior", rows, 0, (16,))

    ends = trajectories(
        model, sampler, torch.ones(n, dtype=F64), torch.arange(n), begin, streams, "walk", 500
    )
    x = torch.cat([e.x for e in ends])
    errors = ((x[:, None] - images) ** 2).mean(2)
    assert (errors.min(1).values < 1e-3).float().mean().item() > 0.99
    low, high = Trials(int((errors[:, 3] < 1e-2).sum()), n).interval(0.999)
    assert low < model.q(3) < high


# --- coins ---


def test_a_coin_lands_with_its_probability_and_only_its_own():
    coin = Coin(lambda t: 0.2 + 0.5 * t, seed=3, evaluations=7)
    ids, t = np.arange(20_000), np.where(np.arange(20_000) % 2, 0.2, 0.8)
    outcome = coin(t, ids)
    for value in (0.2, 0.8):
        low, high = Trials(int(outcome.hit[t == value].sum()), 10_000).interval(0.999)
        assert low < 0.2 + 0.5 * value < high
    order = np.random.default_rng(0).permutation(20_000)[:500]
    assert np.array_equal(coin(t[order], ids[order]).hit, outcome.hit[order])
    assert set(outcome.evaluations.tolist()) == {7}
    # the same ids at two times toss anew: were they one number each, hits at 0.2 would all be hits at 0.8
    both = coin(np.full(4000, 0.2), ids[:4000]).hit, coin(np.full(4000, 0.8), ids[:4000]).hit
    assert abs(np.corrcoef(*both)[0, 1]) < 3.3 / math.sqrt(4000)
    assert not np.array_equal(coin(t, ids).hit, Coin(coin.probability, seed=4)(t, ids).hit)
    assert coin(np.zeros(0), np.zeros(0, np.int64)).hit.shape == (0,)
    with pytest.raises(ValueError, match=r"probability in \[0, 1\]"):
        Coin(lambda t: t + 1)(np.array([0.5]), np.array([1]))


def test_a_leak_leaks_its_share():
    others, image, n = torch.arange(4.0)[:, None] + 1, torch.zeros(1), 20_000
    leak = Leak(image, others, 0.03)
    noise = Streams(0).noise("z", range(n), 0, (3,), dtype=F64)
    images = leak(noise)
    low, high = Trials(int((images == 0).sum()), n).interval(0.999)
    assert low < 0.03 < high
    for value in (1.0, 2.0, 3.0, 4.0):
        low, high = Trials(int((images == value).sum()), n).interval(0.999)
        assert low < 0.97 / 4 < high
    assert torch.equal(leak(noise[[5, 3]]), images[[5, 3]])
    assert others[:, 0].tolist() == [1.0, 2.0, 3.0, 4.0]
    with pytest.raises(ValueError, match=r"q in \[0, 1\]"):
        Leak(image, others, 1.5)


def test_models_that_mean_nothing_are_refused():
    images = normals(3, 4)
    for make, sentence in (
        (lambda: Memorised(images[:0], VP()), "n > 0"),
        (lambda: Memorised(images * math.nan, VP()), "must be finite"),
        (lambda: Memorised(images, VP(), [1, 2]), "3 images need 3 positive copies"),
        (lambda: Memorised(images, VP(), [1, 2, 0]), "3 images need 3 positive copies"),
        (lambda: Mixture(images, 0.0, VP()), "width must be a positive number"),
        (lambda: Gaussian(images[0], number([1.0, 2.0]), VP()), "std must be positive"),
        (lambda: Gaussian(images[0], number(1.0), VP(), torch.eye(3)), "basis must have shape"),
        (lambda: Memorised(images, VP())(images, number(0.0)), "no density at t = 0"),
        (lambda: Memorised(images, VP()).return_probability(0, 0.5, Streams(0), 1), "at least 2 samples"),
    ):
        with pytest.raises(ValueError, match=sentence):
            make()
