"""The rule of the verdict on audits whose truth is known; benchmarks/verdict.py has more of them."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

from latentprint.stats import Trials

FOLDER = Path(__file__).parents[1] / "benchmarks"
WORLDS, SAMPLES = 4, 300


def test_models_that_repeat_are_called_and_clean_ones_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Digits, N and m from tens to a thousand: eight models in each world, with and without a control."""
    monkeypatch.syspath_prepend(FOLDER)
    benchmark = import_module("verdict")
    repeating, clean, told = list[bool](), list[bool](), list[str]()
    for number, world in enumerate(benchmark.worlds(WORLDS, ["digits"], None, SAMPLES)):
        for name, control, found in benchmark.audits(world, 1000 * number):
            called = found.state == "reproduces"
            (clean if name in benchmark.CLEAN else repeating).append(called)
            told.append(f"{number} {name} {control}: {found.state}")
    assert (len(repeating), len(clean)) == (WORLDS * 6, WORLDS * 10)
    assert sum(repeating) >= 0.9 * len(repeating), told
    # At most 5 % in truth: what is seen does not speak against it.
    assert Trials(sum(clean), len(clean)).lower(0.99) <= 0.05, told
