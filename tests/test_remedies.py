"""Remedies side by side: every row is measured alike, resumes, and what cannot be tried is said."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from latentprint.cli import app
from latentprint.config import ModelSettings, resolve
from latentprint.data import load
from latentprint.known import Memorised
from latentprint.networks import UNetConfig, build_unet
from latentprint.remedies import REMEDIES, RemediesConfig, RemedyError, compare_remedies, measure, private
from latentprint.remedies.measure import Ground
from latentprint.remedies.picture import picture
from latentprint.remedies.private import PrivateError, train_privately
from latentprint.remedies.rows import told
from latentprint.remedies.sampling import Away
from latentprint.remedies.table import Recipe
from latentprint.remedies.training import heldout_loss, trained
from latentprint.schedule import VP
from latentprint.streams import Streams

SPLIT = load("digits", seed=0, images=60)
NETWORK = {"channels": [8], "layers_per_block": 1, "middle_attention": False, "norm_groups": 8}
TINY = {
    "data": {"images": 60},
    "model": {"network": NETWORK, "training": {"steps": 20, "batch": 16, "warmup": 2, "ema": 0.9}},
    "sampler": {"steps": 4},
    "samples": {"count": 40},
    "likelihood": {"images": 2},
}
BY_NAME = {one.name: one for one in REMEDIES}


def recipe(**training: object) -> Recipe:
    audit = resolve(TINY, preset="demo")
    model = replace(audit.model, training=replace(audit.model.training, **training))
    held = SPLIT.heldout.pixels
    return Recipe(SPLIT.train.pixels, held[:200], held[:200], model)


def ground(test: np.ndarray, samples: int = 50) -> Ground:
    """60 training images of which places 0..9 are marked images; 10 more marked ones were left out."""
    pool = np.concatenate([SPLIT.train.pixels, SPLIT.heldout.pixels[500:510]])
    marked = np.concatenate([np.arange(10), np.arange(60, 70)])
    sampler = resolve(TINY, preset="demo").sampler.sampler()
    member = np.arange(20) < 10
    return Ground(pool, marked, member, test, 4.0, ModelSettings(), sampler, samples, 0, 0)


def test_risk_counts_what_is_a_copy_of_what() -> None:
    held = SPLIT.heldout.pixels
    found = ground(held[:300])
    clear = found.reference.columns(held[300:500])
    far = held[300:500][found.criteria[0][0].score(clear) > 0.8][:12]
    parts = [found.pool[[0, 0, 0, 4]], found.pool[[60, 61]], found.pool[[20, 21, 22, 23, 24]], far]
    said = measure.risk(torch.from_numpy(np.concatenate(parts)), found)
    n = 11 + len(far)
    assert len(far) == 12
    assert (said["marked"], said["strangers"], said["copies"], said["memorised"]) == (4, 2, 9, 7)
    assert said["q"] == pytest.approx(4 / n / 10)
    assert said["q_low"] < said["q"] < said["q_high"]
    assert said["training_images"] == 60


def test_knowledge_tells_a_memoriser_from_one_that_never_saw_the_marked_images() -> None:
    found = ground(SPLIT.heldout.pixels[:100])
    both = Memorised(torch.from_numpy(found.pool[:60]), VP())
    others = Memorised(torch.from_numpy(found.pool[10:60]), VP())
    found = replace(found, model=ModelSettings(sde="vp"))
    knows, blind = (measure.knowledge(model, found, 1e-3) for model in (both, others))
    assert knows["t_prime"] > 0.3 > 0.1 > knows["t_prime_strangers"]
    assert knows["t_prime_auc"][0] == 1.0
    assert knows["epsilon_low"] > 1.2
    assert blind["epsilon_low"] < 0.5
    assert blind["t_prime_auc"][1] < 0.5 < blind["t_prime_auc"][2] + 0.3


def test_precision_and_recall_are_those_of_their_definition() -> None:
    rng = np.random.default_rng(0)
    real = rng.uniform(-1, 1, (60, 1, 2, 2)).astype(np.float32)
    made = np.concatenate([real[:20] + 1e-4, np.full((20, 1, 2, 2), -9, np.float32)]).clip(-3, 1)
    flat, other = (one.reshape(len(one), -1).astype(np.float64) for one in (made, real))
    apart = np.linalg.norm(flat[:, None] - other[None], axis=2)
    own = np.sort(np.linalg.norm(other[:, None] - other[None], axis=2), axis=1)[:, 5]
    assert measure._covered(made, real) == pytest.approx((apart <= own[None]).any(1).mean())
    assert measure._covered(made, real) >= 0.5


def test_guidance_away_keeps_its_distance_and_changes_nothing_else() -> None:
    images = torch.from_numpy(SPLIT.train.pixels)
    model = Memorised(images, VP())
    away = Away.of(model, SPLIT.train.pixels, SPLIT.heldout.pixels[:300])
    t = torch.tensor(0.2, dtype=torch.float64)
    x = model.draw(Streams(0), "x", range(40), 0.2)
    found = away(x, t)
    near = torch.cdist(model(x, t).flatten(1), images.flatten(1)).argmin(1)
    apart = (found - images[near]).flatten(1).norm(dim=1)
    assert (apart >= away.radius * 0.999).all()
    drawn = measure.sampled(away, ground(SPLIT.heldout.pixels[:100], samples=40))
    apart = torch.cdist(drawn.flatten(1), images.flatten(1)).min(1).values
    assert (apart > 0.2 * away.radius).float().mean() > 0.9  # the memoriser's own samples are at 0
    late = torch.tensor(0.999, dtype=torch.float64)  # the mean of all images is near none
    assert torch.allclose(away(x, late), model(x, late), atol=1e-5)


def test_remedies_change_what_they_say() -> None:
    plain = recipe()
    assert len(BY_NAME["more images"].recipe(plain).train) == 120
    twice = replace(plain, train=np.concatenate([plain.train, plain.train[:3] + 1e-4]))
    assert np.array_equal(BY_NAME["deduplication"].recipe(twice).train, plain.train)
    with pytest.raises(RemedyError, match="nothing can be removed"):
        BY_NAME["deduplication"].recipe(plain)
    with pytest.raises(RemedyError, match="no smaller form"):
        BY_NAME["smaller network"].recipe(plain)
    with pytest.raises(RemedyError, match="0 more images"):
        BY_NAME["more images"].recipe(replace(plain, more=plain.more[:0]))
    assert BY_NAME["guided"].recipe(plain).model.training.guided
    assert BY_NAME["weight decay"].recipe(plain).model.training.weight_decay == 1.0


def test_an_embedding_finds_what_distance_does_not() -> None:
    """Lighter, and shifted by a pixel: too far in pixels, alike to the embedding."""
    plain = recipe()
    with pytest.raises(RemedyError, match="no settings of one"):
        BY_NAME["deduplication by embedding"].recipe(plain)
    audit = resolve(TINY, preset="demo")
    short = replace(audit.embedding, epochs=5, draws=256)
    plain = replace(plain, embedding=short, kind=audit.fingerprint.drawn(plain.heldout))
    lighter = np.clip(plain.train[:6] * 0.9 + 0.1, -1, 1)
    twice = replace(plain, train=np.concatenate([plain.train, lighter]))
    with pytest.raises(RemedyError, match="nothing can be removed"):
        BY_NAME["deduplication"].recipe(twice)
    left = BY_NAME["deduplication by embedding"].recipe(twice).train
    # The first of two that are alike is kept.
    kept = [any(np.array_equal(one, other) for other in left) for one in twice.train]
    assert sum(kept[60:]) <= 2
    assert sum(kept[:60]) >= 55


def test_early_stopping_keeps_the_weights_of_the_lowest_loss(tmp_path: Path) -> None:
    """A learning rate at which the loss rises again: what is kept is better than the end."""
    wild = recipe(steps=240, batch=32, learning_rate=8e-3)
    early = trained(replace(wild, early=True), 0, tmp_path, lambda step: None)
    last = trained(wild, 0, tmp_path / "whole", lambda step: None)
    losses = [
        heldout_loss(wild.model.training, one.denoiser, wild.heldout, Streams(0)) for one in (early, last)
    ]
    assert early.steps < last.steps == 240
    assert losses[0] <= losses[1]


def test_private_training_spends_what_was_asked_for_and_repeats_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = recipe()

    def once() -> tuple[torch.Tensor, float]:
        network = build_unet(UNetConfig((8,), 1, middle_attention=False, norm_groups=8), 1, 8, Streams(0))
        config = replace(plain.model.training, steps=8)
        model, spent = train_privately(
            plain.train, network, VP(), config, Streams(0), 5.0, 1e-3, lambda step: None
        )
        return torch.cat([one.flatten() for one in model.network.parameters()]), spent

    (first, spent), (second, _) = once(), once()
    assert 4.5 < spent <= 5.0
    assert torch.equal(first, second)
    monkeypatch.setattr(private, "find_spec", lambda name: None)
    with pytest.raises(PrivateError, match="needs opacus"):
        once()


def test_a_table_that_was_interrupted_is_the_straight_one(tmp_path: Path) -> None:
    config = RemediesConfig(resolve(TINY, preset="demo"), 4, ("early stopping", "guidance away", "filter"))
    straight = compare_remedies(config, tmp_path / "a").plain()
    calls = []

    def one_then_killed(function, units):
        for unit in units:
            if calls:
                raise KeyboardInterrupt
            calls.append(unit)
            yield function(unit)

    with pytest.raises(KeyboardInterrupt):
        compare_remedies(config, tmp_path / "b", map=one_then_killed)
    table = compare_remedies(config, tmp_path / "b")
    again = table.plain()
    assert [row["name"] for row in again["rows"]] == ["none", "early stopping", "guidance away", "filter"]

    def timeless(table):
        return [{k: v for k, v in row.items() if "seconds" not in k} for row in table["rows"]]

    assert timeless(again) == timeless(straight)
    assert json.loads((tmp_path / "b" / "remedies.json").read_text()) == again
    for row in again["rows"]:
        assert 0 <= row["q_low"] <= row["q"] <= row["q_high"] <= 1
        assert row["samples"] == 40 - (row["kept_back"] or 0)
    assert again["rows"][3]["filter_misses"][0] > 0
    ElementTree.fromstring((tmp_path / "b" / "remedies.svg").read_text())
    assert len(told(table)) == 5
    assert "&lt;&amp;&gt;" in picture([table.tried[0].model_copy(update={"name": "<&>"})])


def test_a_remedy_that_cannot_be_is_a_row_or_where_it_was_named_a_sentence(tmp_path: Path) -> None:
    file = tmp_path / "tiny.toml"
    file.write_text("[model.training]\nsteps = 20\n[samples]\ncount = 20\n[model.network]\nchannels = [8]\n")
    common = ["remedies", "digits", "--quick", "--config", str(file), "--images", "60"]
    for only, said in (("deduplication", "nothing can be removed"), ("prayer", "is not a remedy")):
        answer = CliRunner().invoke(app, [*common, "--only", only, "--out", str(tmp_path / "x")])
        assert answer.exit_code == 2 and said in answer.stderr
        assert answer.stdout == ""
    few = ["remedies", "phantom:20:8", "--quick", "--images", "10", "--out", str(tmp_path / "y")]
    answer = CliRunner().invoke(app, [*few, "--fingerprints", "40"])
    assert answer.exit_code == 2 and "fingerprints need" in answer.stderr


def test_the_picture_survives_nothing() -> None:
    assert ElementTree.fromstring(picture([])) is not None
