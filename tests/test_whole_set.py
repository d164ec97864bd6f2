"""From one image to all of them: planted copies are found, clean sets are not, the unseen is bounded."""

from __future__ import annotations

import os
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.stats import binom, fisher_exact
from torchvision.models import resnet50

from latentprint.attacks.descriptor import DescriptorError, DescriptorSettings, descriptor
from latentprint.attacks.planted import CHANGES, planted
from latentprint.attacks.whole_set import Copies, Reference, StraddleError, require_apart
from latentprint.data import DataError, load
from latentprint.execute import MemorySink
from latentprint.files import FileError
from latentprint.known import Memorised
from latentprint.report.copies import told
from latentprint.results.criteria import CRITERIA, apart, calibrated, present
from latentprint.results.whole_set import Rows, WholeSet, whole_set
from latentprint.schedule import VP

MEDMNIST = Path(os.environ.get("MEDMNIST_ROOT") or Path(__file__).parents[2] / "shared" / "medmnist")


def drawn(count: int, seed: int, side: int = 12) -> np.ndarray:
    """Images (n, 1, side, side) of a population: smooth random fields, no two of them alike."""
    rng = np.random.default_rng(seed)
    field = rng.normal(size=(count, 1, side, side)).astype(np.float32)
    for axis in (2, 3):
        field = field + np.roll(field, 1, axis) + np.roll(field, -1, axis)
    return np.clip(field / 4, -1, 1)


def real(name: str) -> tuple[np.ndarray, np.ndarray]:
    if name != "digits" and not (MEDMNIST / f"{name}.npz").is_file():
        pytest.skip(f"{name}.npz is not in {MEDMNIST}")
    split = load(name if name == "digits" else f"medmnist:{name}", seed=0, root=MEDMNIST)
    return split.train.pixels, split.heldout.pixels


@pytest.mark.parametrize("name", ["digits", "retinamnist", "pneumoniamnist", "breastmnist"])
def test_planted_copies_are_found_among_many_images(name: str) -> None:
    """Of 20 (plain, flipped, shifted by 2 pixels, 5 % noise) at least 19, at 1 % false alarms."""
    train, heldout = real(name)
    rng = np.random.default_rng(1)
    heldout = heldout[rng.permutation(len(heldout))[:300]]
    chosen = rng.choice(len(train), 20, replace=False)
    copies = np.concatenate([planted(train[chosen[i : i + 5]], rng)[kind] for i, kind in _four()])
    # what is no copy: pairs of held-out images laid over each other
    others = (heldout[rng.permutation(len(heldout))] + heldout[rng.permutation(len(heldout))]) / 2
    metric = Copies(train, heldout)
    metric.update(others)
    clean = metric.compute()
    metric.update(copies)
    found = metric.compute()
    assert found.copies.k - clean.copies.k >= 19
    # Of BreastMNIST's patients some are on both sides.
    assert 10 <= found.apart <= 40 if name == "breastmnist" else found.apart == 0
    assert found.false_alarms is not None
    assert found.false_alarms.k <= binom.ppf(0.999, found.false_alarms.n, 0.02)
    shown = {kind: trials.rate for kind, trials in found.criteria[0].planted.items()}
    assert min(shown[kind] for kind in ("plain", "flipped", "shifted", "brightened", "noisy")) >= 0.9, shown


def _four() -> list[tuple[int, str]]:
    return list(zip(range(0, 20, 5), ("plain", "flipped", "shifted", "noisy"), strict=True))


@pytest.mark.parametrize("shape", [(1, 28, 30), (3, 40, 40), (1, 12, 12, 12)])
def test_any_shape_is_aligned(shape: tuple[int, ...]) -> None:
    """Colour, sides that differ, volumes: what was changed is found, of the image it was made of."""
    rng = np.random.default_rng(0)
    coarse = rng.uniform(-1, 1, (40, 1, *(-(-side // 4) for side in shape[1:])))
    for axis, side in enumerate(shape[1:], start=2):
        coarse = np.take(np.repeat(coarse, 4, axis), np.arange(side), axis)
    train = np.repeat(coarse, shape[0], 1).astype(np.float32)
    reference = Reference(train)
    for kind in ("flipped", "shifted", "brightened"):
        rows = reference.columns(planted(train[:10], rng)[kind])
        assert (rows["aligned_of"] == np.arange(10)).all(), kind
        assert (rows["aligned"] < 0.5).all(), kind


def test_rows_depend_on_their_own_image_and_survive_a_stop() -> None:
    train, images = drawn(60, 0), drawn(40, 1)
    images[:10] = planted(train[:10], np.random.default_rng(0))["shifted"]
    reference = Reference(train)
    whole = reference.columns(images)
    sink = MemorySink()
    sink.append("copies", {"id": np.arange(7), **reference.columns(images[:7])})
    said = list[tuple[int, int]]()
    rows = reference.stored(
        images, "copies", sink, lambda stage, done, total, unit: said.append((done, total))
    )
    assert said == [(7, 40), (40, 40)]  # what was stored is not compared again, and counts as done
    for name, column in whole.items():
        np.testing.assert_allclose(rows[name], column, rtol=1e-5, atol=1e-6, err_msg=name)
        if column.dtype.kind == "i":
            assert np.array_equal(rows[name], column), name


def test_identical_training_images_count_once() -> None:
    train = drawn(30, 0)
    train[20:] = train[:10]
    metric = Copies(train, drawn(60, 2))
    metric.update(train[[3, 23, 15]])
    found = metric.compute()
    assert (found.copies.k, found.memorised.k, found.memorised.n) == (3, 2, 20)
    assert {e.training for e in found.exposed} == {3, 15}
    assert found.same.k == 3


def test_persons_count_once_and_may_not_straddle() -> None:
    train, person = drawn(40, 0), np.arange(40) // 4
    metric = Copies(train, drawn(60, 2), person=person, heldout_person=np.arange(60) + 100)
    metric.update(train[[0, 1, 2, 8, 8]])
    found = metric.compute()
    assert found.persons is not None and (found.persons.k, found.persons.n) == (2, 10)
    assert found.memorised.k == 4
    with pytest.raises(StraddleError, match="2 of 10 persons"):
        require_apart(person, np.array([7, 9, 9, 30]))
    with pytest.raises(DataError, match="one person each"):
        Reference(train, person[:-1])


def test_what_nobody_could_have_copied_is_no_copy() -> None:
    """Many clean sets: the share called copies is the false-alarm rate, and `beyond` stays at 0."""
    beyond, copies = 0, list[float]()
    for seed in range(12):
        metric = Copies(drawn(80, 3 * seed), drawn(200, 3 * seed + 1))
        metric.update(drawn(100, 3 * seed + 2))
        found = metric.compute()
        beyond += found.beyond > 0 or found.at_least > 0
        copies.append(found.copies.rate)
    assert beyond <= 1
    assert np.mean(copies) < 0.03


def test_training_images_stored_again_are_no_background() -> None:
    train, heldout = drawn(80, 0), drawn(200, 1)
    heldout[:60] = np.rint(train[:60] * 127.5) / 127.5
    metric = Copies(train, heldout)
    metric.update(np.concatenate([drawn(50, 3), planted(train[60:], np.random.default_rng(3))["noisy"]]))
    found = metric.compute()
    assert found.left_out == 60 and found.copies.k >= 19
    assert "60 held-out images are training images stored again" in found.notes[0]


def test_strangers_are_called_copies_as_often_as_the_held_out_ones() -> None:
    """Images that crowd: some strangers do look like copies. Leaving these out would hide false alarms."""
    called = alarms = apart = 0
    for seed in range(3):
        split = load("digits", seed=seed, images=100)
        order = np.random.default_rng(seed).permutation(len(split.heldout))
        strangers, others = split.heldout.pixels[order[:600]], split.heldout.pixels[order[600:]]
        metric = Copies(split.train.pixels, others)
        metric.update(strangers)
        found = metric.compute()
        assert found.false_alarms is not None
        called, alarms = called + found.copies.k, alarms + found.false_alarms.k
        apart += found.apart
        held = found.false_alarms.n
    table = [[called, 1800 - called], [alarms, 3 * held - alarms]]
    assert fisher_exact(table, alternative="greater").pvalue > 0.001, table
    assert apart == 0


@pytest.mark.parametrize("power", [1.0, 3.0, 12.0])
def test_a_tail_without_a_group_has_none_apart(power: float) -> None:
    """Scores U^(1/power), for which the law of the gaps is exact; thinner tails (normal) have fewer."""
    rng, chance = np.random.default_rng(0), 0.05
    tails = rng.uniform(size=(400, 80)) ** (1 / power)
    thin = np.exp(-0.2 * np.abs(rng.normal(size=(400, 80))))
    assert sum(apart(one, chance) > 0 for one in tails) <= binom.ppf(0.999, 400, chance)
    assert sum(apart(one, chance) > 0 for one in thin) <= binom.ppf(0.999, 400, chance)


def test_changed_copies_among_the_held_out_images_are_a_group_apart() -> None:
    """Patients on both sides: their images set no threshold, but what is sure is said as if they did."""
    train, heldout, rng = drawn(120, 0), drawn(200, 1), np.random.default_rng(0)
    clean = Copies(train, heldout[20:])
    heldout[:20] = planted(train[:20], rng)["flipped"]
    mixed = Copies(train, heldout[rng.permutation(200)])
    for metric in (clean, mixed):
        metric.update(
            np.concatenate([planted(train[60:90], np.random.default_rng(1))["noisy"], drawn(30, 2)])
        )
    one, other = clean.compute(), mixed.compute()
    assert (one.apart, other.apart) == (0, 20) and "as if a person" in other.notes[0]
    assert one.copies.k == pytest.approx(other.copies.k, abs=1) and other.copies.k >= 29
    assert one.at_least > 20 and other.at_least == 0


def test_without_held_out_images_what_can_be_said_is_said() -> None:
    train = drawn(40, 0)
    metric = Copies(train, train[:0])
    metric.update(np.concatenate([train[:3], drawn(5, 1)]))
    found = metric.compute()
    assert found.copies.k == 3 and found.false_alarms is None and found.criteria[0].threshold is None
    assert "A threshold needs 4 held-out images" in found.notes[0] and found.beyond == 0


def test_too_few_repeats_give_the_sentence_and_no_number() -> None:
    train = drawn(40, 0)
    metric = Copies(train, drawn(80, 1))
    metric.update(train[[1, 2, 2, 3]])
    found = metric.compute()
    assert found.unseen.low is None and "fewer than 2 of them twice" in found.unseen.assumptions
    assert found.curve == ()


def test_a_memoriser_of_uneven_weights_from_images_to_answer() -> None:
    """Exact samples of Memorised: counts are those drawn, what is unseen lies in its interval."""
    train = drawn(60, 0)
    weights = np.exp(np.random.default_rng(5).normal(size=60))
    model = Memorised(torch.from_numpy(train).double(), VP(), weights.tolist())
    q = np.array([model.q(i) for i in range(60)])
    came = np.random.default_rng(6).choice(60, 150, p=q)
    metric = Copies(train, drawn(100, 1))
    for part in np.array_split(came, 4):
        metric.update(torch.from_numpy(train[part]))
    found = metric.compute()
    counts = np.bincount(came, minlength=60)
    assert (found.copies.k, found.memorised.k) == (150, int((counts > 0).sum()))
    assert found.times == tuple(np.bincount(counts[counts > 0])[1:].tolist())
    assert found.unseen.low is not None and found.unseen.high is not None
    assert found.unseen.low <= (counts == 0).sum() <= found.unseen.high
    most = found.exposed[0]
    assert most.k == counts.max() and most.low <= q[most.training] <= most.high
    one = next(s for s in found.shown if s.images == 1)
    assert one.low < 1 == one.chance
    metric.reset()
    with pytest.raises(ValueError, match="at least one image"):
        metric.compute()


def rows_of(scores: np.ndarray, of: np.ndarray | None = None) -> dict[str, Any]:
    n = len(scores)
    places = np.arange(n) if of is None else of
    return {"aligned": scores, "aligned_of": places, "distance": scores, "nearest": places}


def test_the_answer_is_a_function_of_rows_and_keeps_its_promises() -> None:
    """10,000 answers on rows of known truth: `at_least` and `beyond` are exceeded in at most 5 %."""
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(400):
        truth = rng.uniform() < 0.5
        copies = rng.binomial(100, 0.2) if truth else 0
        scores = np.concatenate([rng.uniform(0, 0.1, copies), rng.uniform(0.6, 1, 100 - copies)])
        of = np.concatenate([rng.integers(0, 30, copies), rng.integers(30, 50, 100 - copies)])
        found = whole_set(Rows(rows_of(scores, of), rows_of(rng.uniform(0.6, 1, 120)), 50))
        wrong += found.at_least > len(np.unique(of[:copies])) or found.beyond > 0.2 * truth + 1e-9
    assert wrong <= binom.ppf(0.999, 400, 0.05)


def test_the_value_is_frozen_checked_and_plain() -> None:
    found = whole_set(Rows(rows_of(np.linspace(0.1, 1, 50)), rows_of(np.linspace(0.5, 1, 40)), 60))
    assert WholeSet.model_validate(found.plain()) == found
    with pytest.raises(ValueError, match="frozen"):
        found.criterion = "x"  # type: ignore[misc]
    with pytest.raises(ValueError, match="its interval"):
        WholeSet.model_validate(found.plain() | {"copies": found.copies.plain() | {"low": 0.9}})
    assert f"copies of its training images: {found.copies.k:,} of 50." in told(found)[0]
    with pytest.raises(ValueError, match=r"a share in \(0, 1\)"):
        calibrated(np.ones(3), 1.0)


def test_published_thresholds_stand_beside_with_their_false_alarms() -> None:
    train = drawn(60, 0)
    metric = Copies(train, drawn(200, 1))
    metric.update(drawn(40, 2))
    found = {one.name: one for one in metric.compute().criteria}
    assert set(found) <= {one.name for one in CRITERIA}
    yoon = found["second_distance"].published
    assert yoon is not None and yoon.threshold == pytest.approx(1 / 3) and yoon.false_alarms.n == 100
    embedded = whole_set(
        Rows(
            rows_of(np.ones(30)) | {"embedding": np.linspace(0, 0.5, 30), "embedding_of": np.arange(30)},
            rows_of(np.ones(400))
            | {"embedding": np.linspace(0, 1, 400), "embedding_of": np.arange(400) % 30},
            30,
        )
    )
    dar = next(one for one in embedded.criteria if one.name == "embedding").published
    assert dar is not None and dar.false_alarms.k == pytest.approx(0.05 * dar.false_alarms.n, abs=1)


def test_changes_of_planted_copies_are_what_they_say() -> None:
    images = drawn(4, 0, side=28)
    made = planted(images, np.random.default_rng(0))
    assert set(made) == set(CHANGES) and all(one.shape == images.shape for one in made.values())
    assert np.array_equal(made["flipped"], images[..., ::-1])
    inner = np.abs(made["shifted"][0, 0, 2:-2, 2:-2, None, None] - images[0, 0][None, None]).min()
    assert inner == 0
    assert np.sqrt(((made["noisy"] - images) ** 2).mean()) / 2 == pytest.approx(0.05, rel=0.15)
    assert np.allclose(made["brightened"].max(), images.max() * 0.8 + 0.2, atol=1e-6)
    changed = (made["repainted"] != images).mean((1, 2, 3))
    assert (changed <= 0.25 + 1e-9).all() and (changed > 0.2).all()
    constant = np.full((2, 1, 9, 9), 0.3, np.float32)
    for kind in ("shifted", "rescaled", "blurred"):
        assert np.allclose(planted(constant, np.random.default_rng(0))[kind], 0.3, atol=1e-6), kind
    with pytest.raises(ValueError, match="2 images or more"):
        planted(images[:1], np.random.default_rng(0))


def test_a_descriptor_by_path_and_hash_is_one_criterion_more(tmp_path: Path) -> None:
    """A ResNet-50 with generalised means, its layers named as SSCD's are, against torch's own layers."""
    with torch.random.fork_rng(devices=[]):
        plain = resnet50(weights=None, num_classes=16).eval()
    tensors = {f"backbone.{name}": value for name, value in plain.state_dict().items()}
    save_file(tensors, tmp_path / "sscd.safetensors")
    digest = sha256((tmp_path / "sscd.safetensors").read_bytes()).hexdigest()
    path = str(tmp_path / "sscd.safetensors")
    describe = descriptor(DescriptorSettings(path, digest, side=32), torch.device("cpu"))
    assert describe is not None
    images = torch.from_numpy(drawn(6, 0))
    vectors = describe(images)
    seen = torch.nn.functional.interpolate(
        images.expand(-1, 3, -1, -1), (32, 32), mode="bilinear", antialias=True
    )
    shown = ((seen + 1) / 2 - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor(
        [0.229, 0.224, 0.225]
    )[:, None, None]
    with torch.no_grad():
        body = torch.nn.Sequential(*list(plain.children())[:-2])(shown)
        pooled = body.clamp_min(1e-6).pow(3).mean((2, 3)).pow(1 / 3)
        expected = torch.nn.functional.normalize(plain.fc(pooled), dim=1)
    torch.testing.assert_close(vectors, expected, atol=1e-5, rtol=1e-4)
    reference = Reference(drawn(6, 0), embeddings={"descriptor": describe})
    rows = reference.columns(drawn(6, 0))
    assert np.array_equal(rows["descriptor_of"], np.arange(6)) and "descriptor" in {
        c.name for c in present(rows)
    }
    for settings, said in (
        (DescriptorSettings(path, "0" * 64), "not the '000"),
        (DescriptorSettings(str(tmp_path / "none"), digest), "does not exist"),
    ):
        with pytest.raises(FileError, match=said):
            descriptor(settings, torch.device("cpu"))
    (tmp_path / "pickle.safetensors").write_bytes(b"\x80\x04.")
    other = DescriptorSettings(str(tmp_path / "pickle.safetensors"), sha256(b"\x80\x04.").hexdigest())
    with pytest.raises(DescriptorError, match="not a safetensors file"):
        descriptor(other, torch.device("cpu"))
    assert descriptor(DescriptorSettings(), torch.device("cpu")) is None


def test_the_private_image_stands_beside_the_one_in_the_middle() -> None:
    """By one criterion: images made from known training images, each so often, x_p among them."""
    train = drawn(21, 0)
    reference = Reference(train)
    heldout = reference.columns(drawn(120, 1))
    often = np.r_[np.zeros(5, int), np.full(15, 40), 2]  # the last is x_p
    generated = reference.columns(train[np.repeat(np.arange(21), often)])
    found = whole_set(Rows(generated, heldout, 21, target=20))
    assert found.target is not None and (found.target.k, found.target.n) == (2, often.sum())
    assert found.median == np.median(often)
    said = " ".join(told(found))
    assert "The private image came back 2 times, the training image in the middle 40 times." in said
    assert "understates what happens to the others" in said
    assert "more often than most" in " ".join(told(whole_set(Rows(generated, heldout, 61, target=20))))
    assert whole_set(Rows(generated, heldout, 61, target=0)).target.k == 0  # type: ignore[union-attr]
    # Where x_p has near copies, or nothing is a copy, no such sentence is said.
    assert "in the middle" not in " ".join(told(whole_set(Rows(generated, heldout, 21))))
    nothing = reference.columns(drawn(60, 2))
    assert "in the middle" not in " ".join(told(whole_set(Rows(nothing, heldout, 21, target=20))))
