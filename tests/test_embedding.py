"""The embedding: its loss, its threshold from pairs, what it recognises, and that it survives a disk."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from latentprint.detector import Detector, DetectorConfig, DetectorError, FitState, contrast, fit_identity
from latentprint.detector.contrast import (
    fit_embedding,
    held_to,
    nearest_others,
    nt_xent,
)
from latentprint.detector.draws import Shown, returned
from latentprint.detector.embedding import (
    Agreement,
    Embedder,
    EmbeddingConfig,
    EmbeddingDetector,
    agreement,
    load_embedding,
    pair_threshold,
    pairs_needed,
)
from latentprint.fingerprint import CircleConfig
from latentprint.stats import DetectorRates, Trials
from latentprint.streams import Streams

KIND = CircleConfig(radius=(0.2, 0.25))
QUICK = EmbeddingConfig(
    backbone="small",
    dimensions=32,
    epochs=14,
    patience=14,
    draws=512,
    learning_rate=4e-3,
    noise=0.1,
    false_positive_rate=2e-3,
)
Pixels = np.ndarray


@pytest.fixture(scope="module")
def digits() -> Pixels:
    """In random order: neighbours in the file are by one writer and look more alike than any two do."""
    pixels = (load_digits().images.astype(np.float32) / 8 - 1)[:, None]
    return pixels[np.random.default_rng(0).permutation(len(pixels))]


@pytest.fixture(scope="module")
def states(digits: Pixels) -> list[FitState[EmbeddingDetector]]:
    return list(fit_embedding(digits[:500], KIND, QUICK, Streams(0)))


@pytest.fixture(scope="module")
def fitted(states: list[FitState[EmbeddingDetector]]) -> EmbeddingDetector:
    found = states[-1].detector
    assert found is not None and all(state.detector is None for state in states[:-1])
    return found


class Pixelwise(nn.Module):
    """A backbone that sees the first channel as it is: the embedding of an image is its direction."""

    def forward(self, images: Tensor) -> Tensor:
        return images[:, 0].flatten(1)


def plain_pixels(side: int) -> Embedder:
    with torch.random.fork_rng(devices=[]):
        network = Embedder(Pixelwise(), side * side, side * side)
    with torch.no_grad():
        network.head.weight.copy_(torch.eye(side * side))
        network.head.bias.zero_()
    return network.eval().requires_grad_(False)


def by_pixels(side: int, threshold: float = 0.9) -> EmbeddingDetector:
    rates = DetectorRates(Trials(1, 1), Trials(0, 1), {}, "pixels", "pair")
    config = replace(QUICK, dimensions=side * side)
    return EmbeddingDetector("embedding", plain_pixels(side), threshold, rates, config, 1, (1, side, side))


def test_the_loss_is_chen_et_al_equation_1():
    """Two images: views at 0 and 90 degrees; each view's partner has cosine 1, the two others 0."""
    views = torch.eye(2, dtype=torch.float64)
    expected = -math.log(math.exp(1 / 0.5) / (math.exp(1 / 0.5) + 2))
    assert nt_xent(views, views, 0.5).item() == pytest.approx(expected, rel=1e-12)
    # Turned about, each partner has cosine 0, and one stranger has 1.
    expected = -math.log(1 / (math.exp(1 / 0.5) + 2))
    assert nt_xent(views, views.flip(0), 0.5).item() == pytest.approx(expected, rel=1e-12)


def test_the_threshold_lets_the_stated_share_of_pairs_pass():
    scores = np.random.default_rng(0).permutation(np.arange(1, 200) / 200)  # 199 pairs
    level = pair_threshold(scores, 0.01, 15)  # j = floor(0.01 * 200) = 2: just above the second highest
    assert level == pytest.approx(198.5 / 200) and (scores >= level).sum() == 1
    assert pair_threshold(scores, 0.005, 15) == np.nextafter(199 / 200, 1)  # j = 1: none may pass


def test_a_new_pair_passes_the_threshold_at_no_more_than_the_stated_rate():
    """Exchangeable scores: P(new >= threshold) = floor(r (n + 1)) / (n + 1), less the half gap."""
    rng, passed, rounds = np.random.default_rng(1), 0, 4000
    for _ in range(rounds):
        scores = rng.random(50)
        passed += scores[-1] >= pair_threshold(scores[:-1], 0.1, 8)
    low, high = Trials(int(passed), rounds).interval(0.999)
    # Uniform: the threshold lies between the 5th and 4th highest of 49, so on average 4.5 / 50 lies above.
    assert low < 4.5 / 50 < high and low < 0.1


def test_too_few_pairs_for_a_rate_are_refused_with_their_counts():
    assert [pairs_needed(rate) for rate in (0.5, 0.1, 1e-3, 0.3)] == [1, 9, 999, 3]
    with pytest.raises(DetectorError, match=r"0\.001 needs 999 pairs .* the 10 images .* make 90.*1/91"):
        pair_threshold(np.zeros(90), 1e-3, 10)


def test_the_fit_refuses_too_few_images_before_any_epoch(digits: Pixels):
    with pytest.raises(DetectorError, match="needs 20 images or more, got 7"):
        next(fit_embedding(digits[:7], KIND, QUICK, Streams(0)))
    sentence = r"0\.001 needs 999 pairs .*of 100 images 15 are set apart .* make 210.*1/211"
    with pytest.raises(DetectorError, match=sentence):
        next(fit_embedding(digits[:100], KIND, replace(QUICK, false_positive_rate=1e-3), Streams(0)))


def test_copies_make_no_pair_of_different_images(digits: Pixels):
    """Of 15 calibration images that are all one image, no pair is left."""
    same = np.repeat(digits[:1], 100, 0)
    with pytest.raises(DetectorError, match="15 are set apart for the threshold and make 0"):
        next(fit_embedding(same, KIND, replace(QUICK, false_positive_rate=0.01), Streams(0)))


@pytest.mark.parametrize(("scores", "said"), [([1.0] * 10, "learnt nothing"), ([np.nan] * 10, "NaN")])
def test_an_embedding_that_tells_nothing_apart_is_refused(scores: list[float], said: str):
    with pytest.raises(DetectorError, match=said):
        pair_threshold(np.array(scores), 0.1, 4)


def test_an_embedding_that_recognises_nothing_is_refused(digits: Pixels):
    network = plain_pixels(8)
    with torch.no_grad():  # Copies at random angles to themselves: every pair but the own one is alike.
        network.head.weight.zero_()
    with pytest.raises(DetectorError, match="learnt nothing"):
        held_to(
            network,
            digits[:60],
            digits[:30],
            digits[30:60],
            KIND,
            replace(QUICK, dimensions=64, false_positive_rate=0.01),
            1,
            Streams(0).generator("test"),
        )


def test_the_threshold_comes_from_calibration_pairs_and_the_errors_from_test_images():
    """By pixels: calibration images at right angles to each other, test images nearly of one."""
    side, count = 4, 12
    calibration = np.full((count, 1, side, side), 0.0, np.float32)
    for i in range(count):
        calibration[i, 0].flat[i] = 0.9
    rng = Streams(2).generator("test")
    test = np.clip(0.5 + 0.2 * rng.standard_normal((count, 1, side, side)), -1, 1).astype(np.float32)
    config = replace(QUICK, dimensions=side * side, masked=0.0, noise=0.0, false_positive_rate=0.05)
    found = held_to(plain_pixels(side), calibration, calibration, test, KIND, config, 7, rng)
    # A tenth of another image is laid over what is queried: cosines up to about 0.11, and not 0.
    pairs = found.rates.kinds["pairs of the calibration"]
    assert 0.5 + 1e-3 < found.threshold < (1 + 0.2) / 2
    assert pairs.n == count * (count - 1) and pairs.k <= 0.05 * (pairs.n + 1)
    # Two test images have a cosine of about 0.25 / (0.25 + 0.04): each is taken for any other.
    strangers = found.rates.kinds["another image"]
    assert strangers == found.rates.fpr == Trials(strangers.n, strangers.n) and strangers.n == 132
    assert found.rates.tpr.k == found.rates.tpr.n >= 400 and found.epoch == 7
    # Where all images are at right angles, only an image's own copies match it: all of them, and no other's.
    own = held_to(plain_pixels(side), calibration, calibration, calibration, KIND, config, 7, rng).rates
    assert own.tpr == Trials(own.tpr.n, own.tpr.n) and own.fpr.rate < 0.2


def test_views_are_masked_as_the_settings_say_and_the_two_of_an_image_differ(
    digits: Pixels, monkeypatch: pytest.MonkeyPatch
):
    rng = Streams(0).generator("test")
    bare = replace(QUICK, augmix=False, noise=0.0, masked=0.0)
    plain, covered = (
        next(contrast._view(Shown.of(digits[:30]), KIND, replace(bare, masked=share), rng).together(30))
        for share in (0.0, 1.0)
    )
    assert (plain == digits[:30]).all()
    assert all((one != other).any() for one, other in zip(covered, digits[:30], strict=True))
    alike: list[bool] = []

    def watched(first: Tensor, second: Tensor, temperature: float) -> Tensor:
        alike.append(bool((first - second).abs().max() < 1e-3))
        return nt_xent(first, second, temperature)

    monkeypatch.setattr(contrast, "nt_xent", watched)
    config = replace(QUICK, epochs=1, draws=None, batch=32, false_positive_rate=0.05)
    list(fit_embedding(digits[:60], KIND, config, Streams(0)))
    assert len(alike) >= 2 and not any(alike)


def test_the_nearest_other_image_is_no_copy():
    pool = np.array([0.0, 0.01, 0.5, 0.9], np.float32).reshape(4, 1, 1, 1)
    assert nearest_others(pool, pool, chunk=3).tolist() == [2, 2, 3, 2]  # 0.0 and 0.01 are near copies
    assert nearest_others(pool[:2], pool[:2]).tolist() == [-1, -1]


def test_scores_are_cosines_and_each_image_meets_its_own_target():
    a, b = torch.zeros(2, 1, 2, 2), torch.zeros(1, 1, 2, 2)
    a[0, 0, 0, 0], a[1, 0, 0, 1], b[0, 0, 0, :] = 1.0, -1.0, 0.5
    detector = by_pixels(2, threshold=(1 + 0.5**0.5) / 2 - 1e-6)
    towards = detector.vectors(torch.cat([b, b]))
    assert detector.score(a, towards).tolist() == pytest.approx([(1 + 0.5**0.5) / 2, (1 - 0.5**0.5) / 2])
    assert detector.matches(a, towards).tolist() == [True, False]
    own = detector.vectors(a)
    assert detector.score(a, own).tolist() == pytest.approx([1, 1])
    assert detector.score(a, own.flip(0)).tolist() == pytest.approx([0.5, 0.5])
    one = detector.for_target(b[0])
    assert one(a).tolist() == detector.score(a, towards).tolist() and one.threshold == detector.threshold


def test_images_of_another_shape_or_nan_are_refused():
    detector = by_pixels(2)
    with pytest.raises(ValueError, match=r"fitted on images \(1, 2, 2\), got \(1, 3, 3\)"):
        detector.vectors(torch.zeros(1, 1, 3, 3))
    with pytest.raises(ValueError, match="NaN"):
        detector.vectors(torch.full((1, 1, 2, 2), torch.nan))


def test_it_recognises_returned_images_it_was_not_fitted_on(fitted: EmbeddingDetector, digits: Pixels):
    """Digits that no part of the fit has seen; expected rates are stated, not read off."""
    fresh = digits[600:800]
    rng = Streams(5).generator("test")
    back = torch.from_numpy(next(returned(Shown.of(fresh), digits[:500], 0.1, rng).together(200)))
    vectors = fitted.vectors(torch.from_numpy(fresh))
    own = Trials(int(fitted.matches(back, vectors).sum()), 200)
    every = fitted.vectors(back) @ vectors.T
    strangers = ((1 + every) / 2 >= fitted.threshold).fill_diagonal_(False)
    false = Trials(int(strangers.sum()), 200 * 199)
    assert own.interval(0.999)[0] > 0.7
    assert false.rate < 4 * QUICK.false_positive_rate  # pairs share images: wider than a binomial


def test_the_counts_belong_to_the_threshold(fitted: EmbeddingDetector):
    pairs = fitted.rates.kinds["pairs of the calibration"]
    assert pairs.n >= 75 * 72 and pairs.rate <= QUICK.false_positive_rate
    assert set(fitted.rates.kinds) == {"another image", "nearest other image", "pairs of the calibration"}
    assert fitted.rates.fpr == fitted.rates.kinds["another image"] and fitted.rates.fpr.n >= 9800
    assert fitted.rates.tpr.n >= 400 and fitted.rates.kinds["nearest other image"].n == 100
    assert 0 < fitted.threshold < 1


def test_the_best_epoch_is_kept(states: list[FitState[EmbeddingDetector]], fitted: EmbeddingDetector):
    losses = [state.validation_loss for state in states]
    assert fitted.epoch == states[-1].best_epoch == int(np.argmin(losses)) + 1  # its weights: test_stopping
    assert losses[-1] < losses[0]


def test_the_seed_decides_the_fit(digits: Pixels):
    config = replace(QUICK, epochs=1, draws=None, batch=32, false_positive_rate=0.05)

    def fit(seed: int) -> tuple[float, float]:
        (state,) = fit_embedding(digits[:60], KIND, config, Streams(seed))
        assert state.detector is not None
        return state.validation_loss, state.detector.threshold

    assert fit(1) == fit(1) != fit(2)


def test_it_survives_the_disk(fitted: EmbeddingDetector, digits: Pixels, tmp_path: Path):
    assert load_embedding(tmp_path / "none") is None
    fitted.save(tmp_path)
    again = load_embedding(tmp_path)
    assert again is not None
    images = torch.from_numpy(digits[:7])
    assert torch.equal(again.vectors(images), fitted.vectors(images))
    for name in ("threshold", "rates", "config", "epoch", "shape"):
        assert getattr(again, name) == getattr(fitted, name)
    next(tmp_path.glob("*.safetensors")).write_bytes(b"torn")
    with pytest.raises(DetectorError, match="damaged"):
        load_embedding(tmp_path)


def test_answers_do_not_depend_on_the_batch(fitted: EmbeddingDetector, digits: Pixels):
    images = torch.from_numpy(digits[:20])
    alone = torch.cat([fitted.vectors(images[i : i + 1]) for i in range(20)])
    torch.testing.assert_close(alone, fitted.vectors(images), atol=1e-5, rtol=0)
    assert fitted.vectors(images[:0]).shape == (0, 32)


class Fires:
    """A detector that fires on images whose corner is 1 in one channel position."""

    name, threshold, rates = "identity", 0.5, DetectorRates(Trials(1, 1), Trials(0, 1), {}, "made up")

    def __init__(self, row: int) -> None:
        self.row = row

    def __call__(self, images: Tensor, /) -> Tensor:
        return images[:, 0, self.row, 0].double()


def test_agreement_counts_the_four_cases():
    images = torch.zeros(10, 1, 2, 2)
    images[:4, 0, 0, 0] = 1  # the first fires on 0..3, the second on 3..5
    images[3:6, 0, 1, 0] = 1
    table = agreement(Fires(0), Fires(1), images)
    assert table == Agreement(both=1, identity_only=3, embedding_only=2, neither=4)
    assert table.agree == Trials(5, 10)
    with pytest.raises(ValueError, match="at least one image"):
        agreement(Fires(0), Fires(1), images[:0])


def test_it_agrees_with_the_one_against_all_detector(fitted: EmbeddingDetector, digits: Pixels):
    """Both see copies of x_p and other images; they may differ on few (issue 5: checked against c_id)."""
    target = digits[700]
    config = DetectorConfig(backbone="small", epochs=6, patience=6, draws=512, learning_rate=4e-3, noise=0.1)
    identity = list(fit_identity(target, digits[:60], digits[60:400], KIND, config, Streams(0)))[-1].detector
    assert identity is not None
    rng = Streams(3).generator("test")
    images = np.concatenate([np.repeat(target[None], 100, 0), digits[800:1100]])
    back = torch.from_numpy(next(returned(Shown.of(images), digits[:60], 0.1, rng).together(400)))
    other: Detector = fitted.for_target(torch.from_numpy(target))
    table = agreement(identity, other, back)
    assert table.both >= 60 and table.neither >= 290 and table.agree.n == 400


def test_the_weights_follow_from_the_seed():
    one, same, other = (QUICK.network("embedding", Streams(seed), 2) for seed in (1, 1, 2))
    assert torch.equal(one.head.weight, same.head.weight)
    assert not torch.equal(one.head.weight, other.head.weight)


@pytest.mark.parametrize(
    "wrong",
    [
        {"dimensions": 0},
        {"temperature": 0.0},
        {"temperature": float("nan")},
        {"false_positive_rate": 1.0},
        {"batch": 1},
        {"batch": 8, "draws": 4},
        {"masked": 1.5},
    ],
)
def test_settings_outside_their_range_are_refused(wrong: dict[str, float]):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        EmbeddingConfig(**wrong)  # pyright: ignore[reportArgumentType]
