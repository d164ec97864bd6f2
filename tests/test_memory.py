"""The memory of an audit: how many copies of a set of volumes are made, and what is said before it begins."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from latentprint import keys
from latentprint.adapters.room import MemoryLack, held
from latentprint.attacks.nearest import columns
from latentprint.attacks.pool import Pool
from latentprint.attacks.whole_set import Reference
from latentprint.audit import memory
from latentprint.config import AuditConfig, resolve
from latentprint.data import ImageSet
from latentprint.data.images import Selection, mean_and_deviation
from latentprint.detector import (
    DetectorConfig,
    EmbeddingConfig,
    build_backbone,
    draws,
    fit_embedding,
    fit_identity,
    fit_presence,
)
from latentprint.fingerprint import CircleConfig, Injection, inject
from latentprint.networks import UNetConfig, build_unet
from latentprint.schedule import VP
from latentprint.streams import Streams
from latentprint.training import TrainConfig, train

KIND = CircleConfig((0.2, 0.3))
QUICK: dict[str, Any] = {
    "backbone": "small",
    "epochs": 1,
    "augmix": False,
    "draws": 16,
    "batch": 8,
    "noise": 0.1,
}


def volumes(count: int, side: int = 16, seed: int = 0) -> ImageSet:
    pixels = keys.generator(seed, "volumes").uniform(-1, 1, (count, 1, side, side, side)).astype(np.float32)
    return ImageSet(pixels, tuple(map(str, range(count))), "volumes")


def copies(work: Callable[[], object], pixels: np.ndarray[Any, Any]) -> float:
    """The most memory that was taken during the work, in sizes of ``pixels``."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1] / pixels.nbytes
    finally:
        tracemalloc.stop()


def few_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large sets are taken 8 volumes at a time here, as they are in rooms that hold hundreds of these."""
    monkeypatch.setattr(draws, "KEPT", 0)
    for place in ("detector.model._PIXELS", "detector.contrast._VALUES", "data.near._VALUES"):
        monkeypatch.setattr(f"latentprint.{place}", 2**15)
    for place in ("data.images._CHUNK", "attacks.nearest._VALUES"):
        monkeypatch.setattr(f"latentprint.{place}", 2**14)


@pytest.fixture
def marked() -> Injection:
    return inject(volumes(100), KIND, keys.generator(0, "fingerprint"))


def test_a_selection_is_the_images_at_its_places_in_every_way_they_are_asked_for():
    one, other = volumes(5, 4).pixels, volumes(3, 4, seed=1).pixels
    both = np.concatenate([np.asarray(one), np.asarray(other)])
    chosen = Selection.of(Selection.of(one, other).take(np.array([7, 0, 1, 2, 5])), other)
    expected = np.concatenate([both[[7, 0, 1, 2, 5]], np.asarray(other)])
    assert chosen.shape == expected.shape and len(chosen) == 8 and chosen.size == expected.size
    assert np.array_equal(np.asarray(chosen), expected) and np.array_equal(chosen[4], expected[4])
    for key in (slice(1, 4), slice(3, 7), slice(2, 2), np.array([6, 0, 6]), np.arange(8) % 2 == 0):
        assert np.array_equal(chosen[key], expected[key])
    assert np.shares_memory(chosen[1:4], np.asarray(one))  # no copy of what lies together
    with pytest.raises(IndexError):
        chosen[8]


def test_moments_of_a_large_set_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch):
    pixels = np.asarray(volumes(50, 6).pixels)
    whole = mean_and_deviation(pixels)
    assert whole == (float(pixels.mean(dtype=np.float64)), float(pixels.std(dtype=np.float64)))
    monkeypatch.setattr("latentprint.data.images._CHUNK", 500)
    assert mean_and_deviation(Selection.of(pixels)) == pytest.approx(whole, rel=1e-12)


def test_the_control_and_the_unmarked_set_share_the_pixels_of_the_marked_one(marked: Injection):
    assert np.shares_memory(marked.control.pixels[:3], np.asarray(marked.marked.pixels))
    before = volumes(100)
    assert np.array_equal(np.asarray(marked.unmarked.pixels), np.asarray(before.pixels))
    assert marked.unmarked.sha256 == before.sha256 and len(marked.control) == 99


def test_fits_of_recognisers_make_no_copy_of_the_set(marked: Injection, monkeypatch: pytest.MonkeyPatch):
    few_at_once(monkeypatch)
    few = volumes(24, 8).pixels  # what a first fit imports is not counted
    rough = EmbeddingConfig(**QUICK, false_positive_rate=0.4)
    list(fit_embedding(few, KIND, rough, Streams(0)))
    heldout, config = volumes(20, seed=2).pixels, DetectorConfig(**QUICK)
    every = Selection.of(marked.unmarked.pixels, heldout)
    embedding = EmbeddingConfig(**QUICK, false_positive_rate=0.05)
    fits = (
        lambda: list(fit_presence(every, KIND, config, Streams(0))),
        lambda: list(fit_identity(marked.target, marked.control.pixels, heldout, KIND, config, Streams(0))),
        lambda: list(fit_embedding(every, KIND, embedding, Streams(0))),
    )
    whole = np.asarray(marked.marked.pixels)
    found = [copies(fit, whole) for fit in fits]
    assert max(found) < 1, found


def test_what_is_kept_of_noise_and_what_is_made_again_are_the_same_images(monkeypatch: pytest.MonkeyPatch):
    pixels, kept = np.asarray(volumes(20, 6).pixels), list[np.ndarray[Any, Any]]()
    for most in (2**24, 0):
        monkeypatch.setattr(draws, "KEPT", most)
        rng = keys.generator(0, "noise")
        shown = draws.Shown.of(pixels).masked(0.5, KIND, rng)
        back = draws.returned(shown, pixels, 0.1, rng)
        assert (back.kept is None) == (most == 0)
        twice = [np.concatenate(list(back.together(7))) for _ in range(2)]
        assert np.array_equal(*twice)
        kept += [twice[0], rng.standard_normal(3)]
    assert np.array_equal(kept[0], kept[2]) and np.array_equal(kept[1], kept[3])


def test_comparisons_and_trainings_make_no_copy_of_the_set(
    marked: Injection, monkeypatch: pytest.MonkeyPatch
):
    few_at_once(monkeypatch)
    heldout, whole = np.asarray(volumes(60, seed=2).pixels), np.asarray(marked.marked.pixels)
    settings = TrainConfig(steps=2, batch=4)

    pool, reference = Pool.of(whole, heldout, marked.index), Reference(whole)._kept

    def comparing() -> None:
        pool.held_against(heldout[:2])
        columns(heldout[:2], reference)

    def training() -> None:
        network = build_unet(
            UNetConfig((8, 8), norm_groups=8, middle_attention=True), 1, (16, 16, 16), Streams(0)
        )
        list(train(marked.control.pixels, network, VP(), settings, Streams(0)))

    comparing()
    training()
    found = copies(comparing, whole), copies(training, whole)
    assert max(found) < 1, found


# --- what is said before --------------------------------------------------------------------------------


def settings_of(**more: Any) -> AuditConfig:
    network = {"channels": [8, 16], "norm_groups": 8, "layers_per_block": 1, "middle_attention": True}
    return resolve(
        {"model": {"network": network, "training": {"batch": 4, "steps": 10}}, **more}, preset="demo"
    )


def test_what_is_said_of_a_step_is_what_a_step_holds():
    config = replace(settings_of(), presence=DetectorConfig(**QUICK))
    parts = memory.memory_of(config, (1, 16, 16, 16), 40, 20, trains=True).parts
    said = {part.name: part.size for part in parts}
    network = build_unet(config.model.network, 1, (16, 16, 16), Streams(0))
    weights = sum(4 * one.numel() for one in network.parameters())
    x, t = torch.zeros(4, 1, 16, 16, 16), torch.zeros(4)

    def step() -> None:
        network(x, t).square().mean().backward()

    assert said["a training step"] == pytest.approx(held(step) + 4 * weights, rel=0.05)
    recogniser, shown = build_backbone("small", Streams(0), "presence", 3), torch.zeros(8, 3, 16, 16, 16)
    kept = memory._SETS * 4 * 60 * 16**3
    fit = held(lambda: recogniser(shown).square().mean().backward())
    assert said["a step of fitting c_p"] == pytest.approx(kept + fit, rel=0.05)


def test_a_step_that_fills_the_memory_is_refused_with_its_setting(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory, "free_memory", lambda: 2**30)
    plain = settings_of()
    fits = {"identity": plain.identity, "embedding": plain.embedding}
    config = replace(
        plain,
        presence=DetectorConfig(**QUICK | {"batch": 16}),
        **{name: replace(one, batch=2) for name, one in fits.items()},
    )
    place = torch.device("cpu")
    with pytest.raises(MemoryLack, match=r"fitting c_p needs about .* a smaller presence\.batch needs less"):
        memory.require_room(config, (1, 64, 64, 64), 40, 20, place, trains=True)
    memory.require_room(config, (1, 8, 8, 8), 40, 20, place, trains=True)
