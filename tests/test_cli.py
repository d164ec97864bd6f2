"""The command line: bad input is one sentence and exit 2; stdout holds results and nothing else."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import small_runs
from PIL import Image
from typer.testing import CliRunner

from latentprint.cli import answer, app

TINY = """
[data]
images = 24
[model.training]
steps = 20
batch = 16
[presence]
epochs = 2
draws = 128
[identity]
epochs = 2
draws = 128
[sampler]
steps = 3
[search]
levels = 2
tries = 2
[samples]
count = 20
[likelihood]
images = 0
[baseline]
images = 0
"""


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    file = tmp_path / "tiny.toml"
    file.write_text(TINY)
    return file


def refused(*arguments: object) -> str:
    """The one sentence that a command is refused with."""
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = answer([str(one) for one in arguments])
    assert code == 2, err.getvalue()
    assert out.getvalue() == ""
    lines = err.getvalue().strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("latentprint: ")
    return lines[0]


def test_a_negative_seed_is_refused() -> None:
    for command in (["calibrate", "--quick"], ["audit", "digits"]):
        asked = [sys.executable, "-m", "latentprint", *command, "--seed", "-1"]
        done = subprocess.run(asked, capture_output=True, text=True)
        assert done.returncode == 2 and done.stdout == ""
        (said,) = done.stderr.splitlines()
        assert said.startswith("latentprint: ") and "seed" in said and "-1" in said


def broken_folder(folder: Path) -> Path:
    folder.mkdir()
    for name in ("a", "b", "c"):
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / f"{name}.png")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and nothing more")
    return folder


def mixed_folder(folder: Path) -> Path:
    folder.mkdir()
    for name in ("a.png", "c.png", "d.png", "e.png"):
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / name)
    Image.fromarray(np.zeros((9, 8), np.uint8)).save(folder / "b.png")
    return folder


def archive(path: Path, images: np.ndarray) -> Path:
    np.savez(path, images=images)
    return path


def test_bad_data_is_one_sentence_and_exit_2(tmp_path: Path) -> None:
    out = tmp_path / "run"
    (tmp_path / "empty").mkdir()
    noise = np.random.default_rng(0).uniform(-1, 1, (30, 8, 8)).astype(np.float32)
    nan = noise.copy()
    nan[3, 2, 2] = np.nan
    cut = archive(tmp_path / "cut.npz", noise)
    cut.write_bytes(cut.read_bytes()[:500])
    (tmp_path / "breastmnist.npz").write_bytes(b"not the official file")
    assert "'no-such-thing'" in refused("audit", "no-such-thing", "--out", out)
    assert "broken.png" in refused("audit", broken_folder(tmp_path / "broken"), "--out", out)
    assert "b.png" in refused("audit", mixed_folder(tmp_path / "mixed"), "--out", out)
    refused("audit", tmp_path / "empty", "--out", out)
    assert "NaN" in refused("audit", archive(tmp_path / "nan.npz", nan), "--out", out)
    refused("audit", cut, "--out", out)
    assert "md5" in refused("audit", "medmnist:breastmnist", "--root", tmp_path, "--out", out)
    refused("audit", "medmnist:../../etc/passwd", "--out", out)
    refused("audit", "digits", "--images", 0, "--out", out)
    refused("audit", "digits", "--images", 1, "--out", out)
    refused("audit", "digits", "--images", 100000, "--out", out)


def test_bad_settings_are_named(tmp_path: Path, tiny: Path) -> None:
    out = tmp_path / "run"
    assert "did you mean search.tries" in refused(
        "audit", "digits", "--config", _file(tmp_path, "[search]\ntrys = 3"), "--out", out
    )
    assert "--tries" in refused("audit", "digits", "--tries", 0, "--out", out)
    assert "larger than the image" in refused(
        "audit", "digits", "--config", _file(tmp_path, "[fingerprint]\nradius = [0.6, 0.7]"), "--out", out
    )
    assert "'tiny' is not a preset" in refused("audit", "digits", "--preset", "tiny", "--out", out)
    assert "cuda:99" in refused("audit", "digits", "--device", "cuda:99", "--out", out, "--config", tiny)
    assert "sampler" in refused("audit", "digits", "--sampler", "magic", "--out", out)
    assert "--processes is for" in refused("audit", "digits", "--model", tmp_path, "--processes", 2)
    assert "seed" in refused("audit", "digits", "--seed", -1, "--out", out)


def _file(folder: Path, text: str) -> Path:
    file = folder / "settings.toml"
    file.write_text(text)
    return file


def test_folders_that_cannot_be_a_run(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    assert "thesis.txt" in refused("audit", "digits", "--out", tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "precious"
    refused("report", tmp_path)
    (tmp_path / "file").write_text("")
    refused("audit", "digits", "--out", tmp_path / "file")


def test_ctrl_c_keeps_what_was_finished_and_says_how_to_continue(tmp_path: Path, tiny: Path) -> None:
    command = [sys.executable, "-m", "latentprint", "audit", "digits", "--preset", "demo"]
    command += ["--config", str(tiny), "--out", str(tmp_path / "run"), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    # Not before a stage reports: an interrupt while torch is still importing may be lost there.
    first = process.stderr.readline()
    assert " of " in first
    os.kill(process.pid, signal.SIGINT)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 130
    assert stdout == ""
    assert "Traceback" not in stderr
    assert f"--out {tmp_path / 'run'}" in stderr
    finished = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    results = json.loads(finished.stdout)
    assert results["schema"] == "latentprint/2"
    assert "training model: " in finished.stderr
    again = CliRunner().invoke(app, ["report", str(tmp_path / "run")])
    assert again.exit_code == 0


def test_without_pytorch_reading_works_and_the_rest_names_the_extra(tmp_path: Path) -> None:
    """As in a light install: every import of the extra ``torch`` fails."""
    shutil.copytree(small_runs.RUNS / "marked", tmp_path / "run")
    small_runs.written(small_runs.run("marked"), tmp_path / "run")
    script = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "diffusers", "sklearn"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
from latentprint.cli import answer
sys.exit(answer(sys.argv[1:]))
"""

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-c", script, *words]
        return subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, timeout=120, check=False)

    for command in ("verify", "report", "card", "dossier"):
        assert run(command, "run").returncode == 0, command
    both = run("card", "run", "--name", "x", "--into", "README.md")
    assert both.returncode == 2 and "--name stands on a whole card" in both.stderr
    for command in (("audit", "digits"), ("demo",), ("calibrate", "--quick"), ("check", "digits")):
        refused = run(*command)
        assert refused.returncode == 2 and "latentprint[torch]" in refused.stderr, command
        assert refused.stderr.count("\n") == 1 and len(refused.stderr) < 400
