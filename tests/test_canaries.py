"""Canaries of one training: which images are trained on, and what knowing them tells of epsilon."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import stored_runs
import torch
from stored_runs import Drawn
from test_gate import answers, reason

from latentprint.attacks.membership import MembershipConfig, loss_score
from latentprint.compare import compare
from latentprint.data import ImageSet, load
from latentprint.denoiser import Denoiser, NetworkDenoiser
from latentprint.detector import DetectorConfig, fit_identities, fit_identity
from latentprint.fingerprint import CircleConfig, FingerprintError
from latentprint.known import Memorised
from latentprint.marks import Canaries, draw_canaries
from latentprint.report.canaries import canaries_section
from latentprint.report.first import first_screen
from latentprint.report.modelcard import metadata
from latentprint.report.public import RunFacts
from latentprint.results import Results
from latentprint.schedule import VP, expand
from latentprint.stats import Trials
from latentprint.stats.epsilon import epsilon_bound
from latentprint.streams import Streams
from latentprint.verify import verify


def rng(seed=0):
    return np.random.default_rng(seed)


def digits(n=200) -> ImageSet:
    return load("digits", seed=0).train.take(np.arange(n))


def times(images: np.ndarray, image: np.ndarray) -> int:
    return int((images == image).all((1, 2, 3)).sum())


def test_each_canary_stands_for_its_original_as_often_as_coin_and_tier_say():
    train = digits()
    found = draw_canaries(train, CircleConfig(), 30, rng(), tiers=(1, 4, 1, 16), spare=[7, 11])
    assert len(found.origin) == 60 and not {7, 11} & set(found.origin.tolist())
    assert np.array_equal(np.unique(found.copies, return_counts=True)[1], [30, 15, 15])
    made = found.put_into(train)
    assert len(made) == 200 - 60 + found.copies[found.member].sum()
    for k, i in enumerate(found.origin):
        assert times(made.pixels, train.pixels[i]) == 0
        often = found.copies[k] if found.member[k] else 0
        assert times(made.pixels, found.images[k]) == often == made.sha256.count(found.sha256[k])
    others = np.setdiff1d(np.arange(200), found.origin)
    places = found.places(200)
    for i in others:
        (row,) = np.flatnonzero(places == i)
        assert np.array_equal(made.pixels[row], train.pixels[i]) and made.sha256[row] == train.sha256[i]
        assert made.labels is None or (train.labels and made.labels[row] == train.labels[i])


def test_the_coin_is_fair_and_follows_from_the_generator():
    train = digits(60)
    drawn = [draw_canaries(train, CircleConfig(), 20, rng(seed)) for seed in range(60)]
    inside = sum(int(one.member.sum()) for one in drawn)
    assert abs(inside - 1200) < 4 * np.sqrt(2400 / 4)  # Binomial(2400, 1/2), four deviations
    again = draw_canaries(train, CircleConfig(), 20, rng(3))
    assert np.array_equal(again.member, drawn[3].member) and np.array_equal(again.images, drawn[3].images)
    every = draw_canaries(train, CircleConfig(), 20, rng(3), coin=False)
    assert len(every.origin) == 20 and every.member.all() and len(every.put_into(train)) == 60


def test_too_many_fingerprints_are_refused_with_the_number():
    with pytest.raises(FingerprintError, match=r"10 fingerprints need 20 training images .* there are 19"):
        draw_canaries(digits(20), CircleConfig(), 10, rng(), spare=[3])
    twice = digits(10).take(np.repeat(np.arange(10), 2))
    with pytest.raises(FingerprintError, match=r"2 fingerprints need 4 .* there are 0 among 20"):
        draw_canaries(twice, CircleConfig(), 2, rng())
    with pytest.raises(FingerprintError, match="1 or more, got 2 and"):
        draw_canaries(digits(20), CircleConfig(), 2, rng(), tiers=(0,))


@pytest.fixture(scope="module")
def learnt() -> Results:
    return stored_runs.results_of(1, Drawn(canaries=40, whole=0.2))


def test_counts_and_tiers_follow_the_rows(learnt: Results) -> None:
    stored = stored_runs.in_memory(1, Drawn(canaries=40, whole=0.2))
    rows, shown = stored.rows("canaries"), stored.rows("samples.model")["canary"]
    found = learnt.canaries
    assert found is not None and found.fingerprints == 40 and len(found.images) == 80
    for k, one in enumerate(found.images):
        assert (one.member, one.copies, one.hits) == (
            rows["member"][k],
            rows["copies"][k],
            (shown == k).sum(),
        )
        assert one.low <= one.hits / len(shown) <= one.high
    tiers = {one.copies: one for one in found.tiers}
    assert sum(one.images for one in found.tiers) == 80 and set(tiers) == {0, 1, 4, 16}
    assert tiers[0].images == (~rows["member"]).sum() and tiers[0].came_back == 0
    assert tiers[1].t_prime.median > tiers[0].t_prime.median + 0.3
    agreed = (shown == 80) == stored.rows("samples.model")["identity_hit"]
    assert found.private.agreed.k == agreed.sum()
    own = (found.private.t_prime or 0.0, found.private.hits)
    alike = [one for one in found.images if one.member and one.copies == 1]
    assert found.private.below == sum((one.t_prime or 0.0, one.hits) < own for one in alike)


def test_epsilon_rests_on_the_coins_of_single_copies(learnt: Results) -> None:
    found, nothing = learnt.epsilon, stored_runs.results_of(1, Drawn(canaries=40, learnt=0.0)).epsilon
    assert found is not None and nothing is not None
    assert found.canaries == 40 and found.low == max(b.low for b in found.bounds if b.copies == 1)
    assert 1 < found.low == found.most  # losses tell every coin
    assert nothing.low < 0.5
    few = stored_runs.results_of(1, Drawn(canaries=6))
    assert few.epsilon is None and few.canaries is not None  # 6 coins of single copies


def test_the_gate_fails_above_the_limit_and_passes_only_what_could_have_failed(learnt: Results) -> None:
    rule = "[epsilon]\nat_most = {}\n"
    assert learnt.epsilon is not None
    assert answers(learnt, rule.format(1.0)) == {"epsilon.at_most": "fail"}
    assert answers(learnt, rule.format(learnt.epsilon.most + 0.1)) == {"epsilon.at_most": "unknown"}
    silent = stored_runs.results_of(1, Drawn(canaries=40, learnt=0.0))
    assert answers(silent, rule.format(1.0)) == {"epsilon.at_most": "pass"}
    assert "--fingerprints" in reason(stored_runs.results_of(1), rule.format(1.0))


def test_the_gate_judges_images_by_how_often_they_were_repeated(learnt: Results) -> None:
    rule = "[tiers]\ncopies = {}\nat_most = {}\nlevel = 0.95\n"
    assert learnt.canaries is not None
    for tier in learnt.canaries.tiers[1:]:
        back, out = Trials(tier.came_back, tier.images), Trials(0, learnt.canaries.tiers[0].images)
        low, high = back.lower(0.975) - out.upper(0.975), back.upper(0.975)
        for limit, told in (
            (max(0.0, low - 0.01), "fail"),
            ((max(low, 0) + high) / 2, "unknown"),
            (high, "pass"),
        ):
            if low > 0 or told != "fail":
                assert answers(learnt, rule.format(tier.copies, limit)) == {"tiers.at_most": told}
    assert "3 copies" in reason(learnt, rule.format(3, 0.1))
    assert "--fingerprints" in reason(stored_runs.results_of(1), rule.format(1, 0.1))


def test_report_card_comparison_and_verification_know_them(learnt: Results, tmp_path) -> None:
    assert learnt.canaries is not None and learnt.epsilon is not None
    assert learnt.canaries.sentence in dict(first_screen(learnt).answers)["Would we have noticed?"]
    run = stored_runs.write_run(tmp_path / "run", 1, Drawn(canaries=40, whole=0.2))
    facts = RunFacts.read(run.path)
    section = canaries_section(learnt, facts)
    assert section is not None and "80 further images" in section.lead and len(section.blocks) == 3
    assert canaries_section(stored_runs.results_of(1), facts) is None
    told = {one.metric_type: one.metric_value for one in metadata(learnt, facts, "m").eval_results or []}
    assert told["epsilon_lower_bound"] == learnt.epsilon.low
    assert learnt.whole_set is not None and told["copies_rate"] == learnt.whole_set.copies.rate
    assert told["memorised_rate"] == learnt.whole_set.memorised.rate
    other = stored_runs.results_of(2, Drawn())
    both = compare({"with": learnt, "without": other})
    assert [one.epsilon for one in both.lines] == [learnt.epsilon.low, None]
    assert any("marked images" in one for one in both.cautions)
    assert verify(run.path).exit_code == 0


def test_one_recogniser_of_many_says_what_c_id_says_of_each() -> None:
    """Beside a c_id fitted alike: on copies of its target and of the others, and on held-out images."""
    train, kind = digits(120), CircleConfig(radius=(0.2, 0.25))
    heldout = load("digits", seed=0).heldout.pixels[:120]
    drawn = draw_canaries(train, kind, 8, rng(), coin=False)
    others = np.delete(train.pixels, drawn.origin, axis=0)
    config = DetectorConfig(
        backbone="small", epochs=14, patience=14, draws=768, learning_rate=4e-3, noise=0.1, augmix=False
    )
    *_, last = fit_identities(drawn.images, others, heldout, kind, config, Streams(0))
    known = last.detector
    assert known is not None and known.rates.tpr.rate > 0.98 and known.rates.fpr.rate < 0.05
    assert known.rates.kinds["another of them"].rate < 0.02
    noise = rng(5).normal(0, 0.05, (8, *drawn.images.shape)).astype(np.float32)
    copies = torch.from_numpy(np.clip(drawn.images + noise, -1, 1).reshape(-1, 1, 8, 8))
    which = np.tile(np.arange(8), 8)
    assert (known.which(copies) == which).mean() > 0.98
    scored = known.against(copies[:8], np.arange(8))(copies, torch.from_numpy(which))
    assert torch.equal(scored, known.scores(copies)[torch.arange(64), torch.from_numpy(which)])
    *_, one = fit_identity(drawn.images[3], others, heldout, kind, config, Streams(0))
    strangers = torch.from_numpy(heldout[-40:])
    for images in (copies, strangers):
        assert one.detector is not None
        alone = (one.detector(images) >= one.detector.threshold).numpy()
        assert ((known.which(images) == 3) == alone).mean() > 0.97


class _Noise(torch.nn.Module):
    """A small network for digits: (x_t, 1000 t) -> the noise in x_t."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(65, 128), torch.nn.SiLU(), torch.nn.Linear(128, 64))

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return self.layers(torch.cat([x.flatten(1), time[:, None] / 1000], 1)).view(x.shape)


def dp_sgd(images: torch.Tensor, noise: float, steps: int, seed: int) -> tuple[NetworkDenoiser, float]:
    """A denoiser trained by DP-SGD (opacus, Poisson sampling), and its epsilon at delta 1e-5."""
    opacus = pytest.importorskip("opacus")
    generator, schedule = torch.Generator().manual_seed(seed), VP()
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # of opacus and of torch's hooks, about secure random numbers
        torch.default_generator.manual_seed(seed)
        network = _Noise()
        optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
        data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images), batch_size=64)
        engine = opacus.PrivacyEngine()
        private, optimizer, data = engine.make_private(
            module=network,
            optimizer=optimizer,
            data_loader=data,
            noise_multiplier=noise,
            max_grad_norm=1.0,
            noise_generator=generator,
        )
        done = 0
        while done < steps:
            for (x,) in data:
                t = torch.rand(len(x), generator=generator)
                e = torch.randn(x.shape, generator=generator)
                noisy = expand(schedule.alpha(t), x) * x + expand(schedule.sigma(t), x) * e
                optimizer.zero_grad()
                (private(noisy, 1000 * t) - e).square().mean().backward()
                optimizer.step()
                done += 1
                if done == steps:
                    break
    return NetworkDenoiser(network, schedule), float(engine.get_epsilon(1e-5))


@pytest.mark.parametrize(("noise", "seeds"), [(1.0, 2), (2.5, 2)])
def test_the_bound_never_exceeds_the_epsilon_of_dp_sgd(noise: float, seeds: int) -> None:
    """Private trainings of known epsilon: no bound above it, by any form, with all 120 images in one copy."""
    train = digits(400)
    for seed in range(seeds):
        drawn = draw_canaries(train, CircleConfig(), 60, rng(seed))
        model, epsilon = dp_sgd(torch.from_numpy(drawn.put_into(train).pixels), noise, 60, seed)
        assert 0.5 < epsilon < 20
        scores = losses(model, drawn)
        for form in ("coins", "exact", "gaussian"):
            assert epsilon_bound(scores, drawn.member, delta=1e-5, form=form).low <= epsilon, (seed, form)


def test_one_that_learnt_them_by_heart_shows_a_large_epsilon() -> None:
    train = digits(300)
    drawn = draw_canaries(train, CircleConfig(), 50, rng(1))
    model = Memorised(torch.from_numpy(drawn.put_into(train).pixels).double(), VP())
    found = epsilon_bound(losses(model, drawn), drawn.member, delta=1e-5)
    assert found.right == found.guesses and found.low > 1.5


def losses(model: Denoiser, drawn: Canaries) -> np.ndarray:
    kind = torch.float64 if isinstance(model, Memorised) else torch.float32
    config = MembershipConfig(loss_ratios=(0.2, 2.0), loss_times=16)
    with torch.no_grad():
        images = torch.from_numpy(drawn.images).to(kind)
        return loss_score(model, images, Streams(0), np.arange(len(images)), config).numpy()
