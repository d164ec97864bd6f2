"""t' over training through the command: kept along the way, continued after a kill, and found in a folder."""

from __future__ import annotations

import json
import shutil
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from latentprint import Where, resolve, run_audit
from latentprint.cli import answer as answered
from latentprint.cli import app
from latentprint.detector import backbone
from latentprint.files import parse_toml
from latentprint.networks import load_model
from latentprint.results.read import read_results
from latentprint.store import Run
from latentprint.verify import verify

TINY = """
[data]
images = 24
[model.training]
steps = 40
batch = 16
checkpoint_seconds = 0.0
[presence]
epochs = 2
draws = 128
[identity]
epochs = 2
draws = 128
[sampler]
steps = 3
[search]
levels = 4
tries = 3
anchors = 2
[samples]
count = 20
[likelihood]
images = 0
[baseline]
images = 0
"""


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("settings") / "tiny.toml"
    file.write_text(TINY)
    return file


def command(settings: Path, out: Path, *more: object) -> list[str]:
    every = ["audit", "digits", "--preset", "demo", "--config", settings, "--out", out, *more]
    return [str(one) for one in every]


def refused(*arguments: object) -> str:
    """The one sentence that a command is refused with, after whatever progress it made."""
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = answered([str(one) for one in arguments])
    assert code == 2, err.getvalue()
    assert "Traceback" not in err.getvalue() and out.getvalue() == ""
    said = [line for line in err.getvalue().splitlines() if line.startswith("latentprint: ")]
    assert len(said) == 1 and err.getvalue().rstrip().endswith(said[0])
    return said[0]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory, settings: Path) -> tuple[Path, dict[str, Any]]:
    """An audit that bisects and keeps two checkpoints."""
    out = tmp_path_factory.mktemp("kept") / "run"
    more = ("--checkpoints", 2, "--search", "bisection", "--json")
    answer = CliRunner().invoke(app, command(settings, out, *more))
    assert answer.exit_code == 0, answer.output
    return out, json.loads(answer.stdout)


def test_each_checkpoint_is_counted_from_its_own_rows(kept: tuple[Path, dict[str, Any]]) -> None:
    out, results = kept
    assert read_results(out).plain() == results
    found, run = results["checkpoints"], Run.read(out)
    assert [one["step"] for one in found["steps"]] == [20, 40]
    assert found["grid"] == [0.25, 0.5, 0.75, 1.0] and found["against"] == "control"
    for one in found["steps"]:
        rows = run.rows(f"search.step-{one['step']:07d}")
        counted = [int(np.count_nonzero(rows["hit"][rows["t"] == t])) for t in found["grid"]]
        assert one["hits"] == counted and len(rows["id"]) == 12
        high = rows["t"] >= 0.5
        assert one["closest"]["mse"] == pytest.approx(float(rows["mse"][high].min()))
        assert one["network_evaluations"] == rows["evaluations"].sum()
    assert results["t_prime"]["method"] == "bisection" and results["t_prime"]["levels"] == 4
    assert sum(results["t_prime"]["trials"]) == len(run.rows("search.model")["id"])
    assert verify(out).exit_code == 0


def test_the_weights_kept_are_those_of_their_steps(kept: tuple[Path, dict[str, Any]]) -> None:
    out, results = kept
    first, last = results["checkpoints"]["steps"]
    record = json.loads((out / "run.json").read_text())
    assert last["weights_sha256"] == record["stages"]["model"]["payload"]["weights_sha256"]
    assert first["weights_sha256"] != last["weights_sha256"]
    load_model(out / "snapshots" / "step-0000020")
    page = (out / "report.html").read_text()
    assert "When the model began to remember it" in page and "growth-chart" in page
    assert "Search: by halving the range" in page and str(out) not in page


def test_a_kill_between_a_checkpoint_and_the_weights_kept_there_changes_nothing(
    kept: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    out, results = kept
    more = {"checkpoints": {"keep": 2}, "search": {"method": "bisection"}}
    config = resolve(parse_toml(TINY, "tiny"), more, preset="demo")

    def dies(stage: str, done: int, total: int, unit: str) -> None:
        # The training has written its own checkpoint of step 20; the weights to be kept come after this call.
        if stage == "training model" and done == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_audit(config, tmp_path / "run", where=Where(say=dies))
    assert not (tmp_path / "run" / "snapshots").exists()
    again = run_audit(config, tmp_path / "run")
    assert again.plain()["checkpoints"] == results["checkpoints"]
    assert (tmp_path / "run" / "results.json").read_bytes() == (out / "results.json").read_bytes()


def test_the_checkpoints_that_a_given_model_left(
    kept: tuple[Path, dict[str, Any]], settings: Path, tmp_path: Path
) -> None:
    source, _ = kept
    left = tmp_path / "left"
    shutil.copytree(source / "snapshots" / "step-0000020", left / "step-20")
    shutil.copytree(source / "model", left / "step-40")
    (left / "logs").mkdir()  # what is no model is passed over
    arguments = command(settings, tmp_path / "run", "--model", source / "model", "--target", 3)
    answer = CliRunner().invoke(app, [*arguments, "--checkpoints", str(left), "--json"])
    assert answer.exit_code == 0, answer.output
    results = json.loads(answer.stdout)
    found = results["checkpoints"]
    assert [one["step"] for one in found["steps"]] == [20, 40] and found["against"] == "first checkpoint"
    assert found["steps"][0]["p_value"] is None and found["steps"][1]["p_value"] is not None
    # The last is the given model: searched once, by the search of the audit itself.
    assert found["steps"][1]["hits"] == results["t_prime"]["hits"]
    assert not Run.read(tmp_path / "run").rows("search.step-0000040")
    # A run is continued with the same checkpoints alone; a pattern names them as well as a folder does.
    said = refused(*arguments, "--checkpoints", str(left / "step-4*"))
    assert "checkpoints" in said
    shutil.copytree(source / "control", left / "final")
    assert "'final' has no number" in refused(*arguments, "--checkpoints", str(left))


def test_checkpoints_that_cannot_be_looked_at_are_one_sentence(
    kept: tuple[Path, dict[str, Any]], settings: Path, tmp_path: Path
) -> None:
    source, _ = kept
    given = command(settings, tmp_path / "run", "--model", source / "model")
    (tmp_path / "empty").mkdir()
    for where in (tmp_path / "empty", tmp_path / "missing", tmp_path / "none-*"):
        assert "names no checkpoint" in refused(*given, "--checkpoints", where)
    both = tmp_path / "both"
    for name in ("a-1", "b-1"):
        shutil.copytree(source / "model", both / name)
    assert "two checkpoints are of step 1" in refused(*given, "--checkpoints", both)
    other = tmp_path / "other"
    shutil.copytree(source / "model", other / "step-1")
    about = other / "step-1" / "latentprint.json"
    about.write_text(about.read_text().replace('"subvp"', '"vp"').replace('"SubVP"', '"VP"'))
    assert "other noise" in refused(*given, "--checkpoints", other)
    own = command(settings, tmp_path / "run")
    assert "without the model" in refused(*own, "--checkpoints", both)
    assert "how many to keep" in refused("check", *own[1:], "--checkpoints", -3)
    assert "at most, got 5" in refused(*own, "--checkpoints", 5)
    assert "training that is over" in refused(*given, "--checkpoints", 2)
    assert not (tmp_path / "run").exists()


# Searches and detectors that cannot answer


def test_a_search_without_a_question_is_one_sentence(settings: Path, tmp_path: Path) -> None:
    own = command(settings, tmp_path / "run")
    assert "--tries" in refused(*own, "--tries", 0)
    assert "--search" in refused(*own, "--search", "magic")
    for text, said in (
        ("[search]\nlevels = 0", "levels = 0"),
        ("[model.network]\nchannels = [8192, 8192]\nnorm_groups = 8", "GiB of memory for its"),
        ("[baseline]\nlevels = 0", "levels = 0"),
        ("[profile]\ntries = 0", "profile.tries = 0"),
        ("[search]\nmethod = 'range'\nlow = 0.9\nhigh = 0.1", "lies in"),
    ):
        file = tmp_path / "wrong.toml"
        file.write_text(text)
        assert said in refused("audit", "digits", "--config", file, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_target_outside_the_set_is_one_sentence(
    kept: tuple[Path, dict[str, Any]], settings: Path, tmp_path: Path
) -> None:
    source, _ = kept
    for index in (24, -1):
        said = refused(*command(settings, tmp_path / "run", "--model", source / "model", "--target", index))
        assert "24" in said
    assert "targets are" in refused(*command(settings, tmp_path / "run", "--targets", "some"))
    assert not (tmp_path / "run").exists()


def test_targets_of_a_profile_outside_the_set_are_one_sentence_before_any_training(
    settings: Path, tmp_path: Path
) -> None:
    for text in ("3,99", "25", "4,4"):
        said = refused(*command(settings, tmp_path / "run", "--targets", text))
        assert ("got 4 twice" if text == "4,4" else "24") in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("answer", ["always", "never"])
def test_a_detector_that_always_or_never_fires_is_one_sentence_before_any_training(
    settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    """On its calibration split all logits are alike: no threshold does better than always or never."""
    logit = 5.0 if answer == "always" else -5.0
    monkeypatch.setattr(
        backbone.Classifier,
        "ending",
        lambda self, seen: self.head(seen).squeeze(1) * 0 + torch.tensor(logit),
    )
    said = refused(*command(settings, tmp_path / "run"))
    assert "learnt nothing" in said and "always or never firing" in said
    assert not (tmp_path / "run" / "checkpoints").exists()
