"""Units on other processes: the same rows as one process gives, also when a worker is killed."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from latentprint.cli import app
from latentprint.contracts import InputError, Map, Outcome
from latentprint.execute import MemorySink, run_probe
from latentprint.spread import SpreadError, executor

IDS = np.arange(60, dtype=np.int64)
T = np.linspace(0.1, 1.0, 60)


def coin() -> Any:
    """A probe whose outcome is a function of (t, id); made here so that it travels by value."""

    class Odd:
        def __call__(self, t: Any, ids: Any) -> Outcome:
            return Outcome(
                hit=(ids * 7919) % 13 < 13 * (1 - t), evaluations=ids % 5, columns={"root": np.sqrt(t + ids)}
            )

    return Odd()


@pytest.fixture(scope="module")
def over_ray() -> Iterator[Map]:
    pytest.importorskip("ray", reason="the extra ray is not installed")
    with executor("ray", workers=2) as over:
        yield over


def test_local_is_the_built_in_map() -> None:
    with executor("local") as over:
        assert over is map


def test_an_unknown_executor_is_refused() -> None:
    with (
        pytest.raises(SpreadError, match="'dask' is not an executor; there are local, ray"),
        executor("dask"),
    ):
        pass


def test_ray_that_is_not_installed_is_said_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    answer = CliRunner().invoke(
        app, ["audit", "digits", "--preset", "demo", "--executor", "ray", "--out", str(tmp_path / "run")]
    )
    assert answer.exit_code == 2
    assert "pip install 'latentprint[ray]'" in answer.stderr
    assert not (tmp_path / "run").exists()


def test_rows_over_ray_are_those_of_one_process(over_ray: Map) -> None:
    here = run_probe(coin(), T, IDS, unit=7)
    kept = MemorySink()
    spread = run_probe(coin(), T, IDS, unit=7, sink=kept, map=over_ray)
    for name in ("hit", "evaluations"):
        assert np.array_equal(getattr(spread, name), getattr(here, name))
    assert np.array_equal(spread.columns["root"], here.columns["root"])
    # What a stored run lacks is all that is asked again.
    asked: list[int] = []

    def counting(function: Callable[[Any], Any], units: Any, /) -> Iterator[Any]:
        for unit in units:
            asked.append(len(unit[1]))
            yield function(unit)

    more = np.arange(70, dtype=np.int64)
    run_probe(coin(), np.append(T, np.full(10, 0.5)), more, unit=7, sink=kept, map=counting)
    assert sum(asked) == 10


def test_a_killed_worker_costs_its_unit_and_no_other(over_ray: Map, tmp_path: Path) -> None:
    marks = str(tmp_path)

    def unit(number: int) -> int:
        with open(os.path.join(marks, f"{number}.{os.getpid()}.{os.urandom(4).hex()}"), "w"):
            pass
        killed = os.path.join(marks, "killed")
        if number == 5 and not os.path.exists(killed):
            with open(killed, "w"):
                pass
            os.kill(os.getpid(), signal.SIGKILL)
        return number * number

    found = sorted(over_ray(unit, range(12)))
    assert found == [n * n for n in range(12)]
    assert (tmp_path / "killed").exists()
    begun = {n: len(list(tmp_path.glob(f"{n}.*"))) for n in range(12)}
    assert begun == {n: 2 if n == 5 else 1 for n in range(12)}


def test_bad_input_in_a_worker_is_said_in_its_own_words(over_ray: Map) -> None:
    def refuse(number: int) -> int:
        if number == 2:
            raise InputError(f"unit {number} cannot be done")
        return number

    with pytest.raises(InputError, match=r"^unit 2 cannot be done$"):
        list(over_ray(refuse, range(4)))


def test_an_audit_over_ray_is_the_audit_of_one_process(over_ray: Map, tmp_path: Path) -> None:
    from latentprint import Where, resolve, run_audit

    settings = resolve(
        {
            "control": False,
            "data": {"images": 20},
            "model": {"training": {"steps": 10, "batch": 8}},
            "presence": {"epochs": 2, "draws": 128},
            "identity": {"epochs": 2, "draws": 128},
            "sampler": {"steps": 3},
            "search": {"levels": 3, "tries": 2},
            "baseline": {"images": 0},
            "samples": {"count": 600},
            "likelihood": {"images": 0},
        },
        preset="demo",
    )
    run_audit(settings, tmp_path / "here")
    run_audit(settings, tmp_path / "there", where=Where(map=over_ray))
    here, there = ((tmp_path / name / "results.json").read_bytes() for name in ("here", "there"))
    assert here == there


ROWS = """
title = "Two rows"
kind = "audits"
shows = "nothing."
[mini]
preset = "demo"
[mini.settings]
control = false
model.training = { steps = 10, batch = 8 }
presence = { epochs = 2, draws = 128 }
identity = { epochs = 2, draws = 128 }
sampler.steps = 3
search = { levels = 2, tries = 2 }
baseline.images = 0
samples.count = 8
likelihood.images = 0
[[mini.rows]]
name = "a"
settings = { data = { images = 20 } }
[[mini.rows]]
name = "b"
settings = { data = { images = 21 } }
"""


def test_rows_of_a_table_run_elsewhere_and_are_the_same(
    over_ray: Map, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tools.reproduce import reproduce

    monkeypatch.chdir(tmp_path)  # the runs' folder is named from here, which workers need not know
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "two.toml").write_text(ROWS)
    said: list[tuple[int, int]] = []
    lock = threading.Lock()  # a voice that cannot be sent to another process

    def say(stage: str, done: int, total: int, unit: str) -> None:
        with lock:
            said.append((done, total))

    where: dict[str, Any] = {"experiments": Path("experiments"), "docs": Path("docs")}
    there = reproduce("two", runs=Path("there"), spread="ray", progress=say, **where)
    assert said == [(1, 2), (2, 2)]
    reproduce("two", runs=Path("here"), only=["b"], **where)
    results = Path("two/mini/b/results.json")
    assert (Path("here") / results).read_bytes() == (Path("there") / results).read_bytes()
    assert set(there) == {"a", "b"} and there["b"]["data"]["images"] == 21
