"""What stands beside every measured number: command, commit, device, time."""

from __future__ import annotations

import platform
import subprocess
import sys
import time
from pathlib import Path

import torch


def commit() -> str:
    """The checkout this ran in; "unknown" outside of one."""
    asked_git = ["git", "describe", "--always", "--dirty"]
    done = subprocess.run(asked_git, capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
    return done.stdout.strip() or "unknown"


def describe(device: torch.device | str = "cpu") -> str:
    """The device in words, with the threads that a CPU was given."""
    device = torch.device(device)
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    threads = torch.get_num_threads()
    return f"cpu, {threads} thread{'s' * (threads > 1)}, {platform.machine()}, torch {torch.__version__}"


def record(device: torch.device | str = "cpu") -> dict[str, str]:
    """The entries ``command``, ``commit``, ``device`` and ``time`` (UTC, when this is called)."""
    words = [f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]
    return {
        "command": " ".join(["python", *words]),
        "commit": commit(),
        "device": describe(device),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
