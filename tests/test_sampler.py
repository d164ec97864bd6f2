"""Samplers held to the Gaussian in closed form: orders measured, exactness where theory has it.

The model is p_0 = N(m, v): D, p_t = N(alpha m, alpha^2 v + sigma^2) and the flow are known, and are written
here from the formulas and not from `latentprint.known`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch

from latentprint.sampler import (
    DDIM,
    PAPER,
    Ancestral,
    DPMSolverPP2M,
    EulerMaruyama,
    Heun,
    PredictorCorrector,
    ReverseDiffusion,
    RungeKutta,
    Sampler,
    SDEDPMSolverPP2M,
    State,
    denoised,
    first_column,
    own_times,
    reverse,
    sampler_from,
    times,
    trajectories,
)
from latentprint.schedule import EDM, VE, VP, SubVP
from latentprint.streams import Streams

F64 = torch.float64
SCHEDULES = [VP(), SubVP(), VE(), EDM()]
DETERMINISTIC = [DDIM(), Heun(), DPMSolverPP2M()]
STOCHASTIC = [EulerMaruyama(), ReverseDiffusion(), Ancestral()]
EVERY = [*STOCHASTIC, SDEDPMSolverPP2M(), PredictorCorrector(), *DETERMINISTIC, RungeKutta()]


def kind(value):
    return type(value).__name__


def number(value):
    return torch.tensor(value, dtype=F64)


@dataclass
class Normal:
    """E[x_0 | x_t] for p_0 = N(mean, variance) in every pixel."""

    schedule: Any
    mean: float = 0.3
    variance: float = 0.25

    def moments(self, t):
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        return alpha * self.mean, alpha**2 * self.variance + sigma**2

    def __call__(self, x, t):
        alpha, (centre, spread) = self.schedule.alpha(t), self.moments(t)
        rows = (-1, *(1,) * (x.ndim - 1)) if alpha.ndim else ()
        gain = (alpha * self.variance / spread).reshape(rows).to(x.dtype)
        return self.mean + gain * (x - centre.reshape(rows).to(x.dtype))

    def flow(self, x, t, s):
        (centre, spread), (centre_s, spread_s) = self.moments(t), self.moments(s)
        return centre_s + (spread_s / spread).sqrt() * (x - centre)


def even(schedule, high, low, n):
    """n equal steps in log r."""
    grid = schedule.time(torch.linspace(math.log(high), math.log(low), n + 1, dtype=F64).exp())
    return grid


def uneven(schedule, high, low, n):
    """Steps in log r that alternate between 1 and 3 shares."""
    shares = torch.tensor([1.0, 3.0] * (n // 2), dtype=F64)
    where = torch.cat([number([0.0]), (shares / shares.sum()).cumsum(0)])
    return schedule.time((math.log(high) + where.clamp(max=1.0) * math.log(low / high)).exp())


def slope(errors):
    """Order of convergence from errors at 1, 2, 4, ... times the steps: the last two."""
    return math.log2(errors[-2] / errors[-1])


def final(states):
    *_, last = states
    return last


# --- the probability flow ---


@pytest.mark.parametrize("grid", [even, uneven], ids=["even", "uneven"])
@pytest.mark.parametrize(("step", "order"), [(DDIM(), 1), (Heun(), 2), (DPMSolverPP2M(), 2)])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=kind)
def test_deterministic_steps_have_their_order(schedule, step, order, grid):
    """Error against the closed-form flow, r from 3 to 0.05; the order is that of theory to 0.1."""
    model, errors = Normal(schedule), []
    for n in (64, 128, 256):
        t = grid(schedule, 3.0, 0.05, n)
        x = number([[-2.0], [0.1], [1.7]]) * math.hypot(1, 3) * schedule.alpha(t[0])
        end = final(reverse(model, x, t, step)).x
        errors.append((end - model.flow(x, t[0], t[-1])).abs().max().item())
    assert slope(errors) == pytest.approx(order, abs=0.1)
    assert errors[-1] < {1: 2e-2, 2: 4e-4}[order]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=kind)
def test_runge_kutta_has_order_five(schedule):
    """With no tolerance to keep it takes one step of its pair per interval, here of less than 0.1."""
    model, errors = Normal(schedule), []
    for n in (45, 90):
        t = even(schedule, 3.0, 0.05, n)
        x = number([[-2.0], [0.1], [1.7]]) * math.hypot(1, 3) * schedule.alpha(t[0])
        end = final(reverse(model, x, t, RungeKutta(0.0, 1e6)))
        assert end.evaluations.tolist() == [1 + 6 * n] * 3
        errors.append((end.x - model.flow(x, t[0], t[-1])).abs().max().item())
    assert slope(errors) == pytest.approx(5, abs=0.3)
    assert errors[-1] < 1e-9


@pytest.mark.parametrize("schedule", SCHEDULES, ids=kind)
def test_runge_kutta_keeps_its_tolerance_and_spends_more_for_less(schedule):
    model, spent = Normal(schedule), []
    t = even(schedule, 20.0, 0.02, 1)
    x = number([[-2.0], [0.4], [1.7]]) * 20 * schedule.alpha(t[0])
    truth = model.flow(x, t[0], t[1])
    for tolerance in (1e-3, 1e-5, 1e-7):
        end = final(reverse(model, x, t, RungeKutta(tolerance, tolerance)))
        assert (end.x - truth).abs().max().item() < 10 * tolerance
        spent.append(int(end.evaluations.max()))
    assert spent[0] < spent[1] < spent[2]
    assert (spent[2] - 1) / (spent[1] - 1) == pytest.approx(
        100 ** (1 / 5), rel=0.35
    )  # order 5: n ~ tol^(-1/5)


def test_runge_kutta_rows_do_not_know_each_other():
    """A row among others that need far smaller steps has the very bits, and the cost, that it has alone."""

    class Rows:
        schedule = VP()

        def __call__(self, x, t):
            return torch.tanh(x * torch.tensor([1.0, 40.0], dtype=x.dtype))

    t, step = even(VP(), 20.0, 0.02, 1), RungeKutta(1e-6, 1e-6)
    x = number([[0.3, 0.01], [1.5, -0.2], [5.0, 3.0]])
    together = final(reverse(Rows(), x, t, step))
    assert len(set(together.evaluations.tolist())) > 1
    for i in range(3):
        alone = final(reverse(Rows(), x[i : i + 1], t, step))
        assert torch.equal(alone.x[0], together.x[i])
        assert alone.evaluations.item() == together.evaluations[i].item()


def test_runge_kutta_says_when_a_type_is_too_coarse_for_its_tolerance():
    model = Normal(VP())
    with pytest.raises(ValueError, match=r"rtol 0, atol 1e-14 are too small for torch.float32"):
        final(reverse(model, torch.ones(2, 4), even(VP(), 3.0, 0.05, 1), RungeKutta(0.0, 1e-14)))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=kind)
def test_one_heun_step_is_algorithm_1_of_karras(schedule):
    """d = (x - D) / r at both ends, their mean over the step; a long step, where its kin differ."""
    model, (t, s) = Normal(schedule), even(schedule, 3.0, 0.5, 1)
    u, x = 1.4, 1.4 * schedule.alpha(t)
    slope_t = (u - model(x, t)) / 3.0
    trial = u + (0.5 - 3.0) * slope_t
    slope_s = (trial - model(schedule.alpha(s) * trial, s)) / 0.5
    expected = schedule.alpha(s) * (u + (0.5 - 3.0) * (slope_t + slope_s) / 2)
    got = Heun()(model, State.at(x[None, None], t), s, None)
    assert got.x.item() == pytest.approx(expected.item(), rel=1e-9)
    assert got.evaluations.item() == 2


@pytest.mark.parametrize("schedule", SCHEDULES, ids=kind)
def test_two_2m_steps_are_algorithm_2_of_lu(schedule):
    """x_s = (sigma_s / sigma_t) x - alpha_s (e^-h - 1) D, then D (1 + 1/2r) - D' / 2r, r = h'/h, for D."""
    model = Normal(schedule)
    t0, t1, t2 = schedule.time(number([3.0, 1.8, 0.4]))
    x0 = 1.4 * schedule.alpha(t0)
    first, second = math.log(3.0 / 1.8), math.log(1.8 / 0.4)

    def formula(x, d, t, s, h):
        return schedule.sigma(s) / schedule.sigma(t) * x - schedule.alpha(s) * math.expm1(-h) * d

    d0 = model(x0, t0)
    x1 = formula(x0, d0, t0, t1, first)
    d1, r = model(x1, t1), first / second
    x2 = formula(x1, (1 + 1 / (2 * r)) * d1 - d0 / (2 * r), t1, t2, second)
    states = list(reverse(model, x0[None, None], torch.stack([t0, t1, t2]), DPMSolverPP2M()))
    assert [state.x.item() for state in states] == pytest.approx([x1.item(), x2.item()], rel=1e-9)


# --- the reverse SDE ---


def affine(step, model, t, s):
    """(a, b, c) of x_s = a x + b + c z for this affine model: read off from three rows."""
    x, z = number([[1.0], [0.0], [0.0]]), number([[0.0], [0.0], [1.0]])
    a, b, c = step(model, State.at(x, t), s, lambda draw: z).x[:, 0].tolist()
    return a - b, b, c - b


@pytest.mark.parametrize("step", STOCHASTIC, ids=kind)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=kind)
def test_stochastic_steps_have_weak_order_one(schedule, step):
    """Mean and variance of the chain, exactly by recursion, against p_s: the reverse SDE keeps p_t."""
    model, errors = Normal(schedule), []
    for n in (64, 128, 256):
        grid = even(schedule, 3.0, 0.3, n)
        mean, variance = (m.item() for m in model.moments(grid[0]))
        for t, s in pairwise(grid):
            a, b, c = affine(step, model, t, s)
            mean, variance = a * mean + b, a * a * variance + c * c
        true_mean, true_variance = (m.item() for m in model.moments(grid[-1]))
        errors.append((abs(mean - true_mean), abs(variance - true_variance)))
    spread = [e[1] for e in errors]
    assert slope(spread) == pytest.approx(1, abs=0.1)
    assert spread[-1] < 0.01
    centre = [e[0] for e in errors]
    assert centre[-1] < 1e-12 or slope(centre) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("grid", [even, uneven], ids=["even", "uneven"])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=kind)
def test_the_stochastic_multistep_has_weak_order_two(schedule, grid):
    """x is affine in x_T and the noises; the columns of that map, from unit rows, give the exact moments.

    A first step of order 1 is one of n, so that the order of the whole is 2.
    """
    model, errors = Normal(schedule), []
    for n in (16, 32, 64):
        t = grid(schedule, 3.0, 0.3, n)
        unit = torch.eye(n + 2, dtype=F64)[:, :, None]  # x_T, then the noise of each step, then none of them
        walk = reverse(model, unit[:, 0], t, SDEDPMSolverPP2M(), lambda k, unit=unit: lambda _: unit[:, k])
        end = final(walk).x[:, 0]
        constant, parts = end[-1], end[:-1] - end[-1]
        centre, spread = model.moments(t[0])
        mean, variance = constant + parts[0] * centre, parts[0] ** 2 * spread + parts[1:].square().sum()
        true_mean, true_variance = model.moments(t[-1])
        errors.append(((mean - true_mean).abs().item(), (variance - true_variance).abs().item()))
    for one in zip(*errors, strict=True):
        assert one[-1] < 1e-12 or slope(one) == pytest.approx(2, abs=0.15)
    assert errors[-1][1] < 1e-3


@pytest.mark.parametrize("schedule", SCHEDULES, ids=kind)
def test_the_stochastic_multistep_is_that_of_lu(schedule):
    """k x + alpha_s g (D + (D - D') / 2r) + sigma_s sqrt(g) z; k = e^-h sigma_s / sigma_t, g = 1 - e^-2h."""
    model = Normal(schedule)
    t0, t1, t2 = schedule.time(number([3.0, 1.8, 0.4]))
    x0, z1, z2 = 1.4 * schedule.alpha(t0), 0.3, -1.1
    first, second = math.log(3.0 / 1.8), math.log(1.8 / 0.4)

    def formula(x, d, t, s, h, z):
        keep = schedule.sigma(s) / schedule.sigma(t) * math.exp(-h)
        gain = -math.expm1(-2 * h)
        return keep * x + schedule.alpha(s) * gain * d + schedule.sigma(s) * math.sqrt(gain) * z

    d0 = model(x0, t0)
    x1 = formula(x0, d0, t0, t1, first, z1)
    d1, r = model(x1, t1), first / second
    x2 = formula(x1, d1 + (d1 - d0) / (2 * r), t1, t2, second, z2)
    drawn = {1: number([[z1]]), 2: number([[z2]])}
    grid = torch.stack([t0, t1, t2])
    states = list(reverse(model, x0[None, None], grid, SDEDPMSolverPP2M(), lambda k: lambda _: drawn[k]))
    assert [state.x.item() for state in states] == pytest.approx([x1.item(), x2.item()], rel=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=kind)
def test_euler_maruyama_has_strong_order_one(schedule):
    """Against the same Brownian motion on a fine grid: order 1, because the noise does not depend on x."""
    model, fine, paths = Normal(schedule), 1024, 200
    high, low = schedule.time(2.0).item(), schedule.time(0.1).item()
    dw = torch.randn(fine, paths, 1, generator=torch.Generator().manual_seed(3), dtype=F64)
    x = number(2.0) * schedule.alpha(high) * torch.linspace(-2, 2, paths, dtype=F64)[:, None]

    def run(n):
        each = fine // n
        z = dw.reshape(n, each, paths, 1).sum(1) / math.sqrt(each)
        grid = torch.linspace(high, low, n + 1, dtype=F64)
        return final(reverse(model, x, grid, EulerMaruyama(), lambda column: lambda draw: z[column - 1])).x

    truth = run(fine)
    errors = [(run(n) - truth).square().mean().sqrt().item() for n in (16, 32, 64)]
    assert slope(errors) == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("step", [Ancestral(), SDEDPMSolverPP2M(), *DETERMINISTIC], ids=kind)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=kind)
def test_one_image_is_sampled_exactly_in_any_number_of_steps(schedule, step):
    """For a single image D is constant: ancestral sampling keeps N(alpha m, sigma^2) exactly, the ODE too."""
    model = Normal(schedule, mean=0.7, variance=0.0)
    grid = even(schedule, 3.0, 0.05, 3)
    mean, variance = (m.item() for m in model.moments(grid[0]))
    for t, s in pairwise(grid):
        a, b, c = affine(step, model, t, s)
        mean, variance = a * mean + b, a * a * variance + c * c
    true_mean, true_variance = (m.item() for m in model.moments(grid[-1]))
    assert mean == pytest.approx(true_mean, rel=1e-12)
    assert variance == pytest.approx(true_variance, rel=1e-11)


@pytest.mark.parametrize("schedule", [VP(), SubVP(), VE(), EDM()], ids=kind)
def test_one_euler_maruyama_step_is_equation_6_of_song(schedule):
    """x - [f x - g^2 score] dt + g sqrt(dt) z with the score written out for N(m, v)."""
    model, t, s = Normal(schedule), 0.6, 0.55
    x, z = 1.3, -0.7
    f, g2 = schedule.drift(t).item(), schedule.diffusion2(t).item()
    centre, spread = (m.item() for m in model.moments(number(t)))
    gradient = -(x - centre) / spread
    expected = x - (f * x - g2 * gradient) * (t - s) + math.sqrt(g2 * (t - s)) * z
    got = EulerMaruyama()(model, State.at(number([[x]]), t), s, lambda draw: number([[z]])).x.item()
    assert got == pytest.approx(expected, rel=1e-12)


def song(schedule, t, s):
    """(factor of x, factor of the score) in the predictors of Song et al. 2021, algorithms 2 (VE), 3 (VP)."""
    if isinstance(schedule, VE | EDM):
        return 1.0, (schedule.sigma(t) ** 2 - schedule.sigma(s) ** 2).item()
    beta = 1 - math.exp(-(schedule.integral(t) - schedule.integral(s)).item())
    if isinstance(schedule, VP):
        return 2 - math.sqrt(1 - beta), beta
    # sub-VP: variance of x_t given x_s, integral of (alpha_t / alpha_u)^2 g(u)^2 du, by the midpoint rule
    u = torch.linspace(s, t, 20001, dtype=F64)
    u = (u[1:] + u[:-1]) / 2
    weight = (schedule.alpha(number(t)) / schedule.alpha(u)) ** 2 * schedule.diffusion2(u)
    return 2 - math.sqrt(1 - beta), (weight.mean() * (t - s)).item()


@pytest.mark.parametrize("schedule", SCHEDULES, ids=kind)
def test_predictor_and_corrector_are_algorithms_2_to_5_of_song(schedule):
    """One step by hand: predict with the score at t, correct with that at s, norms of each row."""
    model, t, s, snr = Normal(schedule), 0.6, 0.59, 0.16
    generator = torch.Generator().manual_seed(1)
    x, z0, z1, z2 = (torch.randn(2, 50, generator=generator, dtype=F64) for _ in range(4))

    def gradient(x, t):
        centre, spread = model.moments(number(t))
        return -(x - centre) / spread

    factor, gain = song(schedule, t, s)
    expected = factor * x + gain * gradient(x, t) + math.sqrt(gain) * z0
    torch.testing.assert_close(
        ReverseDiffusion()(model, State.at(x, t), s, lambda draw: z0).x, expected, rtol=1e-7, atol=1e-9
    )
    a = math.exp(2 * schedule.drift(s).item() * (t - s))
    if isinstance(schedule, VP | SubVP):  # Song's 1 - beta, which is 0.89 here
        assert a == pytest.approx(math.exp((schedule.integral(s) - schedule.integral(t)).item()), rel=2e-3)
    for z in (z1, z2):
        g = gradient(expected, s)
        size = 2 * a * (snr * z.norm(dim=1, keepdim=True) / g.norm(dim=1, keepdim=True)) ** 2
        expected = expected + size * g + (2 * size).sqrt() * z
    asked = []

    def noise(draw):
        asked.append(draw)
        return (z0, z1, z2)[draw]

    got = PredictorCorrector(snr, corrections=2)(model, State.at(x, t), s, noise)
    assert asked == [0, 1, 2]
    assert got.evaluations.tolist() == [3, 3]
    torch.testing.assert_close(got.x, expected, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=kind)
def test_corrections_at_s_leave_the_law_at_s(schedule):
    """Langevin steps with the score of p_s keep N(alpha_s m, ..): 400 small ones, 512 pixels."""
    model, s = Normal(schedule), schedule.time(0.4)
    streams, step = Streams(0), PredictorCorrector(0.05)
    centre, spread = (m.item() for m in model.moments(s))
    x = centre + math.sqrt(spread) * streams.noise("start", range(4), 0, (512,), dtype=F64)
    rows, shrink = s.expand(4), torch.ones(4, dtype=F64)
    squares = []
    for i in range(1, 401):
        x = step.correct(model, x, rows, shrink, streams.noise("langevin", range(4), i, (512,), dtype=F64))
        squares.append(((x - centre) ** 2).mean().item())
    # at this snr the chain's own variance is 0.25 % above; the mean over steps scatters by about 1 %
    assert sum(squares[100:]) / 300 == pytest.approx(spread, rel=0.04)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=kind)
def test_predictor_corrector_samples_the_law(schedule):
    """From p_t at r = 20 to r = 0.05 in 300 steps: mean and variance over 16 x 256 pixels."""
    model, grid, streams = Normal(schedule), even(schedule, 20.0, 0.05, 300), Streams(5)
    centre, spread = (m.item() for m in model.moments(grid[0]))
    x = centre + math.sqrt(spread) * streams.noise("start", range(16), 0, (256,), dtype=F64)

    def noise_of_step(column):
        return lambda draw: streams.noise("p", range(16), column, (256,), dtype=F64, draw=draw)

    end = final(reverse(model, x, grid, PredictorCorrector(0.1), noise_of_step)).x
    centre, spread = (m.item() for m in model.moments(grid[-1]))
    assert end.mean().item() == pytest.approx(centre, abs=4 * math.sqrt(spread / 4096))
    assert end.var().item() == pytest.approx(spread, rel=0.1)


# --- grids ---


@pytest.mark.parametrize("schedule", SCHEDULES, ids=kind)
def test_grids_are_the_published_ones(schedule):
    n, i = 7, 3
    for spacing in ("uniform", "log-snr", "karras"):
        grid = times(schedule, n, spacing)
        assert len(grid) == n + 1
        assert (grid[0].item(), grid[-1].item()) == (schedule.start, schedule.end)
        assert bool((grid.diff() < 0).all())
    high, low = schedule.ratio(schedule.start).item(), schedule.ratio(schedule.end).item()
    assert times(schedule, n, "uniform")[i].item() == pytest.approx(
        schedule.start + i / n * (schedule.end - schedule.start), rel=1e-12
    )
    assert schedule.ratio(times(schedule, n, "log-snr")[i]).item() == pytest.approx(
        high ** (1 - i / n) * low ** (i / n), rel=1e-9
    )
    # Karras et al. 2022, Eq. 5
    expected = (high ** (1 / 7) + i / n * (low ** (1 / 7) - high ** (1 / 7))) ** 7
    assert schedule.ratio(times(schedule, n, "karras")[i]).item() == pytest.approx(expected, rel=1e-9)


def test_where_a_row_joins_the_grid():
    grid = number([1.0, 0.8, 0.6, 0.4])
    t = number([1.0, 0.99, 0.8, 0.7999, 0.65, 0.64, 0.61, 0.41, 0.4, 0.39, 0.0])
    #           grid  own  grid  own    1/4   less  less   last  end  below
    assert first_column(grid, t).tolist() == [1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]
    assert own_times(grid, 0.7).tolist() == [0.7, 0.6, 0.4]
    assert own_times(grid, 0.61).tolist() == [0.61, 0.4]
    assert own_times(grid, 0.4).tolist() == [0.4]
    assert own_times(grid, 1.0).tolist() == grid.tolist()
    for wrong in (1.1, -0.1, float("nan")):
        with pytest.raises(ValueError, match="rows must start in"):
            first_column(grid, number([0.5, wrong]))


# --- the staggered pass ---


class TwoImages:
    """The exact denoiser of {-1, +1} (weights 0.3, 0.7) in every pixel by itself: not affine, stiff."""

    def __init__(self, schedule):
        self.schedule, self.batches = schedule, []

    def __call__(self, x, t):
        self.batches.append(len(x))
        tilt = (self.schedule.alpha(t) / self.schedule.sigma(t) ** 2).expand(len(x))[:, None, None]
        return torch.tanh(tilt.to(x.dtype) * x + 0.5 * math.log(0.7 / 0.3))


def one_at_a_time(model, sampler, t, key, begin, streams, purpose):
    """The slow reference: a row by itself, through the plain loop, with its noise asked for by hand."""
    grid = sampler.grid(model.schedule)
    first = int(first_column(grid, number([t])))

    def noise_of_step(column):
        place = first + column - 1  # the column of the common grid
        return lambda draw: streams.noise(purpose, [key], place, (2, 3), dtype=F64, draw=draw)

    state = State.at(begin(), t)
    if first < len(grid):
        state = final(reverse(model, begin(), own_times(grid, t), sampler.step, noise_of_step))
    return denoised(model, state) if sampler.denoise else state


@pytest.mark.parametrize("denoise", [True, False])
@pytest.mark.parametrize("step", EVERY, ids=kind)
def test_staggered_rows_are_the_rows_of_the_plain_loop(step, denoise):
    """Whatever the batch and the order: the same evaluations, values to the last digits."""
    schedule, streams, n = SubVP(), Streams(4), 23
    sampler = Sampler(step, 9, "karras", denoise)
    starts = torch.rand(n, generator=torch.Generator().manual_seed(0), dtype=F64)
    starts[:6] = torch.cat([number([1.0, 0.0, 1e-3, 5e-4]), sampler.grid(schedule)[3:5]])
    keys = torch.arange(100, 100 + n)
    noise = streams.noise("p", keys, 0, (2, 3), dtype=F64)
    begun = schedule.alpha(starts)[:, None, None] * 0.9 + schedule.sigma(starts)[:, None, None] * noise
    expected = [
        one_at_a_time(TwoImages(schedule), sampler, t, k, lambda i=i: begun[i : i + 1], streams, "p")
        for i, (t, k) in enumerate(zip(starts.tolist(), keys.tolist(), strict=True))
    ]
    for batch, order in (
        (1, slice(None)),
        (4, slice(None)),
        (64, torch.randperm(n, generator=torch.Generator().manual_seed(1))),
    ):
        s, k, b = starts[order], keys[order], begun[order]
        seen = {}
        for ended in trajectories(
            TwoImages(schedule), sampler, s, k, lambda rows, b=b: b[rows], streams, "p", batch
        ):
            for row, x, cost in zip(ended.rows.tolist(), ended.x, ended.evaluations.tolist(), strict=True):
                assert k[row].item() not in seen
                seen[k[row].item()] = x, cost
        assert sorted(seen) == keys.tolist()
        for i, key in enumerate(keys.tolist()):
            x, cost = seen[key]
            assert cost == expected[i].evaluations.item()
            torch.testing.assert_close(x, expected[i].x[0], rtol=1e-9, atol=1e-9)


def test_evaluations_are_counted_as_made():
    """The counts of all rows add up to the rows the denoiser saw, and to what the sampler foretold."""
    schedule = VP()
    for step in (EulerMaruyama(), PredictorCorrector(0.1, 2), Heun(), DPMSolverPP2M()):
        model, sampler = TwoImages(schedule), Sampler(step, 5, "log-snr")
        starts = number([1.0, 0.5, 0.3, 0.3, 0.02, 0.0])
        done = list(
            trajectories(
                model,
                sampler,
                starts,
                torch.arange(6),
                lambda r: torch.ones(len(r), 2, 3),
                Streams(0),
                "p",
                2,
            )
        )
        rows, cost = torch.cat([d.rows for d in done]), torch.cat([d.evaluations for d in done])
        assert sum(model.batches) == cost.sum().item()
        foretold = [sampler.evaluations(schedule, t) for t in starts.tolist()]
        assert cost[rows.argsort()].tolist() == foretold
        assert sampler.evaluations(schedule) == 5 * step.evaluations + 1
    assert Sampler(RungeKutta(), 1).evaluations(schedule) is None


def test_batches_are_full_until_the_rows_run_out():
    """40 rows of different lengths in batches of 8: every batch is full while rows wait."""
    model, n, batch = TwoImages(VP()), 40, 8
    sampler = Sampler(DDIM(), 20, "uniform", denoise=True)
    starts = torch.linspace(0.05, 1.0, n, dtype=F64)
    done = list(
        trajectories(
            model,
            sampler,
            starts,
            torch.arange(n),
            lambda r: torch.ones(len(r), 2, 3),
            Streams(0),
            "p",
            batch,
        )
    )
    total = int(torch.cat([d.evaluations for d in done]).sum())
    # only the tail, which is as long as one longest row at most, is not full
    assert len(model.batches) <= total / batch + 21
    full = sum(size == batch for size in model.batches)
    assert full >= total / batch - 21


class Recorder:
    """Streams that keep what they were asked for."""

    def __init__(self):
        self.asked = []

    def noise(self, purpose, ids, step, shape, *, device, dtype, draw=0):
        steps = torch.as_tensor(step).expand(len(ids)).tolist()
        self.asked += [
            (purpose, i, s, draw) for i, s in zip(torch.as_tensor(ids).tolist(), steps, strict=True)
        ]
        return Streams(0).noise(purpose, ids, step, shape, device=device, dtype=dtype, draw=draw)


@pytest.mark.parametrize("step", [EulerMaruyama(), Ancestral(), PredictorCorrector(0.1, 2)], ids=kind)
def test_no_random_number_is_used_twice(step):
    recorder = Recorder()
    starts = number([1.0, 1.0, 0.4, 0.2])
    done = trajectories(
        TwoImages(VP()),
        Sampler(step, 6, "uniform"),
        starts,
        torch.tensor([5, 9, 11, 2]),
        lambda r: torch.ones(len(r), 2, 3),
        recorder,
        "p",
        3,
    )
    steps = sum(int(d.evaluations.sum()) - len(d.rows) for d in done) // step.evaluations
    assert len(recorder.asked) == steps * step.draws
    assert len(set(recorder.asked)) == len(recorder.asked)
    assert {key for _, key, _, _ in recorder.asked} == {5, 9, 11, 2}
    assert min(column for _, _, column, _ in recorder.asked) == 1  # step 0 is left to the beginning


def test_gradients_and_modes_are_left_alone():
    done = trajectories(
        TwoImages(VP()),
        Sampler(DDIM(), 3),
        number([1.0] * 4),
        torch.arange(4),
        lambda r: torch.ones(len(r), 2, 3, requires_grad=True),
        Streams(0),
        "p",
        2,
    )
    for ended in done:
        assert torch.is_grad_enabled()
        assert not ended.x.requires_grad
    x = torch.ones(1, 2, 3, dtype=F64, requires_grad=True)
    end = final(reverse(TwoImages(VP()), x, even(VP(), 3.0, 0.5, 4), DPMSolverPP2M())).x
    (gradient,) = torch.autograd.grad(end.sum(), x)
    assert bool((gradient.abs() > 0).all())


def test_float32_follows_float64():
    for step in DETERMINISTIC:
        model, grid = Normal(SubVP()), times(SubVP(), 40, "karras")
        x = torch.randn(5, 9, generator=torch.Generator().manual_seed(0), dtype=F64)
        narrow, wide = (final(reverse(model, v, grid, step)).x for v in (x.float(), x))
        assert narrow.dtype == torch.float32
        torch.testing.assert_close(narrow, wide.float(), rtol=0, atol=2e-5)


# --- names and refusals ---


def test_samplers_go_round_by_their_description():
    for step in EVERY:
        sampler = Sampler(step, 12, "log-snr", denoise=False)
        assert sampler_from(sampler.describe()) == sampler
        assert sampler.describe()["stochastic"] == (step.draws > 0)
    assert PAPER.describe() == {
        "step": "euler-maruyama",
        "steps": 1000,
        "spacing": "uniform",
        "denoise": True,
        "stochastic": True,
    }
    good = PAPER.describe()
    for change, sentence in (
        ({"step": "rk4"}, "a step is one of"),
        ({"eta": 1.0}, r"needs steps and knows .*eta"),
        ({"stochastic": False}, "has stochastic = True"),
        ({"steps": 0}, "at least 1 step"),
    ):
        with pytest.raises(ValueError, match=sentence):
            sampler_from(good | change)
    with pytest.raises(ValueError, match="needs steps"):
        sampler_from({"step": "heun"})


@pytest.mark.parametrize(
    ("grid", "sentence"),
    [
        ([0.5, 0.5], "falls strictly"),
        ([0.2, 0.5], "falls strictly"),
        ([0.5, float("nan")], "falls strictly"),
        ([1.2, 0.5], r"must lie in \(0, 1\], got \[1.2, 0.5\]"),
        ([0.5, 0.0], r"must lie in \(0, 1\]"),
        ([0.5, -0.1], r"must lie in \(0, 1\]"),
        ([], r"must lie in"),
    ],
)
def test_times_that_are_no_descent_are_refused(grid, sentence):
    with pytest.raises(ValueError, match=sentence):
        reverse(Normal(VP()), torch.ones(1, 2), number(grid), DDIM())


@pytest.mark.parametrize("step", EVERY[:-1], ids=kind)
def test_steps_go_down_only(step):
    state = State.at(number([[1.0], [1.0]]), number([0.5, 0.2]))
    with pytest.raises(ValueError, match=r"row 1 stands at 0.2 and should go to 0.3"):
        step(Normal(VP()), state, number(0.3), lambda draw: number([[0.0], [0.0]]))


class Wrong:
    """Right at first, wrong from the second evaluation on: refusals must hold at every step."""

    schedule = VP()

    def __init__(self, answer):
        self.answer, self.calls = answer, 0

    def __call__(self, x, t):
        self.calls += 1
        return x * 0.1 if self.calls == 1 else self.answer(x)


@pytest.mark.parametrize("step", EVERY, ids=kind)
@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (lambda x: x[:, :1], "given shape"),
        (lambda x: x.double(), "given torch.float32 and returned torch.float64"),
        (lambda x: x * float("nan"), "NaN or infinity"),
    ],
    ids=["shape", "dtype", "nan"],
)
def test_wrong_answers_of_a_denoiser_stop_the_walk(step, answer, sentence):
    noise = Streams(0)
    with pytest.raises(ValueError, match=sentence):
        final(
            reverse(
                Wrong(answer),
                torch.ones(1, 2),
                number([0.9, 0.5, 0.2]),
                step,
                lambda column: lambda draw: noise.noise("n", [0], column, (2,), draw=draw),
            )
        )


def test_settings_that_mean_nothing_are_refused():
    model, one = Normal(VP()), torch.ones(1, 2)
    with pytest.raises(ValueError, match="'ancestral' draws noise"):
        reverse(model, one, number([0.5, 0.2]), Ancestral())
    with pytest.raises(ValueError, match="float32 or float64"):
        reverse(model, one.half(), number([0.5, 0.2]), DDIM())
    with pytest.raises(ValueError, match="2 rows need one time or 2 times"):
        State.at(torch.ones(2, 2), number([0.1, 0.2, 0.3]))
    with pytest.raises(ValueError, match="at least 1 step"):
        times(VP(), 0, "uniform")
    with pytest.raises(ValueError, match="uniform, log-snr, karras; got 'cosine'"):
        times(VP(), 3, "cosine")
    with pytest.raises(ValueError, match="snr > 0"):
        PredictorCorrector(0.0)
    with pytest.raises(ValueError, match="tolerances"):
        RungeKutta(0.0, 0.0)
    with pytest.raises(ValueError, match="rows of equal length"):
        trajectories(model, PAPER, number([0.5]), torch.arange(2), lambda r: one, Streams(0), "p")
    with pytest.raises(ValueError, match="at least 1 row"):
        trajectories(model, PAPER, number([0.5]), torch.arange(1), lambda r: one, Streams(0), "p", 0)
    with pytest.raises(ValueError, match=r"rows must start in \[0, 1\]"):
        trajectories(model, PAPER, number([1.5]), torch.arange(1), lambda r: one, Streams(0), "p")
