"""What the benchmarks share: the record beside every measured number, and how a result is told."""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

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


def add_output(parser: argparse.ArgumentParser) -> None:
    """``--json`` and ``--out FILE``, which ``tell`` reads."""
    parser.add_argument("--json", action="store_true", help="one object on stdout, nothing else")
    parser.add_argument("--out", type=Path, help="write the object here too")


def _flat(result: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(name, value) of all that is in ``result``, also in the mappings and lists of mappings inside."""
    for name, value in result.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list) and value and all(isinstance(one, Mapping) for one in value):
            for i, one in enumerate(value):
                yield from _flat(one, f"{prefix}{name}[{i}].")
        else:
            yield prefix + name, value


def rows_of(result: Mapping[str, Any]) -> str:
    """A table of two columns, name and value."""
    rows = list(_flat(result))
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join(
        f"{name:{width}}  {value:.6g}" if isinstance(value, float) else f"{name:{width}}  {value}"
        for name, value in rows
    )


def tell(
    result: Mapping[str, Any],
    arguments: argparse.Namespace,
    table: Callable[[Mapping[str, Any]], str] = rows_of,
) -> None:
    """Print ``result`` as one JSON object or as a table, and write the object to ``--out``."""
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result) if arguments.json else table(result))
