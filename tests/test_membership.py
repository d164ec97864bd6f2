"""Membership scores on models whose answers are known, and the worth of scores whose worth is known."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats as reference
from torch import Tensor

from latentprint.adapters import DiscreteSchedule
from latentprint.attacks.membership import (
    MembershipConfig,
    loss_score,
    membership_scores,
    pia_score,
    secmi_score,
)
from latentprint.denoiser import Denoiser
from latentprint.known import Gaussian, Memorised, Mixture
from latentprint.schedule import EDM, VE, VP, Schedule, SubVP
from latentprint.stats.roc import auc, rank_p_value, separation, true_positives
from latentprint.streams import Streams

NAMES = ("loss", "secmi", "pia")
SCHEDULES: list[Schedule] = [VP(), SubVP(), EDM(), VE()]


def images(seed: int, n: int, side: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand((n, 1, side, side), generator=generator, dtype=torch.float64) * 2 - 1


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_a_model_that_memorised_gives_every_member_away(schedule: Schedule) -> None:
    """Narrow kernels on the members: at a member's centre no noise is found, anywhere else some is."""
    members, heldout = images(0, 40, 9), images(1, 60, 9)
    model, streams = Mixture(members, 0.05, schedule), Streams(0)
    found = [membership_scores(model, x, streams, range(len(x))) for x in (members, heldout)]
    for one in separation(*found):
        assert one.auc.value == 1.0 and one.auc.high == 1.0, one.name
        assert one.auc.low == pytest.approx(0.025 ** (1 / 40))
        for at in one.at:
            assert (at.tpr.k, at.tpr.n, at.fpr.k, at.fpr.n) == (40, 40, 0, 60)
            assert not at.resolved
    for name in ("secmi", "pia"):
        assert np.abs(found[0][name]).max() < 1e-6 < np.abs(found[1][name]).min(), name


def test_an_exact_set_may_escape_secmi_as_is_said() -> None:
    members, heldout = images(0, 40, 9), images(1, 60, 9)
    model, streams = Memorised(members, EDM()), Streams(0)
    found = [membership_scores(model, x, streams, range(len(x))) for x in (members, heldout)]
    worth = {one.name: one.auc.value for one in separation(*found)}
    assert worth["loss"] == worth["pia"] == 1.0
    assert np.quantile(np.abs(found[1]["secmi"]), 0.25) < 1e-9  # strangers that look like members


@pytest.mark.parametrize("schedule", [VP(), EDM()], ids=lambda s: type(s).__name__)
def test_a_gaussian_model_knows_nobody(schedule: Schedule) -> None:
    generator = torch.Generator().manual_seed(2)
    x = 0.5 * torch.randn((800, 1, 3, 3), generator=generator, dtype=torch.float64)
    model = Gaussian(torch.zeros(1, 3, 3, dtype=torch.float64), torch.tensor(0.5), schedule)
    config = MembershipConfig(loss_times=6)
    likelihood = model.log_density(x, torch.tensor(0.0)).numpy()
    scores = membership_scores(model, x, Streams(3), range(800), config, likelihood=likelihood)
    assert set(scores) == {*NAMES, "likelihood"}
    for one in separation(
        {k: v[:400] for k, v in scores.items()}, {k: v[400:] for k, v in scores.items()}, level=0.999
    ):
        assert one.auc.low < 0.5 < one.auc.high, one
        assert one.auc.high - one.auc.low < 0.2
        assert one.at[0].tpr.lower(0.999) < 0.03 and one.at[0].fpr.k <= 4


def test_the_formulas_on_a_gaussian_model() -> None:
    """D = g x with g = alpha v / (alpha^2 v + sigma^2), so every step multiplies x by a known number."""
    v, schedule = 0.3, VP()
    x = images(4, 5)
    model = Gaussian(
        torch.zeros(1, 5, 5, dtype=torch.float64), torch.tensor(v**0.5, dtype=torch.float64), schedule
    )
    config = MembershipConfig(
        secmi_ratio=0.4, secmi_steps=4, pia_ratio=0.9, loss_ratios=(0.5, 0.5), loss_times=1
    )

    def at(t: float) -> tuple[float, float]:
        return float(schedule.alpha(t)), float(schedule.sigma(t))

    def gains(t: float) -> tuple[float, float]:
        """x_t -> (its image, its noise), as multiples of x_t."""
        a, s = at(t)
        return a * v / (a**2 * v + s**2), s / (a**2 * v + s**2)

    def step(t: float, to: float) -> float:
        (image, noise), (a, s) = gains(t), at(to)
        return a * image + s * noise

    t = float(schedule.time(0.4))
    grid, factor = np.linspace(schedule.end, t, 5), at(schedule.end)[0]
    for here, there in pairwise(grid):
        factor *= step(here, there)
    above = t + (t - schedule.end) / 4
    error = factor * (1 - step(t, above) * step(above, t))
    expected = -(error**2) * x.flatten(1).square().mean(1)
    assert error != 0 and torch.allclose(secmi_score(model, x, config), expected, rtol=1e-6, atol=0)

    t = float(schedule.time(0.9))
    (a, s), first = at(t), at(schedule.end)[0] * gains(schedule.end)[1]
    factor = first - gains(t)[1] * (a + s * first)
    expected = -abs(factor) * x.flatten(1).pow(4).sum(1) ** 0.25
    assert torch.allclose(pia_score(model, x, config), expected, rtol=1e-9)

    t = float(schedule.time(0.5))
    (a, s), streams = at(t), Streams(7)
    e = streams.noise("membership.loss", [3, 1, 4, 1, 5], 0, (1, 5, 5), dtype=torch.float64)
    expected = -(e - gains(t)[1] * (a * x + s * e)).flatten(1).square().mean(1)
    found = loss_score(model, x, streams, np.array([3, 1, 4, 1, 5]), config)
    assert torch.allclose(found, expected, rtol=1e-9)


def test_scores_do_not_depend_on_batch_or_order() -> None:
    x, model, streams = images(5, 11), Memorised(images(6, 9), VP()), Streams(1)
    ids = np.arange(100, 111)
    whole = membership_scores(model, x, streams, ids, MembershipConfig(batch=11))
    order = np.random.default_rng(0).permutation(11)
    parts = membership_scores(model, x[order], streams, ids[order], MembershipConfig(batch=3))
    for name in NAMES:
        assert np.allclose(parts[name], whole[name][order], rtol=1e-9), name
    assert all(len(v) == 0 for v in membership_scores(model, x[:0], streams, []).values())


class Counted:
    def __init__(self, model: Denoiser) -> None:
        self.model, self.calls, self.schedule = model, 0, model.schedule

    def __call__(self, x: Tensor, t: Tensor, /) -> Tensor:
        self.calls += len(x)
        return self.model(x, t)


def test_the_cost_is_what_is_said() -> None:
    model, config = Counted(Memorised(images(6, 9), VP())), MembershipConfig(loss_times=3, secmi_steps=5)
    membership_scores(model, images(5, 4), Streams(0), range(4), config)
    assert model.calls == 4 * config.evaluations()


def test_a_codec_takes_images_to_latents() -> None:
    class Halved:
        def encode(self, images: Tensor, /) -> Tensor:
            return images[..., ::2, ::2] / 2

        def decode(self, latents: Tensor, /) -> Tensor:
            raise AssertionError("nothing is decoded")

    x, codec = images(5, 6), Halved()
    model = Memorised(codec.encode(images(6, 9)), VP())
    found = membership_scores(model, x, Streams(0), range(6), codec=codec)
    direct = membership_scores(model, codec.encode(x), Streams(0), range(6))
    assert all(np.array_equal(found[k], direct[k]) for k in found)


def test_what_cannot_be_scored_is_refused() -> None:
    x, streams = images(5, 6), Streams(0)
    short = Memorised(images(6, 9), DiscreteSchedule((0.9, 0.8, 0.7)))
    with pytest.raises(ValueError, match="membership asks for"):
        membership_scores(short, x, streams, range(6))
    with pytest.raises(ValueError, match="one id"):
        membership_scores(short, x, streams, range(5))
    for wrong in ({"loss_times": 0}, {"loss_ratios": (2.0, 1.0)}, {"pia_ratio": -1.0}):
        with pytest.raises(ValueError, match="MembershipConfig"):
            MembershipConfig(**wrong)  # type: ignore[arg-type]


# --- the worth of a score


def brute_force(m: np.ndarray, h: np.ndarray) -> float:
    return float(((m[:, None] > h).mean() + (m[:, None] >= h).mean()) / 2)


def test_auc_is_the_share_of_pairs_and_ties_count_half() -> None:
    rng = np.random.default_rng(0)
    m, h = rng.integers(0, 6, 30).astype(float), rng.integers(0, 5, 47).astype(float)
    assert auc(m, h).value == pytest.approx(brute_force(m, h), abs=1e-12)
    assert auc(m, h).value == pytest.approx(reference.mannwhitneyu(m, h).statistic / (30 * 47), abs=1e-12)
    assert auc(-m, -h).value == pytest.approx(1 - auc(m, h).value)
    assert auc(np.ones(4), np.ones(5)).value == 0.5


def test_delongs_interval_covers() -> None:
    """Two normals d apart: AUC = Phi(d / sqrt 2). 95 % of the intervals hold it."""
    rng, d, tries = np.random.default_rng(1), 0.8, 1500
    true = reference.norm.cdf(d / math.sqrt(2))
    hits = 0
    for _ in range(tries):
        found = auc(rng.normal(d, 1, 60), rng.normal(0, 1, 90))
        hits += found.low < true < found.high
    low, high = reference.binomtest(hits, tries).proportion_ci(0.999)
    assert low < 0.96 and high > 0.94, hits / tries


def test_separated_sets_keep_an_interval() -> None:
    found = auc(np.arange(10.0) + 100, np.arange(30.0))
    assert (found.value, found.high, found.method) == (1.0, 1.0, "paired Clopper-Pearson")
    assert found.low == pytest.approx(0.025**0.1)
    other = auc(np.arange(10.0), np.arange(30.0) + 100)
    assert (other.value, other.low) == (0.0, 0.0) and other.high == pytest.approx(1 - 0.025**0.1)


def test_true_positives_at_few_false_ones() -> None:
    heldout = np.arange(1000.0)
    members = np.array([989.0, 989.5, 998.5, 1001.0, 5.0])
    at = true_positives(members, heldout, 0.01)
    assert (at.fpr.k, at.fpr.n, at.tpr.k, at.tpr.n, at.resolved) == (10, 1000, 3, 5, True)
    at = true_positives(members, heldout, 0.001)
    assert (at.fpr.k, at.tpr.k, at.resolved) == (1, 2, True)
    at = true_positives(members, heldout[:999], 0.001)
    assert (at.fpr.k, at.tpr.k, at.resolved) == (0, 2, False)
    tied = true_positives(np.array([1.0, 2.0]), np.ones(100), 0.05)
    assert (tied.fpr.k, tied.tpr.k) == (0, 1)  # ties are never let through


def test_a_targets_rank_is_a_p_value() -> None:
    heldout = np.arange(99.0)
    assert rank_p_value(1000.0, heldout) == pytest.approx(0.01)
    assert rank_p_value(-1.0, heldout) == 1.0
    assert rank_p_value(98.0, heldout) == pytest.approx(0.02)


def test_scores_that_are_none_are_refused() -> None:
    good = np.arange(3.0)
    for wrong in (np.array([1.0]), np.array([1.0, np.nan]), np.ones((2, 2))):
        with pytest.raises(ValueError, match="finite numbers"):
            auc(wrong, good)
    with pytest.raises(ValueError, match="same scores"):
        separation({"loss": good}, {"pia": good})
    with pytest.raises(ValueError, match="level"):
        auc(good, good, 1.0)
    with pytest.raises(ValueError, match="share"):
        true_positives(good, good, 1.0)
