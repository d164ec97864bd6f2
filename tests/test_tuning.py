"""Arithmetic and threads are chosen by measurement, and what is measured is the audit's own work."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from latentprint.config import resolve
from tools.reproduce import tuning
from tools.reproduce.tuning import Timing, chosen, pass_of, step_of, tune

SHAPE = (1, 8, 8)
CONFIG = resolve({"control": False}, preset="demo")


def timings(half: float, second: float) -> tuple[Timing, ...]:
    """One second an image in float32 on one thread; bfloat16 and the second thread by these factors."""
    return tuple(
        Timing(
            part,
            precision,
            threads,
            (half if precision == "bfloat16" else 1.0) * (second if threads == 2 else 1.0),
        )
        for part in ("training", "sampling")
        for precision in ("float32", "bfloat16")
        for threads in (1, 2)
    )


@pytest.mark.parametrize(
    ("half", "second", "precision", "threads"),
    [
        (0.5, 0.6, "bfloat16", 2),
        (0.5, 1.8, "bfloat16", 1),  # a busy machine: two threads wait for each other
        (3.0, 0.6, "float32", 2),  # no instructions for bfloat16
        (0.95, 0.95, "float32", 1),  # a gain below a tenth is none
    ],
)
def test_what_measures_faster_is_chosen(half: float, second: float, precision: str, threads: int) -> None:
    tuned = chosen(CONFIG, timings(half, second))
    assert tuned.threads == threads
    assert tuned.config.model.training.precision == tuned.config.speed.sampling.precision == precision
    # Nothing else changes: the same audit, rounded otherwise.
    training = replace(tuned.config.model.training, precision="float32")
    sampling = replace(tuned.config.speed.sampling, precision="float32")
    back = replace(tuned.config, model=replace(tuned.config.model, training=training))
    assert replace(back, speed=replace(back.speed, sampling=sampling)) == CONFIG


def test_threads_are_weighed_by_the_work_of_the_recipe() -> None:
    """Two threads halve training and double sampling: how much there is of each decides."""
    mixed = tuple(
        replace(
            one, seconds=one.seconds * (1.0 if one.threads == 1 else 0.5 if one.part == "training" else 2.0)
        )
        for one in timings(1.0, 1.0)
    )
    few = replace(CONFIG, samples=replace(CONFIG.samples, count=1))
    many = replace(CONFIG, samples=replace(CONFIG.samples, count=10**6))
    assert (chosen(few, mixed).threads, chosen(many, mixed).threads) == (2, 1)


def test_a_measurement_times_every_candidate_and_leaves_torch_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tuning.os, "cpu_count", lambda: 2)
    before = torch.get_num_threads()
    tuned = tune(CONFIG, SHAPE, seconds=0.0)
    assert torch.get_num_threads() == before
    assert {(one.part, one.precision, one.threads) for one in tuned.timings} == {
        (part, precision, threads)
        for part in ("training", "sampling")
        for precision in ("float32", "bfloat16")
        for threads in (1, 2)
    }
    assert all(one.seconds > 0 for one in tuned.timings)


def test_what_is_measured_is_a_training_step_and_an_evaluation() -> None:
    step_of(CONFIG, SHAPE, "bfloat16", 4)()
    fine, coarse = (pass_of(CONFIG, SHAPE, one, 4)() for one in ("float32", "bfloat16"))
    assert isinstance(fine, torch.Tensor) and isinstance(coarse, torch.Tensor)
    assert fine.shape == coarse.shape == (4, *SHAPE) and fine.dtype == coarse.dtype == torch.float32
    difference = float((fine - coarse).abs().max() / fine.abs().max())
    assert 0 < difference < 3e-2  # docs/precision.md: one network call in bfloat16
