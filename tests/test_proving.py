"""The proving ground on a model that is a formula: counts, cases, and what is said of estimates."""

import json
import math
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch

from latentprint.known import Memorised
from latentprint.rate import Rate
from latentprint.sampler import Ancestral, Sampler
from latentprint.schedule import SubVP
from latentprint.stats import Trials

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> tuple[ModuleType, ModuleType]:
    monkeypatch.syspath_prepend(FOLDER)
    proving, ground = import_module("proving"), import_module("ground")
    monkeypatch.setitem(ground.SAMPLERS, "ancestral-24", Sampler(Ancestral(), 24))
    return proving, ground


def a_ground(ground: ModuleType):
    corners = (2.0 * ((torch.arange(16)[:, None] >> torch.arange(4)) & 1) - 1).reshape(16, 1, 2, 2)
    recipe = ground.Recipe("corners", "digits", 16, 1, samplers=("ancestral-24",))
    return ground.Ground(recipe, Memorised(corners, SubVP()), corners, "these")


def test_one_run_counts_all_images_each_as_often_as_it_comes_back(modules: tuple[ModuleType, ModuleType]):
    _, ground = modules
    g = a_ground(ground)
    assert torch.allclose(g.radii, torch.ones(16))  # half of the way to a corner that one pixel makes
    assert g.owners(torch.cat([g.images[3:4], torch.zeros(1, 1, 2, 2)])).tolist() == [3, -1]
    hits = ground.count(g, "ancestral-24", 0, 2000)
    assert sum(hits) > 1990
    for k in hits:
        low, high = Trials(k, 2000).interval(0.9999)
        assert low < 1 / 16 < high
    assert hits == ground.count(g, "ancestral-24", 0, 2000) != ground.count(g, "ancestral-24", 1, 2000)


def test_every_case_is_run_once_and_held_to_its_count(
    modules: tuple[ModuleType, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    proving, ground = modules
    g = a_ground(ground)
    counts = {"corners/ancestral-24": {"weights": "these", "samples": 16_000, "hits": [9, 100, *[1000] * 14]}}
    todo = list(proving.cases(counts, (g.recipe,), 6))
    assert [case.image for case in todo] == [1]  # others are too few to be a truth, or above 1e-2
    truth = {"corners/ancestral-24": {"weights": "these", "samples": 1600, "hits": [100] * 16}}
    case = proving.Case(g.recipe, "ancestral-24", 1, Trials(100, 1600), "these")
    monkeypatch.setattr(proving, "ground", lambda *_: g)
    file, effort = tmp_path / "rows.jsonl", proving.Effort(relative=0.3, most=2000)
    for _ in range(2):
        proving.work(tmp_path, file, [case], "path", effort)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["key"] for row in rows] == ["path/corners/ancestral-24/1"]
    assert rows[0]["reliable"]
    assert rows[0]["these_weights"]
    assert rows[0]["rate"] == pytest.approx(1 / 16, rel=0.4)
    told = proving.summary(rows, truth)
    assert set(told) >= {"cases", "coverage", "cost_ratio", "brute_force"}
    assert told["coverage"] == {"path": float(rows[0]["held"])}
    assert told["cost_ratio"]["path"] == {"1e-1": round(rows[0]["cost_ratio"], 2)}


def test_an_estimate_is_judged_by_the_errors_of_both(modules: tuple[ModuleType, ModuleType]):
    proving, ground = modules
    case = proving.Case(a_ground(ground).recipe, "ancestral-24", 1, Trials(100, 10_000), "these")
    half = math.exp(1.96 * 0.1)
    for factor, held in ((1.2, True), (1.6, False)):
        rate = 0.01 * factor
        found = Rate("path", rate, rate / half, rate * half, 0.95, True, "", 4950, {}, freedom=9.0)
        row = proving.judged(case, found, 25)
        assert row["error"] == pytest.approx(0.1)
        assert row["apart"] == pytest.approx(math.log(factor) / math.hypot(0.1, 0.1))
        assert row["held"] is held
        assert row["cost_ratio"] == pytest.approx(0.99 / (0.01 * 0.01) * 25 / 4950)


def test_the_counts_that_are_kept_are_those_of_recipes(modules: tuple[ModuleType, ModuleType]):
    _, ground = modules
    kept = json.loads(ground.COUNTS.read_text())
    images = {recipe.name: recipe for recipe in ground.RECIPES}
    for name, one in kept.items():
        network, sampler = name.split("/")
        assert sampler in images[network].samplers
        assert len(one["hits"]) <= images[network].images
        assert 0 < sum(one["hits"]) <= one["samples"]
        assert len(one["weights"]) == 64
