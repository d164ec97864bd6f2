"""Benchmarks say what they compare, and what they measured carries command, commit, device and time."""

from __future__ import annotations

import ast
import json
import os
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[1] / "benchmarks"
PARTS = {"record", "ground", "darboux", "bridge", "paths"}  # what benchmarks share or run on
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in PARTS)


@pytest.mark.parametrize("name", NAMES)
def test_it_opens_with_what_it_compares_and_ends_with_a_record(name: str) -> None:
    tree = ast.parse((FOLDER / f"{name}.py").read_text(encoding="utf-8"))
    said = ast.get_docstring(tree) or ""
    assert f"python benchmarks/{name}.py" in said
    assert any(word in said.lower() for word in ("compare", "beside", "against")), (
        "what is compared, and why?"
    )
    calls = [
        node.func.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    ]
    assert "record" in calls
    options = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    assert "--quick" in options
    assert "add_output" in calls or {"--json", "--out"} <= options


def test_a_result_is_told_as_json_as_a_table_and_into_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    streams = import_module("streams")
    monkeypatch.setattr(streams, "compare", lambda *_: {"ratio": 2.5, "shape": {"rows": [1, 2]}})
    monkeypatch.setattr(sys, "argv", ["streams.py", "--quick", "--json", "--out", str(tmp_path / "out.json")])
    streams.main()
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert told["ratio"] == 2.5
    assert told["command"] == f"python benchmarks/streams.py --quick --json --out {tmp_path / 'out.json'}"
    assert told["commit"]
    assert told["device"].startswith("cpu, ")
    assert told["time"].endswith("Z")
    monkeypatch.setattr(sys, "argv", ["streams.py", "--quick"])
    streams.main()
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["ratio"] == "2.5"
    assert lines["shape.rows"] == "[1, 2]"


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_every_part_of_the_processors_benchmark_runs(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    cpu = import_module("cpu")
    assert cpu.answers(precision, 2)().shape == (2,)
    cpu.walk(precision, 1, 1, False)()
    images, weights = cpu.convolution(precision, 2)()
    assert images.shape == (2, 64, 28, 28) and weights.shape == (64, 64, 3, 3)
    cpu.walk(precision, 1, 1, True)()


def test_a_ratio_of_the_processors_benchmark_is_that_of_what_is_chosen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    cpu = import_module("cpu")
    fast = cpu.ratios({"train": 1.6, "sample": 2.0, "search": 1.9, "detectors": 3.0})
    assert [fast[f"{part}_ratio"] for part in cpu.TUNED] == [1.6, 2.0, 1.9]
    assert set(fast["chosen"].values()) == {"bfloat16"}
    slow = cpu.ratios({"train": 0.4, "sample": 1.09, "search": 5.0, "detectors": 0.7})
    assert [slow[f"{part}_ratio"] for part in cpu.TUNED] == [1.0, 1.0, 1.0]
    assert set(slow["chosen"].values()) == {"float32"}


def test_variants_of_the_processors_benchmark_stand_beside_what_is_chosen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A layout changes no number beyond rounding; what is said is how many times faster it is."""
    monkeypatch.syspath_prepend(FOLDER)
    cpu = import_module("cpu")
    ticks = iter(range(10**6))
    # The compiler is asked for once, and here it hands the network back.
    asked: list[bool] = []
    monkeypatch.setattr(torch, "compile", lambda network, **_: asked.append(True) or network)
    precisions: list[str] = []
    for part in ("step_of", "pass_of"):
        monkeypatch.setattr(cpu, part, _noting(getattr(cpu, part), precisions))
    found = cpu.variants(True, lambda: float(next(ticks)), {"train": "bfloat16", "sample": "float32"})
    assert precisions == ["bfloat16", "float32"] * 3
    assert found == {name: {"train": 1.0, "pass": 1.0} for name in ("channels_last", "compile")}
    assert asked


def _noting(part: Callable[..., object], precisions: list[str]) -> Callable[..., object]:
    def asked(config: object, shape: object, precision: str, rows: int) -> object:
        precisions.append(precision)
        return part(config, shape, precision, rows)

    return asked


def test_the_processors_benchmark_trains_in_one_process_and_in_several_by_turns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The start, the same 5 seconds for all here, is not in a rate."""
    monkeypatch.syspath_prepend(FOLDER)
    cpu = import_module("cpu")
    now, turns = [0.0], list[tuple[int, str]]()
    rate = {1: 2.0, 2: 3.0}

    def launch(job: Path, processes: int, device: torch.device) -> None:
        steps = json.loads((job / "job.json").read_text(encoding="utf-8"))["training"]["steps"]
        turns.append((processes, os.environ["OMP_NUM_THREADS"]))
        now[0] += 5 + steps / rate[processes]

    monkeypatch.setattr(cpu, "launch", launch)
    monkeypatch.setattr(cpu.time, "perf_counter", lambda: now[0])
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert cpu.divided(False, 2, "float32") == {"1 x 2": pytest.approx(2.0), "2 x 1": pytest.approx(3.0)}
    assert turns == [(1, "2"), (1, "2"), (2, "1"), (2, "1")] * 3
    assert os.environ["OMP_NUM_THREADS"] == "7"
