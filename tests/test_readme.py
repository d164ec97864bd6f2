"""What the README shows is run, small; the commands it names exist."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from latentprint import config
from latentprint.cli import app
from latentprint.settings import merge

README = Path(__file__).parents[1] / "README.md"

TINY: dict[str, Any] = {
    "model": {"training": {"steps": 20, "batch": 16}},
    "presence": {"epochs": 3, "draws": 256},
    "identity": {"epochs": 3, "draws": 256},
    "sampler": {"steps": 3},
    "search": {"levels": 2, "tries": 2},
    "samples": {"count": 20},
    "likelihood": {"images": 0},
    "baseline": {"images": 0},
}


def test_the_ten_lines_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 2
    assert all(len(block.strip().splitlines()) <= 12 for block in blocks)
    whole = config.read_preset
    monkeypatch.setattr(config, "read_preset", lambda name: merge(whole(name), TINY))
    monkeypatch.chdir(tmp_path)
    exec(compile(blocks[0], str(README), "exec"), {})
    said = capsys.readouterr().out
    assert said.splitlines()[0] in ("reproduces", "not found", "inconclusive")
    assert "t' = " in said
    assert (tmp_path / "runs" / "digits" / "report.html").exists()


def test_a_network_of_ones_own_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "class Network(torch.nn.Module):\n"
        "    def forward(self, x, k):\n"
        "        return 0.5 * x + 0 * k[:, None, None, None]\n"
        "network = Network()\n"
    )
    whole = config.read_preset
    monkeypatch.setattr(config, "read_preset", lambda name: merge(whole(name), TINY))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    exec(compile(blocks[1], str(README), "exec"), {})
    assert capsys.readouterr().out.strip() in ("reproduces", "not found", "inconclusive")
    settings = json.loads((tmp_path / "runs" / "mine" / "run.json").read_text())["settings"]
    assert settings["given"]["kind"] == "python" and settings["given"]["target"] == 17


def test_the_commands_it_names_exist() -> None:
    named = set(re.findall(r"^    latentprint ([a-z]+)", README.read_text(encoding="utf-8"), re.MULTILINE))
    known = {command.callback.__name__ for command in app.registered_commands if command.callback}
    assert named
    assert named <= known


def test_its_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", README.read_text(encoding="utf-8")):
        assert (README.parent / target).exists(), target
