"""Preflight: counts follow from the settings, costs from a measurement, and nothing is written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from latentprint import AuditConfig, InputError, load, resolve, run_audit
from latentprint.audit.costs import ADAPTIVE, least_weights, planned
from latentprint.audit.stages import snapshots_due
from latentprint.networks import UNetConfig, build_unet, parameters
from latentprint.preflight import check
from latentprint.sampler import RungeKutta
from latentprint.settings import read
from latentprint.stats import samples_to_decide
from latentprint.streams import Streams

SETTINGS = {
    "data": {"source": "digits", "images": 24},
    "sampler": {"name": "heun", "steps": 4},
    "search": {"levels": 1, "tries": 3},
    "samples": {"count": 40, "control": 10},
}


def test_counts_follow_from_the_settings(tmp_path: Path) -> None:
    found = check(resolve(SETTINGS, preset="demo"), tmp_path / "run")
    costs = {cost.stage: cost for cost in found.costs}
    assert costs["training"].amount == 2 * 900
    # Heun makes two passes a step, and the last denoising one: 4 x 2 + 1.
    assert costs["samples.model"].evaluations == 40 * 9 and costs["samples.control"].evaluations == 10 * 9
    assert costs["search.model"].amount == costs["search.control"].amount == 3
    # The one level is T itself, where a trajectory walks the whole grid.
    assert costs["search.model"].evaluations == costs["search.control"].evaluations == 3 * 9
    assert all(cost.seconds > 0 for cost in found.costs)
    assert "GiB at most" in str(found.facts["memory"])
    assert found.exit_code == 1  # a rate of 1/24 takes 71 samples without a hit to exclude
    assert any("40 samples are too few" in one and "71 without" in one for one in found.warnings)
    assert not (tmp_path / "run").exists()


def test_what_is_said_before_is_what_stages_note_after() -> None:
    """On the run of every stage that ships with the tests: each stage once, its number exact or a bound."""
    record = json.loads((Path(__file__).parent / "runs" / "marked" / "run.json").read_text())
    config = read(AuditConfig, record["settings"])
    noted = {name: stage["payload"].get("network_evaluations") for name, stage in record["stages"].items()}
    spent = {name: evaluations for name, evaluations in noted.items() if evaluations}
    split = load("digits", seed=config.seed, images=config.data.images, heldout=config.data.heldout)
    found = planned(
        config,
        config.sampler.sampler(),
        config.model.schedule(),
        images=len(split.train),
        heldout=len(split.heldout),
        bits=True,
        checkpoints=snapshots_due(config.model.training.steps, config.checkpoints.keep),
    )
    assert {one.stage for one in found} == set(spent) and len(found) == len(spent) >= 13
    exact = {one.stage: one.evaluations for one in found if not one.about}
    assert exact == {stage: spent[stage] for stage in exact} and len(exact) >= 11
    for one in found:
        assert 0 < spent[one.stage] <= one.evaluations


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"model": {"training": {"batch": 10**7}}}, r"model\.training\.batch = 10,000,000"),
        ({"samples": {"count": 10**9}}, r"samples\.count = 1,000,000,000 needs about 186"),
        ({"search": {"levels": 4_000, "tries": 10**6}}, r"search\.levels x search\.tries"),
    ],
)
def test_memory_that_the_machine_lacks_is_said_before_any_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: dict[str, object], words: str
) -> None:
    monkeypatch.setattr("latentprint.audit.costs.free_memory", lambda: 8 * 2**30)
    config = resolve(SETTINGS | asked, preset="demo")
    for run in (lambda: check(config, tmp_path / "run"), lambda: run_audit(config, tmp_path / "run")):
        with pytest.raises(InputError, match=words) as caught:
            run()
        assert "would fit" in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"embedding": {"false_positive_rate": 1e-6}}, "needs 999,999 pairs"),
        ({"membership": {"images": 4, "scores": {"secmi_ratio": 500.0}}}, r"noise goes from .* to 152"),
        ({"profile": {"targets": 10**6}}, "between 1 and 24 training images"),
        ({"identity": {"draws": 10**9}}, r"identity\.draws = 1,000,000,000"),
    ],
)
def test_what_cannot_work_is_said_by_check_as_by_the_audit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: dict[str, object], words: str
) -> None:
    monkeypatch.setattr("latentprint.audit.costs.free_memory", lambda: 8 * 2**30)
    config = resolve(SETTINGS | asked, preset="demo")
    for run in (lambda: check(config, tmp_path / "run"), lambda: run_audit(config, tmp_path / "run")):
        with pytest.raises(InputError, match=words):
            run()
    assert not (tmp_path / "run").exists()


def test_the_cost_of_a_sampler_that_chooses_its_steps_is_an_order_of_magnitude(tmp_path: Path) -> None:
    found = check(resolve(SETTINGS | {"sampler": {"name": RungeKutta.name}}, preset="demo"), tmp_path / "run")
    (cost,) = (one for one in found.costs if one.stage == "samples.model")
    assert cost.about and cost.evaluations == 40 * ADAPTIVE
    assert any("about 8,000 network evaluations" in line for line in found.lines())


def test_what_a_design_cannot_show_is_said_with_what_would_do(tmp_path: Path) -> None:
    """With 6 held-out images no rank reaches its level, and 4 samples show too few of 80 images."""
    images = np.random.default_rng(0).uniform(-1, 1, (86, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "few.npz", train_images=images[:80], test_images=images[80:])
    few = {
        "data": {"source": str(tmp_path / "few.npz"), "images": 80},
        "samples": {"count": 4, "control": 1},
        "embedding": {"false_positive_rate": 0.01},
    }
    found = check(resolve(SETTINGS | few, preset="demo"), tmp_path)
    (said,) = (one for one in found.warnings if "not even a model that repeats" in one)
    assert "39 held-out images and 184 samples" in said


def test_copies_are_warned_of(tmp_path: Path) -> None:
    images = np.random.default_rng(0).uniform(-1, 1, (90, 8, 8)).astype(np.float32)
    images[7] = images[3]
    np.savez(tmp_path / "copies.npz", images=images)
    settings = SETTINGS | {
        "data": {"source": str(tmp_path / "copies.npz"), "images": 90, "heldout": 0.2},
        "embedding": {"false_positive_rate": 0.01},
    }
    with pytest.raises(InputError):
        check(resolve(settings, preset="demo"), tmp_path / "run")
    others = np.random.default_rng(1).uniform(-1, 1, (40, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "copies.npz", train_images=images, test_images=others)
    found = check(resolve(settings, preset="demo"), tmp_path / "run")
    assert found.facts["images with a near copy among them"] == 2
    assert any("copies" in one for one in found.warnings)


def test_a_question_that_no_count_can_answer_is_warned_of(tmp_path: Path) -> None:
    asked = SETTINGS | {"samples": {"count": 400, "control": 10, "until": 0.001}}
    found = check(resolve(asked, preset="demo"), tmp_path / "run")
    (said,) = (one for one in found.warnings if "samples.until" in one)
    assert f"{samples_to_decide(0.001):,} or somewhat more would be enough" in said
    enough = SETTINGS | {"samples": {"count": 20_000, "control": 10, "until": 0.001}}
    found = check(resolve(enough, preset="demo"), tmp_path / "run")
    assert not any("samples.until" in one for one in found.warnings)


def test_splitting_is_refused_beside_a_sampler_that_chooses_its_steps() -> None:
    settings = {"sampler": {"name": RungeKutta.name}, "rare": {"splitting": True}}
    with pytest.raises(InputError, match=r"fixed number of steps.*would be enough"):
        resolve(settings, preset="demo")
    assert resolve({"sampler": {"name": RungeKutta.name}}, preset="demo").sampler.name == RungeKutta.name


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize(("channels", "layers"), [((8,), 1), ((32, 64), 1), ((64, 8), 3), ((8, 16, 32), 2)])
def test_a_network_has_no_fewer_weights_than_are_asked_for(
    axes: int, channels: tuple[int, ...], layers: int
) -> None:
    if axes == 3:
        pytest.importorskip("monai")
    config = UNetConfig(channels, layers, norm_groups=4)
    with torch.device("meta"):
        found = parameters(build_unet(config, 1, (16,) * axes, Streams(0)))
    assert 0.5 * found < least_weights(config, axes) <= found
