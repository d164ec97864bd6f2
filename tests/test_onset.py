"""When a model began to memorise: the sign test, its reference, and checkpoints whose answers are known."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from latentprint.audit.checkpoints import (
    Checkpoint,
    alike,
    over_training,
    own_checkpoints,
    require_checkpoints,
)
from latentprint.audit.context import Context, Where
from latentprint.audit.stages import Audited, Detectors, search, snapshots_due
from latentprint.config import resolve
from latentprint.contracts import InputError
from latentprint.denoiser import IdentityCodec
from latentprint.known import Coin, Memorised
from latentprint.results import tprime
from latentprint.results.notes import SEARCH
from latentprint.results.searched import Checkpoints
from latentprint.results.stored import Stored
from latentprint.schedule import VE, VP, SubVP
from latentprint.search import Plan, SearchSettings, conclude, even_grid, ids_of
from latentprint.search.onset import CheckpointSearch, disagreements, onset, sign_test
from latentprint.settings import plain
from latentprint.stats import DetectorRates, Trials
from latentprint.store import Run, RunError
from latentprint.streams import Streams

PLAN = Plan(even_grid(4), 5)


def rows(hits: list[int], plan: Plan = PLAN) -> dict[str, np.ndarray]:
    """Rows of an exhaustive search in which the first ``hits[i]`` tries at level i came back."""
    levels = len(plan.grid)
    index, attempt = np.repeat(np.arange(levels), plan.tries), np.tile(np.arange(plan.tries), levels)
    return {
        "id": ids_of(0, index, attempt),
        "t": np.asarray(plan.grid)[index],
        "hit": attempt < np.asarray(hits)[index],
    }


def look(step: int, hits: list[int]) -> CheckpointSearch:
    found = conclude(PLAN, [Trials(k, PLAN.tries) for k in hits], 1, "exhaustive", range(4))
    return CheckpointSearch(step, found, rows(hits))


def test_the_sign_test_is_the_upper_tail_of_fair_coins():
    for up, down in ((0, 0), (0, 3), (3, 0), (4, 2), (7, 7)):
        n = up + down
        tail = sum(math.comb(n, k) for k in range(up, n + 1)) / 2**n
        assert sign_test(up, down) == pytest.approx(tail, rel=1e-12)


def test_tries_are_paired_by_id_and_only_common_ones_count():
    one = {"id": np.array([7, 3, 9, 4]), "hit": np.array([True, False, True, True])}
    other = {"id": np.array([4, 3, 7, 100]), "hit": np.array([False, True, True, False])}
    # 7: both, 3: the other only, 4: the first only; 9 and 100 were asked of one alone.
    assert disagreements(one, other) == (1, 1)
    with pytest.raises(ValueError, match="no try in common"):
        disagreements(one, {"id": np.array([1]), "hit": np.array([True])})


def test_the_onset_is_the_first_checkpoint_above_the_control():
    control = rows([3, 0, 0, 0])
    looks = [look(100, [2, 0, 0, 0]), look(200, [4, 1, 0, 0]), look(300, [5, 5, 2, 0])]
    found = onset(looks, control)
    # 100: one disagreement against it; 200: two for it; 300: nine for it.
    assert found.p_values == pytest.approx((1.0, 2**-2, 2**-9))
    assert found.step == 300 and found.against == "control"
    assert "at step 300 for the first time" in found.sentence and "t' = 0.75" in found.sentence


def test_several_checkpoints_share_the_error_probability():
    """Five disagreements: p = 1/32 stands alone, and not as one of two (0.025)."""
    control, reached = rows([0, 0, 0, 0]), [5, 0, 0, 0]
    assert onset([look(10, reached)], control).step == 10
    two = onset([look(5, [0] * 4), look(10, reached)], control)
    assert two.step is None and "At none of 2 checkpoints" in two.sentence


def test_without_a_control_the_first_checkpoint_is_the_reference_and_the_sentence_says_what_that_means():
    found = onset([look(10, [2, 0, 0, 0]), look(20, [5, 5, 0, 0])], None)
    assert found.p_values[0] is None and found.p_values[1] == pytest.approx(2**-8)
    assert found.step == 20 and found.against == "first checkpoint"
    assert "Without a control" in found.sentence
    assert "nothing to compare" in onset([look(10, [2, 0, 0, 0])], None).sentence


def test_checkpoints_that_are_none_or_out_of_order_are_refused():
    with pytest.raises(ValueError, match="at least one checkpoint"):
        onset([], None)
    with pytest.raises(ValueError, match="rising order"):
        onset([look(20, [0] * 4), look(10, [0] * 4)], None)


def test_no_onset_is_seen_where_there_is_none():
    """Three checkpoints and a control of one and the same curve: at most 5 % of the trainings may stand."""
    plan, grid = Plan(even_grid(6), 8), np.asarray(even_grid(6))

    def tossed(seed: int) -> dict[str, np.ndarray]:
        seen = rows([0] * 6, plan)
        return seen | {"hit": Coin(lambda t: 1 - t, seed)(seen["t"], seen["id"]).hit}

    found = conclude(plan, [Trials(0, 8)] * len(grid), 1, "exhaustive", range(6))
    false, rounds = 0, 150
    for i in range(rounds):
        looks = [CheckpointSearch(step, found, tossed(4 * i + step)) for step in (1, 2, 3)]
        false += onset(looks, tossed(4 * i)).step is not None
    assert Trials(false, rounds).interval(0.999)[0] <= 0.05


# Checkpoints with known answers: an exact denoiser of the other images, then of all of them


class Near:
    """c_id by distance."""

    name, threshold = "identity", 0.5
    rates = DetectorRates(Trials(50, 50), Trials(0, 200), {}, "made up")
    config = SimpleNamespace(backbone="by distance")

    def __init__(self, target: Tensor) -> None:
        self.target = target

    def __call__(self, images: Tensor, /) -> Tensor:
        return ((images - self.target).square().flatten(1).mean(1) < 0.02).double()


IMAGES = torch.rand(12, 1, 4, 4, generator=torch.Generator().manual_seed(3)) * 2 - 1
OTHERS, ALL = Memorised(IMAGES[1:], SubVP()), Memorised(IMAGES, SubVP())
TARGET = IMAGES[0].numpy()
DETECTORS = Detectors(None, cast(Any, Near(IMAGES[0])))
SEARCHED = Audited(ALL, DETECTORS, TARGET)


def seen_over_training(context: Context, checkpoints: list[Checkpoint]) -> Checkpoints:
    """What results say of checkpoints, with a control that never saw the image."""
    over_training(context, checkpoints, SEARCHED, replace(SEARCHED, model=OTHERS))
    found = tprime.checkpoints(Stored.of(context.run), DETECTORS.values)
    assert found is not None
    return found


def work_in(folder: Path, **search_settings: Any) -> Context:
    over: dict[str, Any] = {
        "sampler": {"steps": 12},
        "search": {"levels": 5, "tries": 12} | search_settings,
    }
    config = resolve(over, preset="demo")
    run = Run.open(folder, plain(config))
    run.begin("model")
    run.finish("model", {"weights_sha256": "c" * 64})
    return Context(config, run, Where(batch=64))


@pytest.fixture
def context(tmp_path: Path) -> Iterator[Context]:
    made = work_in(tmp_path / "run")
    with made.run:
        yield made


def at(step: int, sha: str, model: Memorised) -> Checkpoint:
    return Checkpoint(step, sha * 64, lambda: (model, IdentityCodec()))


def test_a_model_that_learns_the_image_between_two_checkpoints(context: Context):
    checkpoints = [at(10, "a", OTHERS), at(20, "b", ALL), at(30, "c", ALL)]
    final = search(context, SEARCH, SEARCHED)
    found = seen_over_training(context, checkpoints)
    assert found.onset == 20 and found.against == "control"
    early, late, last = found.steps
    assert early.hits == (0,) * 5 and early.value is None and early.p_value == 1.0
    # P(return | t) of the exact denoiser is the mean weight of x_p.
    for t, k in zip(found.grid, late.hits, strict=True):
        p = ALL.return_probability(0, t, Streams(9), 4000).value
        low, high = Trials(k, 12).interval(0.999)
        assert low - 0.02 <= p <= high + 0.02
    assert late.p_value == pytest.approx(2.0 ** -sum(late.hits))
    # The finished model is not searched again: its rows are the search's own.
    assert last.hits == tuple(one.k for one in final.trials) == late.hits
    assert (
        not context.run.rows("search.step-0000030")
        and len(context.run.rows("search.step-0000020")["id"]) == 60
    )
    # Noise is the same at every checkpoint, so an unchanged model gives the very same errors.
    assert last.closest == late.closest and late.closest.t >= 0.5
    assert late.closest.mse < 1e-3 < early.closest.mse


def test_another_method_for_the_model_leaves_its_rows_alone(tmp_path: Path):
    """Checkpoints are searched exhaustively, beside a bisection that asked fewer tries."""
    context = work_in(tmp_path / "run", method="bisection", levels=16, anchors=2)
    with context.run:
        final = search(context, SEARCH, SEARCHED)
        before = len(context.run.rows("search.model")["id"])
        found = seen_over_training(context, [at(30, "c", ALL)])
        assert len(found.steps[0].hits) == 16
        assert len(context.run.rows("search.model")["id"]) == before < 16 * 12
        asked = [one for one in final.trials if one.n]
        assert final.method == "bisection" and len(final.plan.grid) == 16
        assert sum(one.n for one in asked) == before and len(asked) < 16


def test_a_try_from_little_noise_is_not_the_closest():
    errors = np.arange(20, dtype=np.float32) / 100  # rising with t: the smallest at t = 0.25
    near = {**rows([0] * 4), "mse": errors, "mae": errors + 1}
    assert tprime.closest(near, 0.5).plain() == pytest.approx({"t": 0.5, "mse": 0.05, "mae": 1.05})
    assert tprime.closest(near, 1.5) is None


def test_weights_are_kept_evenly_and_where_training_shows_itself():
    assert snapshots_due(900, 3) == (300, 600)
    assert snapshots_due(95, 4) == (30, 50, 80)  # rounded up to tens; the last is the model itself
    assert snapshots_due(24, 1) == snapshots_due(24, 0) == ()
    for steps in range(20, 400, 7):
        for keep in range(2, steps // 10 + 1):
            due = snapshots_due(steps, keep)
            assert len(set(due)) == keep - 1 and all(s % 10 == 0 and 0 < s < steps for s in due)


def test_settings_and_calls_that_cannot_be_meant_are_refused():
    with pytest.raises(InputError, match="90 checkpoints at most, got 91"):
        resolve({"checkpoints": {"keep": 91}}, preset="demo")
    with pytest.raises(InputError, match="keep = -1"):
        resolve({"checkpoints": {"keep": -1}}, preset="demo")
    plain, keeps = resolve(preset="demo"), resolve({"checkpoints": {"keep": 3}}, preset="demo")
    with pytest.raises(InputError, match="without the model"):
        require_checkpoints(plain, "somewhere", trains=True, processes=1)
    with pytest.raises(InputError, match="training that is over"):
        require_checkpoints(keeps, None, trains=False, processes=1)
    with pytest.raises(InputError, match="one process"):
        require_checkpoints(keeps, None, trains=True, processes=2)
    require_checkpoints(keeps, None, trains=True, processes=1)
    require_checkpoints(plain, "somewhere", trains=False, processes=1)


def test_schedules_that_name_other_noise_are_told_apart():
    assert alike(SubVP(), SubVP())
    assert not alike(SubVP(), VP()) and not alike(VP(), VE()) and not alike(VE(), VE(0.01, 25))


# The method of the search as a setting


def falling(t: np.ndarray) -> np.ndarray:
    return (t <= 0.6).astype(float)


def rising(t: np.ndarray) -> np.ndarray:
    return ((t <= 0.2) | (t > 0.7)).astype(float)


def settings(method: str, **more: Any) -> SearchSettings:
    return resolve({"search": {"levels": 20, "tries": 16, "method": method} | more}, preset="demo").search


def test_every_method_finds_the_edge_of_a_falling_curve():
    for method, tries in (("exhaustive", 320), ("bisection", 112), ("sequential", 320)):
        one = settings(method)
        found = one.search(Coin(falling), one.plan(1.0), 0)
        assert found.method == method and found.value == pytest.approx(0.6)
        assert sum(seen.n for seen in found.trials) <= tries
        assert found.network_evaluations == sum(seen.n for seen in found.trials)


def test_a_bisection_says_when_the_curve_does_not_fall():
    one = settings("bisection")
    found = one.search(Coin(rising), one.plan(1.0), 0)
    assert found.falling.rises is not None and "rises between" in found.sentence
    assert "rises" not in one.search(Coin(falling), one.plan(1.0), 0).sentence


def test_a_subsample_is_drawn_by_the_seed_and_a_range_lies_in_its_shares_of_the_horizon():
    one = settings("subsample", draw=6)

    def asked(seed: int) -> list[int]:
        found = one.search(Coin(falling), one.plan(1.0), seed)
        return [i for i, seen in enumerate(found.trials) if seen.n]

    assert len(asked(0)) == 6 and asked(0) == asked(0) != asked(1)
    assert settings("subsample").drawn == 10
    part = settings("range", low=0.25, high=0.5)
    found = part.search(Coin(lambda t: falling(t / 2)), part.plan(2.0), 0)
    inside = [t for t, seen in zip(found.plan.grid, found.trials, strict=True) if seen.n]
    assert (inside[0], inside[-1], len(inside)) == (pytest.approx(0.5), pytest.approx(1.0), 6)
    assert "may lie above" in found.sentence


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"levels": 0}, "search.levels = 0"),
        ({"tries": 0}, "search.tries = 0"),
        ({"method": "bisection", "anchors": 1}, "anchors must be 2"),
        ({"method": "subsample", "draw": 21}, "draw must lie between 1 and the 20"),
        ({"method": "range", "low": 0.51, "high": 0.54}, "none of the 20 noise levels"),
        ({"method": "sequential", "slack": 25.0}, "slack must be above 1"),
        ({"method": "sequential", "cap": 0}, "search.cap = 0"),
        ({"method": "magic"}, "search.method"),
    ],
)
def test_a_search_that_cannot_be_is_refused_with_its_setting(wrong: dict[str, Any], said: str):
    with pytest.raises(InputError, match=said):
        resolve({"search": {"levels": 20} | wrong}, preset="demo")


def test_a_detector_too_uncertain_for_the_sequential_search_is_refused_before_any_training():
    settings("exhaustive").require(Trials(0, 5))
    settings("sequential").require(Trials(0, 500))
    with pytest.raises(InputError, match=r"sequential search cannot be used: .* calibrate on more images"):
        settings("sequential").require(Trials(0, 5))


def test_a_run_whose_kept_weights_are_gone_says_so(tmp_path: Path):
    run = Run.open(tmp_path / "run", {"test": 1})
    context = Context(resolve({"checkpoints": {"keep": 2}}, preset="demo"), run)
    with run, pytest.raises(RunError, match="after step 450 are missing"):
        own_checkpoints(context)
