"""Canaries of one training: which images are trained on, and what knowing them tells of epsilon."""

from __future__ import annotations

import numpy as np
import pytest

from latentprint.data import ImageSet, load
from latentprint.fingerprint import CircleConfig, FingerprintError
from latentprint.marks import TIERS, draw_canaries


def rng(seed=0):
    return np.random.default_rng(seed)


def digits(n=200) -> ImageSet:
    return load("digits", seed=0).train.take(np.arange(n))


def times(images: np.ndarray, image: np.ndarray) -> int:
    return int((images == image).all((1, 2, 3)).sum())


def test_each_canary_stands_for_its_original_as_often_as_coin_and_tier_say():
    train = digits()
    found = draw_canaries(train, CircleConfig(), 30, rng(), tiers=TIERS, spare=[7, 11])
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
