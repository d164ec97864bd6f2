"""The guard of conftest.py must itself be able to fail."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SUSPECTS = """
import numpy as np, torch

def test_clean(): torch.randn(3, generator=torch.Generator()); np.random.default_rng(0).normal()
def test_torch_draw(): torch.randn(1)
def test_numpy_draw(): np.random.rand()
def test_dtype(): torch.set_default_dtype(torch.float64)
def test_grad(): torch.set_grad_enabled(False)
def test_clean_after(): assert torch.is_grad_enabled() and torch.get_default_dtype() == torch.float32
"""


def test_whatever_moves_global_state_fails_alone(tmp_path):
    (tmp_path / "conftest.py").write_text(Path(__file__).with_name("conftest.py").read_text())
    (tmp_path / "test_suspects.py").write_text(SUSPECTS)
    command = [sys.executable, "-m", "pytest", "-q", "-rE", "-p", "no:cacheprovider", str(tmp_path)]
    out = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path).stdout
    accused = {line.split("::")[1].split(" ")[0] for line in out.splitlines() if line.startswith("ERROR ")}
    assert accused == {"test_torch_draw", "test_numpy_draw", "test_dtype", "test_grad"}
    assert "moved torch's default generator" in out
