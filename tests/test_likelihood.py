"""Held to normal distributions and mixtures of them, whose p_t is known in closed form under every schedule.

x_0 ~ N(mu, C) gives x_t ~ N(alpha mu, alpha^2 C + sigma^2), and the probability-flow ODE moves x_t so that
(x_t - alpha mu) keeps its number of standard deviations along every eigenvector of C.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from latentprint.likelihood import (
    Exact,
    Hutchinson,
    bits_per_dim,
    dequantise,
    grey_step,
    integrate,
    log_likelihood,
)
from latentprint.likelihood.divergence import draw_probes
from latentprint.schedule import EDM, VE, VP, Schedule, SubVP
from latentprint.streams import Streams

SHAPE = (1, 3, 4)
DIMS = 12
SCHEDULES: list[Schedule] = [VP(), SubVP(), VE(), EDM()]


@dataclass
class Gaussian:
    """x_0 ~ N(mean, frame diag(spread) frame^T), images of shape SHAPE."""

    schedule: Schedule
    mean: Tensor  # (d,)
    spread: Tensor  # (d,)
    frame: Tensor  # (d, d), orthogonal

    def __call__(self, x: Tensor, t: Tensor, /) -> Tensor:
        alpha, variance, sigma = self.schedule.alpha(t)[:, None], self.variance(t), self.schedule.sigma(t)
        z = (x.flatten(1).double() - alpha * self.mean) @ self.frame
        assert sigma.shape == t.shape
        return (self.mean + (z * alpha * self.spread / variance) @ self.frame.T).view(x.shape).to(x.dtype)

    def variance(self, t: Tensor) -> Tensor:
        return (self.schedule.alpha(t) ** 2)[:, None] * self.spread + (self.schedule.sigma(t) ** 2)[:, None]

    def log_density(self, x: Tensor, t: Tensor) -> Tensor:
        z = (x.flatten(1).double() - self.schedule.alpha(t)[:, None] * self.mean) @ self.frame
        variance = self.variance(t)
        return -0.5 * (z**2 / variance + (2 * math.pi * variance).log()).sum(1)

    def carry(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """x_t moved to time s by the ODE."""
        z = (x.flatten(1) - self.schedule.alpha(t)[:, None] * self.mean) @ self.frame
        z = z * (self.variance(s) / self.variance(t)).sqrt()
        return (z @ self.frame.T + self.schedule.alpha(s)[:, None] * self.mean).view(x.shape)

    def model_log_density(self, x: Tensor, t: Tensor) -> Tensor:
        """Of the model that draws x_T from N(0, prior_std^2), which is not quite N(alpha mu, ...)."""
        last = torch.full_like(t, self.schedule.start)
        end, std = self.carry(x, t, last).flatten(1), self.schedule.prior_std
        prior = -0.5 * ((end / std) ** 2 + math.log(2 * math.pi * std**2)).sum(1)
        return prior + 0.5 * (self.variance(last) / self.variance(t)).log().sum(1)


@dataclass
class Mixture:
    """Equal shares of N(centre, width^2 I): a denoiser that bends."""

    schedule: Schedule
    centres: Tensor  # (m, *shape)
    width: float

    def parts(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        variance = (alpha**2 * self.width**2 + sigma**2)[:, None]
        gap = x.flatten(1)[:, None] - alpha[:, None, None] * self.centres.flatten(1)
        return -0.5 * (gap**2).sum(2) / variance, variance

    def __call__(self, x: Tensor, t: Tensor, /) -> Tensor:
        logits, variance = self.parts(x, t)
        mean = (logits.softmax(1)[:, :, None] * self.centres.flatten(1)).sum(1)
        alpha = self.schedule.alpha(t)[:, None]
        return (mean + alpha * self.width**2 / variance * (x.flatten(1) - alpha * mean)).view(x.shape)

    def log_density(self, x: Tensor, t: Tensor) -> Tensor:
        logits, variance = self.parts(x, t)
        d = x[0].numel()
        scale = d / 2 * (2 * math.pi * variance[:, 0]).log()
        return logits.logsumexp(1) - math.log(len(self.centres)) - scale


def gaussian(schedule: Schedule) -> Gaussian:
    rng = np.random.default_rng(0)
    frame = np.linalg.qr(rng.normal(size=(DIMS, DIMS)))[0]
    spread = np.geomspace(0.02, 1.5, DIMS)
    return Gaussian(schedule, *(torch.tensor(v) for v in (rng.uniform(-0.5, 0.5, DIMS), spread, frame)))


def mixture(schedule: Schedule, shape: tuple[int, ...] = (1, 2, 2)) -> Mixture:
    half = torch.tensor(np.random.default_rng(1).uniform(-1, 1, (2, *shape)))
    return Mixture(schedule, torch.cat([half, -half]), 0.2)


def images(n: int, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.tensor(np.random.default_rng(2).normal(size=(n, *shape)) * 0.6)


def grid(schedule: Schedule, n: int, low: float | None = None, high: float | None = None) -> Tensor:
    """Times from low to high, evenly spaced in log(sigma / alpha)."""
    ends = torch.tensor([low or schedule.end, high or schedule.start], dtype=torch.float64)
    first, last = schedule.ratio(ends).log().tolist()
    times = schedule.time(torch.linspace(first, last, n + 1, dtype=torch.float64).exp())
    times[0], times[-1] = ends
    return times


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("upwards", [True, False])
def test_the_flow_carries_the_density_of_a_gaussian_both_ways(schedule, upwards):
    model, times = gaussian(schedule), grid(schedule, 60)
    times = times if upwards else times.flip(0)
    first = times[:1].expand(3)
    x = images(3) if upwards else images(3) * schedule.prior_std
    for to in (times[8], times[31], times[-1]):
        state = integrate(model, x, first, to, Exact(), tolerance=1e-7)
        moved = model.carry(x, first, state.t)
        scale = (schedule.alpha(state.t) ** 2 + schedule.sigma(state.t) ** 2).sqrt()[:, None, None, None]
        assert ((state.x - moved) / scale).abs().max() < 1e-4
        want = model.log_density(moved, state.t) - model.log_density(x, first)
        assert (state.log_density_change - want).abs().max() < 1e-3
        assert torch.equal(state.t, to.expand(3))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_the_likelihood_of_a_gaussian_is_exact(schedule):
    model, x = gaussian(schedule), images(3)
    end = torch.full((3,), schedule.end, dtype=torch.float64)
    got = log_likelihood(model, x, Exact(), tolerance=1e-7)
    assert (got.nats - model.model_log_density(x, end)).abs().max() < 1e-4
    assert (got.standard_error == 0).all()
    # Against p_end itself the prior is off: x_T has a mean of alpha mu and a variance of alpha^2 C + sigma^2.
    assert (got.nats - model.log_density(x, end)).abs().max() < 0.05
    # The default tolerance, in nats per dimension.
    rough = log_likelihood(model, x, Exact())
    assert (rough.nats - got.nats).abs().max() / DIMS < 3e-4


@pytest.mark.parametrize("schedule", [VP(), SubVP()], ids=lambda s: type(s).__name__)
def test_the_likelihood_of_a_mixture_is_exact_where_its_denoiser_bends(schedule):
    model, x = mixture(schedule), images(6, (1, 2, 2))
    got = log_likelihood(model, x, Exact(together=3), tolerance=1e-7)
    want = model.log_density(x, torch.full((6,), schedule.end, dtype=torch.float64))
    assert (got.nats - want).abs().max() < 2e-3  # what N(0, 1) differs from p_T
    later = torch.tensor([0.1, 0.2, 0.3, 0.5, 0.8, 1.0], dtype=torch.float64)
    at_later = log_likelihood(model, x, Exact(), t=later, tolerance=1e-7)
    assert (at_later.nats - model.log_density(x, later)).abs().max() < 2e-3
    assert int(at_later.evaluations[-1]) == 0  # t = T: nothing to integrate


def test_the_density_of_one_pixel_integrates_to_one():
    model = Mixture(VP(), torch.tensor([-0.7, 0.1, 0.8], dtype=torch.float64).view(3, 1, 1, 1), 0.1)
    x = torch.linspace(-2, 2, 801, dtype=torch.float64).view(-1, 1, 1, 1)
    nats = log_likelihood(model, x, Exact(), tolerance=1e-6).nats
    assert float(torch.trapezoid(nats.exp(), x.flatten())) == pytest.approx(1, abs=1e-5)


def test_a_likelihood_does_not_depend_on_batch_mates():
    model, x = mixture(SubVP()), images(7, (1, 2, 2))
    x[3] *= 30  # a batch-mate that needs other steps
    together = log_likelihood(model, x, Exact(), tolerance=1e-3)
    assert len(set(together.evaluations.tolist())) > 1
    for row in range(7):
        alone = log_likelihood(model, x[row : row + 1], Exact(), tolerance=1e-3)
        assert int(alone.evaluations[0]) == int(together.evaluations[row])
        assert float(alone.nats[0]) == pytest.approx(float(together.nats[row]), rel=1e-12)
    ids = list(range(20, 27))
    probes = Hutchinson(3, Streams(1))
    noisy = log_likelihood(model, x, probes, tolerance=1e-3, ids=ids)
    alone = log_likelihood(model, x[5:6], probes, tolerance=1e-3, ids=ids[5:6])
    assert float(alone.nats[0]) == pytest.approx(float(noisy.nats[5]), rel=1e-12)


def test_there_and_back_again():
    model, x = mixture(VP()), images(5, (1, 2, 2))
    up = integrate(model, x, 0.05, 0.7, Exact(), tolerance=1e-8)
    down = integrate(model, up.x, 0.7, 0.05, Exact(), tolerance=1e-8)
    assert (down.x - x).abs().max() < 1e-5
    assert (down.log_density_change + up.log_density_change).abs().max() < 1e-5
    starts = torch.tensor([0.05, 0.05, 0.1, 0.1, 0.7], dtype=torch.float64)
    mixed = integrate(model, x, starts, 0.7, Exact(), tolerance=1e-8)
    assert torch.allclose(mixed.log_density_change[:2], up.log_density_change[:2], atol=1e-10)
    assert torch.equal(mixed.x[4], x[4])


def test_hutchinson_is_unbiased_and_its_standard_error_true():
    model, n = gaussian(VP()), 300
    x = images(1).expand(n, *SHAPE)
    exact = integrate(model, x[:1], 0.05, 0.9, Exact())
    noisy = integrate(model, x, 0.05, 0.9, Hutchinson(4, Streams(0)), tolerance=1e-3, ids=range(n))
    z = (noisy.log_density_change - exact.log_density_change).numpy()
    assert abs(z.mean()) < stats.t.ppf(0.9995, n - 1) * z.std(ddof=1) / n**0.5
    # The ratio of the true variance to the mean reported one; both from 300 draws, each good to about 10 %.
    assert z.var(ddof=1) / (noisy.standard_error.numpy() ** 2).mean() == pytest.approx(1, abs=0.35)
    assert z.std() > 0.05  # the case is one where the probes matter


def test_of_one_probe_no_error_is_known():
    model, x = gaussian(SubVP()), images(3)
    one = integrate(model, x, 0.05, 0.9, Hutchinson(1, Streams(0)), tolerance=1e-3, ids=[4, 5, 6])
    assert one.standard_error.isinf().all()


def test_probes_are_what_they_are_called():
    x = torch.zeros(500, *SHAPE, dtype=torch.float64)
    signs = draw_probes(Hutchinson(3, Streams(0)), x, range(500))
    assert signs.shape == (3, 500, *SHAPE)
    assert torch.equal(signs.abs(), torch.ones_like(signs))
    assert abs(float(signs.mean())) < 3.3 / signs.numel() ** 0.5
    flat = signs.flatten(2)
    assert abs(float((flat[0] * flat[1]).mean())) < 3.3 / flat[0].numel() ** 0.5


class Counting:
    """Counts the rows that pass forward and backward."""

    def __init__(self, model: Mixture) -> None:
        self.model, self.schedule, self.rows = model, model.schedule, 0

    def __call__(self, x: Tensor, t: Tensor, /) -> Tensor:
        out = self.model(x, t)
        self.rows += len(x)
        if out.requires_grad:
            out.register_hook(lambda gradient: self._count(len(gradient)))
        return out

    def _count(self, rows: int) -> None:
        self.rows += rows


@pytest.mark.parametrize("divergence", [Exact(1), Exact(3), Exact(64), Hutchinson(2, Streams(0))], ids=str)
def test_every_pass_forward_and_backward_is_counted(divergence):
    x = images(4, (1, 2, 2))
    model = Counting(mixture(VP()))
    got = log_likelihood(model, x, divergence, tolerance=1e-3, ids=range(4))
    assert int(got.evaluations.sum()) == model.rows


def test_float32_images_and_no_grad_give_the_same_density():
    model, x = mixture(VP()), images(3, (1, 2, 2))
    exact = log_likelihood(model, x, Exact(), tolerance=1e-7).nats
    model32 = Mixture(model.schedule, model.centres, model.width)
    model32.centres = model.centres.float()

    class Single(Mixture):
        def __call__(self, x: Tensor, t: Tensor, /) -> Tensor:
            return super().__call__(x.double(), t).float()

    with torch.no_grad():
        rough = log_likelihood(Single(model.schedule, model.centres, model.width), x.float(), Exact())
    assert rough.nats.dtype == torch.float64
    assert (rough.nats - exact).abs().max() < 1e-3
    assert not rough.nats.requires_grad


@pytest.mark.parametrize("depth", [1, 4, 8, 16, math.log2(17)])
def test_uniform_images_cost_their_bit_depth(depth):
    # The cells of all levels together span 2 + step; the uniform density on them is (2 + step)^-d.
    step = 2 / (2**depth - 1)
    nats = torch.tensor([-48 * math.log(2 + step)], dtype=torch.float64)
    assert float(bits_per_dim(nats, 48, depth)) == pytest.approx(depth, abs=1e-12)
    assert grey_step(depth) == pytest.approx(step)


def test_the_scaling_offset_is_the_published_one():
    # Song et al. 2021 scale 256 cells to [-1, 1]: bits = -log2 p / d + 7.
    assert float(bits_per_dim(torch.tensor(0.0), 10, 8, step=2 / 256)) == 7
    assert float(bits_per_dim(torch.tensor(-10 * math.log(2)), 10, 8, step=2 / 256)) == pytest.approx(8)
    assert float(bits_per_dim(torch.tensor(0.0), 10, 8)) == pytest.approx(math.log2(127.5))


def test_dequantised_bits_bound_the_true_code_length():
    # Pixels of 3 bits from a rounded normal: the exact code length is known from the normal's distribution
    # function.
    depth, sd = 3, 0.4
    levels = np.linspace(-1, 1, 8)
    step = levels[1] - levels[0]
    exact = -np.log2(stats.norm.cdf(levels + step / 2, 0, sd) - stats.norm.cdf(levels - step / 2, 0, sd))
    images = torch.tensor(levels).view(8, 1, 1, 1).expand(8, 1, 50, 50)
    soft = dequantise(images, depth, Streams(0), range(8))
    gap = soft - images
    assert float(gap.abs().max()) < step / 2
    assert abs(float(gap.mean())) < 3.3 * step / 12**0.5 / gap.numel() ** 0.5
    nats = torch.tensor(stats.norm.logpdf(soft.numpy(), 0, sd)).sum((1, 2, 3))
    bits = bits_per_dim(nats, 2500, depth).numpy()
    assert (bits > exact - 1e-9).all()
    assert (bits < exact + 0.2).all()
    assert torch.equal(dequantise(images[3:4], depth, Streams(0), [3]), soft[3:4])


def nothing_but_nan(x: Tensor) -> Tensor:
    return x * float("nan")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (nothing_but_nan, "NaN or infinity"),
        (lambda x: x[:, :, :1], "returned"),
        (lambda x: x.float(), "float32"),
        (lambda x: x.detach(), "differentiable in x"),
    ],
)
def test_a_denoiser_that_answers_wrongly_is_refused(answer, message):
    class Wrong(Mixture):
        def __call__(self, x: Tensor, t: Tensor, /) -> Tensor:
            return answer(super().__call__(x, t))

    good = mixture(VP())
    with pytest.raises(ValueError, match=message):
        log_likelihood(Wrong(good.schedule, good.centres, good.width), images(2, (1, 2, 2)), Exact())


def test_what_does_not_fit_is_refused():
    model, x = mixture(VP()), images(2, (1, 2, 2))
    cases = [
        (lambda: integrate(model, x, 0.1, 1.5, Exact()), "times must lie in"),
        (lambda: integrate(model, x, 0.0, 0.5, Exact()), "times must lie in"),
        (lambda: log_likelihood(model, x, Hutchinson(2, Streams(0))), "needs 2 ids, got none"),
        (lambda: log_likelihood(model, x, Hutchinson(2, Streams(0)), ids=[1]), "needs 2 ids, got 1"),
        (lambda: log_likelihood(model, x * float("inf"), Exact()), "x must be finite"),
        (lambda: log_likelihood(model, x.long(), Exact()), "must be floats"),
        (lambda: log_likelihood(model, x, Exact(), tolerance=0.0), "tolerance"),
        (lambda: integrate(model, x, 0.1, 0.9, Exact(), most_steps=2), "2 of 2 rows did not arrive"),
        (lambda: Exact(0), "1 or more"),
        (lambda: Hutchinson(0, Streams(0)), "1 probe or more"),
        (lambda: bits_per_dim(x, 0, 8), "positive dims"),
        (lambda: grey_step(0), "bit depth"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()


def test_a_likelihood_that_is_not_finite_is_refused():
    model = mixture(VP())
    far = torch.full((1, 1, 2, 2), 1e200, dtype=torch.float64)
    with pytest.raises(ValueError, match="finite"):
        log_likelihood(model, far, Exact())
