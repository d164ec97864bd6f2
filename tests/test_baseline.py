"""t' of many images by one embedding: against closed forms, for any chunk and order, and over a restart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from latentprint.audit import many
from latentprint.audit.comparison import (
    Subjects,
    baseline,
    embedding,
    profile,
    subjects,
    targets_among,
    unseen,
)
from latentprint.audit.context import Context
from latentprint.audit.many import NOISE, ManyProbe, search_many
from latentprint.config import resolve
from latentprint.contracts import InputError
from latentprint.data import ImageSet, Split
from latentprint.denoiser import IdentityCodec
from latentprint.detector.embedding import Embedder, EmbeddingConfig, EmbeddingDetector
from latentprint.fingerprint import CircleConfig, inject
from latentprint.known import Gaussian, Memorised
from latentprint.probe import ModelProbe, from_image
from latentprint.results import tprime
from latentprint.results.notes import Drawn, Ranked
from latentprint.results.searched import Profile
from latentprint.results.stored import Stored
from latentprint.results.value import Note
from latentprint.sampler import Ancestral, Heun, Sampler
from latentprint.schedule import SubVP
from latentprint.search import (
    Against,
    NullLaw,
    Plan,
    conclude,
    even_grid,
    ids_of,
    scan,
    target_of,
    trials_from_rows,
)
from latentprint.search.plan import request
from latentprint.search.settings import (
    BaselineSettings,
    ProfileSettings,
    TargetError,
    Targets,
    parse_targets,
)
from latentprint.settings import plain, read
from latentprint.stats import DetectorRates, Trials
from latentprint.store import Run
from latentprint.streams import Streams

KIND = CircleConfig(radius=(0.2, 0.25))
DIGITS = (load_digits().images.astype(np.float32) / 8 - 1)[:, None]
MEAN = DIGITS.mean(axis=0)
STREAMS = Streams(4)
CPU = torch.device("cpu")


class Pixelwise(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images[:, 0].flatten(1)


def by_pixels(mean: np.ndarray = MEAN, threshold: float = 0.99) -> EmbeddingDetector:
    """An embedding that needs no fit: the direction of the image from the mean image."""
    side = mean.shape[-1]
    with torch.random.fork_rng(devices=[]):
        network = Embedder(Pixelwise(), side * side, side * side)
    with torch.no_grad():
        network.head.weight.copy_(torch.eye(side * side))
        network.head.bias.copy_(-torch.from_numpy(mean).flatten())
    rates = DetectorRates(
        Trials(400, 400), Trials(0, 1000), {"pairs of the calibration": Trials(0, 999)}, "pixels", "pair"
    )
    config = EmbeddingConfig(backbone="small", dimensions=side * side)
    network.eval().requires_grad_(False)
    return EmbeddingDetector("embedding", network, threshold, rates, config, 1, (1, side, side))


@dataclass(frozen=True)
class Listed:
    """Images by number."""

    pixels: np.ndarray

    def __len__(self) -> int:
        return len(self.pixels)

    def take(self, numbers: np.ndarray, /) -> np.ndarray:
        return self.pixels[numbers]


def probe_of(
    model: Any, pixels: np.ndarray, sampler: Sampler, matcher: EmbeddingDetector, batch: int = 256
) -> ManyProbe:
    return ManyProbe(model, sampler, Listed(pixels), matcher, STREAMS, CPU, batch=batch)


def image_set(pixels: np.ndarray, name: str) -> ImageSet:
    return ImageSet(pixels, tuple(f"{name}{i:063d}" for i in range(len(pixels))), name)


def setting(train: np.ndarray, heldout: np.ndarray) -> tuple[Split, Any]:
    split = Split(image_set(train, "a"), image_set(heldout, "b"), "digits")
    return split, inject(split.train, KIND, STREAMS.generator("fingerprint"), index=3)


@pytest.fixture
def context(tmp_path: Path) -> Iterator[Context]:
    config = resolve(
        {"seed": 4, "fingerprint": {"radius": [0.2, 0.25]}, "sampler": {"steps": 6}}, preset="demo"
    )
    with Run.open(tmp_path / "run", {"test": 1}) as run:
        yield Context(config, run)


# The probe


def test_many_targets_are_searched_as_one_is():
    """The same trajectories as ModelProbe's, image by image."""
    model = Memorised(torch.from_numpy(DIGITS[:12]), SubVP())
    sampler, matcher = Sampler(Ancestral(), 8), by_pixels()
    plan = Plan(even_grid(4), tries=6)
    t, ids = request(plan, range(4), range(6), [0, 5, 20])
    seen = probe_of(model, DIGITS[:30], sampler, matcher)(t, ids)
    for number in (0, 5, 20):
        image = torch.from_numpy(DIGITS[number])
        alone = ModelProbe(
            model,
            sampler,
            from_image(image, model, STREAMS, NOISE, IdentityCodec()),
            STREAMS,
            NOISE,
            image,
            matcher.for_target(image),
            None,
        )
        mine = ids // 2**32 == number
        other = alone(t[mine], ids[mine])
        np.testing.assert_allclose(seen.columns["mse"][mine], other.columns["mse"], rtol=1e-4, atol=1e-9)
        np.testing.assert_allclose(seen.columns["score"][mine], other.columns["identity"], atol=1e-5)
        assert (seen.hit[mine] == other.hit).all() and (seen.evaluations[mine] == other.evaluations).all()
    assert seen.hit.any() and not seen.hit.all()


@pytest.mark.parametrize("index", [1, 4])
def test_hits_are_returns_with_the_known_probability(index: int):
    """The model that memorised 6 images: P(return | t) is the mean of an exact weight."""
    model = Memorised(torch.from_numpy(DIGITS[:6]), SubVP())
    t, tries = 0.55, 300
    expected = model.return_probability(index, t, Streams(8), 4000)
    assert 0.15 < expected.value < 0.9
    ids = ids_of(index, 0, np.arange(tries))
    seen = probe_of(model, DIGITS[:6], Sampler(Ancestral(), 80), by_pixels())(np.full(tries, t), ids)
    low, high = Trials(int(seen.hit.sum()), tries).interval(0.999)
    assert low - 4 * expected.standard_error < expected.value < high + 4 * expected.standard_error


def test_hits_depend_on_the_id_alone():
    """Not on order, batch, or which targets share a call."""
    model = Memorised(torch.from_numpy(DIGITS[:12]), SubVP())
    sampler, matcher = Sampler(Heun(), 6), by_pixels()
    t, ids = request(Plan(even_grid(5), tries=4), range(5), range(4), [0, 7, 11, 19])
    whole = probe_of(model, DIGITS[:20], sampler, matcher)(t, ids)
    order = np.random.default_rng(0).permutation(len(ids))
    mixed = probe_of(model, DIGITS[:20], sampler, matcher, batch=7)(t[order], ids[order])
    assert (mixed.hit == whole.hit[order]).all()
    np.testing.assert_allclose(mixed.columns["mse"], whole.columns["mse"][order], atol=1e-6)
    probe = probe_of(model, DIGITS[:20], sampler, matcher)
    apart = np.concatenate([probe(t[i : i + 9], ids[i : i + 9]).hit for i in range(0, len(ids), 9)])
    assert (apart == whole.hit).all()
    empty = probe(t[:0], ids[:0])
    assert len(empty.hit) == 0 and set(empty.columns) == {"score", "mse"}


def test_targets_share_no_noise():
    """Two numbers of one image: under shared noise their trajectories would end alike."""
    same = np.repeat(DIGITS[:1], 3, 0)
    model = Gaussian(torch.zeros(1, 8, 8), torch.tensor(0.5), SubVP())
    t, ids = request(Plan((0.5,), tries=40), range(1), range(40), [0, 1, 2])
    error = probe_of(model, same, Sampler(Heun(), 6), by_pixels())(t, ids).columns["mse"].reshape(3, 40)
    assert len(np.unique(error)) == 120
    assert np.abs(np.corrcoef(error)[np.triu_indices(3, 1)]).max() < 0.55  # 40 pairs, 3.3 / sqrt(38)


def test_a_hit_is_a_match_to_the_own_target():
    """A model that memorised image 0 alone: what starts from image 9 ends there, and is no match to 9."""
    model = Memorised(torch.from_numpy(DIGITS[:1]), SubVP())
    t, ids = request(Plan((0.9,), tries=5), range(1), range(5), [0, 9])
    seen = probe_of(model, DIGITS[:10], Sampler(Heun(), 8), by_pixels())(t, ids)
    assert seen.hit.tolist() == [True] * 5 + [False] * 5


def test_a_target_that_is_not_there_is_refused():
    model = Memorised(torch.from_numpy(DIGITS[:2]), SubVP())
    probe = probe_of(model, DIGITS[:3], Sampler(Heun(), 4), by_pixels())
    with pytest.raises(TargetError, match=r"no image 3 among 3, counted from 0"):
        probe(np.array([0.5]), ids_of(3, 0, [0]))


# The null law


def test_images_the_model_knows_alike_get_uniform_p_values():
    """60 images against 9 others each, under a Gaussian that knows none: P(p <= k / 10) <= k / 10."""
    side, groups, size = 2, 60, 10
    pixels = np.random.default_rng(3).normal(0, 0.3, (groups * size, 1, side, side)).clip(-1, 1)
    pixels = pixels.astype(np.float32)
    model = Gaussian(torch.zeros(1, side, side), torch.tensor(0.3), SubVP())
    matcher = by_pixels(np.zeros((1, side, side), np.float32), threshold=0.98)
    plan = Plan(even_grid(12), tries=2)
    probe = probe_of(model, pixels, Sampler(Heun(), 6), matcher)
    found = dict(scan(probe, plan, range(len(pixels)), chunk=100))
    values = [one.value for one in found.values()]
    assert len(set(values)) > 6  # t' tells images apart, so ties do not decide
    p_values = []
    for group in range(groups):
        first = group * size
        null = {i: found[i] for i in range(first + 1, first + size)}
        p_values.append(Against.of(found[first], null.values()).p_value)
    for k in (1, 2, 5):
        below = Trials(int(np.sum(np.array(p_values) <= k / 10 + 1e-12)), groups)
        assert below.interval(0.999)[0] <= k / 10
    assert np.sum(np.array(p_values) <= 0.5) >= 10  # and not all large


def test_heldout_images_are_marked_each_its_own_and_numbered_for_good():
    images = Subjects(DIGITS[:5], DIGITS[10:14], KIND, STREAMS)
    assert len(images) == 5 + 2 * 4 and [images.plain(2), images.marked(2)] == [7, 11]
    taken = images.take(np.array([4, 7, 11, 11, 12]))
    assert (taken[0] == DIGITS[4]).all() and (taken[1] == DIGITS[12]).all()
    circle = KIND.draw((8, 8), STREAMS.generator("baseline.fingerprint", 2))
    assert (taken[2] == circle.apply(DIGITS[12])).all() and (taken[2] == taken[3]).all()
    assert (taken[4] != DIGITS[13]).any() and not (taken[2] == taken[4]).all()
    assert (images.take(np.array([11])) == taken[2:3]).all()


def test_images_near_a_training_image_are_no_baseline(context: Context):
    heldout = np.concatenate([DIGITS[:3] * np.float32(0.999), DIGITS[20:24]])
    split, injection = setting(DIGITS[:10], heldout)
    images = subjects(context, split, injection)
    assert sorted(unseen(context, images, 100)) == [3, 4, 5, 6]
    assert unseen(context, images, 4)[:2] == unseen(context, images, 2)
    split, injection = setting(DIGITS[:10], DIGITS[5:8])
    with pytest.raises(InputError, match="holds out 3, none of them without a near copy"):
        unseen(context, subjects(context, split, injection), 20)
    split, injection = setting(DIGITS[:10], DIGITS[:0])
    with pytest.raises(InputError, match="holds out 0"):
        unseen(context, subjects(context, split, injection), 20)


@dataclass(frozen=True)
class Refuses:
    schedule: SubVP

    def __call__(self, x: Tensor, t: Tensor, /) -> Tensor:
        raise AssertionError("what is stored was asked for again")


FALSE = by_pixels().rates.fpr


def kept(context: Context, **settings: Any) -> Stored:
    """What the run holds, with these settings of its searches."""
    return replace(Stored.of(context.run), settings={name: plain(one) for name, one in settings.items()})


def test_the_baseline_of_a_model_that_memorised(context: Context):
    """It gives back x_p from every level and no held-out image: p is the smallest there is."""
    split, injection = setting(DIGITS[:10], DIGITS[100:130])
    model = Memorised(torch.from_numpy(injection.marked.pixels), SubVP())
    settings = BaselineSettings(images=19, levels=4, tries=3)
    baseline(context, model, by_pixels(), split, injection, settings)
    entry = tprime.baseline(kept(context, baseline=settings), FALSE)
    assert entry is not None
    assert entry.images == 19 and entry.asked == 19 and entry.grid == (0.25, 0.5, 0.75, 1.0)
    assert entry.hits == (0,) * 4 and entry.trials == (57,) * 4 and entry.values == (None,) * 19
    assert entry.target.value is not None and entry.target.hits[0] == 3
    assert entry.p_value == 1 / 20 == entry.smallest_p and entry.excess is None
    assert entry.question.recogniser == "embedding" and entry.question.tries == 3
    rows = context.run.rows("baseline")
    searched = set(target_of(rows["id"]).tolist()) - {injection.index}
    assert len(searched) == 19 and min(searched) >= 10 + 30  # under a fingerprint, as x_p is
    recount = trials_from_rows(settings.plan(1.0), rows, injection.index)
    assert tuple(one.k for one in recount) == entry.target.hits
    assert context.run.stage("baseline").payload["network_evaluations"] == rows["evaluations"].sum()
    # Everything is stored: the same call asks nothing, and more images keep the ones there are.
    baseline(context, Refuses(SubVP()), by_pixels(), split, injection, settings)
    assert tprime.baseline(kept(context, baseline=settings), FALSE) == entry
    baseline(context, model, by_pixels(), split, injection, replace(settings, images=100))
    assert len(context.run.rows("baseline")["id"]) == 31 * 12
    baseline(context, Refuses(SubVP()), by_pixels(), split, injection, replace(settings, images=0))


# The profile


def profiled(context: Context, settings: ProfileSettings) -> tuple[Profile, Any]:
    """A model that memorised the even ones of 24 training images."""
    split, injection = setting(DIGITS[:24], DIGITS[100:170])
    known = injection.marked.pixels[np.arange(24) % 2 == 1]
    model = Memorised(torch.from_numpy(known), SubVP())
    profile(context, model, by_pixels(), split, injection, settings)
    found = tprime.profile(kept(context, profile=settings), FALSE)
    assert found is not None
    return found, injection


def test_the_profile_names_what_the_model_memorised(context: Context):
    settings = ProfileSettings(targets="all", null=60, levels=4, tries=2)
    found, injection = profiled(context, settings)
    rows = found.rows
    assert len(rows) == 24 and {e.target for e in rows[:12]} == set(range(1, 24, 2))
    assert all(e.discovered and e.exceeds_null and e.p_value == 1 / 61 for e in rows[:12])
    assert all(e.value is None and e.p_value == 1 and not e.discovered for e in rows[12:])
    values = [e.value or 0.0 for e in rows[:12]]
    assert values == sorted(values, reverse=True)
    assert [e.sha256 for e in rows] == [injection.marked.sha256[e.target] for e in rows]
    assert found.discovered == found.exceeding == 12
    assert found.sentence.startswith("12 of 24 images have a t' above that of all 60")
    # x_p (3) stands beside marked images, so both kinds of the null were searched.
    searched = np.unique(target_of(context.run.rows("profile")["id"]))
    assert len(searched) == 24 + 120 and (searched >= 24 + 70).sum() == 60


def test_x_p_is_compared_with_marked_images_and_the_others_with_plain_ones(context: Context):
    """t' as if: 0.5 of every training image, 1 of plain held-out images, never of marked ones."""
    settings = ProfileSettings(targets=(1, 3, 4), null=19, levels=2, tries=1)
    plain_ones, marked = tuple(range(24, 43)), tuple(range(94, 113))
    noted = Ranked(
        sampler=context.sampler_value,
        horizon=1.0,
        targets=(1, 3, 4),
        sha256=("0" * 64, "1" * 64, "2" * 64),
        private=3,
        unmarked=plain_ones,
        marked=marked,
    )
    t, ids = request(settings.plan(1.0), range(2), range(1), [1, 3, 4, *plain_ones, *marked])
    of = target_of(ids)
    hit = ((of < 24) & (t == 0.5)) | ((of >= 24) & (of < 94) & (t == 1.0))
    rows = {"id": ids, "t": t, "hit": hit, "evaluations": np.ones(len(ids), np.int64)}
    order = np.argsort(ids)
    held = {name: column[order] for name, column in rows.items()}
    stored = Stored({"profile": plain(settings)}, {"profile": {"ranked": noted.plain()}}, lambda _: held)
    found = tprime.profile(stored, FALSE)
    assert found is not None
    assert {e.target: e.p_value for e in found.rows} == {1: 1.0, 3: 1 / 20, 4: 1.0}


def test_too_small_a_null_names_nothing_and_says_why(context: Context):
    """12 of 24 at p = 1/20: Benjamini-Hochberg needs p <= 12/24 * 0.05."""
    found, _ = profiled(context, ProfileSettings(targets="all", null=19, levels=4, tries=2))
    assert found.exceeding == 12 and found.discovered == 0
    assert "With 19 held-out images at least 24 targets must exceed" in found.sentence


def test_chunks_change_nothing(context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = Memorised(torch.from_numpy(DIGITS[:12]), SubVP())
    plan, wanted = Plan(even_grid(4), tries=2), [5, 19, 0, 7, 11, 30, 2]

    def search(purpose: str, targets: list[int]) -> None:
        note, noted = Note(purpose, "drawn", Drawn), Drawn(fingerprints=1, sha256=(), horizon=1.0)
        search_many(context, model, by_pixels(), Listed(DIGITS[:40]), plan, note, noted, targets)

    search("whole", wanted)
    monkeypatch.setattr(many, "CHUNK", 2)
    monkeypatch.setattr(many, "UNIT", 5)
    search("parts", wanted[::-1])
    one, other = (context.run.rows(purpose) for purpose in ("whole", "parts"))
    assert (one["id"] == other["id"]).all() and (one["hit"] == other["hit"]).all()


def test_an_explicit_profile_leaves_x_p_and_its_null_out(context: Context):
    found, _ = profiled(context, ProfileSettings(targets=(1, 2), null=20, levels=4, tries=2))
    assert [e.target for e in found.rows] == [1, 2]
    assert len(context.run.rows("profile")["id"]) == (2 + 20) * 8
    split, injection = setting(DIGITS[:24], DIGITS[100:170])
    profile(context, Refuses(SubVP()), by_pixels(), split, injection, ProfileSettings())


def test_each_target_is_ranked_against_its_own_null():
    plan = Plan((0.5, 1.0), tries=2)

    def one(low: int, high: int) -> Any:
        return conclude(plan, [Trials(low, 2), Trials(high, 2)], 1, "exhaustive", range(2))

    laws = {4: NullLaw((None,) * 9), 5: NullLaw((1.0,) * 9), 6: NullLaw((None,) * 9)}
    found = {4: one(1, 0), 5: one(2, 0), 6: one(0, 0)}
    noted = Ranked(
        sampler={"step": "heun"},
        horizon=1.0,
        targets=(4, 5, 6),
        sha256=("0" * 64,) * 3,
        private=5,
        unmarked=(7,),
        marked=None,
    )
    rows = tprime._ranked(noted, found, laws, 0.5)
    assert [(e.target, e.p_value, e.exceeds_null) for e in rows] == [
        (5, 1.0, False),
        (4, 0.1, True),
        (6, 1.0, False),
    ]
    assert [e.discovered for e in rows] == [False, True, False]


# Bad input


def test_targets_among_the_training_images():
    assert targets_among("all", 3, STREAMS) == [0, 1, 2]
    some = targets_among(5, 100, STREAMS)
    assert len(set(some)) == 5 and some == sorted(some) and max(some) < 100
    assert targets_among((4, 0), 5, STREAMS) == [0, 4]


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        ((1, 5), "no training image 5 among 5"),
        ((-1,), "no training image -1"),
        ((2, 2), "got 2 twice"),
        ((), "at least one target"),
        (6, "between 1 and 5 training images, got 6"),
        (0, "between 1 and 5"),
    ],
)
def test_targets_that_are_not_there_are_refused(targets: Targets, said: str):
    with pytest.raises(TargetError, match=said):
        targets_among(targets, 5, STREAMS)


def test_targets_as_typed():
    assert [parse_targets(text) for text in ("all", "20", "3, 14,15", "7,")] == ["all", 20, (3, 14, 15), (7,)]
    for wrong in ("", "most", "1,b", ","):
        with pytest.raises(TargetError, match="targets are 'all'"):
            parse_targets(wrong)


def test_settings_are_read_and_refused():
    assert read(ProfileSettings, {"targets": "all"}).targets == "all"
    assert read(ProfileSettings, {"targets": 7}).targets == 7
    assert read(ProfileSettings, {"targets": [1, 2]}).targets == (1, 2)
    for kind, wrong in (
        (BaselineSettings, {"images": -1}),
        (BaselineSettings, {"levels": 0}),
        (BaselineSettings, {"tries": 0}),
        (ProfileSettings, {"null": 0}),
        (ProfileSettings, {"targets": []}),
        (ProfileSettings, {"targets": -3}),
        (ProfileSettings, {"targets": "most"}),
        (ProfileSettings, {"false_discovery_rate": 1.0}),
    ):
        with pytest.raises(InputError, match="cannot be used"):
            read(kind, wrong)


# The stage


def test_the_embedding_is_fitted_once_and_read_again(context: Context):
    split = Split(image_set(DIGITS[:40], "a"), image_set(DIGITS[40:80], "b"), "digits")
    config = EmbeddingConfig(
        backbone="small", epochs=2, batch=16, false_positive_rate=0.05, learning_rate=4e-3
    )
    fitted = embedding(context, split, config)
    assert context.run.stage("embedding").done
    elsewhere = replace(split, train=image_set(DIGITS[:2], "a"), heldout=image_set(DIGITS[:0], "b"))
    again = embedding(context, elsewhere, config)  # too few to fit on: it was read
    images = torch.from_numpy(DIGITS[:5])
    assert torch.equal(fitted.vectors(images), again.vectors(images))
    assert again.threshold == fitted.threshold and again.rates.kinds["pairs of the calibration"].n >= 100
