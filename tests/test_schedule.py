"""Schedules against their formulas in 60-digit decimals, and against the identities that bind them."""

from __future__ import annotations

from decimal import Decimal, getcontext

import pytest
import torch

from latentprint.schedule import EDM, VE, VP, SubVP, expand, schedule_from

getcontext().prec = 60
ALL = [
    VP(),
    SubVP(),
    VE(),
    EDM(),
    VP(beta_min=0.3, beta_max=7.0),
    SubVP(0.2, 0.2),
    EDM(0.01, 5.0),
    VE(0.1, 9.0),
]
F64 = torch.float64


def name(schedule):
    return "-".join(str(v) for v in schedule.config().values())


def grid(schedule):
    """Times from 1e-12 of T to T, crowded at both ends."""
    low = torch.logspace(-12, -0.3, 60, dtype=F64)
    return torch.cat([low, 1 - low, torch.tensor([1.0], dtype=F64)]) * schedule.start


def by_decimal(schedule, t: float) -> dict[str, Decimal]:
    """alpha, sigma, f, g^2 from the table in Song et al. 2021 and Karras et al. 2022, to 60 digits."""
    t, c = Decimal(t), {k: Decimal(v) for k, v in schedule.config().items() if k != "name"}
    if isinstance(schedule, VE):
        rate = (c["sigma_max"] / c["sigma_min"]).ln()
        sigma = c["sigma_min"] * (rate * t).exp()
        return {"alpha": Decimal(1), "sigma": sigma, "drift": Decimal(0), "diffusion2": 2 * rate * sigma**2}
    if isinstance(schedule, EDM):
        return {"alpha": Decimal(1), "sigma": t, "drift": Decimal(0), "diffusion2": 2 * t}
    beta = c["beta_min"] + (c["beta_max"] - c["beta_min"]) * t
    integral = c["beta_min"] * t + (c["beta_max"] - c["beta_min"]) * t * t / 2
    alpha, left = (-integral / 2).exp(), 1 - (-integral).exp()
    if isinstance(schedule, SubVP):
        g2 = beta * (1 - (-2 * integral).exp())
        return {"alpha": alpha, "sigma": left, "drift": -beta / 2, "diffusion2": g2}
    return {"alpha": alpha, "sigma": left.sqrt(), "drift": -beta / 2, "diffusion2": beta}


@pytest.mark.parametrize("schedule", ALL, ids=name)
def test_every_coefficient_to_1e_12_from_end_to_end(schedule):
    for t in grid(schedule).tolist():
        expected = by_decimal(schedule, t)
        expected["ratio"] = expected["sigma"] / expected["alpha"]
        for what, value in expected.items():
            got = Decimal(getattr(schedule, what)(t).item())
            assert abs(got - value) <= Decimal("1e-12") * abs(value), (what, t)
        log_alpha = Decimal(schedule.log_alpha(t).item())
        assert abs(log_alpha - expected["alpha"].ln()) <= Decimal("1e-12") * abs(log_alpha)


@pytest.mark.parametrize("schedule", ALL, ids=name)
def test_diffusion_is_what_keeps_the_variance(schedule):
    """g^2 = (sigma^2)' - 2 f sigma^2 and alpha' = f alpha, with derivatives by automatic differentiation."""
    t = grid(schedule).requires_grad_()
    (slope,) = torch.autograd.grad((schedule.sigma(t) ** 2).sum(), t)
    g2 = slope - 2 * schedule.drift(t) * schedule.sigma(t) ** 2
    torch.testing.assert_close(g2, schedule.diffusion2(t), rtol=1e-12, atol=0)
    if isinstance(schedule, VP | SubVP):
        (slope,) = torch.autograd.grad(schedule.alpha(t).sum(), t)
        torch.testing.assert_close(slope, schedule.drift(t) * schedule.alpha(t), rtol=1e-12, atol=0)


@pytest.mark.parametrize("schedule", ALL, ids=name)
def test_the_inverse_of_the_ratio(schedule):
    t = grid(schedule)
    back = schedule.time(schedule.ratio(t))
    # a VE ratio is sigma_min + something: below that, float64 cannot tell times apart
    torch.testing.assert_close(back, t, rtol=1e-12, atol=1e-15 if isinstance(schedule, VE) else 0)
    assert bool((schedule.ratio(t.sort().values).diff() >= 0).all())


def test_sub_vp_has_the_deviation_not_its_root():
    """Where B = ln 2 sub-VP has sigma = 1/2 and VP has sigma = sqrt(1/2)."""
    flat = 0.6931471805599453
    assert SubVP(flat, flat).sigma(1.0).item() == pytest.approx(0.5, rel=1e-14)
    assert VP(flat, flat).sigma(1.0).item() == pytest.approx(0.5**0.5, rel=1e-14)
    assert SubVP(flat, flat).ratio(1.0).item() == pytest.approx(0.5 * 2**0.5, rel=1e-14)


@pytest.mark.parametrize("schedule", [VP(), SubVP(), VE(), EDM()], ids=name)
def test_the_prior_is_the_marginal_at_the_start(schedule):
    """Data of standard deviation 1/2: what sampling draws at T is within 0.2 % of p_T's deviation."""
    truth = torch.hypot(schedule.alpha(schedule.start) * 0.5, schedule.sigma(schedule.start)).item()
    assert schedule.prior_std == pytest.approx(truth, rel=2e-3)
    assert 0 < schedule.end < schedule.start


@pytest.mark.parametrize("schedule", ALL, ids=name)
@pytest.mark.parametrize("method", ["alpha", "log_alpha", "sigma", "drift", "diffusion2", "ratio"])
@pytest.mark.parametrize("wrong", [-1e-9, 1.0 + 1e-9, float("nan"), float("inf")])
def test_times_outside_are_refused(schedule, method, wrong):
    t = torch.tensor([0.5, wrong], dtype=F64) * schedule.start
    with pytest.raises(ValueError, match=r"times must lie in \[0, "):
        getattr(schedule, method)(t)


@pytest.mark.parametrize("schedule", ALL, ids=name)
def test_ratios_without_a_time_are_refused(schedule):
    top = schedule.ratio(schedule.start).item()
    for wrong in (-0.1, top * 1.01, float("nan")):
        with pytest.raises(ValueError, match="sigma/alpha must lie in"):
            schedule.time(wrong)


@pytest.mark.parametrize("schedule", ALL, ids=name)
def test_configuration_goes_round(schedule):
    assert schedule_from(schedule.config()) == schedule
    assert type(schedule_from(schedule.config())) is type(schedule)
    with pytest.raises(ValueError, match="got gamma"):
        schedule_from(schedule.config() | {"gamma": 1.0})


def test_configurations_that_mean_nothing_are_refused():
    with pytest.raises(ValueError, match="one of vp, subvp, ve, edm"):
        schedule_from({"name": "cosine"})
    with pytest.raises(ValueError, match="one of vp"):
        schedule_from({"beta_min": 0.1})
    for make in (lambda: VP(beta_min=0.0), lambda: SubVP(5.0, 1.0), lambda: VE(2.0, 1.0), lambda: EDM(0.0)):
        with pytest.raises(ValueError, match="needs"):
            make()
    for end in (0.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match="needs"):
            VP(end=end)


def test_expand_multiplies_rows_and_refuses_other_lengths():
    x = torch.ones(3, 2, 2)
    rows = expand(torch.tensor([1.0, 2.0, 3.0], dtype=F64), x)
    assert (rows * x).dtype == torch.float32
    assert (rows * x)[:, 1, 1].tolist() == [1.0, 2.0, 3.0]
    assert (expand(torch.tensor(4.0, dtype=F64), x) * x).sum().item() == 48.0
    with pytest.raises(ValueError, match=r"needs one time per row, got \(2,\)"):
        expand(torch.ones(2, dtype=F64), x)
