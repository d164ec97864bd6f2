"""The filter: copies are kept back, what it misses is what it says it misses, other images pass."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.stats import binom
from typer.testing import CliRunner

from latentprint.attacks.filter import Filter, filter_for
from latentprint.attacks.planted import CHANGES, planted
from latentprint.attacks.whole_set import Reference
from latentprint.cli import app
from latentprint.data import DataError, load

SPLIT = load("digits", seed=0, images=60)


def test_what_it_misses_and_keeps_back_by_mistake_is_as_it_says() -> None:
    """Copies by other draws of the changes, and held-out images that it never saw."""
    train, held = SPLIT.train.pixels, SPLIT.heldout.pixels
    sieve = Filter.of(Reference(train), held[:400], share=0.02, seed=1, planted=30)
    again = planted(train[::2], np.random.default_rng(5))
    missed, n = sum(int((~sieve.copies(images)).sum()) for images in again.values()), 30 * len(CHANGES)
    low, high = sieve.all_missed.interval(0.999)
    assert binom.ppf(0.001, n, low) <= missed <= binom.ppf(0.999, n, high)
    assert 0 < sieve.all_missed.rate < 0.3
    wrong = int(sieve.copies(held[400:800]).sum())
    low, high = sieve.rejected.interval(0.999)
    assert binom.ppf(0.001, 400, low) <= wrong <= binom.ppf(0.999, 400, high)


def test_a_larger_share_misses_fewer() -> None:
    reference, held = Reference(SPLIT.train.pixels), SPLIT.heldout.pixels[:300]
    missed = [Filter.of(reference, held, share=share, planted=20).all_missed.k for share in (0.01, 0.1, 0.4)]
    assert missed[0] >= missed[1] >= missed[2] and missed[0] > missed[2]


def test_where_nobody_said_what_was_held_out_every_image_counts_as_trained_on(tmp_path: Path) -> None:
    """Copies of images that we drew as held out are found too; those truly held out pass."""
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "set.npz", images=np.clip(rng.normal(0, 0.4, (80, 6, 6)), -1, 1).astype(np.float32))
    drawn = load(tmp_path / "set.npz", seed=0)
    assert drawn.drawn and len(drawn.heldout) == 16
    copies = drawn.heldout.pixels
    whole, part = (filter_for(drawn, whole=one) for one in (True, False))
    assert whole.copies(copies).all() and part.copies(copies).sum() <= 2
    # What was set aside here may have been trained on there, and nothing else is said of it.
    assert "no model was trained on" not in whole.told(40, 40)[-1]
    assert "no model was trained on" in part.told(40, 2)[-1]


def test_the_command_sorts_files_and_says_how_much_it_misses(tmp_path: Path) -> None:
    made = tmp_path / "made"
    made.mkdir()
    for i in range(4):  # two copies, two strangers
        image = SPLIT.train.pixels[i] if i < 2 else SPLIT.heldout.pixels[10 * i]
        Image.fromarray(np.round((image[0] + 1) * 127.5).astype(np.uint8)).save(made / f"{i}.png")
    answer = asked(made, "--out", tmp_path / "kept", "--json")
    assert answer.exit_code == 0, answer.output
    said = json.loads(answer.stdout)
    assert said["names"] == ["0.png", "1.png"]
    assert (said["samples"], said["kept"]) == (4, 2)
    assert sorted(one.name for one in (tmp_path / "kept").iterdir()) == ["2.png", "3.png"]
    assert (tmp_path / "kept" / "2.png").read_bytes() == (made / "2.png").read_bytes()
    assert said["missed"]["k"] == sum(one["k"] for one in said["missed_by_change"].values())
    assert 0 < said["missed"]["low"] < said["missed"]["rate"] < said["missed"]["high"] < 0.4
    refused(made, made, "another folder")
    # a second call, with another share, say: what it keeps back must not stay among what passed
    refused(made, tmp_path / "kept", "not empty")
    (tmp_path / "mine.npz").write_bytes(b"mine")
    refused(made, tmp_path / "mine.npz", "exists already")
    assert (tmp_path / "mine.npz").read_bytes() == b"mine"


def asked(*arguments: object):
    sought = ["filter", *map(str, arguments), "--train", "digits", "--images", "60"]
    return CliRunner().invoke(app, sought)


def refused(samples: Path, out: Path, sentence: str) -> None:
    answer = asked(samples, "--out", out)
    assert answer.exit_code == 2, answer.output
    assert sentence in answer.stderr
    assert answer.stdout == ""


def test_what_cannot_be_filtered_is_a_sentence(tmp_path: Path) -> None:
    sieve = Filter.of(Reference(SPLIT.train.pixels), SPLIT.heldout.pixels[:50], planted=4)
    with pytest.raises(DataError, match="must be"):
        sieve.copies(np.zeros((2, 1, 9, 9), np.float32))
    with pytest.raises(DataError, match="4 held-out images or more"):
        Filter.of(Reference(SPLIT.train.pixels), SPLIT.heldout.pixels[:3])
    with pytest.raises(DataError, match="lies in"):
        Filter.of(Reference(SPLIT.train.pixels), SPLIT.heldout.pixels, share=1.0)
    np.savez(tmp_path / "made.npz", images=SPLIT.train.pixels[:1, 0])
    refused(tmp_path / "made.npz", tmp_path / "kept", "--out must be an .npz")
    refused(tmp_path / "made.npz", tmp_path / "kept.npz", "none of the 1 images passes")
