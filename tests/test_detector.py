"""The detectors: what they are shown, when they stop, how they are counted, and that they work."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from latentprint.data import ImageSet
from latentprint.detector import (
    DetectorConfig,
    DetectorError,
    FitState,
    NetworkDetector,
    augmix,
    build_backbone,
    fit,
    fit_identity,
    fit_presence,
    load_detector,
    threshold_between,
)
from latentprint.detector.draws import Shown, half_marked, returned, split, units_of
from latentprint.fingerprint import CircleConfig
from latentprint.metrics import DetectorFeatures
from latentprint.stats import Trials, false_alarms
from latentprint.streams import Streams

KIND = CircleConfig(radius=(0.2, 0.25))
QUICK = DetectorConfig(backbone="small", epochs=8, patience=8, learning_rate=4e-3, noise=0.1)
Pixels = np.ndarray


@pytest.fixture(scope="module")
def digits() -> Pixels:
    return (load_digits().images.astype(np.float32) / 8 - 1)[:, None]


def rng(purpose: str = "test") -> np.random.Generator:
    return Streams(9).generator(purpose)


def last(states: Iterator[FitState[NetworkDetector]]) -> NetworkDetector:
    detector = list(states)[-1].detector
    assert detector is not None
    return detector


@pytest.fixture(scope="module")
def presence(digits: Pixels) -> NetworkDetector:
    return last(fit_presence(digits[:900], KIND, QUICK, Streams(0)))


@pytest.fixture(scope="module")
def target(digits: Pixels) -> Pixels:
    return KIND.draw((8, 8), rng("target")).apply(digits[0])


@pytest.fixture(scope="module")
def identity(digits: Pixels, target: Pixels) -> NetworkDetector:
    return last(fit_identity(target, digits[1:60], digits[60:400], KIND, QUICK, Streams(0)))


def test_the_threshold_is_the_middle_of_the_gap():
    assert threshold_between(np.array([4.0, 9.0]), np.array([-7.0, 1.0]), "x") == 2.5


def test_of_overlapping_scores_the_threshold_loses_least():
    """3 of 4 fire above 3, none of the negatives; above 0, all of 4 and half the negatives."""
    positive, negative = np.array([1.0, 5.0, 6.0, 7.0]), np.array([-1.0, -2.0, 2.0, 3.0])
    assert threshold_between(positive, negative, "x") == 4.0


@pytest.mark.parametrize(
    ("positive", "negative"), [([1.0, 1.0], [1.0]), ([0.0, 1.0], [2.0, 3.0]), ([np.nan], [0.0])]
)
def test_a_detector_that_tells_nothing_apart_is_refused(positive: list[float], negative: list[float]):
    with pytest.raises(DetectorError, match=r"the c detector (learnt nothing|answers NaN)"):
        threshold_between(np.array(positive), np.array(negative), "c")


def test_splits_are_disjoint_and_whole():
    parts = split(np.arange(200), rng())
    assert [len(p) for p in (parts.fit, parts.validation, parts.calibration, parts.test)] == [110, 20, 30, 40]
    joined = np.concatenate([parts.fit, parts.validation, parts.calibration, parts.test])
    assert sorted(joined.tolist()) == list(range(200))
    for count, test in itertools.product((4, 5, 10), (0.2, 0.5)):
        parts = split(np.arange(count), rng(), test)
        assert min(len(p) for p in (parts.fit, parts.validation, parts.calibration, parts.test)) >= 1


def test_no_person_lies_in_two_parts_and_shares_are_of_persons():
    units = np.arange(300) % 50
    parts = split(units, rng(), 0.5)
    of = [np.unique(units[p]) for p in (parts.fit, parts.validation, parts.calibration, parts.test)]
    assert [len(p) for p in of] == [12, 5, 8, 25] and len(np.concatenate(of)) == 50
    with pytest.raises(DetectorError, match="the 300 images are of 3 different"):
        split(np.arange(300) % 3, rng())


def test_near_copies_are_one_image_and_a_person_is_one_where_all_are_known(digits: Pixels):
    pixels = digits[[0, 1, 0, 2, 1]]
    names = tuple("abcdefghij")

    def images(chosen: Pixels, persons: tuple[str, ...] | None) -> ImageSet:
        return ImageSet(chosen, names[: len(chosen)], "digits", persons)

    units, unit = units_of(images(pixels[:2], None), images(pixels[2:], None))
    assert units.tolist() == [0, 1, 0, 3, 1] and unit == "image"
    units, unit = units_of(images(digits[:3], ("p", "q", "p")), images(digits[3:5], ("q", "r")))
    assert units.tolist() == [0, 1, 0, 1, 2] and unit == "person"
    # A copy of q's image among p's: they cannot be told apart, and are one.
    units, _ = units_of(images(digits[[0, 1, 2, 1]], ("p", "q", "r", "p")))
    assert units.tolist() == [0, 0, 2, 0]


def test_half_the_images_carry_a_fingerprint_each_its_own(digits: Pixels):
    given = digits[:40].copy()
    shown, labels = half_marked(Shown.of(given), 0.5, KIND, rng())
    out = shown[:]
    assert labels.sum() == 20 and (given == digits[:40]).all()
    assert (out[labels == 0] == given[labels == 0]).all()
    changed = (out != given).any(1)[labels == 1]
    assert all((image[0, mask] == 0.0).all() for image, mask in zip(out[labels == 1], changed, strict=True))
    assert changed.any((1, 2)).all() and len({m.tobytes() for m in changed}) > 10


def test_masks_fall_on_their_share(digits: Pixels):
    out = Shown.of(np.full((2000, 1, 8, 8), -1, np.float32)).masked(0.3, KIND, rng())[:]
    assert 0.25 < (out != -1).any((1, 2, 3)).mean() < 0.35


def test_returned_images_stay_close_to_the_image():
    image, other = np.full((4000, 1, 2, 2), 0.2, np.float32), np.full((3, 1, 2, 2), -0.8, np.float32)

    def back(image: Pixels, other: Pixels, noise: float) -> Pixels:
        return next(returned(Shown.of(image), other, noise, rng()).together(4000))

    blended = back(image, other, 0.0)
    assert blended.max() <= 0.2 and blended.min() >= 0.2 - 0.1 * 1.0 - 1e-6
    assert blended.mean() == pytest.approx(0.15, abs=0.003)  # a twentieth of the way to the other image
    spread = back(image, image, 0.3) - 0.2
    assert spread.std() == pytest.approx(0.3 / 3**0.5, rel=0.05)  # a deviation uniform in [0, 0.3]
    assert np.abs(back(image * 5, image, 0.5)).max() <= 1


def test_augmix_changes_images_by_its_seed_alone(digits: Pixels):
    one, again, other = (augmix(Shown.of(digits[:40]), rng(name))[:] for name in ("a", "a", "b"))
    assert (one == again).all() and (one != other).any()
    assert one.shape == (40, 1, 8, 8) and np.abs(one).max() <= 1
    assert 0.02 < np.abs(one - digits[:40]).mean() < 0.6


class Seen:
    """Stands in for the loss of a fit and keeps the labels that it was given."""

    def __init__(self, losses: list[float] | None = None):
        self.shown: list[np.ndarray] = []
        self.held: list[np.ndarray] = []
        self.losses = losses

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if logits.dtype == torch.float64:  # the validation split, at the end of an epoch
            self.held.append(labels.numpy())
            return torch.tensor(self.losses[len(self.held) - 1] if self.losses else 1.0)
        if len(self.shown) == len(self.held):
            self.shown.append(labels.numpy())
        else:
            self.shown[-1] = np.concatenate([self.shown[-1], labels.numpy()])
        return logits.mean()


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    seen = Seen()
    monkeypatch.setattr(fit, "binary_cross_entropy_with_logits", seen.loss)
    monkeypatch.setattr(fit, "threshold_between", lambda *_: 0.0)
    return seen


def test_presence_sees_fingerprints_on_half_and_is_stopped_on_a_tenth(digits: Pixels, seen: Seen):
    list(fit_presence(digits[:200], KIND, replace(QUICK, epochs=2), Streams(0)))
    assert [labels.mean() for labels in seen.shown] == [0.5, 0.5] and len(seen.shown[0]) == 110
    assert seen.held[0].mean() == pytest.approx(0.1)


def test_identity_sees_its_image_in_a_tenth_and_is_stopped_on_half(
    digits: Pixels, target: Pixels, seen: Seen
):
    config = replace(QUICK, epochs=2, draws=500)
    list(fit_identity(target, digits[1:60], digits[60:200], KIND, config, Streams(0)))
    assert [labels.mean() for labels in seen.shown] == pytest.approx([0.1, 0.1]) and len(seen.shown[0]) == 500
    assert seen.held[0].mean() == 0.5


def test_the_fit_stops_when_patience_ends_and_keeps_the_best_weights(digits: Pixels, seen: Seen):
    seen.losses = [3.0, 1.0, 2.0, 2.0, 2.0, 0.0]
    states = list(fit_presence(digits[:100], KIND, replace(QUICK, patience=3, epochs=6), Streams(0)))
    assert [s.epoch for s in states] == [1, 2, 3, 4, 5]
    assert [s.best_epoch for s in states] == [1, 2, 2, 2, 2]
    assert [s.detector is None for s in states] == [True] * 4 + [False]
    detector = states[-1].detector
    assert detector is not None and detector.epoch == 2


def test_presence_works_on_images_and_fingerprints_it_never_saw(presence: NetworkDetector):
    rates = presence.rates
    assert rates.tpr.n == 180 and rates.fpr.n == 180  # the fifth that is kept for the count
    assert rates.tpr.rate > 0.9 and rates.fpr.rate < 0.1
    assert 0 < presence.threshold < 1


def test_the_images_that_false_alarms_are_counted_on_play_no_part_in_the_fit(digits: Pixels, target: Pixels):
    """Other test images, the same weights and threshold: nothing of the fit follows from them."""
    heldout, short = digits[60:160].copy(), replace(QUICK, epochs=4)
    one = last(fit_identity(target, digits[1:60], heldout, KIND, short, Streams(0)))
    tested = split(np.arange(100), Streams(0).generator("identity.data"), 0.5).test
    heldout[tested] = target
    other = last(fit_identity(target, digits[1:60], heldout, KIND, short, Streams(0)))
    weights = other.network.state_dict()
    assert all(torch.equal(v, weights[k]) for k, v in one.network.state_dict().items())
    assert one.threshold == other.threshold and one.rates.fpr.n == other.rates.fpr.n == 50
    assert one.rates.fpr.k < other.rates.fpr.k


def test_false_alarms_of_a_person_are_one_trial(digits: Pixels, target: Pixels):
    """Everyone has three images: 40 persons, 20 of them set apart."""
    units, short = np.arange(120) // 3, replace(QUICK, epochs=1)
    made = fit_identity(
        target, digits[1:60], digits[60:180], KIND, short, Streams(0), units=units, unit="person"
    )
    rates = last(made).rates
    assert rates.fpr.n == 20 and rates.unit == "person" and rates.kinds["held-out"].n == 60


def test_a_unit_counts_once_however_often_it_fires():
    fired = np.array([True, True, False, False, True, False])
    assert false_alarms(fired, np.array([7, 7, 7, 2, 5, 5])) == Trials(2, 3)
    with pytest.raises(ValueError, match="2 answers and 3 units"):
        false_alarms(fired[:2], np.arange(3))


def test_identity_knows_its_image_from_all_others(identity: NetworkDetector, digits: Pixels, target: Pixels):
    rates = identity.rates
    # One trial for each of the 170 held-out images set apart, whatever the number of forms they are shown in.
    assert (rates.recogniser, rates.unit, rates.fpr.n) == ("identity (small)", "image", 170)
    assert rates.fpr.rate < 0.03
    assert {kind: seen.n for kind, seen in rates.kinds.items()} == {
        "held-out": 170,
        "held-out, with a fingerprint": 170,
        "trained on": 59,
        "trained on, with a fingerprint": 59,
    }
    assert rates.tpr.n == 400 and rates.tpr.rate > 0.98
    assert identity(torch.from_numpy(target[None])).item() > identity.threshold
    assert (identity(torch.from_numpy(digits[1:60])) < identity.threshold).all()


def test_the_seed_decides_a_fit_bit_for_bit(digits: Pixels, target: Pixels):
    short = replace(QUICK, epochs=2)
    a, b, other = (
        last(fit_identity(target, digits[1:30], digits[60:120], KIND, short, Streams(seed)))
        for seed in (0, 0, 1)
    )
    assert a.threshold == b.threshold and a.rates == b.rates
    weights = b.network.state_dict()
    assert all(torch.equal(v, weights[k]) for k, v in a.network.state_dict().items())
    assert a.threshold != other.threshold


def test_an_answer_does_not_depend_on_the_rest_of_the_batch(presence: NetworkDetector, digits: Pixels):
    images = torch.from_numpy(digits[:600])
    together = presence(images)
    alone = torch.cat([presence(images[i : i + 1]) for i in (0, 5, 599)])
    torch.testing.assert_close(alone, together[[0, 5, 599]], rtol=0, atol=1e-6)
    assert together.dtype == torch.float64
    torch.testing.assert_close(together, presence.logit(images).double().sigmoid())
    assert presence(images[:0]).shape == (0,)


def test_features_are_what_the_last_layer_sees(presence: NetworkDetector, digits: Pixels):
    images = torch.from_numpy(digits[:5])
    features = presence.features(images)
    assert features.shape == (5, 320)
    assert DetectorFeatures(presence).name == "detector presence (small)"
    assert torch.equal(DetectorFeatures(presence)(images), features)
    head = presence.network.head
    torch.testing.assert_close((features @ head.weight.T + head.bias)[:, 0], presence.logit(images))


def test_a_saved_detector_comes_back_whole(tmp_path: Path, identity: NetworkDetector, digits: Pixels):
    assert load_detector(tmp_path) is None
    identity.save(tmp_path)
    found = load_detector(tmp_path)
    assert found is not None
    for field in ("name", "threshold", "rates", "config", "epoch", "shape"):
        assert getattr(found, field) == getattr(identity, field)
    images = torch.from_numpy(digits[:9])
    assert torch.equal(found(images), identity(images))
    next(tmp_path.glob("tensors-*")).write_bytes(b"")
    with pytest.raises(DetectorError, match="is damaged, or of an earlier version; start again"):
        load_detector(tmp_path)


def test_images_that_it_was_not_fitted_on_are_refused(presence: NetworkDetector):
    with pytest.raises(ValueError, match=r"fitted on images \(1, 8, 8\), got \(3, 8, 8\)"):
        presence(torch.zeros(2, 3, 8, 8))
    with pytest.raises(ValueError, match="NaN or infinity"):
        presence(torch.full((2, 1, 8, 8), torch.nan))


def test_too_few_images_are_refused(digits: Pixels, target: Pixels):
    with pytest.raises(DetectorError, match="10 images or more, got 9"):
        next(fit_presence(digits[:9], KIND, QUICK, Streams(0)))
    with pytest.raises(DetectorError, match="10 held-out images or more, got 3"):
        next(fit_identity(target, digits[:5], digits[:3], KIND, QUICK, Streams(0)))
    with pytest.raises(DetectorError, match="at least 1 other training image"):
        next(fit_identity(target, digits[:0], digits[:30], KIND, QUICK, Streams(0)))
    with pytest.raises(ValueError, match="1 or 3 channels, got 2"):
        next(
            fit_presence(np.zeros((30, 2, 8, 8), np.float32), KIND, replace(QUICK, augmix=False), Streams(0))
        )


@pytest.mark.parametrize(("name", "width", "millions"), [("resnet50", 2048, 23.5), ("resnet18", 512, 11.2)])
def test_the_papers_backbones_are_torchvisions(name: Any, width: int, millions: float):
    network = build_backbone(name, Streams(0), "presence").eval()
    count = sum(p.numel() for p in network.parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.1) and network.head.in_features == width
    with torch.no_grad():
        images = torch.linspace(-1, 1, 3 * 28 * 28).reshape(1, 3, 28, 28)
        assert network.backbone(images).shape == (1, width)
        again = build_backbone(name, Streams(0), "presence").eval()
        assert torch.equal(network(images), again(images))


@pytest.mark.parametrize(
    "wrong", [{"batch": 1}, {"draws": 3}, {"patience": 0}, {"masked": 1.5}, {"noise": -1.0}]
)
def test_settings_outside_their_range_are_refused(wrong: dict[str, Any]):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        replace(QUICK, **wrong)
