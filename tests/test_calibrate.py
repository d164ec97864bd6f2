"""The calibration itself: its truths against formulas, and its verdict on instruments that lie."""

import json
import math

import pytest
import torch
from scipy import stats as scipy_stats

from latentprint import calibrate as module
from latentprint.calibrate import CalibrationReport, Row
from latentprint.known import Memorised, Mixture
from latentprint.sampler import Ancestral, Sampler
from latentprint.schedule import EDM, VP
from latentprint.stats import Trials


def a_row(*, inside: bool = True, reliable: bool = True, truth: float = 0.1, estimator: str = "path") -> Row:
    interval = (0.1, 0.05, 0.2) if reliable else (None, None, None)
    return Row("case", estimator, truth, *interval, reliable, inside and reliable, 7, "said")


def test_json_has_the_agreed_shape():
    report = CalibrationReport((a_row(), a_row(estimator="splitting", reliable=False)), (a_row(),))
    found = json.loads(json.dumps(report.to_json()))
    assert set(found) == {"cases", "coverage", "reliable"}
    keys = {"name", "estimator", "truth", "rate", "low", "high", "reliable", "inside", "network_evaluations"}
    assert all(set(case) == keys for case in found["cases"])
    assert len(found["cases"]) == 2
    assert found["coverage"] == {"path": 1.0}
    assert found["reliable"] == {"path": 1.0, "splitting": 0.0}
    assert found["cases"][1]["rate"] is None


@pytest.mark.parametrize(("outside", "passes"), [(0, True), (2, True), (5, False)])
def test_an_instrument_whose_intervals_miss_fails(outside: int, passes: bool):
    # P(Binomial(20, 0.05) >= 5) = 0.0026, P(>= 2) = 0.26
    rows = [a_row(inside=i >= outside) for i in range(20)]
    report = CalibrationReport(tuple(rows[:10]), tuple(rows[10:]))
    assert report.coverage() == {"path": (20 - outside) / 20}
    assert report.passed is passes
    assert ("hold the truth" in " ".join(report.failures())) is not passes


def test_an_instrument_that_declines_too_often_fails():
    rows = [a_row(reliable=i >= 3) for i in range(10)]
    assert not CalibrationReport(tuple(rows)).passed
    assert CalibrationReport(tuple(rows[1:])).reliable() == {"path": 7 / 9}
    assert CalibrationReport(tuple(rows[2:])).passed


def test_a_number_invented_for_a_clean_sampler_fails_and_declining_it_is_right():
    fine = tuple(a_row() for _ in range(5))
    assert CalibrationReport((*fine, a_row(truth=0.0, reliable=False))).passed
    assert CalibrationReport((*fine, a_row(truth=0.0, inside=True))).passed
    invented = CalibrationReport((*fine, a_row(truth=0.0, inside=False)))
    assert "whose q is zero" in invented.failures()[0]
    assert invented.reliable() == {"path": 1.0}


def test_truth_of_the_gaussian_case_counts_its_own_steps():
    case = module.gaussian(0.05, 0.5, (1, 3, 3), EDM(), 3, 4)
    z = torch.randn(40_000, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    hits = Trials(int(case.subject.inside(case.subject.push(z)).sum()), len(z))
    assert hits.interval(0.999)[0] < 0.05 < hits.interval(0.999)[1]
    # three steps are far from the converged width 0.5: the exact ball would be another
    x = case.subject.push(z)
    assert abs(float(x.std(0).mean()) / 0.5 - 1) > 0.05


def test_truth_of_the_mixture_case_is_a_mean_of_noncentral_chi_squares():
    case = module.mixture(1e-3, 5, 0.3, (1, 2, 2), VP(end=1e-5), 64, 2)
    model = case.subject.model
    assert isinstance(model, Mixture)
    edges = torch.linspace(0, 3, 3001, dtype=torch.float64)[:, None]
    ray = model.images[0].flatten() + edges * torch.eye(4, dtype=torch.float64)[0]
    radius = float(edges[case.subject.inside(ray.reshape(-1, 1, 2, 2))].max())
    away = ((model.images - model.images[0]) ** 2).flatten(1).sum(1).numpy() / 0.09
    truth = scipy_stats.ncx2.cdf(radius**2 / 0.09, 4, away.clip(1e-12)).mean()
    assert truth == pytest.approx(1e-3, rel=0.05)


def test_truth_of_a_stochastic_gaussian_counts_the_noise_of_every_step():
    case = module.gaussian(0.05, 0.5, (1, 3, 3), VP(), 3, 4, Ancestral())
    push = case.subject.push
    z = torch.randn(40_000, push.latent, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    hits = Trials(int(case.subject.inside(push(z)).sum()), len(z))
    assert push.latent == 4 * 9
    assert hits.interval(0.999)[0] < 0.05 < hits.interval(0.999)[1]


@pytest.mark.parametrize("steps", [6, 24])
def test_corners_come_back_alike_at_every_number_of_steps(steps: int):
    case = module.corners((1, 1, 3), VP(), Sampler(Ancestral(), steps))
    push = case.subject.push
    z = torch.randn(20_000, push.latent, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    hits = Trials(int(case.subject.inside(push(z)).sum()), len(z))
    assert case.truth == 1 / 8
    assert hits.interval(0.999)[0] < 1 / 8 < hits.interval(0.999)[1]


def test_memorised_counts_copies_and_its_omega_holds_no_neighbour():
    case = module.memorised(5, 20, (3, 4, 4), EDM(), 8, 1)
    assert case.truth == pytest.approx(5 / 24)
    assert isinstance(case.subject.model, Memorised)
    assert case.subject.inside(case.subject.model.images).tolist() == [True] + [False] * 19


def test_estimators_on_one_small_case_each():
    leak = module.leak(0.02, (1, 2, 2), 0)
    for estimator in ("monte_carlo", "splitting"):
        found = module.row(leak, estimator, 3, samples=3000)
        assert found.reliable, found.diagnostic
        assert found.low is not None
        assert found.high is not None
        assert 0.5 < found.low / 0.02 < 1.5 < 2 * found.high / 0.02
    clean = module.row(module.leak(0.0, (1, 2, 2), 0), "splitting", 3, samples=10)
    assert (clean.reliable, clean.inside, clean.rate) == (False, False, None)
    with pytest.raises(ValueError, match="needs a denoiser"):
        module.row(leak, "path", 0, samples=1)


def test_the_suite_is_the_one_that_was_asked_for():
    for quick in (True, False):
        cases = module.suite(quick, 0)
        truths = [case.truth for case, _ in cases]
        assert min(t for t in truths if t > 0) <= 1e-9
        assert max(truths) == 0.3
        assert {0.0, 1e-3} <= set(truths)
        shapes = {tuple(case.subject.target.shape) for case, _ in cases}
        assert {64, 784} <= {math.prod(s) for s in shapes}
        assert {s[0] for s in shapes} == {1, 3}
        assert len({case.name for case, _ in cases}) == len(cases)
        assert {e for _, estimators in cases for e in estimators} == {
            "monte_carlo",
            "path",
            "splitting",
        }


def test_random_cases_are_a_function_of_their_index():
    one, same, other = (module.random_case(i, "splitting", 7) for i in (3, 3, 4))
    assert one.truth == same.truth != other.truth
    assert torch.equal(one.subject.target, same.subject.target)
    truths = [module.random_case(i, "monte_carlo", 7).truth for i in range(40)]
    assert min(truths) < 1e-7
    assert max(truths) > 1e-3
    assert all(1e-9 <= t <= 0.3 for t in truths)


@pytest.mark.slow
def test_the_quick_calibration_passes_here():
    report = module.calibrate(True, 5)
    assert report.passed, report.failures()
