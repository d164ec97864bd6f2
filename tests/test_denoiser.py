"""Conversions against their formulas and each other; networks that know the answer; refusals."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from latentprint.denoiser import (
    NetworkDenoiser,
    checked,
    denoised_from_epsilon,
    denoised_from_score,
    denoised_from_v,
    epsilon_from_denoised,
    score,
    score_from_denoised,
    v_from_denoised,
)
from latentprint.schedule import EDM, VE, VP, SubVP

F64 = torch.float64
SCHEDULES = [VP(), SubVP(), VE(), EDM()]
PAIRS = [
    (epsilon_from_denoised, denoised_from_epsilon),
    (score_from_denoised, denoised_from_score),
    (v_from_denoised, denoised_from_v),
]


def kind(value):
    return type(value).__name__


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def known_pair(schedule, t):
    """(x_t, x_0, e) with x_t = alpha x_0 + sigma e formed here from the definition."""
    clean, e = numbers(len(t), 3, seed=1).clamp(-1, 1), numbers(len(t), 3, seed=2)
    return schedule.alpha(t)[:, None] * clean + schedule.sigma(t)[:, None] * e, clean, e


@pytest.mark.parametrize("schedule", SCHEDULES, ids=kind)
def test_each_prediction_is_the_one_of_its_definition(schedule):
    """Where nothing cancels: epsilon is e, the score -e / sigma, v = (alpha e - sigma x_0) / n."""
    t = schedule.time(torch.tensor([0.3, 1.0, 3.0], dtype=F64))
    x, clean, e = known_pair(schedule, t)
    alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
    near = {"rtol": 1e-12, "atol": 1e-13}
    torch.testing.assert_close(epsilon_from_denoised(schedule, x, clean, t), e, **near)
    torch.testing.assert_close(score_from_denoised(schedule, x, clean, t), -e / sigma, **near)
    v = (alpha * e - sigma * clean) / (alpha**2 + sigma**2).sqrt()
    torch.testing.assert_close(v_from_denoised(schedule, x, clean, t), v, **near)
    if isinstance(schedule, VP):  # Salimans and Ho 2022
        torch.testing.assert_close(v_from_denoised(schedule, x, clean, t), alpha * e - sigma * clean, **near)


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=kind)
@pytest.mark.parametrize(("there", "back"), PAIRS, ids=["epsilon", "score", "v"])
def test_round_trips_to_the_last_digits_at_both_ends(schedule, dtype, there, back):
    """D -> prediction -> D: rounding of x / alpha and of D, a few times over, is all that may be lost."""
    first = max(schedule.end, 1e-6)
    t = torch.tensor([first, 2 * first, 0.1 * schedule.start, schedule.start], dtype=F64)
    x, clean, _ = (v.to(dtype) for v in known_pair(schedule, t))
    again = back(schedule, x, there(schedule, x, clean, t), t)
    scale = (x.abs().amax(1) / schedule.alpha(t).to(dtype) + 1)[:, None]
    assert bool(((again - clean).abs() <= 8 * torch.finfo(dtype).eps * scale).all())


@pytest.mark.parametrize("schedule", [VP(), SubVP(), EDM()], ids=kind)
@pytest.mark.parametrize("there", [there for there, _ in PAIRS], ids=["epsilon", "score", "v"])
def test_what_is_not_defined_without_noise_is_refused(schedule, there):
    x = numbers(2, 3)
    with pytest.raises(ValueError, match="sigma is 0"):
        there(schedule, x, x, torch.tensor([0.5, 0.0], dtype=F64))


class Knows(nn.Module):
    """A network that is handed the answer and keeps what it was given."""

    def __init__(self, answer, wrap=False):
        super().__init__()
        self.answer, self.wrap, self.seen = answer, wrap, {}

    def forward(self, x, time, class_labels=None):
        self.seen = {"x": x, "time": time, "labels": class_labels}
        return SimpleNamespace(sample=self.answer) if self.wrap else self.answer


@pytest.mark.parametrize("schedule", SCHEDULES, ids=kind)
@pytest.mark.parametrize("parametrisation", ["epsilon", "v", "sample", "edm"])
def test_a_network_that_predicts_rightly_denoises_rightly(schedule, parametrisation):
    t = schedule.time(torch.tensor([0.05, 0.7, 4.0], dtype=F64))
    x, clean, e = known_pair(schedule, t)
    alpha, sigma, d = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None], 0.3
    r, n = sigma / alpha, (alpha**2 + sigma**2).sqrt()
    m = -0.7  # the mean of the data
    # Karras et al. 2022, Eq. 8, less the mean: the target of F is (x_0 - m - c_skip (u - m)) / c_out
    c_skip, c_out, c_in = d**2 / (r**2 + d**2), r * d / (r**2 + d**2).sqrt(), 1 / (r**2 + d**2).sqrt()
    answers = {
        "epsilon": e,
        "v": (alpha * e - sigma * clean) / n,
        "sample": clean,
        "edm": (clean - m - c_skip * (x / alpha - m)) / c_out,
    }
    network = Knows(answers[parametrisation], wrap=True)
    denoiser = NetworkDenoiser(network, schedule, parametrisation, sigma_data=d, label=7, mean_data=m)
    torch.testing.assert_close(denoiser(x, t), clean, rtol=1e-11, atol=1e-12)
    given = c_in * (x / alpha - m) if parametrisation == "edm" else x
    time = r[:, 0].log() / 4 if parametrisation == "edm" else 1000 * t / schedule.start
    torch.testing.assert_close(network.seen["x"], given, rtol=1e-13, atol=0)
    torch.testing.assert_close(network.seen["time"], time, rtol=1e-13, atol=1e-15)
    assert network.seen["labels"].tolist() == [7, 7, 7]
    # the weight makes the error in D the plain error of the network's output
    off = answers[parametrisation] + 0.1
    wrong = NetworkDenoiser(Knows(off), schedule, parametrisation, sigma_data=d, mean_data=m)(x, t)
    loss = denoiser.weight(t) * ((wrong - clean) ** 2).sum(dim=1)
    torch.testing.assert_close(loss, torch.full((3,), 3 * 0.1**2, dtype=F64), rtol=1e-9, atol=0)


def test_preconditioning_keeps_input_and_target_at_unit_variance():
    """Karras et al. 2022, B.6: for data of variance d^2, input and target have variance 1."""
    d, schedule = 0.4, EDM()
    r = torch.tensor([0.002, 0.4, 80.0], dtype=F64)
    c_skip, c_out, c_in = NetworkDenoiser(Knows(None), schedule, "edm", sigma_data=d).preconditioning(r)
    torch.testing.assert_close(c_in**2 * (d**2 + r**2), torch.ones(3, dtype=F64), rtol=1e-13, atol=0)
    error = (1 - c_skip) ** 2 * d**2 + c_skip**2 * r**2  # variance of x_0 - c_skip u
    torch.testing.assert_close(error, c_out**2, rtol=1e-10, atol=0)
    for nearby in (c_skip * 1.01, c_skip * 0.99):
        assert bool(((1 - nearby) ** 2 * d**2 + nearby**2 * r**2 > c_out**2).all())


def test_score_of_a_point_is_that_of_a_gaussian():
    """All data at m: p_t = N(alpha m, sigma^2), score -(x - alpha m) / sigma^2; sub-VP at B = ln 2."""
    flat = 0.6931471805599453

    class Point:
        schedule = SubVP(flat, flat)

        def __call__(self, x, t):
            return torch.full_like(x, 2.0)

    x, t = torch.tensor([[1.0], [3.0]], dtype=F64), torch.tensor(1.0, dtype=F64)
    expected = -(x - 2 * 0.5**0.5) / 0.5**2
    torch.testing.assert_close(score(Point(), x, t), expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (lambda x: x[:, :1], r"given shape \(2, 3\) and returned \(2, 1\)"),
        (lambda x: x.float(), "given torch.float64 and returned torch.float32"),
        (lambda x: x / torch.tensor([1.0, 0.0, 1.0]) * 0, "NaN or infinity"),
        (lambda x: x + torch.tensor([0.0, float("inf"), 0.0]), "NaN or infinity"),
        (lambda x: [x], "must return a tensor, got list"),
    ],
    ids=["shape", "dtype", "nan", "inf", "list"],
)
def test_wrong_answers_of_a_denoiser_are_refused(answer, sentence):
    class Wrong:
        schedule = VP()

        def __call__(self, x, t):
            return answer(x)

    with pytest.raises(ValueError, match=sentence):
        checked(Wrong(), numbers(2, 3), torch.tensor(0.5, dtype=F64))


def test_large_but_finite_answers_pass():
    """The quick test by a sum must not refuse what is finite: 3e38 twice overflows a float32 sum."""

    class Large:
        schedule = VP()

        def __call__(self, x, t):
            return torch.full_like(x, 3e38)

    assert checked(Large(), torch.zeros(2, 3), torch.tensor(0.5, dtype=F64)).max() == 3e38


def test_settings_that_mean_nothing_are_refused():
    with pytest.raises(ValueError, match="epsilon, v, sample, edm; got 'eps'"):
        NetworkDenoiser(Knows(None), VP(), "eps")
    with pytest.raises(ValueError, match="sigma_data must be a positive number"):
        NetworkDenoiser(Knows(None), VP(), "edm", sigma_data=0.0)
    with pytest.raises(ValueError, match="mean_data must be a finite number"):
        NetworkDenoiser(Knows(None), VP(), "edm", mean_data=float("nan"))
    with pytest.raises(ValueError, match="needs t above 0"):
        NetworkDenoiser(Knows(None), VP(), "edm")(numbers(1, 3), torch.tensor(0.0, dtype=F64))
    with pytest.raises(ValueError, match=r"network was given shape \(1, 3\) and returned \(1, 2\)"):
        NetworkDenoiser(Knows(numbers(1, 2)), VP())(numbers(1, 3), torch.tensor(0.5, dtype=F64))


def test_configuration_is_plain():
    config = NetworkDenoiser(Knows(None), SubVP(), "v", label=3).config()
    assert config == {
        "parametrisation": "v",
        "sigma_data": 0.5,
        "mean_data": 0.0,
        "label": 3,
        "schedule": {"name": "subvp", "beta_min": 0.1, "beta_max": 20.0, "end": 1e-3},
    }
