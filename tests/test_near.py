"""Copies between training and held-out images: against the comparison of all pairs, and on real sets."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist, pdist

from latentprint.data import DataError, ImageSet, Split, load, overlap

SHARED = Path(__file__).parents[2] / "shared"
MEDMNIST = Path(os.environ.get("MEDMNIST_ROOT") or SHARED / "medmnist")
CASES = SHARED / "cases"


def images(pixels, source="drawn"):
    hashes = tuple(str(i) for i in range(len(pixels)))
    return ImageSet(np.asarray(pixels, np.float32), hashes, source)


def brute(train, heldout):
    """(positions of copies, tolerance) by SciPy's distances of all pairs, in float64."""
    a, b = (x.reshape(len(x), -1).astype(np.float64) for x in (train, heldout))
    root = np.sqrt(a.shape[1])
    tolerance = np.median(pdist(a)) / root / 8
    return np.flatnonzero((cdist(b, a) / root).min(1) <= tolerance), tolerance


@given(st.integers(0, 10**6), st.sampled_from([(1, 5, 4), (3, 4, 4), (1, 4, 5, 6), (1, 37, 41)]))
@settings(max_examples=40, deadline=None)
def test_copies_are_those_of_the_comparison_of_all_pairs(seed, shape):
    rng = np.random.default_rng(seed)
    train = rng.uniform(-0.7, 0.7, (12, *shape)).astype(np.float32)
    change = rng.choice([0.0, 0.01, 0.06, 0.1, 0.2, 0.5], (20, *(1 for _ in shape)))
    heldout = train[rng.integers(0, 12, 20)] + change * rng.uniform(-1, 1, (20, *shape))
    heldout = np.clip(heldout, -1, 1).astype(np.float32)
    found = overlap(train, heldout)
    copies, tolerance = brute(train, heldout)
    assert [held for held, _, _ in found.pairs] == copies.tolist()
    assert found.tolerance == pytest.approx(tolerance, rel=1e-5)
    assert sorted([*found.clean.tolist(), *copies.tolist()]) == list(range(20))
    for held, trained, rms in found.pairs:
        distances = np.sqrt(((train.astype(float) - heldout[held]) ** 2).reshape(12, -1).mean(1))
        assert trained == distances.argmin()
        assert rms == pytest.approx(distances.min(), abs=1e-12)


@pytest.mark.parametrize(("name", "copies", "within"), [("breastmnist", 67, 18), ("pneumoniamnist", 8, 8)])
def test_the_official_medmnist_splits_hold_copies(name, copies, within):
    """Within 0.02 are 18 of 234 and 8 of 1,148; 49 more of BreastMNIST are scans trained on."""
    if not (MEDMNIST / f"{name}.npz").is_file():
        pytest.skip(f"{name}.npz is not in {MEDMNIST}")
    split = load(f"medmnist:{name}", seed=0, root=MEDMNIST)
    assert (len(split.overlap.pairs), split.overlap.within_near) == (copies, within)
    assert len(split.heldout) == split.overlap.heldout - copies
    assert not overlap(split.train.pixels, split.heldout.pixels).pairs


@pytest.mark.parametrize(
    ("name", "copies", "clean"), [("memorised_ddpm", 0, 708), ("memorised_ddpm_overlap", 9, 141)]
)
def test_the_planted_copies_are_found_and_no_others(name, copies, clean):
    if not (CASES / f"{name}.npz").is_file():
        pytest.skip(f"{name}.npz is not in {CASES}")
    split = load(CASES / f"{name}.npz", seed=0)
    assert (len(split.overlap.pairs), len(split.heldout)) == (copies, clean)


@pytest.mark.parametrize("source", ["digits", "phantom:300"])
def test_sets_without_copies_lose_no_held_out_image(source):
    split = load(source, seed=0)
    assert split.overlap.pairs == ()
    assert str(split.overlap) == ""
    assert len(split.heldout) == split.overlap.heldout


def test_the_rule_moves_with_contrast_and_not_with_the_copies():
    rng = np.random.default_rng(1)
    train, others = (rng.uniform(-0.9, 0.9, (n, 1, 8, 8)) for n in (60, 40))
    again = train[:50] + rng.uniform(-0.01, 0.01, (50, 1, 8, 8))  # more than half of what is held out
    heldout = np.concatenate([again, others])
    for contrast in (1.0, 0.05):  # the second as 12 bits stored in 16 look
        found = overlap(np.float32(contrast * train), np.float32(contrast * heldout))
        assert found.clean.tolist() == list(range(50, 90))
        assert [(i, j) for i, j, _ in found.pairs] == [(i, i) for i in range(50)]


def test_the_sentence_counts_and_copies_alone_are_refused():
    train = np.random.default_rng(0).uniform(-1, 1, (20, 1, 6, 6)).astype(np.float32)
    split = Split.of(images(train), images(np.concatenate([train[:3], -train[:4] / 2])), "drawn")
    said = str(split.overlap)
    assert said.startswith(
        "3 of 7 held-out images are copies or near copies of training images and were left out"
    )
    assert ". 3 of them differ by " in said
    assert split.heldout.sha256 == ("3", "4", "5", "6")
    with pytest.raises(
        DataError, match="each of the 5 held-out images is a copy or near copy of a training image"
    ):
        Split.of(images(train), images(train[5:10]), "drawn")


def test_images_that_are_all_alike_cost_no_time():
    blank = np.zeros((3000, 1, 40, 40), np.float32)
    assert len(overlap(blank, blank).pairs) == 3000
