"""Preflight: counts follow from the settings, costs from a measurement, and nothing is written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from latentprint import InputError, resolve
from latentprint.preflight import check
from latentprint.sampler import RungeKutta
from latentprint.stats import samples_to_decide

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
    assert costs["sampling"].evaluations == 50 * 9
    assert costs["search for t'"].amount == 2 * 3
    # The one level is T itself, where a trajectory walks the whole grid.
    assert costs["search for t'"].evaluations == 2 * 3 * 9
    assert all(cost.seconds > 0 for cost in found.costs)
    assert found.exit_code == 1  # 40 samples show the image 1.7 times
    assert any("1.7 times" in one for one in found.warnings)
    assert not (tmp_path / "run").exists()


def test_copies_are_warned_of(tmp_path: Path) -> None:
    images = np.random.default_rng(0).uniform(-1, 1, (90, 8, 8)).astype(np.float32)
    images[7] = images[3]
    np.savez(tmp_path / "copies.npz", images=images)
    settings = SETTINGS | {"data": {"source": str(tmp_path / "copies.npz"), "images": 90, "heldout": 0.2}}
    with pytest.raises(InputError):
        check(resolve(settings, preset="demo"), tmp_path / "run")
    np.savez(tmp_path / "copies.npz", train_images=images, test_images=images[20:40] * 0.9)
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
